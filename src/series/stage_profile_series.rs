//! The series of one stage in one profile: its gauges, and its failures by reason.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use metrics::{Counter, Gauge};

#[cfg(feature = "trace-id")]
use super::exemplars::LastRuns;
use super::interner::{Interner, LabelId};
use super::outcome::{Outcome, Reason};
use super::stage_series::LastError;
use super::table::FinishedStage;
#[cfg(feature = "trace-id")]
use crate::exposition::SeriesExemplars;
use crate::recorder::{RecorderHandle, suppress_instrumentation};
use crate::{schema, unix_time};

/// [`StageProfileSeries::last`] before a run has ended.
const NEVER: u64 = u64::MAX;
/// [`StageProfileSeries::written_failed`] before the gauge is written.
const UNWRITTEN: u32 = u32::MAX;

/// How often a thread writes the gauges for other threads whose stages close meanwhile. It then leaves the rest to the
/// next stage.
const MAX_ROUNDS: usize = 100;

/// The gauges of a stage in a profile, and its failures by reason.
#[repr(align(128))] // Two cache lines, which are fetched together: threads at different series do not share one.
pub(crate) struct StageProfileSeries {
    pub(super) labels: [LabelId; 2],
    active: Gauge,
    failures: [OnceLock<Counter>; Reason::COUNT],
    /// By reason, the last failure in a sampled trace, if exemplars are kept.
    #[cfg(feature = "trace-id")]
    pub(super) traced_failures: LastRuns,
    /// The last finished run: twice its nanoseconds, plus one if it failed. One word, so that the gauges belong to one run.
    last: AtomicU64,
    /// On the clock of the spans; zero before the first success.
    last_success: AtomicU64,
    /// The last published success, on the clock of the spans and in Unix time. The Unix time is computed once, so that
    /// the value does not change.
    published_success: Mutex<(u64, f64)>,
    /// Changes since a thread began to write the gauges eagerly; zero while no thread writes.
    changes: AtomicU32,
    last_duration_gauge: OnceLock<Gauge>,
    last_success_gauge: OnceLock<Gauge>,
    last_failed_gauge: OnceLock<Gauge>,
    /// Whether the gauge that is written eagerly shows a failure; [`UNWRITTEN`] before it is written.
    written_failed: AtomicU32,
    /// Whether one of its runs was an outermost stage and failed.
    pub(super) failed_outermost: AtomicBool,
    pub(super) last_error: LastError,
    /// Present once CPU time was counted.
    pub(super) cpu: OnceLock<CpuTime>,
}

/// The CPU time of the finished runs.
pub(super) struct CpuTime {
    pub(super) nanos: Arc<AtomicU64>,
    /// The Unix time at which the series began.
    pub(super) created: Duration,
}

/// The recorder, and what else is needed to publish a series.
#[derive(Clone, Copy)]
pub(super) struct Publisher<'a> {
    pub(super) recorder: &'a RecorderHandle,
    pub(super) interner: &'a Interner,
    pub(super) clock: &'a quanta::Clock,
}

impl StageProfileSeries {
    /// Registers the active gauge, and the failures for the reason `error`.
    pub(super) fn new(labels: [LabelId; 2], publisher: Publisher<'_>) -> Self {
        let texts = labels.map(|label| publisher.interner.text(label));
        let series = Self {
            labels,
            active: publisher.recorder.gauge(&schema::STAGE_ACTIVE, &texts),
            failures: [const { OnceLock::new() }; Reason::COUNT],
            #[cfg(feature = "trace-id")]
            traced_failures: LastRuns::default(),
            last: AtomicU64::new(NEVER),
            last_success: AtomicU64::new(0),
            published_success: Mutex::default(),
            changes: AtomicU32::new(0),
            last_duration_gauge: OnceLock::new(),
            last_success_gauge: OnceLock::new(),
            last_failed_gauge: OnceLock::new(),
            written_failed: AtomicU32::new(UNWRITTEN),
            failed_outermost: AtomicBool::new(false),
            last_error: LastError::default(),
            cpu: OnceLock::new(),
        };
        series.failures(publisher, Reason::Error);
        series
    }

    /// Keeps the duration and the outcome of a finished run and, if it succeeded, the time of its end on the clock of the spans.
    #[inline]
    pub(super) fn set_last(&self, run: &FinishedStage) {
        let has_failed = run.outcome != Outcome::Success;
        self.last.store(run.nanos << 1 | u64::from(has_failed), Ordering::Relaxed);
        if !has_failed {
            // A stage that was held open may close after one that ended later.
            self.last_success.fetch_max(run.ended.max(1), Ordering::Relaxed);
        } else if run.is_outermost {
            self.failed_outermost.store(true, Ordering::Relaxed);
        }
    }

