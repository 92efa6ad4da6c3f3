//! The slot of an open span: its state, flags, values and times.

use std::sync::atomic::Ordering;

use super::enter_count::EnterCount;
use super::flags::SpanFlags;
use super::sync::{AtomicU32, AtomicU64, fence};
use crate::series::append_only_map::EntryId;
use crate::series::interner::{LabelId, SpanLabels, ValueHashes};
#[cfg(feature = "trace-id")]
use crate::series::trace_id::TraceId;

/// One open span. All fields but `state` are for threads that hold the span's id, and for the end of the run.
#[derive(Debug, Default)]
#[repr(align(128))] // No false sharing, the adjacent-line prefetcher included.
pub(crate) struct Slot {
    /// The slot's generation and its phase.
    pub(super) state: AtomicU64,
    pub(crate) callsite: AtomicU32,
    /// The nearest ancestor that has a slot.
    parent: AtomicU64,
    /// The nearest ancestor that is a stage; valid while `resolved` is of the current epoch. See
    /// `SpanTree::nearest_stage`.
    enclosing_stage: AtomicU64,
    pub(crate) started: AtomicU64,
    /// Zero: never.
    last_exit: AtomicU64,
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
pub(super) enum Phase {
    /// No span, or one that is being written.
    Free = 0,
    Open = 1,
    /// Counted; its span may still be open.
    Finished = 2,
}

/// A slot together with its generation: refers to one span, never to the next one in the same slot. Zero is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct SlotRef(u64);

impl SlotRef {
    pub(crate) const NONE: Self = Self(0);
    const INDEX_BITS: u32 = 28;

    pub(super) fn new(index: usize, generation: u64) -> Self {
        Self(generation << Self::INDEX_BITS | (index as u64 + 1))
    }

    pub(super) fn index(self) -> Option<usize> {
        ((self.0 & ((1 << Self::INDEX_BITS) - 1)) as usize).checked_sub(1)
    }

    pub(super) fn is_generation(self, generation: u64) -> bool {
        self.0 >> Self::INDEX_BITS == generation & (u64::MAX >> Self::INDEX_BITS)
    }
}

/// A slot and its index. Two words, so that it is passed in registers.
#[derive(Clone, Copy)]
pub(crate) struct SpanRef<'a> {
    pub(crate) slot: &'a Slot,
    pub(super) index: usize,
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
    pub(super) fn generation(&self) -> u64 {
        self.state.load(Ordering::Acquire) >> 2
    }

    pub(super) fn phase(&self) -> Phase {
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
        reference.is_generation(state >> 2) && self.try_finish_from(state)
    }

    /// Takes the right to count the span, for a caller that holds its id, so that the slot has no other span.
    pub(crate) fn try_finish_held(&self) -> bool {
        self.try_finish_from(self.state.load(Ordering::Acquire))
    }

    fn try_finish_from(&self, state: u64) -> bool {
        let finished = state & !3 | Phase::Finished as u64;
        state & 3 == Phase::Open as u64
            && self.state.compare_exchange(state, finished, Ordering::AcqRel, Ordering::Relaxed).is_ok()
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
        self.entered.is_entered() || self.last_exit().is_some()
    }

    /// Returns the clock at the last exit.
    #[inline]
    pub(crate) fn last_exit(&self) -> Option<u64> {
        Some(self.last_exit.load(Ordering::Relaxed)).filter(|exit| *exit != 0)
    }

    #[inline]
    pub(crate) fn set_last_exit(&self, clock: u64) {
        self.last_exit.store(clock.max(1), Ordering::Relaxed);
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
        // Pairs with the `Release` in `store_trace`. Without the flag the halves are an earlier span's.
        let before = SpanFlags(self.flags.load(Ordering::Acquire));
        if !before.has(SpanFlags::TRACE_KNOWN) {
            return None;
        }
        let [high, low] = self.trace.each_ref().map(|half| u128::from(half.load(Ordering::Relaxed)));
        // Pairs with the fence in `replace_trace`: a half of the new trace is seen together with the flag.
        fence(Ordering::Acquire);
        let is_replaced = |flags: SpanFlags| flags.has(SpanFlags::TRACE_REPLACED);
        TraceId::new(high << u64::BITS | low).filter(|_| is_replaced(before) == is_replaced(self.flags()))
    }

    /// Keeps the first trace that is given.
    #[cfg(feature = "trace-id")]
    pub(crate) fn set_trace(&self, trace: Option<TraceId>) {
        let Some(trace) = trace else { return };
        let before = SpanFlags(self.flags.fetch_or(SpanFlags::TRACE_CLAIMED.0, Ordering::Relaxed));
        if !before.has(SpanFlags::TRACE_CLAIMED) {
            self.store_trace(trace);
        }
    }

    /// Replaces the trace, once, by another one or by none. A thread that reads the trace meanwhile finds none.
    #[cfg(feature = "trace-id")]
    pub(crate) fn replace_trace(&self, trace: Option<TraceId>) {
        let claim = |flags| {
            let flags = SpanFlags(flags);
            let is_written = flags.has(SpanFlags::TRACE_CLAIMED) && !flags.has(SpanFlags::TRACE_KNOWN);
            let claimed = flags.with(SpanFlags::TRACE_CLAIMED).with(SpanFlags::TRACE_REPLACED);
            let is_free = !is_written && !flags.has(SpanFlags::TRACE_REPLACED);
            is_free.then_some(claimed.without(SpanFlags::TRACE_KNOWN).0)
        };
        if self.flags.fetch_update(Ordering::Relaxed, Ordering::Relaxed, claim).is_ok() {
            // Pairs with the fence in `trace`.
            fence(Ordering::Release);
            trace.into_iter().for_each(|trace| self.store_trace(trace));
        }
    }

    #[cfg(feature = "trace-id")]
    fn store_trace(&self, trace: TraceId) {
        self.trace[0].store((trace.get() >> u64::BITS) as u64, Ordering::Relaxed);
        self.trace[1].store(trace.get() as u64, Ordering::Relaxed);
        self.flags.fetch_or(SpanFlags::TRACE_KNOWN.0, Ordering::Release);
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
    pub(super) fn reset(&self, new: NewSpan) {
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
