//! The warnings of the layer.

use tracing::warn;

use super::span::state::SpanRef;
use super::tracker::StageTracker;
use crate::schema::OWN_TARGET;
use crate::series::FinishedStage;
use crate::series::cardinality::Overflow;
#[cfg(feature = "trace-id")]
use crate::series::outcome::Outcome;
use crate::series::outcome::Reason;
#[cfg(feature = "trace-id")]
use crate::series::trace_id::TraceId;

impl StageTracker {
    /// Warns of a stage that opens after the end of the run: the guard was probably dropped too early.
    #[cold]
    pub(super) fn warn_inert(&self) {
        self.diagnostics.emit(|| {
            warn!(
                target: OWN_TARGET,
                "a stage opened after the final flush and is not measured: keep the guard until the end of `main` \
                 (`let (layer, _guard) = …`; a bare `_` drops it at once)"
            );
        });
    }

    #[cold]
    pub(super) fn warn_overflow(&self, overflow: Overflow) {
        let Overflow { max, label, values, example } = overflow;
        self.diagnostics.emit(move || {
            warn!(
                target: OWN_TARGET,
                max_series = max,
                label,
                values,
                example,
                "more than {max} label sets: new ones are counted as \"_overflow\" from now on. `{label}` has the most \
                 values ({values}, one is {example:?}); leave the run id out with `without_run_id_label()`, take a \
                 value with fewer different ones, or raise `with_max_series`"
            );
        });
    }

    #[cold]
    pub(super) fn warn_cancelled(&self, span: SpanRef<'_>) {
        let Some(callsite) = self.callsite(span).filter(|callsite| callsite.warn_once()) else { return };
        let (stage_id, span) = (self.labels.text(span.stage()).to_owned(), callsite.meta.name());
        let (file, line) = (callsite.meta.file().unwrap_or("?"), callsite.meta.line().unwrap_or(0));
        self.diagnostics.emit(move || {
            warn!(
                target: OWN_TARGET,
                stage_id,
                "stage {stage_id} (span {span} at {file}:{line}) closed without having returned and counts as \
                 cancelled; if it was not, its function needs `#[instrument(err, ret)]`, at levels that reach this \
                 layer, since the failure policy is ProvenSuccess"
            );
        });
    }

    /// Warns of the first failure of each stage whose trace is known.
    #[cfg(feature = "trace-id")]
    #[inline]
    pub(super) fn warn_first_failure(&self, ended: FinishedStage) {
        if let Some(trace) = ended.trace
            && let Outcome::Failure(reason) = ended.outcome
        {
            self.warn_failed(ended, reason, trace);
        }
    }

    #[cfg(feature = "trace-id")]
    #[cold]
    fn warn_failed(&self, ended: FinishedStage, reason: Reason, trace: TraceId) {
        if !self.series.stage(ended.stage).1.report_trace_once() {
            return;
        }
        let [stage_id, profile, run_id] =
            [ended.stage, ended.profile, ended.run_id].map(|label| self.labels.text(label).to_owned());
        let reason = reason.as_str();
        self.diagnostics.emit(move || {
            warn!(
                target: OWN_TARGET,
                stage_id, profile, run_id, reason, trace_id = %trace,
                "stage {stage_id} failed ({reason}), in the trace {trace}; later failures are not logged; see the run report"
            );
        });
    }

    pub(super) fn warn_open(&self, ended: FinishedStage, reason: Reason) {
        let [stage_id, profile, run_id] =
            [ended.stage, ended.profile, ended.run_id].map(|label| self.labels.text(label).to_owned());
        let reason = reason.as_str();
        #[cfg(feature = "trace-id")]
        let trace_id = ended.trace.map(tracing::field::display);
        #[cfg(not(feature = "trace-id"))]
        let trace_id = tracing::field::Empty;
        self.diagnostics.emit(move || {
            warn!(
                target: OWN_TARGET,
                stage_id, profile, run_id, reason, trace_id,
                "stage {stage_id} was still open at the final flush and is counted as a failure ({reason})"
            );
        });
    }
}
