//! How the run ends, and whether it succeeded.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[cfg(unix)]
use signal_hook::consts::SIGINT;
use tracing::warn;

use super::verdict;
use crate::layer::StageTracker;
use crate::schema::OWN_TARGET;
use crate::{schema, unix_time};

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitReason {
    /// The guard was dropped or shut down without a panic: the program says nothing about its success.
    Returned,
    /// `finish(Ok)`.
    Succeeded,
    /// `finish(Err)`.
    Failed,
    /// The guard was dropped by a panic.
    Panicked,
    /// `exit` with this code.
    Exited(i32),
    /// By this signal: SIGTERM or SIGINT.
    #[cfg(unix)]
    Signalled(i32),
}

impl ExitReason {
    /// Whether the process ends while open stages are at work.
    pub(crate) fn is_aborted(self) -> bool {
        !matches!(self, Self::Returned | Self::Succeeded | Self::Failed | Self::Exited(0))
    }

    /// Whether the program says that the run succeeded.
    pub(super) fn claims_success(self) -> bool {
        matches!(self, Self::Succeeded | Self::Exited(0))
    }

    /// Returns why a run that ends so is no success, whatever its stages did.
    pub(super) fn failure(self) -> Option<String> {
        Some(match self {
            Self::Returned | Self::Succeeded | Self::Exited(0) => return None,
            Self::Failed => "the program ended with an error: `finish` was given an `Err`".to_owned(),
            Self::Panicked => "the program panicked".to_owned(),
            Self::Exited(code) => format!("the program exited with code {code}"),
            #[cfg(unix)]
            Self::Signalled(SIGINT) => "SIGINT ended the program".to_owned(),
            #[cfg(unix)]
            Self::Signalled(_) => "SIGTERM ended the program".to_owned(),
        })
    }
}

pub(crate) struct Run {
    start: Instant,
    /// On the clock of the node.
    start_time: Duration,
    failed: AtomicBool,
    /// Present once the run ends.
    ending: OnceLock<ExitReason>,
    /// Why the run was no success, once it has ended.
    reasons: OnceLock<Vec<String>>,
}

impl Run {
    /// Records the start of the run, which the first push carries.
    pub(crate) fn begin(stages: &StageTracker) -> Self {
        stages.bind();
        Self::begin_at(unix_time::now(), stages)
    }

    fn begin_at(start_time: Duration, stages: &StageTracker) -> Self {
        stages.set_gauge(&schema::RUN_START, &[], start_time.as_secs_f64());
        Self {
            start: Instant::now(),
            start_time,
            failed: AtomicBool::new(false),
            ending: OnceLock::new(),
            reasons: OnceLock::new(),
        }
    }

    /// Marks the run as failed, whatever the outcome of its stages.
    pub(crate) fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    fn judge(&self, stages: &StageTracker) -> Vec<String> {
        verdict::reasons(&stages.run_state(), self.ending.get().copied(), self.failed.load(Ordering::Relaxed))
    }

    /// Returns why the run is no success; before its end, as if the guard were dropped now.
    pub(crate) fn reasons(&self, stages: &StageTracker) -> Vec<String> {
        self.reasons.get().cloned().unwrap_or_else(|| self.judge(stages))
    }

    /// Records how the run ends, before a recorder of the application may hold up the rest.
    pub(crate) fn ends_by(&self, reason: ExitReason) {
        let _ = self.ending.set(reason);
    }

    /// Warns of a run that has ended and is no success.
    pub(crate) fn warn(&self, stages: &StageTracker) {
        let reasons = self.reasons.get_or_init(|| self.judge(stages));
        if !reasons.is_empty() {
            let text = verdict::warning(reasons);
            stages.diagnostics().emit(move || warn!(target: OWN_TARGET, "the run is not a success: {text}"));
        }
    }

    /// Ends the run: counts the open stages, decides whether the run succeeded, and sets its gauges. `grace` is the time that a
    /// stage which closes at this moment has to be counted.
    pub(crate) fn end(&self, stages: &StageTracker, reason: ExitReason, grace: Duration) {
        stages.end(reason.is_aborted(), grace);
        let reasons = self.reasons.get_or_init(|| self.judge(stages));
        // A clock that was set back must not show a run without an end.
        let now = unix_time::now().max(self.start_time).as_secs_f64();
        stages.set_gauge(&schema::RUN_DURATION, &[], self.start.elapsed().as_secs_f64());
        stages.set_gauge(&schema::RUN_LAST_COMPLETION, &[], now);
        if reasons.is_empty() {
            stages.set_gauge(&schema::RUN_LAST_SUCCESS, &[], now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tracing::info_span;
    use tracing::subscriber::with_default;
    use tracing_subscriber::Registry;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::exposition::Labels;
    use crate::layer::{LayerSettings, MetricsLayer};
    use crate::recorder::{RecorderTarget, StageRecorder};

    #[test]
    fn clock_that_is_set_back_ends_no_run_before_its_start() {
        for offset in [0, 3_600] {
            let recorder = Arc::new(StageRecorder::new([], [], false, Labels::default()));
            let target = RecorderTarget::Own(Arc::clone(&recorder) as _);
            let stages = Arc::new(StageTracker::new(LayerSettings { target, ..LayerSettings::default() }));
            let run = Run::begin_at(unix_time::now() + Duration::from_secs(offset), &stages);
            let layer = MetricsLayer::over(Arc::clone(&stages));
            with_default(Registry::default().with(layer), || drop(info_span!("x", stage_id = "a")));
            run.end(&stages, ExitReason::Returned, Duration::ZERO);
            let families = recorder.families(stages.publish());
            let gauge = |metric: &schema::Metric| families.gauge(&metric.name("quant"))[0].value.as_f64();
            let [start, end, success] =
                [schema::RUN_START, schema::RUN_LAST_COMPLETION, schema::RUN_LAST_SUCCESS].map(|metric| gauge(&metric));
            assert_eq!((end > start, end == start, success == end), (offset == 0, offset > 0, true));
        }
    }
}
