//! The run: the process from `install()` to the final flush. What makes it a success is decided here.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::layer::Stages;
use crate::{schema, unix_time};

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitReason {
    /// The guard was dropped or shut down in the normal course of things.
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
    /// Whether stages still open are cut off in their work.
    pub(crate) fn is_cut_off(self) -> bool {
        !matches!(self, Self::Returned | Self::Failed | Self::Exited(0))
    }

    fn allows_success(self) -> bool {
        matches!(self, Self::Returned | Self::Exited(0))
    }
}

pub(crate) struct Run {
    begun: Instant,
    failed: AtomicBool,
}

impl Run {
    /// Begins the run: its start is the first thing the gateway hears of it.
    pub(crate) fn begin(stages: &Stages) -> Self {
        stages.series.bind();
        stages.set_gauge(&schema::RUN_START, &[], unix_time::now().as_secs_f64());
        Self { begun: Instant::now(), failed: AtomicBool::new(false) }
    }

    /// This run is no success, whatever its stages say.
    pub(crate) fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    /// Ends the run: counts the stages still open, decides whether it was a success, sets its gauges.
    ///
    /// It succeeded if at least one outermost stage finished, none failed, every expected stage succeeded at least
    /// once, and it did not end by `fail()`, `finish(Err)`, a panic, a signal or a non-zero `exit`.
    pub(crate) fn end(&self, stages: &Stages, ending: ExitReason, patience: Duration) {
        stages.end(ending.is_cut_off(), patience);
        let now = unix_time::now().as_secs_f64();
        stages.set_gauge(&schema::RUN_DURATION, &[], self.begun.elapsed().as_secs_f64());
        stages.set_gauge(&schema::RUN_LAST_COMPLETION, &[], now);
        if ending.allows_success() && !self.failed.load(Ordering::Relaxed) && stages.all_well() {
            stages.set_gauge(&schema::RUN_LAST_SUCCESS, &[], now);
        }
    }
}
