//! Exposition in, bytes out: everything that leaves the process. Knows no span. Uses `exposition` and `recorder`.

mod destination;
pub(crate) mod http;
#[cfg(feature = "otlp")]
pub(crate) mod otlp;
pub(crate) mod pushgateway;
mod queue;
mod replayer;
mod request;
mod scheduler;
#[cfg(feature = "http")]
mod scrape;
mod spool;
mod textfile;
mod thread;

pub use http::body::COMPRESSION_THRESHOLD;
pub use pushgateway::{DEFAULT_CONNECT_TIMEOUT, DEFAULT_REQUEST_TIMEOUT, Pushgateway};
pub(crate) use pushgateway::{Grouping, parse_grouping};
#[cfg(feature = "http")]
pub(crate) use scrape::Listener;
#[cfg(feature = "http")]
pub use scrape::{HTTP_REQUEST_TIMEOUT, MAX_HTTP_CONNECTIONS};
pub(crate) use spool::Spool;
pub use spool::{MAX_SPOOL_BYTES, MAX_SPOOL_FILES};
pub(crate) use textfile::Textfile;
pub(crate) use thread::{DeliveryConfig, DeliveryThread};

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::Error;
use crate::exposition::{Families, Problem};

pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What the delivery thread reads and reports to. No call blocks: code of the application runs on threads of its own.
pub(crate) trait ExpositionSource: Send + Sync {
    /// The state of this moment. Where a recorder of the application panics or has not rendered it by the deadline, its last
    /// rendering.
    fn exposition(self: Arc<Self>, deadline: Instant) -> BoxFuture<'static, Result<Arc<Families>, Error>>;

    /// Brings the recorder up to date for a reader that does not render.
    #[cfg(feature = "otlp")]
    fn publish(self: Arc<Self>);

    /// The part of an exposition in the text format that is this crate's own metrics.
    fn own_families(&self, exposition: &str) -> String;

    /// Samples the process's resources.
    fn sample(self: Arc<Self>);

    /// A push to the gateway ended, retries included.
    fn pushed(self: Arc<Self>, is_success: bool, elapsed: Duration);

    /// The payloads in the spool, and those dropped from it since the start.
    fn spooled(self: Arc<Self>, files: usize, dropped: u64);

    /// Reports what a user of the crate should know.
    fn on_event(&self, event: DeliveryEvent);

    /// Completes when the application's subscriber has taken the events reported before.
    fn events_taken(&self) -> BoxFuture<'_, ()>;
}

/// What the delivery reports to the user, as an event in the application's log.
#[derive(Debug)]
pub(crate) enum DeliveryEvent {
    /// Delivery to this destination stopped working. `None` is the gateway, which its errors name.
    Failing { destination: Option<String>, error: Error },
    /// Delivery to this destination works again.
    Recovered { destination: Option<String> },
    /// The final payload could not be written to the spool. It is pushed all the same.
    NotSpooled(Error),
    /// The gateway refused what an earlier run had left.
    ReplayRefused(Error),
    /// Payloads were dropped from the spool for the first time.
    SpoolFull,
    /// A recorder of the application panics or does not return. Its last rendering is delivered.
    RecorderFailing(Error),
    /// The spool cannot do all that it should: its file system lacks something, or a payload cannot be opened.
    SpoolDegraded(Error),
    /// A metric is not written as it was recorded.
    MetricProblem(Problem),
}
