//! Spans in flight: a table of the layer's own, keyed by span id, that is read and written without a lock.
//!
//! Only tracked spans have a slot: stages, spans with a profile or a run id of their own, and spans that a stage opened in.
//!
//! A level is an array of keys, each of which has a slot. An id has a home in each level: one place, by its hash. Its key
//! is in its home in the first level where that place is free. Otherwise the span is displaced: its key is in another place
//! of the home's bucket, which is eight keys and one cache line, or, where the bucket is full, in the next level, eight
//! times as large. Each home counts its displaced spans. So two loads, of a key and of a count, answer the most frequent
//! question: whether an id is absent. A count falls when a displaced span closes, so that a look-up never pays for closed
//! spans. Spans for which no level has a place, a million are open then, go to [`Crowd`], the one place where a look-up
//! takes a lock.
//!
//! **Reused ids.** Ids are unique among open spans, and a registry uses them again after the spans close. The layer frees
//! the key when a span closes, before the id can come back: the registry frees the id after `on_close` of its last layer.
//! Where `on_close` never came (a layer was taken out of its registry and put back), the layer releases the stale slot
//! when a new span has the id. A reference from one slot to another also carries the slot's generation, which changes
//! with every span.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use tracing::span::Id;

use super::sync::{AtomicU32, AtomicU64, Flag, fence, spin_loop, yield_now};
use crate::layer::span::enter_count::EnterCount;
use crate::layer::span::flags::SpanFlags;
use crate::series::append_only_map::{EntryId, fibonacci_hash};
use crate::series::interner::{LabelId, SpanLabels, ValueHashes};
#[cfg(feature = "trace-id")]
use crate::series::trace_id::TraceId;

/// Places of a bucket.
const BUCKET: usize = 8;
/// Places of the first level.
const PLACES: usize = 256;
const GROWTH: u32 = 3;
const LEVELS: usize = 5;

/// One open span. All fields but `state` are for threads that hold the span's id, and for the end of the run.
#[derive(Debug, Default)]
#[repr(align(128))] // No false sharing, the adjacent-line prefetcher included.
pub(crate) struct Slot {
    /// The slot's generation and its phase.
    state: AtomicU64,
    pub(crate) callsite: AtomicU32,
    /// The nearest ancestor that has a slot.
    parent: AtomicU64,
    /// The nearest ancestor that is a stage; valid while `resolved` is of the current epoch. See
    /// `Inheritance::nearest_stage`.
    enclosing_stage: AtomicU64,
    pub(crate) started: AtomicU64,
    /// Zero: never.
    pub(crate) last_exit: AtomicU64,
    pub(crate) entered: EnterCount,
    flags: AtomicU32,
    /// The labels of its own values, see [`SpanLabels::pack`].
    values: AtomicU64,
    /// The hashes of its values, where their labels are `_overflow`.
    hashes: [AtomicU64; 3],
    /// The id plus one of the label-cache entry; zero if there is none or it is stale.
    cached: AtomicU32,
    /// The profile and the run id, own or inherited, with the epoch in which they were resolved.
    pub(crate) resolved: AtomicU64,
    /// The halves of its trace's id, if `SpanFlags::TRACE_KNOWN` is set.
    #[cfg(feature = "trace-id")]
    trace: [AtomicU64; 2],
    /// The active gauge that counts it now, where gauges are written at once: a number plus one. Zero when the slot is
    /// free, but for the moment in which someone who goes over the open spans finds that out.
    pub(crate) active_series: AtomicU32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No span, or one that is being written.
    Free = 0,
    Open = 1,
    /// Counted; its span may still be open.
    Finished = 2,
}

/// A slot together with its generation: refers to one span, never to the next one in the same slot. Zero is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SlotRef(u64);

impl SlotRef {
    pub(crate) const NONE: Self = Self(0);
    const INDEX_BITS: u32 = 28;

