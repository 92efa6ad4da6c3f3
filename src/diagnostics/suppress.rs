//! No subscriber for this thread, while its runtime is at work.
//!
//! Not while it is parked: a subscriber that is set for one thread makes every event and span of the process look for
//! one of its own thread first.

use std::cell::RefCell;

use tracing::dispatcher::{DefaultGuard, Dispatch, set_default};

thread_local! {
    static GUARD: RefCell<Option<DefaultGuard>> = const { RefCell::new(None) };
}

pub(crate) fn begin() {
    GUARD.with_borrow_mut(|guard| {
        // A second guard would outlive the first one's end.
        if guard.is_none() {
            // Not a subscriber made for it: each new one has all callsites of the process asked anew, and a "never" of
            // this one would make their "always" a "sometimes".
            *guard = Some(set_default(&Dispatch::none()));
        }
    });
}

pub(crate) fn end() {
    let guard = GUARD.with_borrow_mut(Option::take);
    drop(guard);
}

/// Finds what subscriber this thread has when its runtime is not at work.
pub(crate) fn lift<T>(work: impl FnOnce() -> T) -> T {
    let guard = GUARD.with_borrow_mut(Option::take);
    let was_suppressed = guard.is_some();
    drop(guard);
    let result = work();
    if was_suppressed {
        begin();
    }
    result
}

/// Keeps the events of the HTTP client, and of what its connections still do afterwards, out of the application's log.
pub(crate) fn suppress_instrumentation<T>(work: impl FnOnce() -> T) -> T {
    begin();
    let result = work();
    end();
    result
}

#[cfg(test)]
mod tests {
    use crate::diagnostics::suppress::*;
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
        assert!(!lift(is_suppressed) && is_suppressed());
        end();
        assert!(!lift(is_suppressed) && !is_suppressed());
        assert!(!is_suppressed());
        end();
        assert!(!is_suppressed());
    }
}
