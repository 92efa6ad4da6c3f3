//! The guard, which makes the final flush however the process ends.

use std::fmt;
#[cfg(feature = "http")]
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::exit_reason::ExitReason;
use super::handle::RunHandle;
use super::report::RunReport;
use super::shutdown::Flusher;
use crate::error::{Error, Kind};

/// Default limit on the duration of a flush: 5 seconds. `MetricsLayerBuilder::with_flush_timeout` changes it.
pub const DEFAULT_FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// Delivers the metrics when it goes out of scope, and on demand before.
///
/// Keep the guard until the end of `main`. Its drop, by return, `?` or a panic, delivers the last state and ends the
/// measurement. The drop takes at most the flush timeout, whatever the gateway does. `std::process::exit` runs no
/// destructor: call [`exit`](Self::exit) instead.
///
/// In a fork of the process every delivery fails at once, since a fork has none of the threads that deliver.
///
/// The drop blocks its thread. It works inside asynchronous code too, since the network work has a thread of its own;
/// [`shutdown_async`](Self::shutdown_async) leaves the runtime's thread free.
#[must_use = "dropping the guard ends the measurement: keep it until the end of `main`, as `let (layer, _guard) = …`"]
pub struct FlushGuard {
    flusher: Arc<Flusher>,
    ended: bool,
}

impl FlushGuard {
    pub(crate) fn new(flusher: Arc<Flusher>) -> Self {
        Self { flusher, ended: false }
    }

    /// Returns a handle for other threads: flushes, reading, and [`fail`](Self::fail).
    #[must_use]
    pub fn handle(&self) -> RunHandle {
        RunHandle::new(&self.flusher)
    }

    /// Delivers the state of this moment to every destination (gateway, text file, collector) and waits for the answers, up
    /// to the flush timeout. Without a destination it returns `Ok`.
    ///
    /// It then waits until the subscriber has taken the events that this crate emitted before, for at most a tenth of the
    /// timeout.
    ///
    /// ```
    /// # use tracing_stage_metrics::MetricsLayer;
    /// # let (layer, guard) = MetricsLayer::builder().build()?;
    /// if let Err(error) = guard.flush() {
    ///     tracing::warn!("the metrics did not arrive: {error:?}");
    /// }
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The reason why the metrics did not arrive, see [`Error`]. A gateway that refused the application's metrics and took those
    /// of this crate is an error too.
    pub fn flush(&self) -> Result<(), Error> {
        self.flusher.flush()
    }

    /// Does what [`flush`](Self::flush) does, without blocking the thread. Works on every runtime.
    ///
    /// ```no_run
    /// # use tracing_stage_metrics::MetricsLayer;
    /// # async fn example() -> Result<(), tracing_stage_metrics::Error> {
    /// let (layer, guard) = MetricsLayer::builder().with_env()?.install()?;
    /// guard.flush_async().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`flush`](Self::flush).
    pub async fn flush_async(&self) -> Result<(), Error> {
        self.flusher.flush_async().await
    }

    /// Records whether the run succeeded, makes the final flush and returns `result`. A failed delivery is one `warn!`: it does
    /// not change the result.
    ///
    /// `Ok` says that the program succeeded: a stage that failed and succeeded another time, such as a retry, does not fail the
    /// run. A dropped guard says nothing, and a failed stage then fails the run. An `Err` is always a failed run.
    ///
    /// ```no_run
    /// # use tracing_stage_metrics::MetricsLayer;
    /// # fn run() -> Result<(), Box<dyn std::error::Error>> { Ok(()) }
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let (_layer, guard) = MetricsLayer::builder().with_env()?.install()?;
    ///     guard.finish(run())
    /// }
    /// ```
    pub fn finish<T, E>(mut self, result: Result<T, E>) -> Result<T, E> {
        self.ended = true;
        self.flusher.end_and_warn(if result.is_ok() { ExitReason::Succeeded } else { ExitReason::Failed });
        result
    }

    /// Marks the run as failed, whatever the outcome of its stages.
    ///
    /// ```
    /// # use tracing_stage_metrics::MetricsLayer;
    /// # use tracing_subscriber::prelude::*;
    /// # let (layer, guard) = MetricsLayer::builder().build()?;
    /// # let _default = tracing_subscriber::registry().with(layer).set_default();
    /// tracing::info_span!("ingest", stage_id = "ingest").in_scope(|| {});
    /// let rows = 0;
    /// if rows == 0 {
    ///     guard.fail(); // no stage failed, but the run did: `quant_run_last_success_timestamp_seconds` is not set
    /// }
    /// guard.shutdown()?;
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    pub fn fail(&self) {
        self.flusher.metrics.fail();
    }

