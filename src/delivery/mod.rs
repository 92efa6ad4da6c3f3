//! Exposition in, bytes out: everything that leaves the process. Knows nothing of spans.

mod address;
mod client;
mod compression;
mod destinations;
mod failure;
#[allow(dead_code)] // The next commits use it.
mod file_thread;
mod grouping;
mod headers;
#[cfg(feature = "http")]
mod http;
mod lane;
mod push;
mod pushgateway;
mod quiet;
mod retry;
mod routine;
mod secrets;
mod spool;
mod textfile;
mod worker;

#[cfg(feature = "otlp")]
pub(crate) use address::{Address, redact};
#[cfg(feature = "otlp")]
pub(crate) use client::build as client;
pub use compression::COMPRESSION_THRESHOLD;
#[cfg(feature = "otlp")]
pub(crate) use failure::{Failure, foreign_text};
pub(crate) use grouping::parse_grouping;
#[cfg(feature = "http")]
pub(crate) use http::Listener;
#[cfg(feature = "http")]
pub use http::{HTTP_REQUEST_TIMEOUT, MAX_HTTP_CONNECTIONS};
pub use pushgateway::{DEFAULT_CONNECT_TIMEOUT, DEFAULT_REQUEST_TIMEOUT, Pushgateway};
#[cfg(feature = "otlp")]
pub(crate) use retry::{Budget, again, is_of_payload};
pub(crate) use spool::Spool;
pub use spool::{MAX_SPOOL_BYTES, MAX_SPOOL_FILES};
pub(crate) use textfile::Textfile;
pub(crate) use worker::{Plan, Worker};

use std::time::Duration;

use crate::error::Error;

/// What the delivery thread reads, and whom it tells.
pub(crate) trait Source: Send + Sync {
    /// The state of this moment in the text format.
    fn exposition(&self) -> Result<String, Error>;

    /// Brings the recorder up to date, for whoever reads it by other means.
    #[cfg(feature = "otlp")]
    fn publish(&self);

    /// The part of an exposition that is this crate's own metrics.
    fn own_families(&self, exposition: &str) -> String;

    /// Samples the process's resources.
    fn sample(&self);

    /// A push to the gateway ended, retries included.
    fn pushed(&self, result: &Result<(), Error>, took: Duration);

    /// What the spool holds now, and what was dropped from it since the start.
    fn spooled(&self, files: usize, dropped: u64);

    /// Reports what a user of the crate should know. Returns at once.
    fn on_event(&self, event: DeliveryEvent);
}

/// What the delivery reports to the user, as an event in the application's log.
#[derive(Debug)]
pub(crate) enum DeliveryEvent {
    /// Delivery stopped working.
    Failing(Error),
    /// Delivery works again.
    Recovered,
    /// The final payload could not be written to the spool. It is pushed all the same.
    NotSpooled(Error),
    /// The gateway refused what an earlier run had left.
    ReplayRefused(Error),
    /// Payloads were dropped from the spool for the first time.
    SpoolFull,
}
