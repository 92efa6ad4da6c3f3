//! Spans in flight: a table of the layer's own, keyed by span id, that is read and written without a lock.
//!
//! Only spans that matter have a slot: stages, those that bring a profile or a run id, and those that a stage looked
//! further out from. A level is an array of keys, each of which has a slot. An id has a home in each level. Its key is in its
//! home in the first level where that place is free. Otherwise the span is displaced: its key is in another place of
//! the home's bucket, which is eight keys and one cache line, or, where the bucket is full, in the next level, eight times as
//! large. Each home counts its displaced spans. So two loads, of a key and of a count, answer the question most often asked:
//! whether an id is absent. A count falls when a displaced span closes, and a look-up never pays for closed spans.
//! Spans for which no level has a place, a million are open then, go to [`Crowd`], the one place where a look-up takes
//! a lock.
//!
//! **A reused or foreign id.** Ids are unique among open spans and are used again after they close. A slot's key goes
//! when its span closes, before the id can come back, since the registry frees the id after the last layer was told.
//! If that call never came (a layer taken out of its registry and put back), the layer releases what is left when a
//! new span has the id. A reference from one slot to another also carries the slot's turn, which changes with every span.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use tracing::span::Id;

use super::entered::Entered;
use super::index::{Number, place_of};
use super::labels::{Label, ValueHashes, Values};
use super::outcome::Facts;
#[cfg(feature = "trace-id")]
use super::trace_id::TraceId;
use crate::sync::{AtomicU32, AtomicU64, Flag, fence, spin_loop, yield_now};

/// Places of a bucket.
const BUCKET: usize = 8;
/// Places of the first level.
const PLACES: usize = 256;
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
    /// The nearest ancestor that is a stage; valid while `resolved` is of the current epoch. See
    /// `Inheritance::nearest_stage`.
    enclosing_stage: AtomicU64,
    pub(crate) started: AtomicU64,
    /// Zero: never.
    pub(crate) last_exit: AtomicU64,
    pub(crate) entered: Entered,
    facts: AtomicU32,
    /// The labels of its own values, see [`Values::pack`].
    values: AtomicU64,
    /// The hashes of its values, where their labels are `_overflow`.
    hashes: [AtomicU64; 3],
    /// The number plus one of what its values and what it inherits come to, where that is remembered and holds.
    meaning: AtomicU32,
    /// Profile and run id with what it inherits, and when that was found out.
    pub(crate) resolved: AtomicU64,
    /// The halves of its trace's id, once it was asked for; zero: none is known.
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

    pub(crate) fn enclosing_stage(&self) -> SlotRef {
        SlotRef(self.enclosing_stage.load(Ordering::Relaxed))
    }

    pub(crate) fn set_enclosing_stage(&self, stage: SlotRef) {
        self.enclosing_stage.store(stage.0, Ordering::Relaxed);
    }

    pub(crate) fn facts(&self) -> Facts {
        Facts(self.facts.load(Ordering::Relaxed))
    }

    pub(crate) fn add_fact(&self, fact: Facts) {
        self.facts.fetch_or(fact.0, Ordering::Relaxed);
    }

    /// Returns the facts before the update.
    pub(crate) fn update_facts(&self, update: impl Fn(Facts) -> Facts) -> Facts {
        let update = |facts| Some(update(Facts(facts)).0);
        let (Ok(before) | Err(before)) = self.facts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
        Facts(before)
    }

    /// Whether it is entered, or was.
    pub(crate) fn was_entered(&self) -> bool {
        self.entered.is_entered() || self.last_exit.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn values(&self) -> Values {
        Values::unpack(self.values.load(Ordering::Relaxed))
    }

    pub(crate) fn stage(&self) -> Label {
        self.values().stage
    }

    pub(crate) fn profile(&self) -> Label {
        self.values().profile
    }

    pub(crate) fn run_id(&self) -> Label {
        self.values().run_id
    }

    /// Its trace, once it was asked for.
    #[cfg(feature = "trace-id")]
    pub(crate) fn trace(&self) -> Option<TraceId> {
        // What an earlier span left is not read: the fact is of this one.
        let asked = Facts(self.facts.load(Ordering::Acquire)).has(Facts::ASKED_FOR_TRACE);
        let [high, low] = self.trace.each_ref().map(|half| u128::from(half.load(Ordering::Relaxed)));
        TraceId::new(high << u64::BITS | low).filter(|_| asked)
    }

    #[cfg(feature = "trace-id")]
    pub(crate) fn set_trace(&self, trace: Option<TraceId>) {
        let trace = trace.map_or(0, TraceId::get);
        self.trace[0].store((trace >> u64::BITS) as u64, Ordering::Relaxed);
        self.trace[1].store(trace as u64, Ordering::Relaxed);
        self.facts.fetch_or(Facts::ASKED_FOR_TRACE.0, Ordering::Release);
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
        let update = |values| Some(given.or(Values::unpack(values)).pack());
        let _ = self.values.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
    }

    /// Makes it a new span's. The fields are written before the phase says so.
    #[inline]
    fn reset(&self, span: NewSpan) {
        self.callsite.store(span.callsite, Ordering::Relaxed);
        self.parent.store(span.parent.0, Ordering::Relaxed);
        self.enclosing_stage.store(span.enclosing_stage.0, Ordering::Relaxed);
        self.started.store(span.started, Ordering::Relaxed);
        self.last_exit.store(0, Ordering::Relaxed);
        self.entered.reset();
        self.facts.store(span.facts.0, Ordering::Relaxed);
        self.values.store(span.values.pack(), Ordering::Relaxed);
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
    /// As [`Slot::enclosing_stage`] returns it.
    pub(crate) enclosing_stage: SlotRef,
    pub(crate) started: u64,
    pub(crate) facts: Facts,
    pub(crate) values: Values,
    pub(crate) meaning: Option<Number>,
    /// As [`Slot::resolved`] has it.
    pub(crate) resolved: u64,
}

/// Takes a place if it is free.
#[inline]
fn try_take(key: &AtomicU64, id: u64) -> bool {
    // Sequentially consistent, as are the accesses of `OpenSpans::ended` and the loads in `OpenSpans::phase_now`: the key
    // is written before the flag is read here, and the end of the run raises the flag before it reads the keys. So
    // either this span is refused or the end of the run sees its key.
    key.load(Ordering::Relaxed) == 0 && key.compare_exchange(0, id, Ordering::SeqCst, Ordering::Relaxed).is_ok()
}

#[derive(Clone, Copy)]
struct Level<'a> {
    /// Zero: free.
    keys: &'a [AtomicU64],
    /// How many open spans have their home here and their key elsewhere: in the same bucket or in a level further on.
    displaced: &'a [AtomicU32],
    slots: &'a [Slot],
    /// Slots in the levels before.
    before: usize,
}

