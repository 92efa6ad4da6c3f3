//! The series of one stage: the counters of its outcomes and the trace of its last failure.

#[cfg(feature = "trace-id")]
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metrics::Counter;

use super::durations::HistogramTotals;
use super::interner::{Interner, LabelId};
use super::outcome::FailuresByReason;
#[cfg(feature = "trace-id")]
use super::outcome::Outcome;
#[cfg(feature = "trace-id")]
use super::trace_id::TraceId;
use crate::recorder::RecorderHandle;
use crate::schema;

/// The series of a stage id: `quant_stage_total`, and its row in the run report.
pub(crate) struct StageSeries {
    pub(crate) stage: LabelId,
    pub(super) success: Counter,
    pub(super) failure: Counter,
    pub(super) last_error: LastError,
    /// The trace of its last failure that has one.
    #[cfg(feature = "trace-id")]
    trace: Mutex<Option<TraceId>>,
    #[cfg(feature = "trace-id")]
    is_trace_reported: AtomicBool,
}

/// The text of the last error of a series, empty before the first one. Allocated once, since a text is bounded.
#[derive(Default)]
pub(super) struct LastError(Mutex<String>);

impl LastError {
    pub(super) fn lock(&self) -> MutexGuard<'_, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, text: &str) {
        text.clone_into(&mut self.lock());
    }

    pub(super) fn get(&self) -> Option<String> {
        let text = self.lock();
        (!text.is_empty()).then(|| text.clone())
    }
}

/// The totals of the finished runs of a stage.
#[cfg_attr(not(feature = "pushgateway"), allow(dead_code))]
#[derive(Clone, Debug)]
pub(crate) struct StageTotals {
    pub(crate) succeeded: u64,
    pub(crate) failed: FailuresByReason,
    /// The text of the last error by which it failed.
    pub(crate) last_error: Option<String>,
    pub(crate) total: Duration,
    pub(crate) slowest: Duration,
    /// The position of the stage in the order in which stages first finished, from 1; zero if none of its runs finished.
    pub(crate) first_finished: u64,
    #[cfg(feature = "trace-id")]
    pub(crate) trace: Option<TraceId>,
}

impl StageSeries {
    pub(super) fn new(stage: LabelId, interner: &Interner, recorder: &RecorderHandle) -> Self {
        let counter = |status| recorder.counter(&schema::STAGE_TOTAL, &[interner.text(stage), status]);
        Self {
            stage,
            success: counter("success"),
            failure: counter("failure"),
            last_error: LastError::default(),
            #[cfg(feature = "trace-id")]
            trace: Mutex::default(),
            #[cfg(feature = "trace-id")]
            is_trace_reported: AtomicBool::new(false),
        }
    }

    /// Keeps the trace of a failure.
    #[cfg(feature = "trace-id")]
    #[inline]
    pub(super) fn set_trace(&self, trace: TraceId, outcome: Outcome) {
        if outcome != Outcome::Success {
            *self.trace.lock().unwrap_or_else(PoisonError::into_inner) = Some(trace);
        }
    }

    pub(super) fn totals(&self, totals: HistogramTotals) -> StageTotals {
        StageTotals {
            succeeded: totals.succeeded,
            failed: totals.failed,
            last_error: self.last_error.get(),
            total: Duration::from_nanos(totals.total_nanos),
            slowest: Duration::from_nanos(totals.slowest_nanos),
            first_finished: totals.first_finished,
            #[cfg(feature = "trace-id")]
            trace: *self.trace.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// Returns whether this is the first call: a trace is reported once.
    #[cfg(feature = "trace-id")]
    pub(crate) fn report_trace_once(&self) -> bool {
        !self.is_trace_reported.swap(true, Ordering::Relaxed)
    }

    /// Holds the locks of this series.
    #[cfg(all(test, feature = "pushgateway"))]
    pub(super) fn lock(&self) -> impl Sized {
        #[cfg(feature = "trace-id")]
        let trace = self.trace.lock().unwrap_or_else(PoisonError::into_inner);
        #[cfg(not(feature = "trace-id"))]
        let trace = ();
        (self.last_error.lock(), trace)
    }
}