    /// Returns the counter of failures for this reason, and registers it on the first call.
    pub(super) fn failures(&self, publisher: Publisher<'_>, reason: Reason) -> &Counter {
        let counter = &self.failures[reason as usize];
        counter.get().unwrap_or_else(|| {
            let [stage, profile] = self.labels.map(|label| publisher.interner.text(label));
            let registered = publisher.recorder.counter(&schema::STAGE_FAILURES, &[stage, profile, reason.as_str()]);
            counter.get_or_init(|| registered)
        })
    }

    /// Returns the exemplars of its failures.
    #[cfg(feature = "trace-id")]
    pub(super) fn exemplars(&self, publisher: Publisher<'_>) -> impl Iterator<Item = SeriesExemplars> {
        self.traced_failures.of_failures(publisher.clock, move |reason| {
            let [stage, profile] = self.labels.map(|label| publisher.interner.text(label));
            publisher.recorder.key(&schema::STAGE_FAILURES, &[stage, profile, reason.as_str()])
        })
    }

    pub(super) fn move_active(&self, by: f64) {
        suppress_instrumentation(|| self.active.increment(by));
    }

    pub(super) fn set_active(&self, count: u64) {
        suppress_instrumentation(|| self.active.set(count as f64));
    }

    /// Sets the gauges of the last run and the last success.
    pub(super) fn publish(&self, publisher: Publisher<'_>) {
        let last = self.last.load(Ordering::Relaxed);
        if last != NEVER {
            let (duration, has_failed) = ((last >> 1) as f64 / 1e9, last as u32 & 1);
            self.set_gauge(&self.last_duration_gauge, &schema::STAGE_LAST_DURATION, publisher, duration);
            // One thread at a time writes eagerly, at every run: it leaves out what has not changed.
            let is_written = self.written_failed.load(Ordering::Relaxed) == has_failed;
            if !(is_written && publisher.recorder.updates_eagerly()) {
                self.written_failed.store(has_failed, Ordering::Relaxed);
                let failed = f64::from(has_failed);
                self.set_gauge(&self.last_failed_gauge, &schema::STAGE_LAST_FAILED, publisher, failed);
            }
        }
        let success = self.last_success.load(Ordering::Relaxed);
        if success != 0 {
            let at = self.unix_time_of(success, publisher.clock);
            self.set_gauge(&self.last_success_gauge, &schema::STAGE_LAST_SUCCESS, publisher, at);
        }
    }

    /// Publishes after a change, from any thread. One thread at a time writes, so that an older value never follows a
    /// newer one; other threads leave their change to the writer. The writer holds no lock, since the recorder may wait
    /// for another thread that closes a stage.
    pub(super) fn publish_eagerly(&self, publisher: Publisher<'_>) {
        if self.changes.fetch_add(1, Ordering::AcqRel) != 0 {
            return;
        }
        /// Lets the next thread write, also after a panic of the recorder.
        struct Writing<'a>(&'a AtomicU32);
        impl Drop for Writing<'_> {
            fn drop(&mut self) {
                self.0.store(0, Ordering::Release);
            }
        }
        let writing = Writing(&self.changes);
        let mut seen = 1;
        for _ in 0..MAX_ROUNDS {
            self.publish(publisher);
            match self.changes.compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return std::mem::forget(writing),
                Err(more) => seen = more,
            }
        }
    }

    fn unix_time_of(&self, success: u64, clock: &quanta::Clock) -> f64 {
        let mut published = self.published_success.lock().unwrap_or_else(PoisonError::into_inner);
        if published.0 != success {
            let age = clock.delta(success, clock.raw());
            let at = unix_time::now().saturating_sub(age).as_secs_f64();
            // The system's clock may have been set back.
            *published = (success, at.max(published.1));
        }
        published.1
    }

    fn set_gauge(&self, gauge: &OnceLock<Gauge>, metric: &schema::Metric, publisher: Publisher<'_>, value: f64) {
        let gauge = gauge.get().unwrap_or_else(|| {
            let texts = self.labels.map(|label| publisher.interner.text(label));
            let registered = publisher.recorder.gauge(metric, &texts);
            gauge.get_or_init(|| registered)
        });
        suppress_instrumentation(|| gauge.set(value));
    }

    /// Holds the locks of this series.
    #[cfg(all(test, feature = "pushgateway"))]
    pub(super) fn lock(&self) -> impl Sized {
        (self.published_success.lock().unwrap_or_else(PoisonError::into_inner), self.last_error.lock())
    }
}