impl<'a> Level<'a> {
    #[inline]
    fn home_of(self, id: u64) -> usize {
        place_of(id, self.keys.len())
    }

    /// The places of a home's bucket other than the home.
    fn neighbours(home: usize) -> impl Iterator<Item = usize> {
        let bucket = home & !(BUCKET - 1);
        (bucket..bucket + BUCKET).filter(move |place| *place != home)
    }

    fn has_key(self, place: usize, id: u64) -> bool {
        self.keys.get(place).is_some_and(|key| key.load(Ordering::Acquire) == id)
    }

    fn try_take(self, place: usize, id: u64) -> bool {
        self.keys.get(place).is_some_and(|key| try_take(key, id))
    }

    /// Breaks where no level further on has the span.
    fn find(self, id: u64) -> ControlFlow<Option<Found<'a>>> {
        let home = self.home_of(id);
        if self.has_key(home, id) {
            return ControlFlow::Break(self.found(home));
        }
        // Relaxed: see `claim`.
        if self.displaced.get(home).is_none_or(|displaced| displaced.load(Ordering::Relaxed) == 0) {
            return ControlFlow::Break(None);
        }
        match Self::neighbours(home).find(|place| self.has_key(*place, id)) {
            Some(place) => ControlFlow::Break(self.found(place)),
            None => ControlFlow::Continue(()),
        }
    }

    /// Takes a place for a span. `None`: the bucket is full, and the span is counted as displaced.
    fn claim(self, id: u64) -> Option<Found<'a>> {
        let home = self.home_of(id);
        if self.try_take(home, id) {
            return self.found(home);
        }
        // Relaxed: a thread that looks for an open span has its id from the thread that opened it, so that this addition
        // happens before its load. The load then reads the result of this addition or a later one, and all of these count
        // the span until it is released. A thread that has the id from elsewhere may miss the span, as if it had asked
        // before the span opened.
        self.displaced.get(home)?.fetch_add(1, Ordering::Relaxed);
        let place = Self::neighbours(home).find(|place| self.try_take(*place, id))?;
        self.found(place)
    }

    #[inline]
    fn found(self, place: usize) -> Option<Found<'a>> {
        Some(Found { slot: self.slots.get(place)?, index: self.before + place })
    }
}

/// A level that is made when a span is displaced from the one before.
struct FurtherLevel {
    keys: Box<[AtomicU64]>,
    displaced: Box<[AtomicU32]>,
    slots: Box<[Slot]>,
}

