//! The base of this process, which all ways out share.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::families::{is_total, of_families, replace_in};
use super::ledger::OutgoingTotals;
use super::model::{Increments, Outcomes, StageCounts, StageKey, Totals};
use crate::error::{Error, Kind};
use crate::exposition::{Families, Labels, Problems, parse};
use crate::schema::{Metric, RUN_LAST_COMPLETION, RUN_LAST_SUCCESS, RUN_START};

/// The state of a group before the first push of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::delivery) struct Base {
    pub(in crate::delivery) shown: Totals,
    /// Start of the run that the destination shows and that never ended: it was killed.
    pub(in crate::delivery) killed_run: Option<f64>,
}

impl Base {
    /// Returns the totals that this run continues.
    pub(super) fn totals(&self) -> Totals {
        let mut totals = self.shown.clone();
        totals.add_runs(Outcomes { success: 0, failure: u64::from(self.killed_run.is_some()) });
        totals
    }

    /// Returns the base after a replay that wrote these totals for a run. A gateway that was frozen may have applied an
    /// earlier push of that run since then.
    pub(in crate::delivery) fn after_replay(mut self, written: Option<(Totals, Option<f64>)>) -> Self {
        if let Some((totals, run)) = written {
            self.killed_run = self.killed_run.filter(|start| Some(*start) != run);
            if self.shown.counts_are_at_most(&totals) {
                self.shown = totals;
            }
        }
        self
    }
}

/// The totals of a group, of which this process is the writer.
#[derive(Debug)]
pub(crate) struct CumulativeTotals {
    namespace: String,
    /// The labels of all series of the run.
    constant: Labels,
    /// The label of a grouping, which takes the place of the stages' own.
    profile: Option<String>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    base: Option<Arc<Base>>,
    /// Whether an unknown base stays unknown.
    is_closed: bool,
    /// Start of this run, once it is rendered.
    run_start: Option<f64>,
}

impl CumulativeTotals {
    /// `constant` has the labels of all series. `profile` is the one of the grouping.
    pub(crate) fn new(namespace: &str, constant: Labels, profile: Option<String>) -> Self {
        Self { namespace: namespace.to_owned(), constant, profile, state: Mutex::default() }
    }

    pub(in crate::delivery) fn namespace(&self) -> &str {
        &self.namespace
    }

    pub(in crate::delivery) fn constant(&self) -> &Labels {
        &self.constant
    }

    pub(in crate::delivery) fn base(&self) -> Option<Arc<Base>> {
        self.state().base.clone()
    }

    /// Sets the base. A destination that shows this run already says nothing about the run before it.
    pub(in crate::delivery) fn set_base(&self, mut base: Base) {
        let mut state = self.state();
        if !state.is_closed {
            base.killed_run = base.killed_run.filter(|start| Some(*start) != state.run_start);
            state.base.get_or_insert_with(|| Arc::new(base));
        }
    }

    /// Leaves an unknown base unknown. The payload of the final state then has all increments of the run, and no push may
    /// have any of them.
    pub(in crate::delivery) fn close(&self) {
        self.state().is_closed = true;
    }

    /// Returns the base in a text file, which has the state of one group.
    ///
    /// # Errors
    ///
    /// The text has totals that are no counts.
    pub(in crate::delivery) fn base_of_text(&self, text: Option<&str>, path: &Path) -> Result<Base, Error> {
        // A text without a valid line has no totals.
        let state = text.and_then(|text| parse(text, |_| None, &mut Problems::default()).ok()).unwrap_or_default();
        let gauge =
            |metric: &Metric| state.gauge(&metric.name(&self.namespace)).first().map(|series| series.value.as_f64());
        let (run_start, completion) = (gauge(&RUN_START), gauge(&RUN_LAST_COMPLETION));
        let shown = match of_families(&state, &self.namespace) {
            Some(shown) => shown,
            None if state.iter().any(|family| is_total(&family.name, &self.namespace)) => {
                let text = format!("text file {path:?} has totals that are no counts: they begin again");
                return Err(Error::new(Kind::Delivery, text));
            }
            None => Totals::default(),
        };
        let killed_run = run_start.filter(|start| completion.is_none_or(|end| end < *start));
        Ok(Base { shown, killed_run })
    }

    /// Adds the totals to a state. `stages` has the counts of its stages. While the base is unknown, the state has no metrics of
    /// their names, not even of the application: a gateway keeps those that it has.
    pub(in crate::delivery) fn complete(
        &self,
        families: &Families,
        stages: Vec<(StageKey, StageCounts)>,
    ) -> (Arc<Families>, OutgoingTotals) {
        let gauge = |name: String| families.plain_gauge(&name).map(|series| series.value.as_f64());
        let [start, completion, success] =
            [RUN_START, RUN_LAST_COMPLETION, RUN_LAST_SUCCESS].map(|metric| gauge(metric.name(&self.namespace)));
        // A recorder of the application may still have the end of an earlier run of this process.
        let runs = match completion.filter(|end| start.is_none_or(|start| *end >= start)) {
            None => Outcomes::default(),
            // Both are set at the end of the run, to the same time.
            Some(_) if completion == success => Outcomes { success: 1, failure: 0 },
            Some(_) => Outcomes { success: 0, failure: 1 },
        };
        let key = |key: StageKey| StageKey { profile: self.profile.clone().unwrap_or(key.profile), ..key };
        let stages = stages.into_iter().map(|(of, counts)| (key(of), counts)).collect();
        let increments = Increments { runs, stages };
        let base = {
            let mut state = self.state();
            state.run_start = start.or(state.run_start);
            state.base.clone()
        };
        let totals = base.map(|base| base.totals().plus(&increments));
        let families = replace_in(families, totals.as_ref(), &self.namespace, &self.constant);
        (Arc::new(families), OutgoingTotals { totals, increments })
    }

    /// Returns a state with the totals.
    pub(crate) fn completed(&self, families: &Families, stages: Vec<(StageKey, StageCounts)>) -> Arc<Families> {
        self.complete(families, stages).0
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::{counts, key};
    use super::*;

    #[test]
    fn late_push_of_a_replayed_run_is_not_the_base() {
        let totals = |runs| {
            let stages = vec![(key("a"), counts(runs, 0))];
            Totals::default().plus(&Increments { runs: Outcomes { success: runs, failure: 0 }, stages })
        };
        let read = |runs, run_start| {
            Base { shown: totals(runs), killed_run: Some(run_start) }.after_replay(Some((totals(3), Some(5.0))))
        };
        assert_eq!(read(2, 5.0), Base { shown: totals(3), killed_run: None });
        assert_eq!(read(3, 6.0), Base { shown: totals(3), killed_run: Some(6.0) }, "a later run was killed");
        assert_eq!(read(4, 6.0).shown, totals(4));
    }
}
