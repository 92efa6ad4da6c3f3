//! How the run ends, and whether it succeeded.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::layer::StageTracker;
use crate::{schema, unix_time};

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitReason {
    /// The guard was dropped or shut down without a panic.
    Returned,
    /// `finish(Err)`.
    Failed,
    /// The guard was dropped by a panic.
    Panicked,
    /// `exit` with this code.
    Exited(i32),
    /// SIGTERM or SIGINT.
    #[cfg(unix)]
    Signalled,
}

impl ExitReason {
    /// Whether the process ends while open stages are at work.
    pub(crate) fn is_aborted(self) -> bool {
        !matches!(self, Self::Returned | Self::Failed | Self::Exited(0))
    }

    fn allows_success(self) -> bool {
        matches!(self, Self::Returned | Self::Exited(0))
    }
}

pub(crate) struct Run {
    start: Instant,
    failed: AtomicBool,
}

impl Run {
    /// Records the start of the run, which the first push carries.
    pub(crate) fn begin(stages: &StageTracker) -> Self {
        stages.bind();
        stages.set_gauge(&schema::RUN_START, &[], unix_time::now().as_secs_f64());
        Self { start: Instant::now(), failed: AtomicBool::new(false) }
    }

    /// Marks the run as failed, whatever the outcome of its stages.
    pub(crate) fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    /// Ends the run: counts the open stages, decides whether the run succeeded and sets its gauges. `grace` is the time that a
    /// stage which closes at this moment has to be counted.
    ///
    /// The run succeeded if at least one outermost stage finished, none failed, every expected stage succeeded at least
    /// once, and the run did not end by `fail()`, `finish(Err)`, a panic, a signal or a non-zero `exit`.
    pub(crate) fn end(&self, stages: &StageTracker, reason: ExitReason, grace: Duration) {
        stages.end(reason.is_aborted(), grace);
        let now = unix_time::now().as_secs_f64();
        stages.set_gauge(&schema::RUN_DURATION, &[], self.start.elapsed().as_secs_f64());
        stages.set_gauge(&schema::RUN_LAST_COMPLETION, &[], now);
        if reason.allows_success() && !self.failed.load(Ordering::Relaxed) && stages.run_succeeded() {
            stages.set_gauge(&schema::RUN_LAST_SUCCESS, &[], now);
        }
    }
}
