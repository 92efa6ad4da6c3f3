//! The part of the guard that other threads may hold.

use std::fmt;
use std::sync::Arc;

use super::report::RunReport;
use super::shutdown::Flusher;
use crate::error::Error;

/// Reads and delivers the metrics from any thread, while the [`FlushGuard`](crate::FlushGuard) stays in `main`.
///
/// A clone is cheap. A handle does not keep the run open: after the final flush [`render`](Self::render) and
/// [`report`](Self::report) return the last state, a flush is an error, and [`fail`](Self::fail) has no effect.
///
/// ```
/// # use tracing_stage_metrics::MetricsLayer;
/// let (layer, guard) = MetricsLayer::builder().build()?;
/// let handle = guard.handle();
/// std::thread::spawn(move || {
///     if let Err(error) = handle.flush() {
///         tracing::warn!("the metrics did not arrive: {error:?}");
///     }
/// });
/// # Ok::<(), tracing_stage_metrics::Error>(())
/// ```
#[derive(Clone)]
pub struct RunHandle(Arc<Flusher>);

impl RunHandle {
    pub(super) fn new(flusher: &Arc<Flusher>) -> Self {
        Self(Arc::clone(flusher))
    }

    /// Does what [`FlushGuard::flush`](crate::FlushGuard::flush) does.
    ///
    /// # Errors
    ///
    /// As [`FlushGuard::flush`](crate::FlushGuard::flush), and after the final flush.
    pub fn flush(&self) -> Result<(), Error> {
        self.0.flush()
    }

    /// Does what [`FlushGuard::flush_async`](crate::FlushGuard::flush_async) does.
    ///
    /// # Errors
    ///
    /// As [`flush`](Self::flush).
    pub async fn flush_async(&self) -> Result<(), Error> {
        self.0.flush_async().await
    }

    /// Does what [`FlushGuard::fail`](crate::FlushGuard::fail) does.
    pub fn fail(&self) {
        self.0.metrics.fail();
    }

    /// Does what [`FlushGuard::render`](crate::FlushGuard::render) does.
    #[must_use]
    pub fn render(&self) -> String {
        self.0.metrics.render()
    }

    /// Does what [`FlushGuard::report`](crate::FlushGuard::report) does.
    #[must_use]
    pub fn report(&self) -> RunReport {
        self.0.metrics.report()
    }
}

impl fmt::Debug for RunHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunHandle").field("flush_timeout", &self.0.timeout()).finish_non_exhaustive()
    }
}

const _: () = {
    const fn shared<T: Clone + Send + Sync + 'static>() {}
    shared::<RunHandle>();
};
