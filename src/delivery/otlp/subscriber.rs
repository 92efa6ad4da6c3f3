//! Calls into the OpenTelemetry SDK without its events.

use tracing::dispatcher::{Dispatch, get_default, with_default};
use tracing::subscriber::NoSubscriber;

/// Calls `work` without a subscriber, which keeps the SDK's events out of the application's log, such as one for each
/// instrument.
pub(super) fn without_subscriber<T>(work: impl FnOnce() -> T) -> T {
    // Inside a layer callback there may be no subscriber, and the default cannot be changed then.
    if get_default(|subscriber| subscriber.is::<NoSubscriber>()) {
        work()
    } else {
        with_default(&Dispatch::none(), work)
    }
}