    fn new(index: usize, generation: u64) -> Self {
        Self(generation << Self::INDEX_BITS | (index as u64 + 1))
    }

    fn index(self) -> Option<usize> {
        ((self.0 & ((1 << Self::INDEX_BITS) - 1)) as usize).checked_sub(1)
    }

    fn is_generation(self, generation: u64) -> bool {
        self.0 >> Self::INDEX_BITS == generation & (u64::MAX >> Self::INDEX_BITS)
    }
}

/// A slot and its index. Two words, so that it is passed in registers.
#[derive(Clone, Copy)]
pub(crate) struct SpanRef<'a> {
    pub(crate) slot: &'a Slot,
    index: usize,
}

impl std::ops::Deref for SpanRef<'_> {
    type Target = Slot;

    fn deref(&self) -> &Slot {
        self.slot
    }
}

impl SpanRef<'_> {
    pub(crate) fn reference(&self) -> SlotRef {
        SlotRef::new(self.index, self.slot.generation())
    }
}

impl Slot {
    fn generation(&self) -> u64 {
        self.state.load(Ordering::Acquire) >> 2
    }

    fn phase(&self) -> Phase {
        match self.state.load(Ordering::Acquire) & 3 {
            1 => Phase::Open,
            2 => Phase::Finished,
            _ => Phase::Free,
        }
    }

    /// Whether the slot still has the open span referred to. Then the fields read since the reference was made are that
    /// span's.
    pub(crate) fn is_current(&self, reference: SlotRef) -> bool {
        // Keeps the field reads above from moving past the generation check. Pairs with the fence in `OpenSpans::claim`.
        fence(Ordering::Acquire);
        let state = self.state.load(Ordering::Relaxed);
        reference.is_generation(state >> 2) && state & 3 == Phase::Open as u64
    }

    pub(crate) fn is_open(&self) -> bool {
        self.phase() == Phase::Open
    }

