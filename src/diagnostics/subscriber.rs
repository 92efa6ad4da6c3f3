//! Removes the subscriber of the delivery thread while its runtime works.
//!
//! The subscriber returns while the thread is parked: a subscriber that is set for one thread makes every span and event of
//! the process look for a thread-local one first.

use std::cell::RefCell;

use tracing::dispatcher::{DefaultGuard, Dispatch, set_default};

thread_local! {
    static GUARD: RefCell<Option<DefaultGuard>> = const { RefCell::new(None) };
}

pub(crate) fn begin() {
    GUARD.with_borrow_mut(|guard| {
        // A second guard would outlive the end of the first one.
        if guard.is_none() {
            // `NoSubscriber` needs no registration: a new subscriber would re-register all callsites of the process, and its
            // "never" would turn their "always" into "sometimes".
            *guard = Some(set_default(&Dispatch::none()));
        }
    });
}

pub(crate) fn end() {
    let guard = GUARD.with_borrow_mut(Option::take);
    drop(guard);
}

/// Runs `work` with the subscriber that the thread has while its runtime is parked.
pub(crate) fn with_subscriber<T>(work: impl FnOnce() -> T) -> T {
    let guard = GUARD.with_borrow_mut(Option::take);
    let was_suppressed = guard.is_some();
    drop(guard);
    let result = work();
    if was_suppressed {
        begin();
    }
    result
}

/// Runs `work` without a subscriber, so that the events of the HTTP client and its connections stay out of the application's
/// log.
pub(crate) fn without_subscriber<T>(work: impl FnOnce() -> T) -> T {
    begin();
    let result = work();
    end();
    result
}

#[cfg(test)]
mod tests {
    use crate::diagnostics::subscriber::*;
    use tracing::subscriber::NoSubscriber;

    fn is_suppressed() -> bool {
        tracing::dispatcher::get_default(|subscriber| subscriber.is::<NoSubscriber>())
    }

    #[test]
    fn begins_once_and_ends() {
        let _other = set_default(&Dispatch::new(tracing_subscriber::registry()));
        assert!(!is_suppressed());
        begin();
        begin();
        assert!(is_suppressed());
        assert!(!with_subscriber(is_suppressed) && is_suppressed());
        end();
        assert!(!with_subscriber(is_suppressed) && !is_suppressed());
        assert!(!is_suppressed());
        end();
        assert!(!is_suppressed());
    }
}
