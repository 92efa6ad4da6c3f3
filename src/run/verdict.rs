//! Why a run is no success, in one line for each reason.

use super::exit_reason::ExitReason;
use super::report::failures_text;
use crate::layer::{FailedStages, FailingStage, RunState};
use crate::series::outcome::Reason;
use crate::terminal::one_line;

/// Number of reasons in the warning at the final flush.
const MAX_WARNED: usize = 10;

/// Returns why the run is no success; nothing if it is one. `ending` is `None` before the end: the run is judged as if its guard
/// were dropped now. `is_failed`: whether `fail()` was called.
pub(super) fn reasons(state: &RunState, ending: Option<ExitReason>, is_failed: bool) -> Vec<String> {
    // The program's word counts: a stage that succeeded another time was retried, or was one of many.
    let may_fail = ending.is_some_and(ExitReason::claims_success);
    let mut reasons = Vec::new();
    let failed = || state.failed.iter().filter(|stage| !may_fail || stage.succeeded == 0);
    if !state.has_finished && state.failed.is_empty() && state.open.is_empty() {
        reasons.push(
            "no stage was measured: give its span the field `stage_id`, add the layer to the subscriber before, and check \
             that no filter hides spans of level INFO"
                .to_owned(),
        );
    }
    reasons.extend(failed().map(|stage| format!("stage {} {}", name(&stage.stage, &stage.profile), failures(stage))));
    reasons
        .extend(state.open.iter().map(|open| format!("stage {} {}", name(&open.stage, &open.profile), failing(open))));
    for stage in &state.missing {
        let is_listed = failed().any(|failed| failed.stage == stage.stage)
            || state.open.iter().any(|open| open.stage == stage.stage);
        let what = match stage.runs() {
            _ if is_listed => continue,
            0 if stage.is_open => "is still open".to_owned(),
            0 => "never ran".to_owned(),
            _ => failures(stage),
        };
        reasons.push(format!("expected stage {} {what}", one_line(&stage.stage)));
    }
    if is_failed {
        reasons.push("`fail()` was called".to_owned());
    }
    reasons.extend(ending.and_then(ExitReason::failure));
    reasons
}

/// Returns the reasons as the text of one warning.
pub(super) fn warning(reasons: &[String]) -> String {
    let mut text = reasons[..reasons.len().min(MAX_WARNED)].join("; ");
    if let Some(more @ 1..) = reasons.len().checked_sub(MAX_WARNED) {
        text.push_str(&format!("; and {more} more reasons, in `RunReport::reasons()`"));
    }
    text
}

fn name(stage: &str, profile: &str) -> String {
    match (stage, profile) {
        ("", _) => "without an id".to_owned(),
        (stage, "") => one_line(stage),
        (stage, profile) => format!("{} (profile {})", one_line(stage), one_line(profile)),
    }
}

fn failing(open: &FailingStage) -> String {
    match open.reason {
        Reason::Interrupted | Reason::Unfinished => "is still open".to_owned(),
        // The function returned or panicked, and a handle keeps the span open.
        reason => format!("failed ({}) and is still open", reason.as_str()),
    }
}

fn failures(stage: &FailedStages) -> String {
    let (failed, runs) = (stage.failed.iter().sum::<u64>(), stage.runs());
    let times = if runs == 1 { String::new() } else { format!(" {failed} of {runs} times") };
    let error = stage.last_error.as_ref().map_or_else(String::new, |error| format!(": {}", one_line(error)));
    format!("failed{times} ({}){error}", failures_text(&stage.failed))
}

impl FailedStages {
    fn runs(&self) -> u64 {
        self.succeeded + self.failed.iter().sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(stage: &str, profile: &str, succeeded: u64, failed: [u64; 5], error: Option<&str>) -> FailedStages {
        let (stage, profile) = (stage.to_owned(), profile.to_owned());
        FailedStages { stage, profile, succeeded, failed, last_error: error.map(Into::into), is_open: false }
    }

    fn state(failed: Vec<FailedStages>, missing: Vec<FailedStages>) -> RunState {
        RunState { has_finished: true, failed, open: Vec::new(), missing }
    }

    #[test]
    fn a_run_without_a_reason_is_a_success() {
        for ending in [None, Some(ExitReason::Returned), Some(ExitReason::Succeeded), Some(ExitReason::Exited(0))] {
            assert_eq!(reasons(&state(Vec::new(), Vec::new()), ending, false), [""; 0]);
        }
    }

    #[test]
    fn each_ending_has_its_reason() {
        let ends = |ending| reasons(&state(Vec::new(), Vec::new()), Some(ending), false);
        assert_eq!(ends(ExitReason::Failed), ["the program ended with an error: `finish` was given an `Err`"]);
        assert_eq!(ends(ExitReason::Panicked), ["the program panicked"]);
        assert_eq!(ends(ExitReason::Exited(3)), ["the program exited with code 3"]);
        #[cfg(unix)]
        assert_eq!(ends(ExitReason::Signalled(signal_hook::consts::SIGTERM)), ["SIGTERM ended the program"]);
        assert_eq!(reasons(&state(Vec::new(), Vec::new()), None, true), ["`fail()` was called"]);
    }

    #[test]
    fn failed_and_missing_stages_are_named_once() {
        let failed =
            vec![stage("a", "", 0, [1, 0, 0, 0, 0], Some("no such\nfile")), stage("b", "p", 1, [2, 1, 0, 0, 0], None)];
        let missing = vec![
            stage("a", "", 0, [1, 0, 0, 0, 0], Some("no such\nfile")),
            stage("c", "", 0, [0; 5], None),
            stage("d", "", 0, [0, 0, 2, 0, 0], None),
        ];
        let state = state(failed, missing);
        let retried = "stage b (profile p) failed 3 of 4 times (2 error, 1 panic)";
        let others = [
            "stage a failed (error): no such file",
            "expected stage c never ran",
            "expected stage d failed 2 of 2 times (cancelled)",
        ];
        assert_eq!(reasons(&state, Some(ExitReason::Succeeded), false), others);
        let all = [others[0], retried, others[1], others[2]];
        assert_eq!(reasons(&state, None, false), all);
        assert_eq!(reasons(&state, Some(ExitReason::Returned), false), all);
    }

    #[test]
    fn warning_is_bounded() {
        let reasons: Vec<_> = (1..=12).map(|n| format!("reason {n}")).collect();
        assert_eq!(warning(&reasons[..2]), "reason 1; reason 2");
        assert!(warning(&reasons[..10]).ends_with("reason 10"));
        assert!(warning(&reasons).ends_with("reason 10; and 2 more reasons, in `RunReport::reasons()`"));
    }
}
