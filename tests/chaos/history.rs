//! The runs of one group, and the state that the gateway must show after them.
//!
//! A killed process may have delivered or spooled its last state, or may not: the parent cannot know. Such facts are
//! [`Certainty::Perhaps`], and the gateway may show either state.

use std::fmt;

use super::job::{NUMBER, OVER};
use super::support::exposition::Exposition;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Certainty {
    No,
    Perhaps,
    Yes,
}

/// A run that has ended. Times are Unix times in seconds.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) number: u32,
    /// The least and the largest number of stages that the totals count of this run.
    pub(crate) stages: (u32, u32),
    pub(crate) start: f64,
    /// The final flush has ended: the gateway or the spool has the last state.
    pub(crate) flushed: Certainty,
    /// The last state reports a success.
    pub(crate) succeeded: Certainty,
    /// The gateway answered 200 to a `flush()` or to the final flush.
    pub(crate) is_acknowledged: bool,
    /// The final flush returned `Ok`.
    pub(crate) is_delivered: bool,
    /// The gauge `OVER` was 1 in the last state.
    pub(crate) is_over: bool,
    /// The start of the final flush, and the end of the process. The completion time of the run is between them.
    pub(crate) end: (f64, f64),
}

/// The state that the gateway shows of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct State {
    pub(crate) start: Option<f64>,
    pub(crate) number: Option<f64>,
    pub(crate) over: Option<f64>,
    pub(crate) completion: Option<f64>,
    pub(crate) last_success: Option<f64>,
}

impl State {
    pub(crate) fn of(group: &str, gateway: &Exposition) -> Self {
        let value = |name: &str| gateway.value(name, &[("instance", ""), ("job", group)]);
        Self {
            start: value("quant_run_start_timestamp_seconds"),
            number: value(NUMBER),
            over: value(OVER),
            completion: value("quant_run_last_completion_timestamp_seconds"),
            last_success: value("quant_run_last_success_timestamp_seconds"),
        }
    }
}

/// The promises of the crate that a history can break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rule {
    /// A final flush that returns `Ok` is visible at once.
    OkMeansVisible,
    /// Every final flush becomes visible or is superseded by a later run.
    FinalStateArrives,
    /// No older run replaces a run whose push was acknowledged.
    NoOlderRun,
    /// A run with a final flush shows its last state.
    LastStateIsWhole,
    LastSuccessIsTrue,
    TotalsAreExact,
    SpoolEmpties,
    NothingIsLeftOver,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OkMeansVisible => "a final flush that is Ok is visible at once",
            Self::FinalStateArrives => "a final state arrives or is superseded",
            Self::NoOlderRun => "no older run replaces an acknowledged one",
            Self::LastStateIsWhole => "the last state is whole",
            Self::LastSuccessIsTrue => "the last success is that of the last successful run",
            Self::TotalsAreExact => "the totals count every run once",
            Self::SpoolEmpties => "the spool empties",
            Self::NothingIsLeftOver => "no file is left over",
        })
    }
}

pub(crate) type Violation = (Rule, String);

impl Run {
    fn ended_at(&self, time: Option<f64>) -> bool {
        const ROUNDING: f64 = 0.001;
        time.is_some_and(|time| (self.end.0 - ROUNDING..=self.end.1 + ROUNDING).contains(&time))
    }

    fn is_whole_in(&self, state: &State) -> bool {
        state.start == Some(self.start)
            && state.number == Some(self.number.into())
            && (state.over == Some(1.0) || !self.is_over)
            && self.ended_at(state.completion)
    }
}

/// Checks the state right after the final flush, before a later run of the group starts.
pub(crate) fn check_after_flush(run: &Run, state: &State) -> Option<Violation> {
    let is_wrong = run.is_delivered && !run.is_whole_in(state);
    is_wrong.then(|| (Rule::OkMeansVisible, format!("run {} was delivered, the gateway shows {state:?}", run.number)))
}