    /// Takes the right to count the span referred to. True for one caller only.
    pub(crate) fn try_finish(&self, reference: SlotRef) -> bool {
        let state = self.state.load(Ordering::Acquire);
        reference.is_generation(state >> 2)
            && state & 3 == Phase::Open as u64
            && self
                .state
                .compare_exchange(state, state & !3 | Phase::Finished as u64, Ordering::AcqRel, Ordering::Relaxed)
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

    pub(crate) fn flags(&self) -> SpanFlags {
        SpanFlags(self.flags.load(Ordering::Relaxed))
    }

    pub(crate) fn set_flag(&self, flag: SpanFlags) {
        self.flags.fetch_or(flag.0, Ordering::Relaxed);
    }

    /// Returns the flags before the update.
    pub(crate) fn update_flags(&self, update: impl Fn(SpanFlags) -> SpanFlags) -> SpanFlags {
        let update = |flags| Some(update(SpanFlags(flags)).0);
        let (Ok(before) | Err(before)) = self.flags.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
        SpanFlags(before)
    }

    /// Whether it is entered, or was.
    pub(crate) fn was_entered(&self) -> bool {
        self.entered.is_entered() || self.last_exit.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn values(&self) -> SpanLabels {
        SpanLabels::unpack(self.values.load(Ordering::Relaxed))
    }

    pub(crate) fn stage(&self) -> LabelId {
        self.values().stage
    }

    pub(crate) fn profile(&self) -> LabelId {
        self.values().profile
    }

    pub(crate) fn run_id(&self) -> LabelId {
        self.values().run_id
    }

    #[cfg(feature = "trace-id")]
    pub(crate) fn trace(&self) -> Option<TraceId> {
        // Pairs with the `Release` in `set_trace`. Without the flag the halves are an earlier span's.
        let is_known = SpanFlags(self.flags.load(Ordering::Acquire)).has(SpanFlags::TRACE_KNOWN);
        let [high, low] = self.trace.each_ref().map(|half| u128::from(half.load(Ordering::Relaxed)));
        TraceId::new(high << u64::BITS | low).filter(|_| is_known)
    }

    /// Keeps the first trace that is given.
    #[cfg(feature = "trace-id")]
    pub(crate) fn set_trace(&self, trace: Option<TraceId>) {
        let Some(trace) = trace.map(TraceId::get) else { return };
        let before = SpanFlags(self.flags.fetch_or(SpanFlags::TRACE_CLAIMED.0, Ordering::Relaxed));
        if !before.has(SpanFlags::TRACE_CLAIMED) {
            self.trace[0].store((trace >> u64::BITS) as u64, Ordering::Relaxed);
            self.trace[1].store(trace as u64, Ordering::Relaxed);
            self.flags.fetch_or(SpanFlags::TRACE_KNOWN.0, Ordering::Release);
        }
    }

    pub(crate) fn cached(&self) -> Option<EntryId> {
        self.cached.load(Ordering::Relaxed).checked_sub(1)
    }

    /// Its values, or those it inherits, are others now.
    pub(crate) fn clear_cached(&self) {
        self.cached.store(0, Ordering::Relaxed);
    }

    pub(crate) fn hashes(&self) -> ValueHashes {
        let [stage, profile, run_id] = self.hashes.each_ref().map(|hash| hash.load(Ordering::Relaxed));
        ValueHashes { stage, profile, run_id }
    }

    /// Keeps the hashes of those of the values that have the label `_overflow`.
    #[cold]
    pub(crate) fn set_hashes(&self, values: SpanLabels, hashes: ValueHashes) {
        let of_values =
            [(values.stage, hashes.stage), (values.profile, hashes.profile), (values.run_id, hashes.run_id)];
        for (field, (_, hash)) in
            self.hashes.iter().zip(of_values).filter(|(_, (label, _))| *label == LabelId::OVERFLOW)
        {
            field.store(hash, Ordering::Relaxed);
        }
    }

    /// Replaces the labels that are given.
    pub(crate) fn set_values(&self, given: SpanLabels) {
        self.clear_cached();
        let update = |values| Some(given.or(SpanLabels::unpack(values)).pack());
        let _ = self.values.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
    }

    /// Writes the fields of a new span. The caller sets the phase to open afterwards.
    #[inline]
    fn reset(&self, new: NewSpan) {
        self.callsite.store(new.callsite, Ordering::Relaxed);
        self.parent.store(new.parent.0, Ordering::Relaxed);
        self.enclosing_stage.store(new.enclosing_stage.0, Ordering::Relaxed);
        self.started.store(new.started, Ordering::Relaxed);
        self.last_exit.store(0, Ordering::Relaxed);
        self.entered.reset();
        self.flags.store(new.flags.0, Ordering::Relaxed);
        self.values.store(new.values.pack(), Ordering::Relaxed);
        self.cached.store(new.cached.map_or(0, |cached| cached + 1), Ordering::Relaxed);
        self.resolved.store(new.resolved, Ordering::Relaxed);
    }
}

/// The fields of a slot when its span opens.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct NewSpan {
    pub(crate) callsite: EntryId,
    /// The nearest ancestor that has a slot.
    pub(crate) parent: SlotRef,
    /// As [`Slot::enclosing_stage`] returns it.
    pub(crate) enclosing_stage: SlotRef,
    pub(crate) started: u64,
    pub(crate) flags: SpanFlags,
    pub(crate) values: SpanLabels,
    pub(crate) cached: Option<EntryId>,
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
        fibonacci_hash(id, self.keys.len())
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
    fn find(self, id: u64) -> ControlFlow<Option<SpanRef<'a>>> {
        let home = self.home_of(id);
        if self.has_key(home, id) {
            return ControlFlow::Break(self.span(home));
        }
        // Relaxed: see `claim`.
        if self.displaced.get(home).is_none_or(|displaced| displaced.load(Ordering::Relaxed) == 0) {
            return ControlFlow::Break(None);
        }
        match Self::neighbours(home).find(|place| self.has_key(*place, id)) {
            Some(place) => ControlFlow::Break(self.span(place)),
            None => ControlFlow::Continue(()),
        }
    }

