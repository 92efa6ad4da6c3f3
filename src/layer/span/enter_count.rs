//! How many times a span is entered now.
//!
//! Most spans are entered and left by the thread that opened them alone. Its count needs no more than a load and a
//! store; what other threads do is counted beside it, with atomic additions.

use std::cell::Cell;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

thread_local! {
    /// Zero: not asked for yet.
    static THREAD: Cell<u64> = const { Cell::new(0) };
}

/// A number of this thread, which no other has or had.
#[inline]
fn this_thread() -> u64 {
    THREAD.with(|thread| match thread.get() {
        0 => number_this_thread(thread),
        known => known,
    })
}

#[cold]
fn number_this_thread(thread: &Cell<u64>) -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread.set(NEXT.fetch_add(1, Ordering::Relaxed));
    thread.get()
}

#[derive(Debug, Default)]
pub(crate) struct EnterCount {
    /// The thread that opened the span, which alone writes `there`.
    owner: AtomicU64,
    there: AtomicI32,
    /// By other threads. Below zero where a span was left on another thread than it was entered on.
    elsewhere: AtomicI32,
}

impl EnterCount {
    /// A new span, opened by this thread.
    #[inline]
    pub(crate) fn reset(&self) {
        self.owner.store(this_thread(), Ordering::Relaxed);
        self.there.store(0, Ordering::Relaxed);
        self.elsewhere.store(0, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn enter(&self) {
        self.add(1);
    }

    #[inline]
    pub(crate) fn exit(&self) {
        self.add(-1);
    }

    #[inline]
    fn add(&self, one: i32) {
        if self.owner.load(Ordering::Relaxed) == this_thread() {
            self.there.store(self.there.load(Ordering::Relaxed).wrapping_add(one), Ordering::Relaxed);
        } else {
            self.elsewhere.fetch_add(one, Ordering::Relaxed);
        }
    }

    #[inline]
    pub(crate) fn is_entered(&self) -> bool {
        self.there.load(Ordering::Relaxed).wrapping_add(self.elsewhere.load(Ordering::Relaxed)) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened() -> EnterCount {
        let entered = EnterCount::default();
        entered.reset();
        entered
    }

    fn on_another_thread(work: impl FnOnce() + Send) {
        std::thread::scope(|scope| {
            scope.spawn(work);
        });
    }

    #[test]
    fn entered_as_often_as_it_was_not_left() {
        let entered = opened();
        assert!(!entered.is_entered());
        entered.enter();
        entered.enter();
        entered.exit();
        assert!(entered.is_entered());
        entered.exit();
        assert!(!entered.is_entered());
    }

    #[test]
    fn it_does_not_matter_on_which_thread() {
        let entered = opened();
        entered.enter();
        on_another_thread(|| entered.enter());
        entered.exit();
        assert!(entered.is_entered(), "the other thread is in it");
        on_another_thread(|| {
            entered.exit();
        });
        assert!(!entered.is_entered());
        // As a future may be that moved while it was polled.
        entered.enter();
        on_another_thread(|| {
            entered.exit();
        });
        assert!(!entered.is_entered());
    }

    #[test]
    fn threads_have_numbers_of_their_own() {
        let numbers = std::sync::Mutex::new(std::collections::HashSet::new());
        for _ in 0..20 {
            on_another_thread(|| {
                let number = this_thread();
                assert_eq!(number, this_thread());
                assert!(numbers.lock().unwrap().insert(number), "of a thread that is gone");
            });
        }
    }

    #[test]
    fn nothing_is_lost_between_threads() {
        let entered = opened();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| entered.enter()));
            }
            (0..10_000).for_each(|_| entered.enter());
        });
        for _ in 0..49_999 {
            entered.exit();
        }
        assert!(entered.is_entered());
        entered.exit();
        assert!(!entered.is_entered());
    }
}
