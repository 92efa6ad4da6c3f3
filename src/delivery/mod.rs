//! The delivery of the metrics: pushes, the spool, the text file, OTLP and scrapes. Knows no span. Uses `exposition`,
//! `recorder` and `diagnostics`.
//!
//! `thread` starts everything and uses the other files. `scheduler` decides when to deliver, `queue` what one destination
//! delivers next, and `destination` and `gateway` how. `source` and `event` are the interface to the run. Of the folders,
//! `spool` uses `pushgateway`, `totals` and `http`; `pushgateway` uses `totals` and `http`; `otlp` uses `http`.

mod destination;
mod event;
mod gateway;
mod gateway_totals;
mod http;
#[cfg(feature = "otlp")]
pub(crate) mod otlp;
mod pushgateway;
mod queue;
mod replayer;
mod request;
mod scheduler;
#[cfg(feature = "http")]
mod scrape;
mod source;
mod spool;
mod textfile;
mod thread;
mod totals;

pub(crate) use event::DeliveryEvent;
pub use http::body::COMPRESSION_THRESHOLD;
#[cfg(feature = "cli")]
pub(crate) use http::url::without_credentials;
#[cfg(feature = "cli")]
pub(crate) use pushgateway::Group;
pub use pushgateway::{DEFAULT_CONNECT_TIMEOUT, DEFAULT_REQUEST_TIMEOUT, PushFormat, Pushgateway};
pub(crate) use pushgateway::{GatewayVariables, Grouping, Variable, check_label_name, parse_labels};
#[cfg(feature = "http")]
pub(crate) use scrape::Listener;
#[cfg(feature = "http")]
pub use scrape::{HTTP_REQUEST_TIMEOUT, MAX_HTTP_CONNECTIONS};
pub(crate) use source::{BoxFuture, ExpositionSource};
pub(crate) use spool::Spool;
#[cfg(feature = "cli")]
pub(crate) use spool::{FileState, PayloadOutcome, SpoolFile};
pub use spool::{MAX_SPOOL_BYTES, MAX_SPOOL_FILES};
pub(crate) use textfile::Textfile;
pub(crate) use thread::{DeliveryConfig, DeliveryThread};
pub(crate) use totals::{CumulativeTotals, StageCounts, StageKey};
