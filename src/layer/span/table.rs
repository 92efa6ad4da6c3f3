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

use std::ops::ControlFlow;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use tracing::span::Id;

use super::crowd::Crowd;
use super::level::{FurtherLevel, Level, try_take};
use super::state::{NewSpan, Phase, Slot, SlotRef, SpanRef};
use super::sync::{AtomicU32, AtomicU64, Flag, fence, spin_loop, yield_now};
use crate::series::append_only_map::fibonacci_hash;

/// Places of the first level.
pub(super) const PLACES: usize = 256;
const GROWTH: u32 = 3;
const LEVELS: usize = 5;

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
    pub(super) crowd: Crowd,
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
    pub(super) fn levels(&self) -> impl Iterator<Item = Level<'_>> {
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
