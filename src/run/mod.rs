//! One run of the process, from `install()` to the final flush. Uses `layer`, `delivery` and all below them.

mod added_metrics;
pub(crate) mod exit_reason;
pub(crate) mod guard;
pub(crate) mod handle;
pub(crate) mod metrics;
pub(crate) mod panic_hook;
pub(crate) mod report;
#[cfg(feature = "resource-usage")]
pub(crate) mod resource;
pub(crate) mod shutdown;
#[cfg(unix)]
pub(crate) mod signals;
mod verdict;

pub use guard::{DEFAULT_FLUSH_TIMEOUT, FlushGuard};
pub use handle::RunHandle;
pub use report::{RunReport, StageReport};
#[cfg(feature = "resource-usage")]
pub use resource::DEFAULT_RESOURCE_INTERVAL;
