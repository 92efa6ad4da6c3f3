//! The events of the delivery in the application's log.

use crate::error::Error;
use crate::exposition::Problem;

/// A change in the delivery that the user should know.
#[derive(Debug)]
pub(crate) enum DeliveryEvent {
    /// Delivery to a destination fails. `None` is the gateway, which its errors name.
    Failing { destination: Option<String>, error: Error },
    /// Delivery to a destination works again.
    Recovered { destination: Option<String> },
    /// The final payload could not be written to the spool. It is pushed all the same.
    NotSpooled(Error),
    /// The gateway refused a payload of an earlier run.
    ReplayRefused(Error),
    /// The spool is full: payloads were dropped for the first time.
    SpoolFull,
    /// A recorder of the application panics or does not return. Its last rendering is delivered.
    RecorderFailing(Error),
    /// The spool works with limitations: its file system lacks a feature, or a payload cannot be opened.
    SpoolDegraded(Error),
    /// The cumulative totals are left out, since their base cannot be read.
    TotalsUnknown(Error),
    /// The increments of an earlier run do not reach the cumulative totals.
    TotalsIncomplete(Error),
    /// A metric is not written as it was recorded.
    MetricProblem(Problem),
}
