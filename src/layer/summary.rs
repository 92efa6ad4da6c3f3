//! The state of all stages at one moment, and at the end of the run.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use metrics::Key;

use super::span::flags::SpanFlags;
use super::span::state::SlotRef;
use super::tracker::StageTracker;
use crate::histogram::Snapshot;
use crate::recorder::suppress_instrumentation;
use crate::schema::Metric;
use crate::series::interner::LabelId;
use crate::series::outcome::{Outcome, Reason};
use crate::series::{DurationSeries, StageTotals};

/// Maximum wait for stages that are closing.
const CLOSING_TIME: Duration = Duration::from_millis(100);

/// A stage in the run report.
#[cfg_attr(not(feature = "pushgateway"), allow(dead_code))]
pub(crate) struct StageState {
    pub(crate) stage: String,
    pub(crate) totals: StageTotals,
    pub(crate) open: u64,
}

#[cfg_attr(not(feature = "pushgateway"), allow(dead_code))]
impl StageTracker {
    /// Publishes the state of this moment to the recorder, before it is rendered. Returns the histograms that the layer keeps, by
    /// the key of their series.
    pub(crate) fn publish(&self) -> impl Iterator<Item = (Key, Snapshot)> {
        self.count_detached();
        let histograms = if self.series.recorder.updates_eagerly() { Vec::new() } else { self.publish_all() };
        histograms.into_iter().map(|(set, histogram)| (self.series.key_of(set), histogram))
    }

    fn publish_all(&self) -> Vec<(&DurationSeries, Snapshot)> {
        // Sorted by their start: the limit on label sets admits the first ones.
        let mut stages: Vec<_> = self
            .open
            .iter()
            .filter_map(|span| {
                let reference = span.reference();
                let (flags, stage) = (span.flags(), span.stage());
                let profile = self.inheritance.look(&self.open, span.slot).profile;
                let started = span.started.load(Ordering::Relaxed);
                let is_shown = flags.is_stage() && !stage.is_none() && span.is_current(reference);
                is_shown.then_some((started, stage, profile))
            })
            .collect();
        stages.sort_by_key(|(started, ..)| *started);
        let mut active = HashMap::new();
        for (_, stage, profile) in stages {
            self.series.stage(stage);
            let (pair, _) = self.series.pair(stage, profile);
            *active.entry(pair).or_insert(0_u64) += 1;
        }
        self.series.publish(|pair| active.get(&pair).copied().unwrap_or(0))
    }

    /// Ends the run: counts each open stage once. Nothing is measured after it. `is_aborted`: the process ends by a signal, a
    /// panic or a non-zero exit. `grace` is the time that a stage which closes at this moment has to be counted.
    pub(crate) fn end(&self, is_aborted: bool, grace: Duration) {
        if !self.open.end() {
            return;
        }
        let now = self.clock.raw();
        let mut closing = Vec::new();
        for span in self.open.taken().filter(|span| span.flags().has(SpanFlags::STAGE)) {
            // The reference is taken first: everything below is read from the span that `try_finish` finishes. Its thread may free
            // the slot after that.
            let reference = span.reference();
            self.ensure_stage_id(span);
            let flags = span.flags();
            if !flags.is_stage() {
                continue;
            }
            let entered = span.entered.is_entered();
            let outcome = self.policy.outcome_at_end(flags, entered, is_aborted);
            let runs_until_now = outcome == Outcome::Failure(Reason::Interrupted);
            let last_exit = Some(span.last_exit.load(Ordering::Relaxed)).filter(|exit| *exit != 0 && !runs_until_now);
            let ended = self.ended_stage(span, outcome, last_exit.unwrap_or(now));
            if !span.try_finish(reference) {
                closing.push(reference);
                continue;
            }
            self.count(ended);
            self.dec_active(span);
            match outcome {
                Outcome::Success => {}
                // The function returned; a handle keeps the span open.
                Outcome::Failure(Reason::Error) => {
                    #[cfg(feature = "trace-id")]
                    self.warn_first_failure(ended);
                }
                Outcome::Failure(reason) => self.warn_open(ended, reason),
            }
        }
        self.await_closed(&closing, grace.min(CLOSING_TIME));
        self.diagnostics.emit_waiting();
    }

    /// Waits until other threads have counted these stages. The wait is bounded: one of the threads may be the one that ends the
    /// run, inside a recorder.
    fn await_closed(&self, closing: &[SlotRef], grace: Duration) {
        let deadline = Instant::now() + grace;
        for reference in closing {
            while self.open.get(*reference).is_some() && Instant::now() < deadline {
                std::thread::yield_now();
            }
        }
    }

    /// Sets a gauge that belongs to no stage.
    pub(crate) fn set_gauge(&self, metric: &Metric, labels: &[&str], value: f64) {
        let gauge = self.series.recorder.gauge(metric, labels);
        suppress_instrumentation(|| gauge.set(value));
    }

    /// Returns whether the stages allow the run to be a success: at least one outermost stage finished, none failed, and every
    /// expected stage succeeded at least once.
    pub(crate) fn run_succeeded(&self) -> bool {
        self.outermost_finished.load(Ordering::Relaxed)
            && !self.outermost_failed.load(Ordering::Relaxed)
            && self.have_succeeded(&self.expected)
    }

    fn have_succeeded(&self, stages: &[LabelId]) -> bool {
        let succeeded = self.series.totals().filter(|(_, totals)| totals.succeeded > 0);
        let succeeded: HashSet<_> = succeeded.map(|(stage, _)| stage).collect();
        stages.iter().all(|stage| succeeded.contains(&self.series.stage(*stage).1.stage))
    }

    /// Returns all stages: the finished ones in the order in which they first finished, then the others.
    pub(crate) fn states(&self) -> Vec<StageState> {
        self.count_detached();
        let mut open = HashMap::new();
        for span in self.open.iter() {
            let (reference, stage) = (span.reference(), span.stage());
            // A stage without an id is left out: an id may still be recorded.
            if span.flags().is_stage() && !stage.is_none() && span.is_current(reference) {
                let stage = self.series.stage(stage).1.stage;
                *open.entry(stage).or_insert(0_u64) += 1;
            }
        }
        let mut states: Vec<_> = self.series.totals().collect();
        states.sort_by_key(|(_, totals)| totals.first_finished.wrapping_sub(1));
        states
            .into_iter()
            .map(|(stage, totals)| StageState {
                stage: self.labels.text(stage).to_owned(),
                totals,
                open: open.get(&stage).copied().unwrap_or(0),
            })
            .collect()
    }
}