    /// Makes the final flush and returns its result. Nothing is measured after it.
    ///
    /// ```no_run
    /// # use tracing_stage_metrics::MetricsLayer;
    /// # fn run() -> Result<(), Box<dyn std::error::Error>> { Ok(()) }
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let (_layer, guard) = MetricsLayer::builder().with_env()?.install()?;
    ///     run()?;
    ///     guard.shutdown()?; // a job whose metrics do not arrive has failed
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`flush`](Self::flush).
    pub fn shutdown(mut self) -> Result<(), Error> {
        self.ended = true;
        self.flusher.end(ExitReason::Returned)
    }

    /// Does what [`shutdown`](Self::shutdown) does, without blocking the thread. Works on every runtime.
    ///
    /// The flush goes on if the future is dropped before it completes.
    ///
    /// ```no_run
    /// # use tracing_stage_metrics::MetricsLayer;
    /// #[tokio::main]
    /// async fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let (_layer, guard) = MetricsLayer::builder().with_env()?.install()?;
    ///     tokio::signal::ctrl_c().await?;
    ///     guard.shutdown_async().await?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`flush`](Self::flush).
    pub async fn shutdown_async(self) -> Result<(), Error> {
        on_new_thread(move || self.shutdown()).await?
    }

    /// Makes the final flush and calls [`std::process::exit`]. Zero counts as `Ok` does in [`finish`](Self::finish); any other
    /// code is a failed run. A failed delivery is one `warn!`: it does not change the code.
    ///
    /// ```no_run
    /// # use tracing_stage_metrics::MetricsLayer;
    /// let (_layer, guard) = MetricsLayer::builder().with_env()?.install()?;
    /// if std::env::args().len() > 1 {
    ///     eprintln!("no arguments, please");
    ///     guard.exit(2);
    /// }
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    pub fn exit(mut self, code: i32) -> ! {
        self.ended = true;
        self.flusher.end_then(ExitReason::Exited(code), || std::process::exit(code))
    }

    /// Returns the metrics of this moment in the Prometheus text format, in a stable order. With `with_exposition` it calls the
    /// application's function on this thread.
    ///
    /// ```
    /// # use tracing_stage_metrics::MetricsLayer;
    /// # use tracing_subscriber::prelude::*;
    /// # let (layer, guard) = MetricsLayer::builder().build()?;
    /// # let _default = tracing_subscriber::registry().with(layer).set_default();
    /// tracing::info_span!("ingest", stage_id = "ingest").in_scope(|| {});
    /// assert!(guard.render().contains("quant_stage_total{stage_id=\"ingest\",status=\"success\"} 1\n"));
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    #[must_use]
    pub fn render(&self) -> String {
        self.flusher.metrics.render()
    }

    /// Returns the address of the HTTP listener, with the port that the system chose for port 0. `None` without a listener.
    ///
    /// ```
    /// # use tracing_stage_metrics::MetricsLayer;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (_layer, guard) = MetricsLayer::builder().with_http_listener("127.0.0.1:0".parse()?).build()?;
    /// assert_ne!(guard.listen_addr().unwrap().port(), 0);
    /// # Ok(()) }
    /// ```
    #[cfg(feature = "http")]
    #[must_use]
    pub fn listen_addr(&self) -> Option<SocketAddr> {
        self.flusher.delivery.listen_addr
    }

    /// Returns the stages of this run so far. `Display` prints them as a table.
    ///
    /// ```
    /// # use tracing_stage_metrics::MetricsLayer;
    /// # use tracing_subscriber::prelude::*;
    /// # let (layer, guard) = MetricsLayer::builder().build()?;
    /// # let _default = tracing_subscriber::registry().with(layer).set_default();
    /// tracing::info_span!("ingest", stage_id = "ingest").in_scope(|| tracing::error!("no such file"));
    /// let report = guard.report();
    /// assert_eq!(report.stage("ingest").unwrap().failures(), 1);
    /// println!("{report}");
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    #[must_use]
    pub fn report(&self) -> RunReport {
        self.flusher.metrics.report()
    }
}

impl Drop for FlushGuard {
    fn drop(&mut self) {
        if !self.ended {
            self.flusher.end_and_warn(if thread::panicking() { ExitReason::Panicked } else { ExitReason::Returned });
        }
    }
}

impl fmt::Debug for FlushGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlushGuard").field("flush_timeout", &self.flusher.timeout()).finish_non_exhaustive()
    }
}

/// Runs blocking work on a new thread and awaits it.
async fn on_new_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    let (done, result) = tokio::sync::oneshot::channel();
    let subscriber = tracing::dispatcher::get_default(Clone::clone);
    let run = move || {
        tracing::dispatcher::with_default(&subscriber, || {
            // The send fails if the future was dropped.
            let _ = done.send(work());
        });
    };
    thread::Builder::new()
        .name("metrics-flush".to_owned())
        .spawn(run)
        .map_err(|error| Error::new(Kind::Delivery, "cannot start a thread for the flush").with_source(error))?;
    result.await.map_err(|_| Error::new(Kind::Delivery, "the thread of the flush is gone"))
}

const _: () = {
    const fn shared<T: Send + Sync + 'static>() {}
    shared::<FlushGuard>();
};
