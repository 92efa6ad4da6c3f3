//! The totals of a group over all its runs.
//!
//! Each run counts its steps in a profile of its own, so that the totals show what they have of each run. Of a killed run
//! the parent knows only bounds: what arrived, and whether the run ended before it was killed.

use std::collections::BTreeMap;

use super::history::{Certainty, Rule, Run, Violation};
use super::job::COUNTED;
use super::support::exposition::Exposition;

/// The totals that the gateway shows of a group.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Totals {
    success: f64,
    failure: f64,
    /// Steps by run.
    steps: BTreeMap<u32, f64>,
}

impl Totals {
    pub(crate) fn of(group: &str, gateway: &Exposition) -> Self {
        let labels = [("instance", ""), ("job", group)];
        let runs = |status| gateway.value("quant_runs_total", &[&labels[..], &[("status", status)]].concat());
        let steps = [&labels[..], &[("stage_id", COUNTED), ("status", "success")]].concat();
        let steps = gateway.matching("quant_stage_runs_total", &steps).into_iter();
        Self {
            success: runs("success").unwrap_or_default(),
            failure: runs("failure").unwrap_or_default(),
            steps: steps.map(|sample| (sample.labels["profile"].parse().unwrap(), sample.value)).collect(),
        }
    }
}

/// Checks the totals after the delivery of every payload. `history` is in the order of the starts.
pub(crate) fn check_totals(history: &[Run], shown: &Totals) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut check = |what: String, value: f64, (least, most): (usize, usize)| {
        if !(least as f64..=most as f64).contains(&value) {
            violations.push((Rule::TotalsAreExact, format!("{what}: {value}, must be {least} to {most}; {shown:?}")));
        }
    };
    for run in history {
        let (least, most) = run.stages;
        let steps = shown.steps.get(&run.number).copied().unwrap_or_default();
        check(format!("steps of run {}", run.number), steps, (least as usize, most as usize));
    }
    let count = |condition: &dyn Fn(&Run) -> bool| history.iter().filter(|run| condition(run)).count();
    let succeeded = count(&|run| run.succeeded == Certainty::Yes);
    let perhaps_succeeded = count(&|run| run.succeeded == Certainty::Perhaps);
    check("successes".to_owned(), shown.success, (succeeded, succeeded + perhaps_succeeded));
    // A killed run is counted by the next one, if a push of it arrived, and if the next one reads the totals before its
    // own push replaces the start. The parent knows neither.
    let ended = count(&|run| run.flushed == Certainty::Yes);
    check("runs".to_owned(), shown.success + shown.failure, (ended, history.len()));
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use Certainty::{No, Perhaps, Yes};

    fn run(number: u32, flushed: Certainty, succeeded: Certainty, stages: (u32, u32)) -> Run {
        let (start, end) = (f64::from(number), (0.0, 0.0));
        let (is_acknowledged, is_delivered, is_over) = (flushed == No, false, false);
        Run { number, stages, start, flushed, succeeded, is_acknowledged, is_delivered, is_over, end }
    }

    #[test]
    fn run_that_is_missing_or_counted_twice_is_a_violation() {
        let history = [
            run(1, Yes, Yes, (3, 3)),
            run(2, No, No, (1, 4)),
            run(3, Perhaps, Perhaps, (0, 2)),
            run(4, Yes, No, (2, 2)),
        ];
        let right = Totals { success: 1.0, failure: 2.0, steps: BTreeMap::from([(1, 3.0), (2, 2.0), (4, 2.0)]) };
        let with = |change: &dyn Fn(&mut Totals)| {
            let mut totals = right.clone();
            change(&mut totals);
            check_totals(&history, &totals).len()
        };
        assert_eq!(with(&|_| {}), 0);
        assert_eq!(with(&|totals| totals.success = 2.0), 0, "run 3 may have succeeded");
        for change in [
            &|totals: &mut Totals| totals.success = 0.0,
            &|totals: &mut Totals| totals.success = 3.0,
            &|totals: &mut Totals| totals.failure = 4.0,
            &|totals: &mut Totals| totals.failure = 0.0,
            &|totals: &mut Totals| _ = totals.steps.insert(1, 6.0),
            &|totals: &mut Totals| _ = totals.steps.remove(&2),
            &|totals: &mut Totals| _ = totals.steps.insert(3, 3.0),
        ] as [&dyn Fn(&mut Totals); 7]
        {
            assert_ne!(with(change), 0);
        }
    }
}