impl FurtherLevel {
    fn new(places: usize) -> Self {
        Self {
            keys: (0..places).map(|_| AtomicU64::new(0)).collect(),
            displaced: (0..places).map(|_| AtomicU32::new(0)).collect(),
            slots: (0..places).map(|_| Slot::default()).collect(),
        }
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
        // Sequentially consistent: as in `try_take`.
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

/// Begins with a cache line, so that each bucket is one.
#[repr(align(64))]
struct Keys<const N: usize>([AtomicU64; N]);

/// `FIRST`: the places of the first level.
pub(crate) struct OpenSpans<const FIRST: usize = PLACES> {
    /// The first level.
    keys: Keys<FIRST>,
    displaced: [AtomicU32; FIRST],
    slots: Box<[Slot]>,
    further: [OnceLock<FurtherLevel>; LEVELS - 1],
    crowd: Crowd,
    /// The run is over: no span gets a slot any more.
    ended: Flag,
}

impl<const FIRST: usize> OpenSpans<FIRST> {
    /// Slots in all levels.
    const IN_LEVELS: usize = Self::places_before(LEVELS);

    const fn places(level: usize) -> usize {
        FIRST << (GROWTH as usize * level)
    }

    /// Places in the levels before this one.
    const fn places_before(level: usize) -> usize {
        (Self::places(level) - FIRST) / ((1 << GROWTH) - 1)
    }

    pub(crate) fn new() -> Self {
        Self {
            keys: Keys(std::array::from_fn(|_| AtomicU64::new(0))),
            displaced: std::array::from_fn(|_| AtomicU32::new(0)),
            slots: (0..FIRST).map(|_| Slot::default()).collect(),
            further: [const { OnceLock::new() }; LEVELS - 1],
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
        let id = id.into_u64();
        let home = place_of(id, FIRST);
        let key = self.keys.0[home].load(Ordering::Relaxed);
        !self.is_empty_home(home, key) && (key == id || self.displaced[home].load(Ordering::Relaxed) != 0)
    }

    /// The slot of this span, if it has one.
    #[inline(always)]
    pub(crate) fn find(&self, id: &Id) -> Option<Found<'_>> {
        let id = id.into_u64();
        let home = place_of(id, FIRST);
        let key = self.keys.0[home].load(Ordering::Acquire);
        if self.is_empty_home(home, key) {
            return None;
        }
        if key == id {
            return self.first_level().found(home);
        }
        if self.displaced[home].load(Ordering::Relaxed) == 0 { None } else { self.find_slow(id) }
    }

    /// Whether no span has this home, where `key` was read. One branch for the most frequent case: two loads, which are
    /// independent of each other. Relaxed: see `Level::claim`.
    #[inline(always)]
    fn is_empty_home(&self, home: usize, key: u64) -> bool {
        key | u64::from(self.displaced[home].load(Ordering::Relaxed)) == 0
    }

    /// The same for a span that another thread may be giving its slot at this moment: `None` until all of it is there.
    #[inline]
    pub(crate) fn find_whole(&self, id: &Id) -> Option<Found<'_>> {
        self.find(id).filter(|found| found.slot.phase() != Phase::Free)
    }

    #[cold]
    fn find_slow(&self, id: u64) -> Option<Found<'_>> {
        match self.levels().try_for_each(|level| level.find(id)) {
            ControlFlow::Break(found) => found,
            ControlFlow::Continue(()) => self.in_crowd(self.crowd.find(id)?),
        }
    }

