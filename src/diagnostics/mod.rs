//! The crate's own `tracing` events, and the suppression of spans and events of its own traffic. Uses `job_thread`.

mod events;
#[cfg(feature = "pushgateway")]
pub(crate) mod subscriber;

pub(crate) use events::Diagnostics;
