//! Removes the subscriber of the delivery thread while its runtime works.
//!
//! The subscriber returns while the thread is parked: a subscriber that is set for one thread makes every span and event of
//! the process look for a thread-local one first.

use std::cell::RefCell;

use tracing::dispatcher::{DefaultGuard, Dispatch, set_default};
#[cfg(feature = "otlp")]
use tracing::dispatcher::{get_default, with_default};
#[cfg(any(test, feature = "otlp"))]
use tracing::subscriber::NoSubscriber;

thread_local! {
    static GUARD: RefCell<Option<DefaultGuard>> = const { RefCell::new(None) };
}

/// Removes the subscriber of this thread.
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

/// Restores the subscriber of this thread.
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

/// Calls `work` without a subscriber, which keeps events of a library out of the application's log, such as one of the
/// OpenTelemetry SDK for each instrument.
#[cfg(feature = "otlp")]
pub(crate) fn without_subscriber<T>(work: impl FnOnce() -> T) -> T {
    // Inside a layer callback there may be no subscriber, and the default cannot be changed then.
    if get_default(|subscriber| subscriber.is::<NoSubscriber>()) {
        work()
    } else {
        with_default(&Dispatch::none(), work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
