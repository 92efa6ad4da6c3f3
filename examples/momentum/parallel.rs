//! One thread per item, inside the span of the caller.

use std::{panic, thread};

use tracing::Span;

/// Does `work` on every item at once and returns the results in the order of the items.
///
/// A new thread starts outside every span, so each enters the caller's: what it opens then has the same parent, and
/// the same `profile` and `run_id`, as if there were no threads. A panic of a thread goes on here once all have ended.
pub(crate) fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let parent = Span::current();
    thread::scope(|scope| {
        let (parent, work) = (&parent, &work);
        let threads: Vec<_> = items.iter().map(|item| scope.spawn(move || parent.in_scope(|| work(item)))).collect();
        let ended: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        ended.into_iter().map(|result| result.unwrap_or_else(|payload| panic::resume_unwind(payload))).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_items() {
        let results = in_parallel(&[30_u64, 0, 10], |delay| {
            thread::sleep(std::time::Duration::from_millis(*delay));
            *delay
        });
        assert_eq!(results, [30, 0, 10]);
    }

    #[test]
    fn a_panic_reaches_the_caller_with_its_message() {
        let caught = panic::catch_unwind(|| {
            in_parallel(&[1, 2], |item| assert_ne!(*item, 2, "two is one too many"));
        });
        let payload = caught.expect_err("the panic was swallowed");
        let message = payload.downcast_ref::<String>().expect("a formatted message");
        assert!(message.contains("two is one too many"), "{message}");
    }
}
