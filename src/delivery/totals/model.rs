//! The arithmetic of totals.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::schema::OVERFLOW;

/// Limit of the label sets of a group's totals. Stages beyond it are counted under `_overflow`.
pub(super) const MAX_LABEL_SETS: usize = 10_000;

/// A stage in a profile.
#[derive(Clone, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct StageKey {
    pub(crate) stage_id: String,
    pub(crate) profile: String,
}

impl StageKey {
    pub(crate) fn new(stage_id: &str, profile: &str) -> Self {
        Self { stage_id: stage_id.to_owned(), profile: profile.to_owned() }
    }

    pub(in crate::delivery) fn overflow() -> Self {
        Self::new(OVERFLOW, OVERFLOW)
    }
}

/// Runs by status.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Outcomes {
    pub(crate) success: u64,
    pub(crate) failure: u64,
}

impl Outcomes {
    pub(crate) fn sum(self) -> u64 {
        self.success.saturating_add(self.failure)
    }

    pub(in crate::delivery) fn plus(self, more: Self) -> Self {
        Self { success: self.success.saturating_add(more.success), failure: self.failure.saturating_add(more.failure) }
    }

    fn minus(self, less: Self) -> Self {
        Self { success: self.success.saturating_sub(less.success), failure: self.failure.saturating_sub(less.failure) }
    }
}

/// The finished runs of a stage and their duration.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct StageCounts {
    pub(crate) runs: Outcomes,
    pub(crate) seconds: f64,
}

impl StageCounts {
    pub(crate) fn new(success: u64, failure: u64, nanos: u64) -> Self {
        Self { runs: Outcomes { success, failure }, seconds: Duration::from_nanos(nanos).as_secs_f64() }
    }
}

/// The runs and stages that a run adds to the totals of its group.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Increments {
    pub(crate) runs: Outcomes,
    /// In the order in which the stages first opened, so that the limit on label sets admits the same ones every time.
    pub(crate) stages: Vec<(StageKey, StageCounts)>,
}

/// The totals of a group.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Totals {
    pub(crate) runs: Outcomes,
    pub(crate) stages: BTreeMap<StageKey, StageCounts>,
}

impl Totals {
    /// Adds the counts of a stage, under `_overflow` if it would be a label set too many.
    pub(super) fn add_stage(&mut self, key: &StageKey, more: StageCounts) {
        self.add_stage_within(key, more, MAX_LABEL_SETS);
    }

    fn add_stage_within(&mut self, key: &StageKey, more: StageCounts, limit: usize) {
        let has_room = self.stages.len() < limit || self.stages.contains_key(key);
        let counts = self.stages.entry(if has_room { key.clone() } else { StageKey::overflow() }).or_default();
        counts.runs = counts.runs.plus(more.runs);
        counts.seconds += more.seconds;
    }

    /// Adds the counts of a stage, which is in the totals of a group already.
    pub(super) fn take_over(&mut self, key: &StageKey, more: StageCounts) {
        self.add_stage_within(key, more, usize::MAX);
    }

    pub(super) fn add_runs(&mut self, more: Outcomes) {
        self.runs = self.runs.plus(more);
    }

    pub(super) fn plus(&self, increments: &Increments) -> Self {
        let mut sum = self.clone();
        sum.add_runs(increments.runs);
        increments.stages.iter().for_each(|(key, more)| sum.add_stage(key, *more));
        sum
    }

    /// Returns the increments from earlier totals to these. Stages without runs since then are left out.
    pub(super) fn since(&self, earlier: &Self) -> Increments {
        let since = |(key, counts): (&StageKey, &StageCounts)| {
            let before = earlier.stages.get(key).copied().unwrap_or_default();
            let runs = counts.runs.minus(before.runs);
            let seconds = (counts.seconds - before.seconds).max(0.0);
            (runs.sum() > 0).then(|| (key.clone(), StageCounts { runs, seconds }))
        };
        Increments { runs: self.runs.minus(earlier.runs), stages: self.stages.iter().filter_map(since).collect() }
    }

