//! The CPU time of the threads that are inside open stages.
//!
//! A thread has a list of the stage spans that it is in, each with its CPU time at the enter. When it leaves one, the time since then
//! goes to that span's stage and to the stages around it, up to one that the thread is in as well: that one gets it when the
//! thread leaves it.

use std::cell::RefCell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::flags::SpanFlags;
use super::state::{SlotRef, SpanRef};
use super::tree::SpanTree;

thread_local! {
    static INSIDE: RefCell<Vec<Entered>> = const { RefCell::new(Vec::new()) };
}

/// Entries of a thread. A span that is left on another thread than it was entered on leaves one behind.
const MAX_INSIDE: usize = 1_024;

/// A span that this thread is in.
struct Entered {
    /// The [`StageCpu::id`] of its layer.
    layer: u32,
    span: SlotRef,
    /// How many times it is entered on this thread.
    depth: u32,
    /// The CPU time of the thread at the first of these enters.
    started: u64,
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
    pub(crate) fn entered(&self, span: SpanRef<'_>, spans: &SpanTree) {
        if !span.flags().has(SpanFlags::STAGE) {
            return;
        }
        let reference = span.reference();
        with_inside(|inside| {
            if let Some(entered) = inside.iter_mut().rfind(|entered| entered.is(self.id, reference)) {
                entered.depth += 1;
                return;
            }
            if inside.len() >= MAX_INSIDE {
                inside.retain(|entered| entered.layer != self.id || spans.open.get(entered.span).is_some());
            }
            if inside.len() < MAX_INSIDE {
                // The last step, so that the rest of the enter is not measured.
                let started = thread_nanos().unwrap_or_default();
                inside.push(Entered { layer: self.id, span: reference, depth: 1, started });
            }
        });
    }

    /// This thread leaves a span.
    #[cold]
    pub(crate) fn exited(&self, span: SpanRef<'_>, spans: &SpanTree) {
        if !span.flags().has(SpanFlags::STAGE) {
            return;
        }
        let (now, reference) = (thread_nanos().unwrap_or_default(), span.reference());
        with_inside(|inside| {
            // Absent if it was entered on another thread.
            let Some(at) = inside.iter().rposition(|entered| entered.is(self.id, reference)) else { return };
            inside[at].depth -= 1;
            if inside[at].depth == 0 {
                let entered = inside.remove(at);
                self.credit(span, now.saturating_sub(entered.started), inside, spans);
            }
        });
    }

    /// Counts the time so far of the spans that this thread is in.
    pub(crate) fn count_current_thread(&self, spans: &SpanTree) {
        let now = thread_nanos().unwrap_or_default();
        with_inside(|inside| {
            for at in 0..inside.len() {
                let Some(span) = spans.open.get(inside[at].span).filter(|_| inside[at].layer == self.id) else {
                    continue;
                };
                let used = now.saturating_sub(std::mem::replace(&mut inside[at].started, now));
                self.credit(span, used, inside, spans);
            }
        });
    }

    /// Adds the time of a span to its stage, and to the stages around it up to one that the thread is in.
    fn credit(&self, span: SpanRef<'_>, nanos: u64, inside: &[Entered], spans: &SpanTree) {
        let mut next = Some(span);
        while let Some(span) = next {
            if span.flags().is_stage() {
                self.nanos.of(span.index, |sum| sum.fetch_add(nanos, Ordering::Relaxed));
            }
            let is_outside = |span: &SpanRef<'_>| !inside.iter().any(|entered| entered.is(self.id, span.reference()));
            next = spans.open.get(span.parent()).filter(is_outside);
        }
    }

    /// Takes the CPU time of a stage that has ended.
    pub(crate) fn take(&self, span: SpanRef<'_>) -> u64 {
        self.nanos.of(span.index, |nanos| nanos.swap(0, Ordering::Relaxed))
    }
}

impl Entered {
    fn is(&self, layer: u32, span: SlotRef) -> bool {
        self.layer == layer && self.span == span
    }
}

/// Calls `f` with the spans that this thread is in. Not while the thread ends.
fn with_inside(f: impl FnOnce(&mut Vec<Entered>)) {
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