    fn in_crowd(&self, place: usize) -> Option<Found<'_>> {
        Some(Found { slot: self.crowd.slots.get(place)?, index: Self::IN_LEVELS + place })
    }

    #[inline]
    fn first_level(&self) -> Level<'_> {
        Level { keys: &self.keys.0, displaced: &self.displaced, slots: &self.slots, before: 0 }
    }

    fn further_level<'a>(level: usize, further: &'a FurtherLevel) -> Level<'a> {
        let FurtherLevel { keys, displaced, slots } = further;
        Level { keys, displaced, slots, before: Self::places_before(level) }
    }

    /// The levels that exist.
    fn levels(&self) -> impl Iterator<Item = Level<'_>> {
        let further = (1..).zip(self.further.iter().map_while(OnceLock::get));
        std::iter::once(self.first_level()).chain(further.map(|(n, level)| Self::further_level(n, level)))
    }

    /// All levels; those that do not exist are made.
    fn all_levels(&self) -> impl Iterator<Item = Level<'_>> {
        let further = (1..)
            .zip(&self.further)
            .map(|(n, level)| Self::further_level(n, level.get_or_init(|| FurtherLevel::new(Self::places(n)))));
        std::iter::once(self.first_level()).chain(further)
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
        let home = place_of(id, FIRST);
        if try_take(&self.keys.0[home], id) { self.first_level().found(home) } else { self.take_place_slow(id) }
    }

    #[cold]
    fn take_place_slow(&self, id: u64) -> Option<Found<'_>> {
        self.all_levels().find_map(|level| level.claim(id)).or_else(|| self.in_crowd(self.crowd.claim(id)))
    }

    /// The span closed: its slot is free for another.
    pub(crate) fn release(&self, found: Found<'_>) {
        let turn = found.slot.turn();
        found.slot.life.store(turn << 2 | Phase::Free as u64, Ordering::Release);
        self.free_key(found);
    }

    #[inline]
    fn free_key(&self, found: Found<'_>) {
        match self.keys.0.get(found.index) {
            Some(key) if place_of(key.load(Ordering::Relaxed), FIRST) == found.index => key.store(0, Ordering::Release),
            _ => self.free_displaced(found),
        }
    }

    /// Frees the key of a displaced span and takes the span back from the counts of its homes.
    #[cold]
    fn free_displaced(&self, found: Found<'_>) {
        let Some(key) = self.key(found) else { return };
        let id = key.load(Ordering::Relaxed);
        match found.index.checked_sub(Self::IN_LEVELS) {
            Some(place) => self.crowd.release(place),
            None => key.store(0, Ordering::Release),
        }
        for level in self.levels() {
            let home = level.home_of(id);
            if found.index == level.before + home {
                break;
            }
            if let Some(displaced) = level.displaced.get(home) {
                displaced.fetch_sub(1, Ordering::Relaxed);
            }
            if found.index < level.before + level.keys.len() {
                break;
            }
        }
    }

    #[inline(always)]
    fn key(&self, found: Found<'_>) -> Option<&AtomicU64> {
        match self.level_of(found.index) {
            Some(level) => level.keys.get(found.index - level.before),
            None => self.crowd.keys.get(found.index.checked_sub(Self::IN_LEVELS)?),
        }
    }

    /// The level a slot is in.
    #[inline]
    fn level_of(&self, index: usize) -> Option<Level<'_>> {
        if index < FIRST {
            return Some(self.first_level());
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
        self.all().filter(|found| self.phase_now(*found) == Phase::Open)
    }

    /// The spans whose slots are not free: open, or settled by a thread that is about to count them.
    pub(crate) fn taken(&self) -> impl Iterator<Item = Found<'_>> {
        self.all().filter(|found| self.phase_now(*found) != Phase::Free)
    }

    fn all(&self) -> impl Iterator<Item = Found<'_>> {
        let in_levels =
            self.levels().flat_map(|level| (0..level.keys.len()).filter_map(move |place| level.found(place)));
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

    /// Whether there is no key and no count: every look-up ends after two loads.
    fn is_empty<const FIRST: usize>(open: &OpenSpans<FIRST>) -> bool {
        open.levels().all(|level| {
            level.keys.iter().all(|key| key.load(Ordering::Relaxed) == 0)
                && level.displaced.iter().all(|displaced| displaced.load(Ordering::Relaxed) == 0)
        })
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
            let open = OpenSpans::<PLACES>::new();
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
            (1..400).for_each(|id| evict(&open, id));
            prop_assert!(is_empty(&open));
        }
    }

    #[test]
    fn slot_takes_two_cache_lines() {
        assert_eq!(size_of::<Slot>(), 128);
    }

    #[test]
    fn far_more_spans_than_the_first_level_holds() {
        let open = OpenSpans::<PLACES>::new();
        for id in 1..=20_000 {
            claim(&open, id, id);
        }
        for id in 1..=20_000 {
            assert_eq!(mark(&open, id), Some(id));
            let reference = open.find(&Id::from_u64(id)).unwrap().reference();
            assert_eq!(open.get(reference).unwrap().started.load(Ordering::Relaxed), id);
        }
        assert_eq!(open.iter().count(), 20_000);
        assert!(!is_empty(&open));
        (1..=20_000).for_each(|id| evict(&open, id));
        assert!(is_empty(&open));
    }

    #[test]
    fn spans_beyond_all_levels_have_a_slot() {
        const SPANS: u64 = 100_000;
        let open = OpenSpans::<16>::new();
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
        assert!(is_empty(&open), "a closed span is still counted as displaced");
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
        let open = OpenSpans::<PLACES>::new();
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
        let open = OpenSpans::<PLACES>::new();
        let stale = claim(&open, 7, 1).reference();
        claim(&open, 7, 2);
        assert_eq!(mark(&open, 7), Some(2));
        assert!(open.get(stale).is_none());
        evict(&open, 7);
        assert_eq!(open.iter().count(), 0);
    }

    #[test]
    fn threads_do_not_see_each_others_spans() {
        let open = OpenSpans::<PLACES>::new();
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
        assert!(is_empty(&open));
    }
}
