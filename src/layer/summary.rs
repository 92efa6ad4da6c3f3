//! The state of all stages at one moment.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;

use super::stages::Stages;
use crate::histogram::Snapshot;
use crate::recorder::KeptHistogram;
use crate::series::interner::LabelId;
use crate::series::{DurationSeries, StageTotals};

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
    // Sorted by their start: the limit on label sets admits the first ones.
    let mut open: Vec<_> = stages
        .spans
        .open
        .iter()
        .filter_map(|span| {
            let reference = span.reference();
            let (flags, stage) = (span.flags(), span.stage());
            let profile = stages.spans.look(span.slot).profile;
            let started = span.started.load(Ordering::Relaxed);
            let is_shown = flags.is_stage() && !stage.is_none() && span.is_current(reference);
            is_shown.then_some((started, stage, profile))
        })
        .collect();
    open.sort_by_key(|(started, ..)| *started);
    let mut active = HashMap::new();
    for (_, stage, profile) in open {
        stages.series.stage(stage);
        let (pair, _) = stages.series.pair(stage, profile);
        *active.entry(pair).or_insert(0_u64) += 1;
    }
    stages.series.publish(|pair| active.get(&pair).copied().unwrap_or(0))
}

/// Returns whether the stages allow the run to be a success: at least one outermost stage finished, none failed, and every
/// expected stage succeeded at least once.
pub(super) fn run_succeeded(stages: &Stages) -> bool {
    stages.outermost.all_succeeded() && have_succeeded(stages, &stages.expected)
}

fn have_succeeded(stages: &Stages, expected: &[LabelId]) -> bool {
    let succeeded = stages.series.totals().filter(|(_, totals)| totals.succeeded > 0);
    let succeeded: HashSet<_> = succeeded.map(|(stage, _)| stage).collect();
    expected.iter().all(|stage| succeeded.contains(&stages.series.stage(*stage).1.stage))
}

/// Returns all stages: the finished ones in the order in which they first finished, then the others.
pub(super) fn states(stages: &Stages) -> Vec<StageState> {
    let mut open = HashMap::new();
    for span in stages.spans.open.iter() {
        let (reference, stage) = (span.reference(), span.stage());
        // A stage without an id is left out: an id may still be recorded.
        if span.flags().is_stage() && !stage.is_none() && span.is_current(reference) {
            let stage = stages.series.stage(stage).1.stage;
            *open.entry(stage).or_insert(0_u64) += 1;
        }
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
