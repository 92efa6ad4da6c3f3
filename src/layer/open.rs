//! Spans in flight: a table of the layer's own, keyed by span id, that is read and written without a lock.
//!
//! Only spans that matter have a slot: stages, those that bring a profile or a run id, and those that a stage looked
//! further out from. Keys lie in buckets of eight, one cache line each, and a byte tells how many of a bucket were ever in
//! use, so that the question most often asked, whether an id is here, is answered by that byte or one line more. When a
//! bucket is full the next level, eight times as large, takes the span. Spans for which no level has a place, a million
//! are open then, go to [`Crowd`], the one place where looking for a span takes a lock.
//!
//! **A reused or foreign id.** Ids are unique among open spans and are used again after they close. A slot's key goes
//! when its span closes, before the id can come back, since the registry frees the id after the last layer was told.
//! If that call never came (a layer taken out of its registry and put back), the layer releases what is left when a
//! new span has the id. A reference from one slot to another also carries the slot's turn, which changes with every span.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use tracing::span::Id;

use super::entered::Entered;
use super::index::{Number, place_of};
use super::labels::{Label, ValueHashes, Values};
use super::outcome::Facts;
#[cfg(feature = "trace-id")]
use super::trace_id::TraceId;
use crate::sync::{AtomicU8, AtomicU32, AtomicU64, Flag, fence, spin_loop, yield_now};

const BUCKET: usize = 8;
/// Of the first level.
const BUCKETS: usize = 32;
const GROWTH: u32 = 3;
const LEVELS: usize = 5;

/// One open span. All fields but `life` belong to whoever holds the span's id, and to the end of the run.
#[derive(Debug, Default)]
#[repr(align(128))] // Threads with spans in neighbouring slots do not wait for each other.
pub(crate) struct Slot {
    /// The slot's turn and its phase.
    life: AtomicU64,
    pub(crate) callsite: AtomicU32,
    /// The nearest span around it that has a slot.
    parent: AtomicU64,
    pub(crate) started: AtomicU64,
    /// Zero: never.
    pub(crate) last_exit: AtomicU64,
    pub(crate) entered: Entered,
    facts: AtomicU32,
    /// Its own values, as labels.
    stage: AtomicU32,
    profile: AtomicU32,
    run_id: AtomicU32,
    /// The hashes of its values, where their labels are `_overflow`.
    hashes: [AtomicU64; 3],
    /// The number plus one of what its values and what it inherits come to, where that is remembered and holds.
    meaning: AtomicU32,
    /// Profile and run id with what it inherits, and when that was found out.
    pub(crate) resolved: AtomicU64,
    /// The halves of its trace's id, if `Facts::TRACE_KNOWN` is set.
    #[cfg(feature = "trace-id")]
    trace: [AtomicU64; 2],
    /// The active gauge that counts it now, where gauges are written at once: a number plus one. Zero when the slot is
    /// free, but for the moment in which someone who goes over the open spans finds that out.
    pub(crate) shown: AtomicU32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No span, or one that is being written.
    Free = 0,
    Open = 1,
    /// Counted; its span may still be open.
    Settled = 2,
}

/// A slot together with its turn: refers to one span, never to the next one in the same slot. Zero is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SlotRef(u64);

impl SlotRef {
    pub(crate) const NONE: Self = Self(0);
    const INDEX_BITS: u32 = 28;

    fn new(index: usize, turn: u64) -> Self {
        Self(turn << Self::INDEX_BITS | (index as u64 + 1))
    }

    fn index(self) -> Option<usize> {
        ((self.0 & ((1 << Self::INDEX_BITS) - 1)) as usize).checked_sub(1)
    }

    fn is_turn(self, turn: u64) -> bool {
        self.0 >> Self::INDEX_BITS == turn & (u64::MAX >> Self::INDEX_BITS)
    }
}

/// A slot that was found, and where. Two words, so that it is handed over in registers.
#[derive(Clone, Copy)]
pub(crate) struct Found<'a> {
    pub(crate) slot: &'a Slot,
    index: usize,
}

impl std::ops::Deref for Found<'_> {
    type Target = Slot;

    fn deref(&self) -> &Slot {
        self.slot
    }
}

