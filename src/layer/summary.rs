//! The stages as a whole: their state for whoever looks, and the end of the run.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use metrics::Key;

use super::labels::Label;
use super::open::SlotRef;
use super::outcome::{Facts, Outcome, Reason};
use super::series::{SetSeries, StageTotals};
use super::sink::outward;
use super::stages::Stages;
use crate::buckets::Snapshot;
use crate::schema::Metric;

/// Ample for a stage that closes to be counted.
const CLOSING_TIME: Duration = Duration::from_millis(100);

/// A stage as the run report shows it.
#[cfg_attr(not(feature = "pushgateway"), allow(dead_code))]
pub(crate) struct StageState {
    pub(crate) stage: String,
    pub(crate) totals: StageTotals,
    pub(crate) open: u64,
}

#[cfg_attr(not(feature = "pushgateway"), allow(dead_code))]
impl Stages {
    /// Gives the recorder the state of this moment. To be called before it is rendered, with what is returned: the
    /// histograms that are read here, by the key of their series.
    pub(crate) fn publish(&self) -> impl Iterator<Item = (Key, Snapshot)> {
        self.count_detached();
        let histograms = if self.series.sink.is_live() { Vec::new() } else { self.publish_all() };
        histograms.into_iter().map(|(set, histogram)| (self.series.key_of(set, &self.labels), histogram))
    }

    fn publish_all(&self) -> Vec<(&SetSeries, Snapshot)> {
        // In the order in which they opened: the limit on label sets goes by who comes first.
        let mut stages: Vec<_> = self
            .open
            .iter()
            .filter_map(|found| {
                let reference = found.reference();
                let (facts, stage) = (found.facts(), found.stage());
                let profile = self.inheritance.look(&self.open, found.slot).profile;
                let started = found.started.load(Ordering::Relaxed);
                let is_shown = facts.is_stage() && !stage.is_none() && found.is_still(reference);
                is_shown.then_some((started, stage, profile))
            })
            .collect();
        stages.sort_by_key(|(started, ..)| *started);
        let mut active = HashMap::new();
        for (_, stage, profile) in stages {
            self.series.stage(&self.labels, stage);
            let (pair, _) = self.series.pair(&self.labels, stage, profile);
            *active.entry(pair).or_insert(0_u64) += 1;
        }
        self.series.publish(|pair| active.get(&pair).copied().unwrap_or(0), &self.labels)
    }

    /// The run is over: counts the stages that are still open, once, and measures nothing from now on.
    /// `cut_off`: the process ends by a signal, a panic or a non-zero exit. `patience`: how long a stage that closes at
    /// this moment may take to be counted.
    pub(crate) fn end(&self, cut_off: bool, patience: Duration) {
        if !self.open.end() {
            return;
        }
        let now = self.clock.raw();
        let mut closing = Vec::new();
        for found in self.open.taken().filter(|found| found.facts().has(Facts::STAGE)) {
            // First, so that what is read below is of the span that is settled in the end. Once it is, its own thread may
            // free it and what is around it.
            let reference = found.reference();
            self.ensure_stage_id(found);
            let facts = found.facts();
            if !facts.is_stage() {
                continue;
            }
            let entered = found.entered.is_entered();
            let outcome = self.policy.outcome_at_end(facts, entered, cut_off);
            let runs_until_now = outcome == Outcome::Failure(Reason::Interrupted);
            let last_exit = Some(found.last_exit.load(Ordering::Relaxed)).filter(|exit| *exit != 0 && !runs_until_now);
            let ended = self.ended_stage(found, outcome, last_exit.unwrap_or(now));
            if !found.settle(reference) {
                closing.push(reference);
                continue;
            }
            self.count(ended);
            self.hide(found);
            match outcome {
                Outcome::Success => {}
                // It returned, and is merely held open.
                Outcome::Failure(Reason::Error) => {
                    #[cfg(feature = "trace-id")]
                    self.warn_first_failure(ended);
                }
                Outcome::Failure(reason) => self.warn_open(ended, reason),
            }
        }
        self.await_closed(&closing, patience.min(CLOSING_TIME));
        self.diagnostics.emit_waiting();
    }

    /// Waits for the threads that are closing these stages to have counted them. Not for ever: one of them may be the
    /// thread that ends the run, from within a recorder.
    fn await_closed(&self, closing: &[SlotRef], patience: Duration) {
        let deadline = Instant::now() + patience;
        for reference in closing {
            while self.open.get(*reference).is_some() && Instant::now() < deadline {
                std::thread::yield_now();
            }
        }
    }

    /// Sets a gauge that is not a stage's, and not set often.
    pub(crate) fn set_gauge(&self, metric: &Metric, labels: &[&str], value: f64) {
        let gauge = self.series.sink.gauge(metric, labels);
        outward(|| gauge.set(value));
    }

    /// Whether the stages of this run allow to call it a success: at least one outermost stage finished, none failed,
    /// and every expected stage succeeded at least once.
    pub(crate) fn all_well(&self) -> bool {
        self.outermost_finished.load(Ordering::Relaxed)
            && !self.outermost_failed.load(Ordering::Relaxed)
            && self.have_succeeded(&self.expected)
    }

    fn have_succeeded(&self, stages: &[Label]) -> bool {
        let succeeded = self.series.totals().filter(|(_, totals)| totals.succeeded > 0);
        let succeeded: HashSet<_> = succeeded.map(|(stage, _)| stage).collect();
        stages.iter().all(|stage| succeeded.contains(&self.series.stage(&self.labels, *stage).1.stage))
    }

    /// The stages in the order in which they first finished; those that have not, last.
    pub(crate) fn states(&self) -> Vec<StageState> {
        self.count_detached();
        let mut open = HashMap::new();
        for found in self.open.iter() {
            let (reference, stage) = (found.reference(), found.stage());
            // One whose id is not known yet has no name either: that is its id only if none is recorded until the end.
            if found.facts().is_stage() && !stage.is_none() && found.is_still(reference) {
                let stage = self.series.stage(&self.labels, stage).1.stage;
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
