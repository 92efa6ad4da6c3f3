//! The interface of the tracker to the guard.

use std::time::Duration;

use super::StageTracker;
use crate::diagnostics::Diagnostics;
#[cfg(feature = "trace-id")]
use crate::exposition::SeriesExemplars;
use crate::layer::end;
use crate::layer::summary::{self, RunState, StageState};
use crate::recorder::{KeptHistogram, RecorderHandle, suppress_instrumentation};
use crate::schema::Metric;
use crate::series::HistogramTotals;

#[cfg_attr(not(feature = "pushgateway"), allow(dead_code))]
impl StageTracker {
    pub(crate) fn recorder(&self) -> &RecorderHandle {
        &self.stages.series.recorder
    }

    pub(crate) fn diagnostics(&self) -> &Diagnostics {
        &self.stages.diagnostics
    }

    /// Describes the metrics to the recorder, unless that was done.
    pub(crate) fn bind(&self) {
        self.stages.series.bind();
    }

    /// Sets a gauge that belongs to no stage.
    pub(crate) fn set_gauge(&self, metric: &Metric, labels: &[&str], value: f64) {
        let gauge = self.recorder().gauge(metric, labels);
        suppress_instrumentation(|| gauge.set(value));
    }

    /// Publishes the state of this moment to the recorder, before it is rendered. Returns the histograms that the layer keeps.
    pub(crate) fn publish(&self) -> impl Iterator<Item = KeptHistogram> {
        self.missed.count_detached(&self.stages);
        summary::publish(&self.stages)
    }

    /// Returns the first run id and the first profile of a stage, empty while they are unknown. `None` if the run id is no label.
    pub(crate) fn run_info(&self) -> Option<[&str; 2]> {
        self.stages.run_info.as_ref().map(|info| info.texts())
    }

    /// Iterates over the CPU times by stage and profile, with the Unix time at which each series began.
    pub(crate) fn cpu_times(&self) -> impl Iterator<Item = ([&str; 2], Duration, Duration)> {
        self.stages.series.cpu_times()
    }

    /// Returns the exemplars by series. Call before [`publish`](Self::publish).
    #[cfg(feature = "trace-id")]
    pub(crate) fn exemplars(&self) -> Vec<SeriesExemplars> {
        self.stages.series.exemplars()
    }

    /// Returns all stages: the finished ones in the order in which they first finished, then the others.
    pub(crate) fn states(&self) -> Vec<StageState> {
        self.missed.count_detached(&self.stages);
        summary::states(&self.stages)
    }

    /// Returns the totals of all stages in their profiles, in the order in which they first opened.
    pub(crate) fn pair_totals(&self) -> impl Iterator<Item = ([&str; 2], HistogramTotals)> {
        self.stages.series.pair_totals()
    }

    /// Returns the facts that decide whether the run succeeded.
    pub(crate) fn run_state(&self) -> RunState {
        self.missed.count_detached(&self.stages);
        summary::run_state(&self.stages)
    }

    /// Ends the run: counts each open stage once. Nothing is measured after it. `is_aborted`: the process ends by a signal, a
    /// panic or a non-zero exit. `grace` is the time that a stage which closes at this moment has to be counted.
    pub(crate) fn end(&self, is_aborted: bool, grace: Duration) {
        end::end(&self.stages, is_aborted, grace);
    }
}
