//! The guard: drives the final flush, however the process ends.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use tracing::warn;

use crate::delivery::Worker;
use crate::error::{Error, Kind};
use crate::layer::OWN_TARGET;
use crate::report::RunReport;
use crate::run::Ending;
use crate::telemetry::Telemetry;

/// How long a flush may take unless `MetricsLayerBuilder::with_flush_timeout` says otherwise.
pub const DEFAULT_FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// What is done with the report after the final flush.
pub(crate) type TakeReport = Box<dyn FnOnce(RunReport) + Send>;

/// Delivers the metrics when it goes out of scope, and on demand before.
///
/// Keep it until the end of `main`: when it is dropped, by return, `?` or a panic, the last state is delivered, within
/// the flush timeout whatever the gateway does, and nothing is measured after. `std::process::exit` runs no
/// destructor: call [`exit`](Self::exit) instead.
///
/// Dropping it blocks the thread it is dropped on. That works inside asynchronous code too, since the network work has
/// a thread of its own; [`shutdown_async`](Self::shutdown_async) leaves the runtime's thread free meanwhile.
#[must_use = "dropping the guard ends the measurement: keep it until the end of `main`, as `let (layer, _guard) = …`"]
pub struct FlushGuard {
    telemetry: Arc<Telemetry>,
    worker: Arc<Worker>,
    flush_timeout: Duration,
    /// Behind a lock only so that the guard can be shared.
    report: Mutex<Option<TakeReport>>,
    ended: bool,
}

impl FlushGuard {
    pub(crate) fn new(
        telemetry: Arc<Telemetry>,
        worker: Worker,
        flush_timeout: Duration,
        report: Option<TakeReport>,
    ) -> Self {
        Self { telemetry, worker: Arc::new(worker), flush_timeout, report: Mutex::new(report), ended: false }
    }

    /// Delivers the state of this moment to the gateway and the text file and waits for the answer, up to the flush
    /// timeout. Without either there is nothing to do, and that is no error.
    ///
    /// # Errors
    ///
    /// What kept the metrics from arriving: see [`Error`].
    pub fn flush(&self) -> Result<(), Error> {
        deliver(&self.worker, Instant::now() + self.flush_timeout, self.flush_timeout, false)
    }

    /// As [`flush`](Self::flush), without blocking the thread. Needs no particular runtime.
    ///
    /// # Errors
    ///
    /// As [`flush`](Self::flush).
    pub async fn flush_async(&self) -> Result<(), Error> {
        let (worker, timeout) = (Arc::clone(&self.worker), self.flush_timeout);
        let deadline = Instant::now() + timeout;
        elsewhere(move || deliver(&worker, deadline, timeout, false)).await?
    }

    /// Records whether the run succeeded, makes the final flush and hands the result through. What went wrong in the
    /// delivery is one `warn!`: it does not change the result.
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
        let ending = if result.is_ok() { Ending::Returned } else { Ending::Failed };
        let flushed = self.end(ending);
        self.warn_about(flushed);
        result
    }

    /// This run is no success, whatever its stages say.
    pub fn fail(&self) {
        self.telemetry.fail();
    }

    /// The final flush, with its result. Nothing is measured after.
    ///
    /// # Errors
    ///
    /// As [`flush`](Self::flush).
    pub fn shutdown(mut self) -> Result<(), Error> {
        self.end(Ending::Returned)
    }

    /// As [`shutdown`](Self::shutdown), without blocking the thread. Needs no particular runtime.
    ///
    /// A future that is dropped before it is ready does not stop the flush.
    ///
    /// # Errors
    ///
    /// As [`flush`](Self::flush).
    pub async fn shutdown_async(self) -> Result<(), Error> {
        elsewhere(move || self.shutdown()).await?
    }

    /// The final flush, then [`std::process::exit`]. A code other than zero is a failed run. What went wrong in the
    /// delivery is one `warn!`: it does not change the code.
    pub fn exit(mut self, code: i32) -> ! {
        let flushed = self.end(Ending::Exited(code));
        self.warn_about(flushed);
        std::process::exit(code)
    }

    /// The metrics of this moment in the Prometheus text format, in a stable order.
    #[must_use]
    pub fn render(&self) -> String {
        self.telemetry.render()
    }

    /// The stages of this run so far. `Display` prints them as a table.
    #[must_use]
    pub fn report(&self) -> RunReport {
        self.telemetry.report()
    }

    fn end(&mut self, ending: Ending) -> Result<(), Error> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        let deadline = Instant::now() + self.flush_timeout;
        self.telemetry.end(ending);
        let result = deliver(&self.worker, deadline, self.flush_timeout, true);
        let report = self.report.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(take) = report.take() {
            let report = self.telemetry.report();
            // The guard may be dropped by a panic already, and a second one would abort the process.
            if catch_unwind(AssertUnwindSafe(|| take(report))).is_err() {
                self.telemetry.stages.voice.speak(|| warn!(target: OWN_TARGET, "`with_run_report` panicked"));
            }
        }
        result
    }

    fn warn_about(&self, flushed: Result<(), Error>) {
        if let Err(error) = flushed {
            self.telemetry.stages.voice.speak(|| {
                warn!(target: OWN_TARGET, error = ?error, "the last state of the metrics was not delivered");
            });
        }
    }
}

impl Drop for FlushGuard {
    fn drop(&mut self) {
        if !self.ended {
            let flushed = self.end(if thread::panicking() { Ending::Panicked } else { Ending::Returned });
            self.warn_about(flushed);
        }
    }
}

impl fmt::Debug for FlushGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlushGuard").field("flush_timeout", &self.flush_timeout).finish_non_exhaustive()
    }
}

/// Orders a delivery and waits for it, until the deadline and no longer.
fn deliver(worker: &Worker, deadline: Instant, allowed: Duration, last: bool) -> Result<(), Error> {
    let (reply, answer) = mpsc::sync_channel(1);
    // A little earlier there, so that the answer, which says what went wrong, is here in time.
    let slack = (allowed / 20).min(Duration::from_millis(50));
    let send = move |result| {
        // Nobody waits any more where the deadline has passed.
        let _ = reply.send(result);
    };
    worker.order(deadline.checked_sub(slack).unwrap_or(deadline), last, Box::new(send));
    match answer.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => {
            Err(Error::new(Kind::Timeout, format!("the metrics were not delivered in the {allowed:?} allowed")))
        }
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(Error::new(Kind::Delivery, "the delivery thread is gone")),
    }
}

/// Runs blocking work on a thread of its own and awaits it.
async fn elsewhere<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    let (done, result) = tokio::sync::oneshot::channel();
    let subscriber = tracing::dispatcher::get_default(Clone::clone);
    let run = move || {
        tracing::dispatcher::with_default(&subscriber, || {
            // The future may have been dropped.
            let _ = done.send(work());
        });
    };
    thread::Builder::new()
        .name("stage-metrics-flush".to_owned())
        .spawn(run)
        .map_err(|error| Error::new(Kind::Delivery, "cannot start a thread for the flush").with_source(error))?;
    result.await.map_err(|_| Error::new(Kind::Delivery, "the thread of the flush is gone"))
}

const _: () = {
    const fn shared<T: Send + Sync + 'static>() {}
    shared::<FlushGuard>();
};
