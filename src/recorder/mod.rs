//! The recorder of this crate, and the handle of the recorder that the layer records into. Uses `exposition`.

#[cfg(feature = "pushgateway")]
mod by_name;
#[cfg(feature = "pushgateway")]
mod foreign;
#[cfg(feature = "pushgateway")]
mod prometheus;
mod target;
#[cfg(all(test, feature = "pushgateway"))]
mod tests;

#[cfg(feature = "pushgateway")]
pub(crate) use foreign::ForeignRecorder;
#[cfg(feature = "pushgateway")]
pub use prometheus::{DEFAULT_BUCKETS, DEFAULT_HISTOGRAM_BUCKETS};
#[cfg(feature = "pushgateway")]
pub(crate) use prometheus::{StageRecorder, check_is_installed};
pub(crate) use target::{KeptHistogram, RecorderHandle, RecorderTarget, is_suppressed, suppress_instrumentation};
