//! Flushes, and the final flush, which happens once whoever asks for it first: the guard, a signal or a panic hook.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use tracing::warn;

use crate::delivery::Worker;
use crate::error::{Error, Kind};
use crate::layer::OWN_TARGET;
use crate::report::RunReport;
use crate::run::Ending;
use crate::telemetry::Telemetry;

/// What is done with the report after the final flush.
pub(crate) type TakeReport = Box<dyn FnOnce(RunReport) + Send>;
/// What is done when nothing is left to flush.
pub(crate) type Afterwards = Box<dyn Fn() + Send + Sync>;

pub(crate) struct Flusher {
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) worker: Worker,
    timeout: Duration,
    report: Mutex<Option<TakeReport>>,
    afterwards: OnceLock<Afterwards>,
    /// Whether the final flush was made. Held while it is, so that a second one waits for it.
    ended: Mutex<bool>,
    /// The thread that makes it now.
    ending: Mutex<Option<ThreadId>>,
}

impl Flusher {
    pub(crate) fn new(
        telemetry: Arc<Telemetry>,
        worker: Worker,
        timeout: Duration,
        report: Option<TakeReport>,
    ) -> Self {
        let report = Mutex::new(report);
        Self {
            telemetry,
            worker,
            timeout,
            report,
            afterwards: OnceLock::new(),
            ended: Mutex::new(false),
            ending: Mutex::new(None),
        }
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// To be called once: what follows the final flush.
    pub(crate) fn then(&self, afterwards: Afterwards) {
        let _ = self.afterwards.set(afterwards);
    }

    /// Delivers the state of this moment and waits for the answer.
    pub(crate) fn flush(&self) -> Result<(), Error> {
        self.deliver(Instant::now() + self.timeout, false)
    }

    /// The final flush. Whoever comes second waits until the first is done, and is told that all is well.
    pub(crate) fn end(&self, ending: Ending) -> Result<(), Error> {
        self.end_held(ending).0
    }

    /// As [`end`](Self::end). Nobody else gets past the end of the run for as long as the second value is kept.
    fn end_held(&self, ending: Ending) -> (Result<(), Error>, Option<MutexGuard<'_, bool>>) {
        let deadline = Instant::now() + self.timeout;
        if *self.ending_thread() == Some(thread::current().id()) {
            // A panic hook, called for a panic in the midst of it.
            return (Ok(()), None);
        }
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *ended, true) {
            return (Ok(()), Some(ended));
        }
        *self.ending_thread() = Some(thread::current().id());
        self.telemetry.end(ending, self.timeout / 10);
        let result = self.deliver(deadline, true);
        self.worker.await_end(deadline);
        let report = self.report.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(take) = report {
            // The guard may be dropped by a panic already, and a second one would abort the process.
            if catch_unwind(AssertUnwindSafe(|| take(self.telemetry.report()))).is_err() {
                self.telemetry.stages.voice.speak(|| warn!(target: OWN_TARGET, "`with_run_report` panicked"));
            }
        }
        if let Some(afterwards) = self.afterwards.get() {
            afterwards();
        }
        *self.ending_thread() = None;
        (result, Some(ended))
    }

    fn ending_thread(&self) -> MutexGuard<'_, Option<ThreadId>> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The final flush where nobody is there to be told of an error: it is one warning.
    pub(crate) fn end_and_warn(&self, ending: Ending) {
        self.end_then(ending, || ());
    }

    /// The final flush, and what comes next before anyone who waits for it goes on: the end of the process.
    pub(crate) fn end_then<T>(&self, ending: Ending, next: impl FnOnce() -> T) -> T {
        let (result, _held) = self.end_held(ending);
        if let Err(error) = result {
            self.telemetry.stages.voice.speak(|| {
                warn!(target: OWN_TARGET, error = ?error, "the last state of the metrics was not delivered");
            });
        }
        next()
    }

    /// Orders a delivery and waits for it, until the deadline and no longer.
    fn deliver(&self, deadline: Instant, last: bool) -> Result<(), Error> {
        let (reply, answer) = mpsc::sync_channel(1);
        // A little earlier there, so that the answer, which says what went wrong, is here in time.
        let slack = (self.timeout / 20).min(Duration::from_millis(50));
        let send = move |result| {
            // Nobody waits any more where the deadline has passed.
            let _ = reply.send(result);
        };
        self.worker.order(deadline.checked_sub(slack).unwrap_or(deadline), last, Box::new(send));
        match answer.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(result) => result,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let allowed = self.timeout;
                Err(Error::new(Kind::Timeout, format!("the metrics were not delivered in the {allowed:?} allowed")))
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(Error::new(Kind::Delivery, "the delivery thread is gone")),
        }
    }
}
