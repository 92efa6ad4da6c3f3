//! Flushes, and the final flush. The guard, a signal or a panic hook makes the final flush, once in a process.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::process;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread, ThreadId};
use std::time::{Duration, Instant};

use tokio::task::unconstrained;
use tracing::{dispatcher, warn};

use super::exit_reason::ExitReason;
use super::metrics::RunMetrics;
use super::report::RunReport;
use crate::delivery::DeliveryThread;
use crate::error::{Error, Kind};
use crate::job_thread::JobThread;
use crate::schema::OWN_TARGET;

/// The application's closure that takes the report after the final flush.
pub(crate) type TakeReport = Box<dyn FnOnce(RunReport) + Send>;
/// Runs after the final flush.
pub(crate) type Afterwards = Box<dyn Fn() + Send + Sync>;

pub(crate) struct Flusher {
    pub(crate) metrics: Arc<RunMetrics>,
    pub(crate) delivery: DeliveryThread,
    timeout: Duration,
    report: Option<ReportThread>,
    afterwards: OnceLock<Afterwards>,
    state: Mutex<EndState>,
    /// Notified when the final flush is over.
    ended: Condvar,
    /// The id of the process that has the threads. A fork has none.
    process: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum EndState {
    Running,
    /// This thread makes the final flush.
    ExitReason(ThreadId),
    Ended,
}

/// Runs the closure of the application that takes the report.
struct ReportThread {
    thread: JobThread,
    take: Mutex<Option<TakeReport>>,
}

impl Flusher {
    /// # Errors
    ///
    /// The system has no thread for the report.
    pub(crate) fn new(
        metrics: Arc<RunMetrics>,
        delivery: DeliveryThread,
        timeout: Duration,
        report: Option<TakeReport>,
    ) -> Result<Self, Error> {
        let report = report.map(|take| {
            let thread = JobThread::start("metrics-report", 1)?;
            Ok::<_, Error>(ReportThread { thread, take: Mutex::new(Some(take)) })
        });
        Ok(Self {
            metrics,
            delivery,
            timeout,
            report: report.transpose()?,
            afterwards: OnceLock::new(),
            state: Mutex::new(EndState::Running),
            ended: Condvar::new(),
            process: process::id(),
        })
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Sets the action that follows the final flush. The first call counts.
    pub(crate) fn then(&self, afterwards: Afterwards) {
        let _ = self.afterwards.set(afterwards);
    }

    /// Delivers the state of this moment and waits for the result, at most for the timeout.
    pub(crate) fn flush(&self) -> Result<(), Error> {
        self.deliver(Instant::now() + self.timeout, false)
    }

    pub(crate) async fn flush_async(&self) -> Result<(), Error> {
        self.request(Instant::now() + self.timeout, false).await
    }

    /// Makes the final flush. A second caller waits until the first is done, and gets `Ok`.
    pub(crate) fn end(&self, reason: ExitReason) -> Result<(), Error> {
        self.end_with(reason, false, |result| result)
    }

    /// Makes the final flush. An error is one warning.
    pub(crate) fn end_and_warn(&self, reason: ExitReason) {
        self.end_then(reason, || ());
    }

    /// Makes the final flush and calls `next`, which ends the process, before a second caller goes on.
    pub(crate) fn end_then<T>(&self, reason: ExitReason, next: impl FnOnce() -> T) -> T {
        self.end_with(reason, true, |_| next())
    }

    fn end_with<T>(&self, reason: ExitReason, warns: bool, next: impl FnOnce(Result<(), Error>) -> T) -> T {
        let deadline = Instant::now() + self.timeout;
        if let Err(error) = self.check_process() {
            return next(Err(error));
        }
        if !self.begin_end(deadline) {
            return next(Ok(()));
        }
        let _ended = Ended(self);
        next(self.flush_finally(reason, warns, deadline))
    }

    /// Returns whether the caller must make the final flush. Waits for another thread that makes it, until the deadline.
    fn begin_end(&self, deadline: Instant) -> bool {
        let current = thread::current().id();
        // A panic on the recorder's thread leads here. The final flush must not wait for that thread: it uses the last rendering.
        self.metrics.abandon_foreign_thread();
        let mut state = self.state();
        loop {
            match *state {
                EndState::Running if self.delivery.is_current() => return false,
                EndState::Running => {
                    *state = EndState::ExitReason(current);
                    return true;
                }
                // A panic hook during the final flush, on this thread or on one that the final flush waits for.
                EndState::ExitReason(thread) if thread == current || self.is_waited_for() => return false,
                EndState::ExitReason(_) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return false;
                    }
                    state = self.ended.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
                }
                EndState::Ended => return false,
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, EndState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the caller is a thread of this crate.
    pub(crate) fn is_own_thread(&self) -> bool {
        self.is_waited_for() || self.metrics.is_foreign_thread()
    }

    /// Whether the caller is a thread that the final flush waits for and cannot abandon.
    fn is_waited_for(&self) -> bool {
        self.delivery.is_current()
            || self.metrics.stages.diagnostics().is_current_thread()
            || self.report.as_ref().is_some_and(|report| report.thread.is_current())
    }

    /// Delivers before it emits events: a log that blocks does not cost the last state.
    fn flush_finally(&self, reason: ExitReason, warns: bool, deadline: Instant) -> Result<(), Error> {
        let diagnostics = self.metrics.stages.diagnostics();
        diagnostics.hold();
        self.metrics.end(reason, self.timeout / 10, deadline.checked_sub(self.timeout * 3 / 4).unwrap_or(deadline));
        let result = self.deliver(deadline.checked_sub(self.timeout / 10).unwrap_or(deadline), true);
        if warns && let Err(error) = &result {
            let error = error.copy();
            diagnostics.emit(move || {
                warn!(target: OWN_TARGET, error = ?error, "the last state of the metrics was not delivered");
            });
        }
        diagnostics.release();
        self.hand_over_report();
        self.delivery.wait_end(deadline);
        if let Some(report) = &self.report {
            report.thread.wait_idle(deadline);
        }
        diagnostics.wait_idle(deadline);
        diagnostics.stop_thread();
        if let Some(afterwards) = self.afterwards.get() {
            afterwards();
        }
        result
    }

    /// Calls the application's closure on the report thread, with the subscriber of the current thread.
    fn hand_over_report(&self) {
        let Some(report) = &self.report else { return };
        let Some(take) = report.take.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let metrics = Arc::clone(&self.metrics);
        let subscriber = dispatcher::get_default(Clone::clone);
        report.thread.post(move || {
            let report = metrics.report();
            let work = || dispatcher::with_default(&subscriber, || take(report));
            if catch_unwind(AssertUnwindSafe(work)).is_err() {
                metrics.stages.diagnostics().emit(|| warn!(target: OWN_TARGET, "`with_run_report` panicked"));
            }
        });
    }

    fn deliver(&self, deadline: Instant, is_final: bool) -> Result<(), Error> {
        wait_for(self.request(deadline, is_final), deadline).unwrap_or_else(|| {
            let limit = self.timeout;
            Err(Error::new(Kind::Timeout, format!("the metrics were not delivered in the {limit:?} allowed")))
        })
    }

    /// Requests a delivery that ends shortly before the deadline, so that its error is here in time.
    async fn request(&self, deadline: Instant, is_final: bool) -> Result<(), Error> {
        self.check_process()?;
        if !is_final && *self.state() == EndState::Ended {
            return Err(Error::new(Kind::Delivery, "the run has ended: its final flush was the last delivery"));
        }
        let slack = (self.timeout / 20).min(Duration::from_millis(50));
        self.delivery.flush(deadline.checked_sub(slack).unwrap_or(deadline), is_final).await
    }

    /// Returns an error in a fork, which has no thread to deliver.
    fn check_process(&self) -> Result<(), Error> {
        if process::id() == self.process {
            return Ok(());
        }
        let (parent, child) = (self.process, process::id());
        Err(Error::new(
            Kind::Delivery,
            format!(
                "this process, {child}, is a fork of {parent}, which called `install()`: a fork has none of its threads, so \
                 nothing is delivered; call `install()` after the fork"
            ),
        ))
    }
}

/// Wakes the callers that wait for the final flush when it is dropped.
struct Ended<'a>(&'a Flusher);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        *self.0.state() = EndState::Ended;
        self.0.ended.notify_all();
    }
}

/// Blocks on a future until the deadline. `None` if the deadline comes first.
fn wait_for<F: Future>(future: F, deadline: Instant) -> Option<F::Output> {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    // Without `unconstrained`, a tokio task that has used its budget would never see the result: only a return to the runtime
    // renews the budget.
    let mut future = pin!(unconstrained(future));
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(value);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        thread::park_timeout(left);
    }
}
