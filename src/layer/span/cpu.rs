//! The CPU time of the threads that are inside open stages.
//!
//! A thread has a list of the stage spans that it is in, most often each within the one before. The time since the enter goes to a
//! span's stage and to the stages around it, up to one that the thread is in as well, which has its own time. It is credited when
//! the thread leaves the span, or the list changes in another order: a worker of `rayon` that waits in one stage may run another one,
//! and both may be within a third.

use std::cell::RefCell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::flags::SpanFlags;
use super::state::{SlotRef, SpanRef};
use super::tree::SpanTree;

thread_local! {
    static INSIDE: RefCell<Inside> = const { RefCell::new(Inside { spans: Vec::new(), credited: Vec::new() }) };
}

/// Spans of a thread. One that is not left on the thread that entered it leaves an entry behind.
const MAX_INSIDE: usize = 1_024;

/// The spans that this thread is in.
struct Inside {
    spans: Vec<Entered>,
    /// The stages that have got the time of the thread up to now, while it is credited.
    credited: Vec<SlotRef>,
}

/// A span that this thread is in.
struct Entered {
    /// The [`StageCpu::id`] of its layer.
    layer: u32,
    span: SlotRef,
    /// How many times it is entered on this thread.
    depth: u32,
    /// The CPU time of the thread up to which it is credited.
    credited_to: u64,
    /// Whether each span up to this one is within the one before it. If one is not, all are credited up to the same time.
    is_in_order: bool,
}

/// The CPU time of each open stage so far.
pub(crate) struct StageCpu {
    id: u32,
    nanos: PerSlot,
}

impl StageCpu {
    /// `None` where the system does not measure the CPU time of a thread.
    pub(crate) fn new() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        thread_nanos()?;
        Some(Self { id: NEXT.fetch_add(1, Ordering::Relaxed), nanos: PerSlot::default() })
    }

    #[cold]
    pub(crate) fn opened(&self, span: SpanRef<'_>) {
        self.nanos.of(span.index, |nanos| nanos.store(0, Ordering::Relaxed));
    }

    /// This thread has entered a span.
    #[cold]
    pub(crate) fn entered(&self, span: SpanRef<'_>, tree: &SpanTree) {
        if !span.flags().has(SpanFlags::STAGE) {
            return;
        }
        let reference = span.reference();
        with_inside(|inside| {
            if let Some(at) = inside.position(self.id, reference) {
                inside.spans[at].depth += 1;
                return;
            }
            let mut is_in_order = self.is_in_order(span, inside, tree);
            if !is_in_order {
                // Without the entries that closed spans have left behind.
                inside.spans.retain(|entered| entered.layer != self.id || tree.open.get(entered.span).is_some());
                is_in_order = self.is_in_order(span, inside, tree);
            }
            if inside.spans.len() >= MAX_INSIDE {
                return;
            }
            // The last step in most cases, so that the rest of the enter is not measured.
            let now = thread_nanos().unwrap_or_default();
            if !is_in_order {
                self.credit_all(inside, now, tree);
            }
            inside.spans.push(Entered { layer: self.id, span: reference, depth: 1, credited_to: now, is_in_order });
        });
    }

    /// Whether each of the spans is within the one before it, with this one as the last.
    fn is_in_order(&self, span: SpanRef<'_>, inside: &Inside, tree: &SpanTree) -> bool {
        let last = inside.spans.iter().rfind(|entered| entered.layer == self.id);
        last.is_none_or(|last| last.is_in_order && tree.is_within(span, last.span))
    }

    /// This thread leaves a span.
    #[cold]
    pub(crate) fn exited(&self, span: SpanRef<'_>, tree: &SpanTree) {
        if !span.flags().has(SpanFlags::STAGE) {
            return;
        }
        let (now, reference) = (thread_nanos().unwrap_or_default(), span.reference());
        with_inside(|inside| {
            // Absent if it was entered on another thread.
            let Some(at) = inside.position(self.id, reference) else { return };
            inside.spans[at].depth -= 1;
            if inside.spans[at].depth > 0 {
                return;
            }
            let is_last = inside.spans[at + 1..].iter().all(|entered| entered.layer != self.id);
            if is_last && inside.spans[at].is_in_order {
                inside.credited.clear();
                self.credit(at, inside, now, tree);
            } else {
                self.credit_all(inside, now, tree);
            }
            inside.spans.remove(at);
        });
    }

    /// Counts the time so far of the spans that this thread is in.
    pub(crate) fn count_current_thread(&self, tree: &SpanTree) {
        let now = thread_nanos().unwrap_or_default();
        with_inside(|inside| self.credit_all(inside, now, tree));
    }

    #[cold]
    fn credit_all(&self, inside: &mut Inside, now: u64, tree: &SpanTree) {
        inside.credited.clear();
        (0..inside.spans.len()).for_each(|at| self.credit(at, inside, now, tree));
    }

    /// Adds the time of a span to its stage, and to the stages around it up to one that the thread is in or that has got it.
    fn credit(&self, at: usize, inside: &mut Inside, now: u64, tree: &SpanTree) {
        let Some(mut span) = tree.open.get(inside.spans[at].span).filter(|_| inside.spans[at].layer == self.id) else {
            return;
        };
        let nanos = now.saturating_sub(std::mem::replace(&mut inside.spans[at].credited_to, now));
        let by_others = inside.credited.len();
        loop {
            if span.flags().is_stage() {
                self.nanos.of(span.index, |sum| sum.fetch_add(nanos, Ordering::Relaxed));
            }
            let Some(around) = tree.open.get(span.parent()) else { return };
            let reference = around.reference();
            if inside.position(self.id, reference).is_some() || inside.credited[..by_others].contains(&reference) {
                return;
            }
            inside.credited.push(reference);
            span = around;
        }
    }

    /// Takes the CPU time of a stage that has ended.
    pub(crate) fn take(&self, span: SpanRef<'_>) -> u64 {
        self.nanos.of(span.index, |nanos| nanos.swap(0, Ordering::Relaxed))
    }
}

