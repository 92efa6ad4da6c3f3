//! The state of all stages at one moment.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;

use super::span::tree::ContextLabels;
use super::stages::Stages;
use crate::histogram::Snapshot;
use crate::recorder::KeptHistogram;
use crate::series::interner::LabelId;
use crate::series::outcome::{FailuresByReason, Outcome, Reason};
use crate::series::{DurationSeries, StageTotals};

/// A stage that is open, with its labels of this moment.
pub(super) struct OpenStage {
    pub(super) started: u64,
    pub(super) stage: LabelId,
    pub(super) labels: ContextLabels,
    pub(super) is_outermost: bool,
    /// Its outcome if the run ended now, without a signal or a panic.
    pub(super) outcome: Outcome,
}

impl OpenStage {
    /// Whether its id is known.
    pub(super) fn has_id(&self) -> bool {
        !self.stage.is_none()
    }
}

impl Stages {
    /// Returns the open stages by their start.
    pub(super) fn open_stages(&self) -> impl Iterator<Item = OpenStage> {
        let open = self.spans.open.iter().filter_map(|span| {
            let (reference, flags, stage) = (span.reference(), span.flags(), span.stage());
            let labels = self.spans.look(span.slot);
            let started = span.started.load(Ordering::Relaxed);
            let is_outermost = self.spans.nearest_stage(span.parent(), self.spans.epoch()).is_none();
            let outcome = self.policy.outcome_at_end(flags, span.entered.is_entered(), false);
            let is_stage = flags.is_stage() && span.is_current(reference);
            is_stage.then_some(OpenStage { started, stage, labels, is_outermost, outcome })
        });
        let mut open: Vec<_> = open.collect();
        open.sort_by_key(|open| open.started);
        open.into_iter()
    }
}

/// A stage in the run report.
#[cfg_attr(not(feature = "pushgateway"), allow(dead_code))]
pub(crate) struct StageState {
    pub(crate) stage: String,
    pub(crate) totals: StageTotals,
    pub(crate) open: u64,
}

/// Publishes the state of this moment to the recorder, before it is rendered. Returns the histograms that the layer keeps.
pub(super) fn publish(stages: &Stages) -> impl Iterator<Item = KeptHistogram> {
    let histograms = if stages.series.recorder.updates_eagerly() { Vec::new() } else { publish_all(stages) };
    let kept = |(set, snapshot): (&DurationSeries, _)| {
        let key = stages.series.key_of(set);
        KeptHistogram { key, snapshot, created: set.created }
    };
    histograms.into_iter().map(kept)
}

fn publish_all(stages: &Stages) -> Vec<(&DurationSeries, Snapshot)> {
    let mut active = HashMap::new();
    // By their start: the limit on label sets admits the first ones.
    for OpenStage { stage, labels, .. } in stages.open_stages().filter(OpenStage::has_id) {
        stages.note_run(labels);
        stages.series.stage(stage);
        let (pair, _) = stages.series.pair(stage, labels.profile);
        *active.entry(pair).or_insert(0_u64) += 1;
    }
    stages.series.publish(|pair| active.get(&pair).copied().unwrap_or(0))
}

/// The facts that decide whether a run succeeded.
#[cfg_attr(not(feature = "pushgateway"), allow(dead_code))]
pub(crate) struct RunState {
    /// Whether an outermost stage has finished, or has returned and is held open.
    pub(crate) has_finished: bool,
    /// The outermost stages that failed, by profile.
    pub(crate) failed: Vec<FailedStages>,
    /// The outermost stages that would fail if the run ended now.
    pub(crate) open: Vec<FailingStage>,
    /// The expected stages that never succeeded, with their failures.
    pub(crate) missing: Vec<FailedStages>,
}

/// A stage that is open and would fail if the run ended now.
#[cfg_attr(not(feature = "pushgateway"), allow(dead_code))]
pub(crate) struct FailingStage {
    pub(crate) stage: String,
    pub(crate) profile: String,
    pub(crate) reason: Reason,
}

/// The failures of a stage, in one profile if it was outermost.
#[cfg_attr(not(feature = "pushgateway"), allow(dead_code))]
pub(crate) struct FailedStages {
    pub(crate) stage: String,
    pub(crate) profile: String,
    pub(crate) succeeded: u64,
    pub(crate) failed: FailuresByReason,
    pub(crate) last_error: Option<String>,
    /// Whether one of its spans is open; `false` for an outermost one, which is among the open stages.
    pub(crate) is_open: bool,
}

pub(super) fn run_state(stages: &Stages) -> RunState {
    let text = |label| stages.labels.text(label).to_owned();
    let failed = stages.series.failed_outermost().map(|([stage, profile], totals, last_error)| FailedStages {
        stage: text(stage),
        profile: text(profile),
        succeeded: totals.succeeded,
        failed: totals.failed,
        last_error,
        is_open: false,
    });
    let (mut has_finished, mut open) = (stages.has_finished_outermost(), Vec::new());
    let (mut returned, mut inner) = (HashSet::new(), HashSet::new());
    for OpenStage { stage, labels, is_outermost, outcome, .. } in stages.open_stages() {
        match outcome {
            Outcome::Success => {
                returned.insert(stages.series.stage(stage).1.stage);
                has_finished |= is_outermost;
            }
            Outcome::Failure(reason) if is_outermost => {
                open.push(FailingStage { stage: text(stage), profile: text(labels.profile), reason });
            }
            Outcome::Failure(_) => _ = inner.insert(stages.series.stage(stage).1.stage),
        }
    }
    let mut totals: HashMap<_, _> = stages.series.totals().collect();
    let missing = stages.expected.iter().filter_map(|stage| {
        let counted = stages.series.stage(*stage).1.stage;
        // A stage may be expected twice.
        let totals = totals.remove(&counted)?;
        let is_missing = totals.succeeded == 0 && !returned.contains(&counted);
        is_missing.then(|| FailedStages {
            stage: text(*stage),
            profile: String::new(),
            succeeded: 0,
            failed: totals.failed,
            last_error: totals.last_error,
            is_open: inner.contains(&counted),
        })
    });
    RunState { has_finished, failed: failed.collect(), open, missing: missing.collect() }
}

/// Returns all stages: the finished ones in the order in which they first finished, then the others.
pub(super) fn states(stages: &Stages) -> Vec<StageState> {
    let mut open = HashMap::new();
    // A stage without an id is left out: an id may still be recorded.
    for OpenStage { stage, .. } in stages.open_stages().filter(OpenStage::has_id) {
        *open.entry(stages.series.stage(stage).1.stage).or_insert(0_u64) += 1;
    }
    let mut states: Vec<_> = stages.series.totals().collect();
    states.sort_by_key(|(_, totals)| totals.first_finished.wrapping_sub(1));
    states
        .into_iter()
        .map(|(stage, totals)| StageState {
            stage: stages.labels.text(stage).to_owned(),
            totals,
            open: open.get(&stage).copied().unwrap_or(0),
        })
        .collect()
}
