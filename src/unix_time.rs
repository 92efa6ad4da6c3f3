//! The wall clock, as Prometheus counts it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The time since 1970; zero where the system's clock is set before that.
pub(crate) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