impl Found<'_> {
    pub(crate) fn reference(&self) -> SlotRef {
        SlotRef::new(self.index, self.slot.turn())
    }
}

impl Slot {
    fn turn(&self) -> u64 {
        self.life.load(Ordering::Acquire) >> 2
    }

    fn phase(&self) -> Phase {
        match self.life.load(Ordering::Acquire) & 3 {
            1 => Phase::Open,
            2 => Phase::Settled,
            _ => Phase::Free,
        }
    }

    /// Whether it is open, and the span referred to: what was read since the reference was made is that span's.
    pub(crate) fn is_still(&self, reference: SlotRef) -> bool {
        // What was read before stays before.
        fence(Ordering::Acquire);
        let life = self.life.load(Ordering::Relaxed);
        reference.is_turn(life >> 2) && life & 3 == Phase::Open as u64
    }

    pub(crate) fn is_open(&self) -> bool {
        self.phase() == Phase::Open
    }

    /// Takes the right to count this span. True for one caller only, and only while it is the span referred to.
    pub(crate) fn settle(&self, reference: SlotRef) -> bool {
        let life = self.life.load(Ordering::Acquire);
        reference.is_turn(life >> 2)
            && life & 3 == Phase::Open as u64
            && self
                .life
                .compare_exchange(life, life & !3 | Phase::Settled as u64, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
    }

    pub(crate) fn parent(&self) -> SlotRef {
        SlotRef(self.parent.load(Ordering::Relaxed))
    }

    pub(crate) fn facts(&self) -> Facts {
        Facts(self.facts.load(Ordering::Relaxed))
    }

    pub(crate) fn add_fact(&self, fact: Facts) {
        self.facts.fetch_or(fact.0, Ordering::Relaxed);
    }

    pub(crate) fn update_facts(&self, update: impl Fn(Facts) -> Facts) {
        let _ = self.facts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |facts| Some(update(Facts(facts)).0));
    }