impl Inside {
    fn position(&self, layer: u32, span: SlotRef) -> Option<usize> {
        self.spans.iter().rposition(|entered| entered.layer == layer && entered.span == span)
    }
}

/// Calls `f` with the spans that this thread is in. Not while the thread ends.
fn with_inside(f: impl FnOnce(&mut Inside)) {
    let _ = INSIDE.try_with(|inside| inside.try_borrow_mut().map(|mut inside| f(&mut inside)));
}

/// A number for each slot, in chunks that are allocated when they are needed, each twice as long as the one before.
#[derive(Default)]
struct PerSlot([OnceLock<Box<[AtomicU64]>>; PerSlot::CHUNKS]);

impl PerSlot {
    const FIRST: usize = 256;
    const CHUNKS: usize = 24;

    /// Calls `f` with the number of this slot.
    fn of<T>(&self, index: usize, f: impl FnOnce(&AtomicU64) -> T) -> T {
        let at = (index / Self::FIRST + 1).ilog2() as usize;
        let place = index - Self::FIRST * ((1 << at) - 1);
        let chunk = |len: usize| (0..len).map(|_| AtomicU64::new(0)).collect();
        let number = self.0.get(at).and_then(|of| of.get_or_init(|| chunk(Self::FIRST << at)).get(place));
        f(number.unwrap_or(&AtomicU64::new(0)))
    }
}

/// Returns the CPU time of this thread, user and system.
#[cfg(all(feature = "pushgateway", target_os = "linux"))]
fn thread_nanos() -> Option<u64> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Some(u64::try_from(time.tv_sec).ok()? * 1_000_000_000 + u64::try_from(time.tv_nsec).ok()?)
}

#[cfg(not(all(feature = "pushgateway", target_os = "linux")))]
fn thread_nanos() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_slot_has_a_number_of_its_own() {
        let numbers = PerSlot::default();
        let indices = || (0..5_000).chain([1 << 20, (1 << 20) + 1]);
        indices().for_each(|index| numbers.of(index, |number| number.store(index as u64 + 1, Ordering::Relaxed)));
        for index in indices() {
            assert_eq!(numbers.of(index, |number| number.load(Ordering::Relaxed)), index as u64 + 1);
        }
    }
}