    /// Returns whether both count the same runs.
    pub(super) fn counts_are(&self, other: &Self) -> bool {
        self.counts() == other.counts()
    }

    /// Returns whether no stage has more runs than in these totals.
    pub(super) fn counts_are_at_most(&self, other: &Self) -> bool {
        let is_at_most = |a: Outcomes, b: Outcomes| a.success <= b.success && a.failure <= b.failure;
        let runs = |key| other.stages.get(key).map(|counts| counts.runs).unwrap_or_default();
        is_at_most(self.runs, other.runs) && self.stages.iter().all(|(key, counts)| is_at_most(counts.runs, runs(key)))
    }

    /// Returns these totals without increments.
    pub(super) fn minus(&self, less: &Increments) -> Self {
        let mut rest = self.clone();
        rest.runs = rest.runs.minus(less.runs);
        for (key, counts) in &less.stages {
            if let Some(rest) = rest.stages.get_mut(key) {
                rest.runs = rest.runs.minus(counts.runs);
                rest.seconds = (rest.seconds - counts.seconds).max(0.0);
            }
        }
        rest
    }

    /// Returns the runs, without stages that have none.
    fn counts(&self) -> (Outcomes, BTreeMap<&StageKey, Outcomes>) {
        let stages = self.stages.iter().map(|(key, counts)| (key, counts.runs));
        (self.runs, stages.filter(|(_, runs)| runs.sum() > 0).collect())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(in crate::delivery::totals) fn key(stage_id: &str) -> StageKey {
        StageKey { stage_id: stage_id.to_owned(), profile: "p".to_owned() }
    }

    pub(in crate::delivery::totals) fn counts(success: u64, failure: u64) -> StageCounts {
        StageCounts { runs: Outcomes { success, failure }, seconds: (success + failure) as f64 / 4.0 }
    }

    /// Stages and runs in small numbers, so that sums of seconds are exact.
    pub(in crate::delivery::totals) fn increments() -> impl Strategy<Value = Increments> {
        let stage = (prop::sample::select(vec!["a", "b", "c"]), 0..3_u64, 0..3_u64);
        let stages = prop::collection::vec(stage, 0..5);
        (stages, 0..2_u64, 0..2_u64).prop_map(|(stages, success, failure)| Increments {
            runs: Outcomes { success, failure },
            stages: stages.into_iter().map(|(id, success, failure)| (key(id), counts(success, failure))).collect(),
        })
    }

    proptest! {
        #[test]
        fn difference_of_a_sum_is_the_increment(base in increments(), more in increments()) {
            let base = Totals::default().plus(&base);
            let sum = base.plus(&more);
            let difference = sum.since(&base);
            prop_assert_eq!(difference.runs, more.runs);
            let again = base.plus(&difference);
            prop_assert_eq!(again.counts(), sum.counts());
            prop_assert!(base.counts_are(&sum.minus(&difference)));
            prop_assert_eq!(base.counts_are(&sum), difference == Increments::default());
            prop_assert!(base.counts_are_at_most(&sum));
            prop_assert_eq!(sum.counts_are_at_most(&base), difference == Increments::default());
        }
    }

    #[test]
    fn label_set_beyond_the_limit_is_counted_as_overflow_every_time() {
        let mut base = Totals::default();
        base.add_stage_within(&key("old"), counts(1, 0), 2);
        let of_run = |ids: &[&str]| {
            let mut totals = base.clone();
            ids.iter().for_each(|id| totals.add_stage_within(&key(id), counts(1, 1), 2));
            totals.stages.into_iter().map(|(key, counts)| (key.stage_id, counts.runs.sum())).collect::<Vec<_>>()
        };
        let expected = |counts: &[(&str, u64)]| counts.iter().map(|(id, n)| ((*id).to_owned(), *n)).collect::<Vec<_>>();
        assert_eq!(of_run(&["z"]), expected(&[("old", 1), ("z", 2)]));
        assert_eq!(of_run(&["z", "a", "b", "old"]), expected(&[("_overflow", 4), ("old", 3), ("z", 2)]));
    }
}