/// Checks the state after the delivery of every payload. `history` is in the order of the starts.
pub(crate) fn check_at_the_end(history: &[Run], state: &State) -> Vec<Violation> {
    let mut violations = Vec::new();
    let last_where = |condition: fn(&Run) -> bool| history.iter().rposition(condition);
    let visible = history.iter().position(|run| state.start == Some(run.start));
    let shown = visible.map_or("none of its runs".to_owned(), |run| format!("run {}", history[run].number));
    let mut at_least = |oldest: Option<usize>, rule| {
        if let Some(oldest) = oldest.filter(|oldest| visible < Some(*oldest)) {
            let number = history[oldest].number;
            violations.push((rule, format!("run {number} must be visible, the gateway shows {shown}: {state:?}")));
        }
    };
    let flushed = last_where(|run| run.flushed == Certainty::Yes);
    at_least(flushed, Rule::FinalStateArrives);
    at_least(last_where(|run| run.is_acknowledged), Rule::NoOlderRun);

    if let Some(run) = visible.map(|run| &history[run])
        && run.flushed == Certainty::Yes
        && !run.is_whole_in(state)
    {
        violations.push((Rule::LastStateIsWhole, format!("of run {} the gateway shows {state:?}", run.number)));
    }

    let succeeded = last_where(|run| run.succeeded == Certainty::Yes);
    let may_be_last = |(index, run): (usize, &Run)| {
        let is_candidate = Some(index) == succeeded || run.succeeded == Certainty::Perhaps && Some(index) > succeeded;
        is_candidate && run.ended_at(state.last_success)
    };
    let none_is_right = succeeded.is_none() && state.last_success.is_none();
    if !none_is_right && !history.iter().enumerate().any(may_be_last) {
        let shown = history.iter().find(|run| run.ended_at(state.last_success));
        let shown = shown.map_or("of no run".to_owned(), |run| format!("of run {}", run.number));
        let wanted = succeeded.map_or("none".to_owned(), |run| format!("that of run {}", history[run].number));
        let text = format!("the last success is {:?}, {shown}; it must be {wanted}", state.last_success);
        violations.push((Rule::LastSuccessIsTrue, text));
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run that starts at 10 times its number and ends 5 s later.
    fn run(number: u32, flushed: Certainty, succeeded: Certainty) -> Run {
        let start = f64::from(number) * 10.0;
        Run {
            number,
            stages: (1, 1),
            start,
            flushed,
            succeeded,
            is_acknowledged: false,
            is_delivered: flushed == Certainty::Yes,
            is_over: true,
            end: (start + 5.0, start + 6.0),
        }
    }

    fn shows(number: u32, last_success: Option<f64>) -> State {
        let start = f64::from(number) * 10.0;
        let completion = Some(start + 5.5);
        State { start: Some(start), number: Some(number.into()), over: Some(1.0), completion, last_success }
    }

    fn rules(history: &[Run], state: State) -> Vec<Rule> {
        check_at_the_end(history, &state).into_iter().map(|(rule, _)| rule).collect()
    }

    use Certainty::{No, Perhaps, Yes};

    #[test]
    fn older_run_is_a_violation() {
        let history = [run(1, Yes, No), run(2, Yes, No), run(3, No, No)];
        assert_eq!(rules(&history, shows(2, None)), []);
        assert_eq!(rules(&history, shows(3, None)), []);
        assert_eq!(rules(&history, shows(1, None)), [Rule::FinalStateArrives]);
        assert_eq!(rules(&history, State::default()), [Rule::FinalStateArrives]);
        assert_eq!(rules(&history, shows(9, None)), [Rule::FinalStateArrives]);
        assert_eq!(rules(&history[..0], State::default()), []);
    }

    #[test]
    fn older_run_in_place_of_an_acknowledged_one_is_a_violation() {
        let mut history = [run(1, Yes, No), run(2, No, No), run(3, No, No)];
        assert_eq!(rules(&history, shows(1, None)), []);
        history[1].is_acknowledged = true;
        assert_eq!(rules(&history, shows(1, None)), [Rule::NoOlderRun]);
        assert_eq!(rules(&history, shows(2, None)), []);
    }

    #[test]
    fn older_state_of_the_last_run_is_a_violation() {
        let history = [run(1, Yes, Yes)];
        let whole = shows(1, Some(15.5));
        assert_eq!(rules(&history, whole), []);
        assert_eq!(check_after_flush(&history[0], &whole), None);
        let states = [
            State { over: Some(0.0), ..whole },
            State { number: Some(0.0), ..whole },
            State { completion: None, ..whole },
            State { completion: Some(7.0), ..whole },
        ];
        for state in states {
            assert_eq!(rules(&history, state), [Rule::LastStateIsWhole], "{state:?}");
            let (rule, _) = check_after_flush(&history[0], &state).unwrap();
            assert_eq!(rule, Rule::OkMeansVisible);
        }
        // Any state of a killed run may be its last.
        assert_eq!(rules(&[run(1, Perhaps, No)], State { over: Some(0.0), ..shows(1, None) }), []);
        let undelivered = Run { is_delivered: false, ..run(1, Yes, Yes) };
        assert_eq!(check_after_flush(&undelivered, &State::default()), None);
    }

    #[test]
    fn wrong_last_success_is_a_violation() {
        let history = [run(1, Yes, Yes), run(2, Yes, Yes), run(3, Yes, No)];
        assert_eq!(rules(&history, shows(3, Some(25.5))), []);
        for wrong in [None, Some(15.5), Some(35.5), Some(22.0)] {
            assert_eq!(rules(&history, shows(3, wrong)), [Rule::LastSuccessIsTrue], "{wrong:?}");
        }
        let none = [run(1, Yes, No)];
        assert_eq!(rules(&none, shows(1, None)), []);
        assert_eq!(rules(&none, shows(1, Some(15.5))), [Rule::LastSuccessIsTrue]);
    }

    #[test]
    fn success_of_a_killed_run_may_be_missing() {
        let history = [run(1, Perhaps, Perhaps), run(2, Yes, Yes), run(3, Perhaps, Perhaps)];
        for right in [Some(25.5), Some(35.5)] {
            assert_eq!(rules(&history, shows(3, right)), [], "{right:?}");
        }
        assert_eq!(rules(&history, shows(3, Some(15.5))), [Rule::LastSuccessIsTrue]);
        let killed = [run(1, Perhaps, Perhaps)];
        assert_eq!(rules(&killed, shows(1, None)), []);
        assert_eq!(rules(&killed, shows(1, Some(15.5))), []);
    }
}