    /// Takes a place for a span. `None`: the bucket is full, and the span is counted as displaced.
    fn claim(self, id: u64) -> Option<SpanRef<'a>> {
        let home = self.home_of(id);
        if self.try_take(home, id) {
            return self.span(home);
        }
        // Relaxed: a thread that looks for an open span has its id from the thread that opened it, so that this addition
        // happens before its load. The load then reads the result of this addition or a later one, and all of these count
        // the span until it is released. A thread that has the id from elsewhere may miss the span, as if it had asked
        // before the span opened.
        self.displaced.get(home)?.fetch_add(1, Ordering::Relaxed);
        let place = Self::neighbours(home).find(|place| self.try_take(*place, id))?;
        self.span(place)
    }

    #[inline]
    fn span(self, place: usize) -> Option<SpanRef<'a>> {
        Some(SpanRef { slot: self.slots.get(place)?, index: self.before + place })
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

/// The spans for which the levels have no place. Slots are reused; their number grows to the most that were open at once.
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

    /// The number of places that were ever in use. Takes the lock, so that a span that takes a new place afterwards sees
    /// that the run has ended, if it has.
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
    /// Raised at the end of the run: no span gets a slot any more.
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

    /// Ends the run: from now on no span gets a slot, and [`taken`](Self::taken) returns all that have one. Returns whether
    /// this is the first call.
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
        let home = fibonacci_hash(id, FIRST);
        let key = self.keys.0[home].load(Ordering::Relaxed);
        !self.is_empty_home(home, key) && (key == id || self.displaced[home].load(Ordering::Relaxed) != 0)
    }

    /// The slot of this span, if it has one.
    #[inline(always)]
    pub(crate) fn find(&self, id: &Id) -> Option<SpanRef<'_>> {
        let id = id.into_u64();
        let home = fibonacci_hash(id, FIRST);
        let key = self.keys.0[home].load(Ordering::Acquire);
        if self.is_empty_home(home, key) {
            return None;
        }
        if key == id {
            return self.first_level().span(home);
        }
        if self.displaced[home].load(Ordering::Relaxed) == 0 { None } else { self.find_slow(id) }
    }

    /// Whether no span has this home, where `key` was read. One branch for the most frequent case: two loads, which are
    /// independent of each other. Relaxed: see `Level::claim`.
    #[inline(always)]
    fn is_empty_home(&self, home: usize, key: u64) -> bool {
        key | u64::from(self.displaced[home].load(Ordering::Relaxed)) == 0
    }

    /// The slot of a span that another thread may be opening at this moment: `None` until all its fields are written.
    #[inline]
    pub(crate) fn get_initialized(&self, id: &Id) -> Option<SpanRef<'_>> {
        self.find(id).filter(|span| span.slot.phase() != Phase::Free)
    }

    #[cold]
    fn find_slow(&self, id: u64) -> Option<SpanRef<'_>> {
        match self.levels().try_for_each(|level| level.find(id)) {
            ControlFlow::Break(span) => span,
            ControlFlow::Continue(()) => self.in_crowd(self.crowd.find(id)?),
        }
    }

    fn in_crowd(&self, place: usize) -> Option<SpanRef<'_>> {
        Some(SpanRef { slot: self.crowd.slots.get(place)?, index: Self::IN_LEVELS + place })
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

    /// Gives a new span a slot. The caller has released the stale slot of an earlier span with this id, if there was one.
    /// `None`: the run has ended.
    #[inline(always)]
    pub(crate) fn claim(&self, id: &Id, new: NewSpan) -> Option<SpanRef<'_>> {
        let span = self.take_place(id.into_u64())?;
        if self.has_ended() {
            self.free_key(span);
            return None;
        }
        // Pairs with the fence in `Slot::is_current`: a reader that sees any field of the new span also sees that the old
        // one is gone.
        fence(Ordering::Release);
        span.slot.reset(new);
        let generation = span.slot.generation() + 1;
        span.slot.state.store(generation << 2 | Phase::Open as u64, Ordering::Release);
        Some(span)
    }

    #[inline]
    fn take_place(&self, id: u64) -> Option<SpanRef<'_>> {
        let home = fibonacci_hash(id, FIRST);
        if try_take(&self.keys.0[home], id) { self.first_level().span(home) } else { self.take_place_slow(id) }
    }

    #[cold]
    fn take_place_slow(&self, id: u64) -> Option<SpanRef<'_>> {
        self.all_levels().find_map(|level| level.claim(id)).or_else(|| self.in_crowd(self.crowd.claim(id)))
    }

    /// Frees the slot of a span that closed.
    pub(crate) fn release(&self, span: SpanRef<'_>) {
        let generation = span.slot.generation();
        span.slot.state.store(generation << 2 | Phase::Free as u64, Ordering::Release);
        self.free_key(span);
    }

    #[inline]
    fn free_key(&self, span: SpanRef<'_>) {
        match self.keys.0.get(span.index) {
            Some(key) if fibonacci_hash(key.load(Ordering::Relaxed), FIRST) == span.index => {
                key.store(0, Ordering::Release)
            }
            _ => self.free_displaced(span),
        }
    }

    /// Frees the key of a displaced span and takes the span back from the counts of its homes.
    #[cold]
    fn free_displaced(&self, span: SpanRef<'_>) {
        let Some(key) = self.key(span) else { return };
        let id = key.load(Ordering::Relaxed);
        match span.index.checked_sub(Self::IN_LEVELS) {
            Some(place) => self.crowd.release(place),
            None => key.store(0, Ordering::Release),
        }
        for level in self.levels() {
            let home = level.home_of(id);
            if span.index == level.before + home {
                break;
            }
            if let Some(displaced) = level.displaced.get(home) {
                displaced.fetch_sub(1, Ordering::Relaxed);
            }
            if span.index < level.before + level.keys.len() {
                break;
            }
        }
    }

    #[inline(always)]
    fn key(&self, span: SpanRef<'_>) -> Option<&AtomicU64> {
        match self.level_of(span.index) {
            Some(level) => level.keys.get(span.index - level.before),
            None => self.crowd.keys.get(span.index.checked_sub(Self::IN_LEVELS)?),
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
    pub(crate) fn id_of(&self, span: SpanRef<'_>) -> Option<Id> {
        std::num::NonZeroU64::new(self.key(span)?.load(Ordering::Acquire)).map(Id::from_non_zero_u64)
    }

    /// The slot referred to, if it is still that span's.
    #[inline]
    pub(crate) fn get(&self, reference: SlotRef) -> Option<SpanRef<'_>> {
        let index = reference.index()?;
        let span = match self.level_of(index) {
            Some(level) => SpanRef { slot: level.slots.get(index - level.before)?, index },
            None => self.in_crowd(index.checked_sub(Self::IN_LEVELS)?)?,
        };
        (reference.is_generation(span.slot.generation()) && span.slot.phase() != Phase::Free).then_some(span)
    }

    /// The spans open now.
    pub(crate) fn iter(&self) -> impl Iterator<Item = SpanRef<'_>> {
        self.all().filter(|span| self.phase_now(*span) == Phase::Open)
    }

    /// The spans whose slots are not free: open, or finished by a thread that is about to count them.
    pub(crate) fn taken(&self) -> impl Iterator<Item = SpanRef<'_>> {
        self.all().filter(|span| self.phase_now(*span) != Phase::Free)
    }

    fn all(&self) -> impl Iterator<Item = SpanRef<'_>> {
        let in_levels =
            self.levels().flat_map(|level| (0..level.keys.len()).filter_map(move |place| level.span(place)));
        in_levels.chain((0..self.crowd.used()).filter_map(|place| self.in_crowd(place)))
    }

    /// The phase of the span in this place. Waits for a span whose fields are being written at this moment, within reason:
    /// that takes its thread a few nanoseconds, or a time slice where it was interrupted just there.
    fn phase_now(&self, span: SpanRef<'_>) -> Phase {
        for spin in 0..1_000 {
            if self.key(span).is_none_or(|key| key.load(Ordering::SeqCst) == 0) {
                return Phase::Free;
            }
            match span.slot.phase() {
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

    fn claim(open: &OpenSpans, id: u64, mark: u64) -> SpanRef<'_> {
        evict(open, id);
        let span = NewSpan { started: mark, flags: SpanFlags::STAGE, ..NewSpan::default() };
        open.claim(&Id::from_u64(id), span).unwrap()
    }

    fn evict(open: &OpenSpans, id: u64) {
        if let Some(left) = open.find(&Id::from_u64(id)) {
            open.release(left);
        }
    }

    fn mark(open: &OpenSpans, id: u64) -> Option<u64> {
        open.find(&Id::from_u64(id)).map(|span| span.started.load(Ordering::Relaxed))
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
                        if let Some(span) = open.find(&Id::from_u64(id)) {
                            open.release(span);
                        }
                        model.remove(&id);
                    }
                    Step::Look(id) => prop_assert_eq!(mark(&open, id), model.get(&id).copied()),
                }
            }
            let mut left: Vec<_> = open.iter().map(|span| span.started.load(Ordering::Relaxed)).collect();
            let mut expected: Vec<_> = model.into_values().collect();
            left.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(left, expected);
            (1..400).for_each(|id| evict(&open, id));
            prop_assert!(is_empty(&open));
        }
    }

    #[test]
    fn span_has_its_slot_from_claim_to_release() {
        let open = OpenSpans::<PLACES>::new();
        let mut earlier = Vec::new();
        for mark in 1..=3 {
            let span = claim(&open, 7, mark);
            let reference = span.reference();
            assert!(span.is_open() && span.is_current(reference));
            assert_eq!((open.iter().count(), open.taken().count()), (1, 1));
            assert!(earlier.iter().all(|earlier| open.get(*earlier).is_none() && !span.is_current(*earlier)));
            assert!(span.try_finish(reference) && !span.try_finish(reference), "it is counted once");
            assert!(!span.is_open() && !span.is_current(reference));
            assert_eq!((open.iter().count(), open.taken().count()), (0, 1));
            assert_eq!(span.reference(), reference);
            assert!(open.get(reference).is_some() && open.get_initialized(&Id::from_u64(7)).is_some());
            open.release(span);
            assert!(open.get(reference).is_none() && open.find(&Id::from_u64(7)).is_none());
            earlier.push(reference);
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
            let span = NewSpan { started: mark, flags: SpanFlags::STAGE, ..NewSpan::default() };
            open.claim(&Id::from_u64(id), span).unwrap().reference()
        };
        let references: Vec<_> = (1..=SPANS).map(|id| claim(id, id)).collect();
        assert!(open.crowd.used() > 20_000, "{}", open.crowd.used());
        for (id, reference) in (1..).zip(&references) {
            let span = open.find(&Id::from_u64(id)).unwrap();
            assert_eq!((span.reference(), span.started.load(Ordering::Relaxed)), (*reference, id));
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
        assert!(!second.try_finish(reference));
        assert!(second.try_finish(second.reference()));
        assert!(!second.try_finish(second.reference()), "a span is counted once");
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
                            let span = open.find(&Id::from_u64(id)).unwrap();
                            assert!(span.try_finish(span.reference()));
                            open.release(span);
                        }
                    }
                });
            }
        });
        assert_eq!(open.iter().count(), 0);
        assert!(is_empty(&open));
    }
}