    /// Whether it is entered, or was.
    pub(crate) fn was_entered(&self) -> bool {
        self.entered.is_entered() || self.last_exit.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn stage(&self) -> Label {
        Label::from_bits(self.stage.load(Ordering::Relaxed))
    }

    pub(crate) fn profile(&self) -> Label {
        Label::from_bits(self.profile.load(Ordering::Relaxed))
    }

    pub(crate) fn run_id(&self) -> Label {
        Label::from_bits(self.run_id.load(Ordering::Relaxed))
    }

    #[cfg(feature = "trace-id")]
    pub(crate) fn trace(&self) -> Option<TraceId> {
        // Pairs with the `Release` in `set_trace`. Without the flag the halves are an earlier span's.
        let is_known = Facts(self.facts.load(Ordering::Acquire)).has(Facts::TRACE_KNOWN);
        let [high, low] = self.trace.each_ref().map(|half| u128::from(half.load(Ordering::Relaxed)));
        TraceId::new(high << u64::BITS | low).filter(|_| is_known)
    }

    /// Keeps the first trace that is given.
    #[cfg(feature = "trace-id")]
    pub(crate) fn set_trace(&self, trace: Option<TraceId>) {
        let Some(trace) = trace.map(TraceId::get) else { return };
        let before = Facts(self.facts.fetch_or(Facts::TRACE_CLAIMED.0, Ordering::Relaxed));
        if !before.has(Facts::TRACE_CLAIMED) {
            self.trace[0].store((trace >> u64::BITS) as u64, Ordering::Relaxed);
            self.trace[1].store(trace as u64, Ordering::Relaxed);
            self.facts.fetch_or(Facts::TRACE_KNOWN.0, Ordering::Release);
        }
    }

    pub(crate) fn values(&self) -> Values {
        Values { stage: self.stage(), profile: self.profile(), run_id: self.run_id() }
    }

    pub(crate) fn meaning(&self) -> Option<Number> {
        self.meaning.load(Ordering::Relaxed).checked_sub(1)
    }

    /// Its values, or those it inherits, are others now.
    pub(crate) fn forget_meaning(&self) {
        self.meaning.store(0, Ordering::Relaxed);
    }

    pub(crate) fn hashes(&self) -> ValueHashes {
        let [stage, profile, run_id] = self.hashes.each_ref().map(|hash| hash.load(Ordering::Relaxed));
        ValueHashes { stage, profile, run_id }
    }

    /// Keeps the hashes of those of the values that have the label `_overflow`.
    #[cold]
    pub(crate) fn set_hashes(&self, values: Values, hashes: ValueHashes) {
        let of_values =
            [(values.stage, hashes.stage), (values.profile, hashes.profile), (values.run_id, hashes.run_id)];
        for (field, (_, hash)) in self.hashes.iter().zip(of_values).filter(|(_, (label, _))| *label == Label::OVERFLOW)
        {
            field.store(hash, Ordering::Relaxed);
        }
    }

    /// Takes over the values that are given.
    pub(crate) fn set_values(&self, given: Values) {
        self.forget_meaning();
        for (field, value) in [(&self.stage, given.stage), (&self.profile, given.profile), (&self.run_id, given.run_id)]
        {
            if !value.is_none() {
                field.store(value.bits(), Ordering::Relaxed);
            }
        }
    }

    /// Makes it a new span's. The fields are written before the phase says so.
    #[inline]
    fn reset(&self, span: NewSpan) {
        self.callsite.store(span.callsite, Ordering::Relaxed);
        self.parent.store(span.parent.0, Ordering::Relaxed);
        self.started.store(span.started, Ordering::Relaxed);
        self.last_exit.store(0, Ordering::Relaxed);
        self.entered.reset();
        self.facts.store(span.facts.0, Ordering::Relaxed);
        self.stage.store(span.values.stage.bits(), Ordering::Relaxed);
        self.profile.store(span.values.profile.bits(), Ordering::Relaxed);
        self.run_id.store(span.values.run_id.bits(), Ordering::Relaxed);
        self.meaning.store(span.meaning.map_or(0, |meaning| meaning + 1), Ordering::Relaxed);
        self.resolved.store(span.resolved, Ordering::Relaxed);
    }
}

/// What a slot is told of its span when that opens.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct NewSpan {
    pub(crate) callsite: Number,
    /// The nearest span around it that has a slot.
    pub(crate) parent: SlotRef,
    pub(crate) started: u64,
    pub(crate) facts: Facts,
    pub(crate) values: Values,
    pub(crate) meaning: Option<Number>,
    /// As [`Slot::resolved`] has it.
    pub(crate) resolved: u64,
}

#[repr(align(64))]
#[derive(Debug, Default)]
struct Bucket([AtomicU64; BUCKET]);

struct Level {
    buckets: Box<[Bucket]>,
    slots: Box<[Slot]>,
    /// Slots in the levels before.
    before: usize,
}

impl Level {
    /// `first`: the buckets of the first level.
    fn new(first: usize, level: usize) -> Self {
        let buckets = |level| first << (GROWTH as usize * level);
        Self {
            buckets: (0..buckets(level)).map(|_| Bucket::default()).collect(),
            slots: (0..buckets(level) * BUCKET).map(|_| Slot::default()).collect(),
            before: (0..level).map(|level| buckets(level) * BUCKET).sum(),
        }
    }

    /// Looks at so many places of a bucket.
    #[inline]
    fn find(&self, id: u64, bucket: usize, places: usize) -> Option<Found<'_>> {
        let keys = self.buckets.get(bucket)?.0.iter().take(places);
        let place = keys.enumerate().find(|(_, key)| key.load(Ordering::Acquire) == id)?.0;
        self.found(bucket, place)
    }

    /// Takes a place of a bucket; `announce` is told which before anyone can see it.
    #[inline]
    fn claim(&self, id: u64, bucket: usize, announce: impl Fn(usize)) -> Option<Found<'_>> {
        for (place, key) in self.buckets.get(bucket)?.0.iter().enumerate() {
            if key.load(Ordering::Relaxed) != 0 {
                continue;
            }
            announce(place);
            // Sequentially consistent: the end of the run is announced and the keys are read in that order, here
            // the key is written and the announcement read, so that one of the two sees the other.
            if key.compare_exchange(0, id, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
                return self.found(bucket, place);
            }
        }
        None
    }

    #[inline]
    fn found(&self, bucket: usize, place: usize) -> Option<Found<'_>> {
        let at = bucket * BUCKET + place;
        Some(Found { slot: self.slots.get(at)?, index: self.before + at })
    }

    #[inline]
    fn key(&self, at: usize) -> Option<&AtomicU64> {
        self.buckets.get(at / BUCKET)?.0.get(at % BUCKET)
    }

    fn bucket_of(&self, id: u64) -> usize {
        place_of(id, self.buckets.len())
    }
}

