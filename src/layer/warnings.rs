//! The warnings of the layer.

use tracing::warn;

use super::callsite::Callsite;
use crate::diagnostics::Diagnostics;
use crate::schema::OWN_TARGET;
use crate::series::cardinality::Overflow;
use crate::series::outcome::Reason;
#[cfg(feature = "trace-id")]
use crate::series::trace_id::TraceId;

/// A failed stage, as a warning shows it.
pub(super) struct FailedStage {
    pub(super) stage_id: String,
    pub(super) profile: String,
    pub(super) run_id: String,
    pub(super) reason: Reason,
    #[cfg(feature = "trace-id")]
    pub(super) trace: Option<TraceId>,
}

/// Warns of a stage that opens after the end of the run: the guard was probably dropped too early.
#[cold]
pub(super) fn opened_after_end(diagnostics: &Diagnostics) {
    diagnostics.emit(|| {
        warn!(
            target: OWN_TARGET,
            "a stage opened after the final flush and is not measured: keep the guard until the end of `main` \
             (`let (layer, _guard) = …`; a bare `_` drops it at once)"
        );
    });
}

#[cold]
pub(super) fn overflow(diagnostics: &Diagnostics, Overflow { max, label, values, example }: Overflow) {
    diagnostics.emit(move || {
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

/// Warns of the first cancelled stage of each callsite.
#[cold]
pub(super) fn cancelled(diagnostics: &Diagnostics, stage_id: &str, callsite: &Callsite) {
    if !callsite.warn_once() {
        return;
    }
    let (stage_id, span) = (stage_id.to_owned(), callsite.meta.name());
    let (file, line) = (callsite.meta.file().unwrap_or("?"), callsite.meta.line().unwrap_or(0));
    diagnostics.emit(move || {
        warn!(
            target: OWN_TARGET,
            stage_id,
            "stage {stage_id} (span {span} at {file}:{line}) closed without having returned and counts as \
             cancelled; if it was not, its function needs `#[instrument(err, ret)]`, at levels that reach this \
             layer, since the failure policy is ProvenSuccess"
        );
    });
}

/// Warns of a failure with the trace in which it happened.
#[cfg(feature = "trace-id")]
#[cold]
pub(super) fn failed(diagnostics: &Diagnostics, failed: FailedStage, trace: TraceId) {
    let FailedStage { stage_id, profile, run_id, reason, .. } = failed;
    let reason = reason.as_str();
    diagnostics.emit(move || {
        warn!(
            target: OWN_TARGET,
            stage_id, profile, run_id, reason, trace_id = %trace,
            "stage {stage_id} failed ({reason}), in the trace {trace}; later failures are not logged; see the run report"
        );
    });
}

/// Warns of a stage that was open at the end of the run.
pub(super) fn open_at_end(diagnostics: &Diagnostics, failed: FailedStage) {
    #[cfg(feature = "trace-id")]
    let trace_id = failed.trace.map(tracing::field::display);
    #[cfg(not(feature = "trace-id"))]
    let trace_id = tracing::field::Empty;
    let FailedStage { stage_id, profile, run_id, reason, .. } = failed;
    let reason = reason.as_str();
    diagnostics.emit(move || {
        warn!(
            target: OWN_TARGET,
            stage_id, profile, run_id, reason, trace_id,
            "stage {stage_id} was still open at the final flush and is counted as a failure ({reason})"
        );
    });
}