/// The spans for which the levels have no place. Grows to the most that were open at once, and their slots are used
/// again.
struct Crowd {
    slots: boxcar::Vec<Slot>,
    keys: boxcar::Vec<AtomicU64>,
    places: Mutex<CrowdPlaces>,
    open: AtomicU64,
}

#[derive(Default)]
struct CrowdPlaces {
    by_id: HashMap<u64, usize>,
    free: Vec<usize>,
}

impl Crowd {
    fn new() -> Self {
        Self { slots: boxcar::Vec::new(), keys: boxcar::Vec::new(), places: Mutex::default(), open: AtomicU64::new(0) }
    }

    fn places(&self) -> MutexGuard<'_, CrowdPlaces> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, id: u64) -> Option<usize> {
        if self.open.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.places().by_id.get(&id).copied()
    }

    fn claim(&self, id: u64) -> usize {
        let mut places = self.places();
        let place = places.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.keys.push(AtomicU64::new(0))
        });
        places.by_id.insert(id, place);
        self.open.fetch_add(1, Ordering::AcqRel);
        // As in `Level::claim`.
        self.keys[place].store(id, Ordering::SeqCst);
        place
    }

    #[cold]
    fn release(&self, place: usize) {
        let mut places = self.places();
        let id = self.keys[place].swap(0, Ordering::AcqRel);
        if places.by_id.remove(&id).is_some() {
            places.free.push(place);
            self.open.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// The places that were ever in use. Under the lock: a span that takes a new one after this sees that the run has
    /// ended, if it has.
    fn used(&self) -> usize {
        let _places = self.places();
        self.keys.count()
    }
}

/// `FIRST`: the buckets of the first level.
pub(crate) struct OpenSpans<const FIRST: usize = BUCKETS> {
    /// How many places of each bucket of the first level were ever in use: the others need not be looked at. Most are
    /// at one or none, so that an id that is not here is told by this byte or by a single key. Ids whose bucket is
    /// full are in the levels further on.
    used: [AtomicU8; FIRST],
    first: Level,
    more: [OnceLock<Level>; LEVELS - 1],
    crowd: Crowd,
    /// The run is over: no span gets a slot any more.
    ended: Flag,
}

impl<const FIRST: usize> OpenSpans<FIRST> {
    /// Slots in all levels.
    const IN_LEVELS: usize = FIRST * BUCKET * ((1 << (GROWTH as usize * LEVELS)) - 1) / ((1 << GROWTH) - 1);

    pub(crate) fn new() -> Self {
        Self {
            used: std::array::from_fn(|_| AtomicU8::new(0)),
            first: Level::new(FIRST, 0),
            more: [const { OnceLock::new() }; LEVELS - 1],
            crowd: Crowd::new(),
            ended: Flag::default(),
        }
    }

    /// From now on no span gets a slot, and those that have one are found by [`taken`](Self::taken). Whether this is the
    /// first call.
    pub(crate) fn end(&self) -> bool {
        self.ended.raise()
    }

    #[inline]
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.is_raised()
    }

    #[cfg(all(test, feature = "pushgateway"))]
    pub(crate) fn lock(&self) -> impl Sized {
        self.crowd.places()
    }

    /// Whether this span may have a slot: false, most often, for one that has none.
    #[inline(always)]
    pub(crate) fn may_have(&self, id: &Id) -> bool {
        self.used[place_of(id.into_u64(), FIRST)].load(Ordering::Acquire) != 0
    }

    /// The slot of this span, if it has one. That it has none is told on the spot, most often.
    #[inline(always)]
    pub(crate) fn find(&self, id: &Id) -> Option<Found<'_>> {
        let id = id.into_u64();
        let bucket = place_of(id, FIRST);
        match self.used[bucket].load(Ordering::Acquire) {
            0 => None,
            used => self.find_in(id, bucket, usize::from(used)),
        }
    }

    /// The same for a span that another thread may be giving its slot at this moment: `None` until all of it is there.
    #[inline]
    pub(crate) fn find_whole(&self, id: &Id) -> Option<Found<'_>> {
        self.find(id).filter(|found| found.slot.phase() != Phase::Free)
    }

    fn find_in(&self, id: u64, bucket: usize, used: usize) -> Option<Found<'_>> {
        match self.first.find(id, bucket, used) {
            None if used == BUCKET => self.find_further(id),
            found => found,
        }
    }

    #[cold]
    fn find_further(&self, id: u64) -> Option<Found<'_>> {
        let in_levels =
            self.more.iter().map_while(OnceLock::get).find_map(|level| level.find(id, level.bucket_of(id), BUCKET));
        in_levels.or_else(|| self.in_crowd(self.crowd.find(id)?))
    }

    fn in_crowd(&self, place: usize) -> Option<Found<'_>> {
        Some(Found { slot: self.crowd.slots.get(place)?, index: Self::IN_LEVELS + place })
    }

    fn levels(&self) -> impl Iterator<Item = &Level> {
        std::iter::once(&self.first).chain(self.more.iter().map_while(OnceLock::get))
    }

    /// Gives a new span a slot. What an earlier span with this id may have left must be released before.
    /// `None`: the run is over.
    #[inline(always)]
    pub(crate) fn claim(&self, id: &Id, span: NewSpan) -> Option<Found<'_>> {
        let found = self.take_place(id.into_u64())?;
        if self.has_ended() {
            self.free_key(found);
            return None;
        }
        // Who reads a field of the new span and then asks whether the slot is still an earlier one's sees that it is
        // not, see `Slot::is_still`.
        fence(Ordering::Release);
        found.slot.reset(span);
        let turn = found.slot.turn() + 1;
        found.slot.life.store(turn << 2 | Phase::Open as u64, Ordering::Release);
        Some(found)
    }

    #[inline]
    fn take_place(&self, id: u64) -> Option<Found<'_>> {
        let bucket = place_of(id, FIRST);
        let used = &self.used[bucket];
        let announce = |place| {
            if usize::from(used.load(Ordering::Relaxed)) <= place {
                used.fetch_max(place as u8 + 1, Ordering::AcqRel);
            }
        };
        self.first.claim(id, bucket, announce).or_else(|| {
            announce(BUCKET - 1);
            self.take_place_further(id)
        })
    }

    #[cold]
    fn take_place_further(&self, id: u64) -> Option<Found<'_>> {
        let in_levels = self.more.iter().zip(1..).find_map(|(level, n)| {
            let level = level.get_or_init(|| Level::new(FIRST, n));
            level.claim(id, level.bucket_of(id), |_| ())
        });
        in_levels.or_else(|| self.in_crowd(self.crowd.claim(id)))
    }

    /// The span closed: its slot is free for another.
    pub(crate) fn release(&self, found: Found<'_>) {
        let turn = found.slot.turn();
        found.slot.life.store(turn << 2 | Phase::Free as u64, Ordering::Release);
        self.free_key(found);
    }

    #[inline]
    fn free_key(&self, found: Found<'_>) {
        if let Some(place) = found.index.checked_sub(Self::IN_LEVELS) {
            self.crowd.release(place);
        } else if let Some(key) = self.key(found) {
            key.store(0, Ordering::Release);
        }
    }

    #[inline(always)]
    fn key(&self, found: Found<'_>) -> Option<&AtomicU64> {
        match self.level_of(found.index) {
            Some(level) => level.key(found.index - level.before),
            None => self.crowd.keys.get(found.index.checked_sub(Self::IN_LEVELS)?),
        }
    }

    /// The level a slot is in.
    #[inline]
    fn level_of(&self, index: usize) -> Option<&Level> {
        if index < FIRST * BUCKET {
            return Some(&self.first);
        }
        self.levels().find(|level| index - level.before < level.slots.len())
    }

    /// The span's id, as long as it has the slot.
    pub(crate) fn id_of(&self, found: Found<'_>) -> Option<Id> {
        std::num::NonZeroU64::new(self.key(found)?.load(Ordering::Acquire)).map(Id::from_non_zero_u64)
    }

    /// The slot referred to, if it is still that span's.
    #[inline]
    pub(crate) fn get(&self, reference: SlotRef) -> Option<Found<'_>> {
        let index = reference.index()?;
        let found = match self.level_of(index) {
            Some(level) => Found { slot: level.slots.get(index - level.before)?, index },
            None => self.in_crowd(index.checked_sub(Self::IN_LEVELS)?)?,
        };
        (reference.is_turn(found.slot.turn()) && found.slot.phase() != Phase::Free).then_some(found)
    }

    /// The spans open now.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Found<'_>> {
        self.places().filter(|found| self.phase_now(*found) == Phase::Open)
    }

    /// The spans whose slots are not free: open, or settled by a thread that is about to count them.
    pub(crate) fn taken(&self) -> impl Iterator<Item = Found<'_>> {
        self.places().filter(|found| self.phase_now(*found) != Phase::Free)
    }

    fn places(&self) -> impl Iterator<Item = Found<'_>> {
        let in_levels = self.levels().flat_map(|level| {
            let places = (0..level.buckets.len()).flat_map(|bucket| (0..BUCKET).map(move |place| (bucket, place)));
            places.filter_map(|(bucket, place)| level.found(bucket, place))
        });
        in_levels.chain((0..self.crowd.used()).filter_map(|place| self.in_crowd(place)))
    }

    /// The phase of the span in this place. One that is being written at this moment is waited for, within reason: that
    /// takes its thread a few nanoseconds, or a time slice where it was interrupted just there.
    fn phase_now(&self, found: Found<'_>) -> Phase {
        for spin in 0..1_000 {
            if self.key(found).is_none_or(|key| key.load(Ordering::SeqCst) == 0) {
                return Phase::Free;
            }
            match found.slot.phase() {
                Phase::Free if spin < 100 => spin_loop(),
                Phase::Free => yield_now(),
                phase => return phase,
            }
        }
        Phase::Free
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use proptest::prelude::*;

    fn claim(open: &OpenSpans, id: u64, mark: u64) -> Found<'_> {
        evict(open, id);
        let span = NewSpan { started: mark, facts: Facts::STAGE, ..NewSpan::default() };
        open.claim(&Id::from_u64(id), span).unwrap()
    }

    fn evict(open: &OpenSpans, id: u64) {
        if let Some(left) = open.find(&Id::from_u64(id)) {
            open.release(left);
        }
    }

    fn mark(open: &OpenSpans, id: u64) -> Option<u64> {
        open.find(&Id::from_u64(id)).map(|found| found.started.load(Ordering::Relaxed))
    }

    #[derive(Clone, Debug)]
    enum Step {
        Open(u64),
        Close(u64),
        Look(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        // Few ids, so that they are used again; many steps, so that buckets overflow into the next level.
        let id = 1..400_u64;
        prop_oneof![id.clone().prop_map(Step::Open), id.clone().prop_map(Step::Close), id.prop_map(Step::Look)]
    }

    proptest! {
        #[test]
        fn behaves_like_a_map(steps in prop::collection::vec(step(), 1..3_000)) {
            let open = OpenSpans::<BUCKETS>::new();
            let mut model = HashMap::new();
            for (n, step) in steps.into_iter().enumerate() {
                let n = n as u64 + 1;
                match step {
                    Step::Open(id) => {
                        claim(&open, id, n);
                        model.insert(id, n);
                    }
                    Step::Close(id) => {
                        if let Some(found) = open.find(&Id::from_u64(id)) {
                            open.release(found);
                        }
                        model.remove(&id);
                    }
                    Step::Look(id) => prop_assert_eq!(mark(&open, id), model.get(&id).copied()),
                }
            }
            let mut left: Vec<_> = open.iter().map(|found| found.started.load(Ordering::Relaxed)).collect();
            let mut expected: Vec<_> = model.into_values().collect();
            left.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(left, expected);
        }
    }

    #[test]
    fn far_more_spans_than_the_first_level_holds() {
        let open = OpenSpans::<BUCKETS>::new();
        for id in 1..=20_000 {
            claim(&open, id, id);
        }
        for id in 1..=20_000 {
            assert_eq!(mark(&open, id), Some(id));
            let reference = open.find(&Id::from_u64(id)).unwrap().reference();
            assert_eq!(open.get(reference).unwrap().started.load(Ordering::Relaxed), id);
        }
        assert_eq!(open.iter().count(), 20_000);
    }

    #[test]
    fn spans_beyond_all_levels_have_a_slot() {
        const SPANS: u64 = 100_000;
        let open = OpenSpans::<2>::new();
        let claim = |id, mark| {
            let span = NewSpan { started: mark, facts: Facts::STAGE, ..NewSpan::default() };
            open.claim(&Id::from_u64(id), span).unwrap().reference()
        };
        let references: Vec<_> = (1..=SPANS).map(|id| claim(id, id)).collect();
        assert!(open.crowd.used() > 20_000, "{}", open.crowd.used());
        for (id, reference) in (1..).zip(&references) {
            let found = open.find(&Id::from_u64(id)).unwrap();
            assert_eq!((found.reference(), found.started.load(Ordering::Relaxed)), (*reference, id));
            assert_eq!(open.get(*reference).unwrap().started.load(Ordering::Relaxed), id);
        }
        assert_eq!(open.iter().count(), SPANS as usize);
        let used = open.crowd.used();
        for id in 1..=SPANS {
            open.release(open.find(&Id::from_u64(id)).unwrap());
        }
        assert!(references.iter().all(|reference| open.get(*reference).is_none()));
        assert_eq!((open.iter().count(), open.crowd.open.load(Ordering::Relaxed)), (0, 0));
        (1..=SPANS).for_each(|id| {
            claim(id, 2 * id);
        });
        assert_eq!(open.crowd.used(), used, "places are used again");
        assert!(open.end() && !open.end());
        assert!(open.claim(&Id::from_u64(SPANS + 1), NewSpan::default()).is_none());
        assert_eq!(open.taken().count(), SPANS as usize);
    }

    #[test]
    fn a_reference_does_not_outlive_its_span() {
        let open = OpenSpans::<BUCKETS>::new();
        let first = claim(&open, 7, 1);
        let reference = first.reference();
        open.release(first);
        assert!(open.get(reference).is_none());
        let second = claim(&open, 7, 2);
        assert!(open.get(reference).is_none());
        assert!(!second.settle(reference));
        assert!(second.settle(second.reference()));
        assert!(!second.settle(second.reference()), "a span is counted once");
    }

    #[test]
    fn a_span_whose_end_was_not_told_gives_way_to_the_next_with_its_id() {
        let open = OpenSpans::<BUCKETS>::new();
        let stale = claim(&open, 7, 1).reference();
        claim(&open, 7, 2);
        assert_eq!(mark(&open, 7), Some(2));
        assert!(open.get(stale).is_none());
        evict(&open, 7);
        assert_eq!(open.iter().count(), 0);
    }

    #[test]
    fn threads_do_not_see_each_others_spans() {
        let open = OpenSpans::<BUCKETS>::new();
        std::thread::scope(|scope| {
            for thread in 0..8_u64 {
                let open = &open;
                scope.spawn(move || {
                    for round in 1..20_000_u64 {
                        let ids = [thread * 1_000 + 1 + round % 37, thread * 1_000 + 500 + round % 11];
                        for id in ids {
                            claim(open, id, id << 32 | round);
                        }
                        for id in ids {
                            assert_eq!(mark(open, id), Some(id << 32 | round));
                            let found = open.find(&Id::from_u64(id)).unwrap();
                            assert!(found.settle(found.reference()));
                            open.release(found);
                        }
                    }
                });
            }
        });
        assert_eq!(open.iter().count(), 0);
    }
}
