//! However the process ends, the last state is delivered, then the report is handed over, once, and the exit code is
//! what it would have been.
#![cfg(feature = "pushgateway")]
#![allow(clippy::unwrap_used)]

mod support;

#[path = "endings/scenarios.rs"]
mod scenarios;

use std::time::Duration;

use support::child::{self, Ended};
use support::exposition::{self, Exposition};
use support::measured::{Measured, measured, stage};
use support::{MockGateway, Reply};
use tracing_stage_metrics::{MetricsLayer, Pushgateway};

/// What a child left behind: how it ended, and the final push.
struct Left {
    ended: Ended,
    last: Exposition,
    pushes: usize,
}

#[track_caller]
fn ended(scenario: &str, server: &MockGateway) -> Ended {
    let mut command = child::command("scenarios::end_as_told", scenario);
    command.env("TV_PROMETHEUS_PUSHGATEWAY", server.addr().to_string()).env("TV_PROMETHEUS_JOB", "j");
    child::start(command).wait()
}

/// Runs a scenario and checks what holds for every one of them.
#[track_caller]
fn run(scenario: &str) -> Left {
    let server = MockGateway::ok();
    let ended = ended(scenario, &server);
    let mut requests = server.requests();

    let report = requests.pop().unwrap_or_else(|| panic!("{scenario}: no request at all: {ended:?}"));
    assert!(requests.iter().all(|request| request.method == "POST"), "{scenario}: the report came once and last");
    let last = requests.last().unwrap_or_else(|| panic!("{scenario}: no push: {ended:?}"));
    let last = exposition::parse(last.text());
    assert_eq!(last.expect("last_value", &[]), 42.0, "{scenario}: the last recorded value");
    assert!(last.expect("quant_run_duration_seconds", &[]) > 0.0, "{scenario}");
    assert!(last.expect("quant_run_last_completion_timestamp_seconds", &[]) > 1.7e9, "{scenario}");
    let stages = usize::from(scenario != "return without a stage");
    let active: Vec<f64> = last.matching("quant_stage_active", &[]).iter().map(|sample| sample.value).collect();
    assert_eq!(active, vec![0.0; stages], "{scenario}: nothing is left open");
    let total = |status| last.value("quant_stage_total", &[("stage_id", "a"), ("status", status)]);
    let totals = (total("success"), total("failure"));
    let (succeeded, failed) = if stages == 0 { (0.0, 0.0) } else { (totals.0.unwrap(), totals.1.unwrap()) };
    assert_eq!(report.path, format!("/report/{}/{failed}", succeeded + failed), "{scenario}");
    Left { ended, pushes: requests.len(), last }
}

impl Left {
    fn is_success(&self) -> bool {
        self.last.value("quant_run_last_success_timestamp_seconds", &[]).is_some()
    }

    fn outcome(&self, status: &str) -> f64 {
        self.last.expect("quant_stage_total", &[("stage_id", "a"), ("status", status)])
    }

    fn failures(&self, reason: &str) -> Option<f64> {
        self.last.value("quant_stage_failures_total", &[("stage_id", "a"), ("profile", ""), ("reason", reason)])
    }
}

#[track_caller]
fn assert_success(scenario: &str) {
    let left = run(scenario);
    assert_eq!(left.ended.status.code(), Some(0), "{scenario}: {:?}", left.ended);
    assert!(left.is_success(), "{scenario}");
    assert_eq!((left.outcome("success"), left.outcome("failure")), (1.0, 0.0), "{scenario}");
    let pushes = if scenario.starts_with("flush") { 3 } else { 2 };
    assert_eq!(left.pushes, pushes, "{scenario}: at install, at the end");
}

#[test]
fn a_return_in_good_order() {
    for scenario in ["return", "finish ok", "exit 0", "shutdown", "shutdown, then return", "flush, then return"] {
        assert_success(scenario);
    }
}

/// The guard sees what is dropped, not what is returned: `finish` is there for that.
#[test]
fn an_error_that_a_question_mark_returns() {
    assert_success("an error by ?");
}

#[test]
fn with_a_runtime_gone_or_around() {
    for scenario in [
        "after a current_thread runtime",
        "after a multi_thread runtime",
        "inside block_on, current_thread",
        "inside block_on, multi_thread",
        "in a task",
        "in a task that is aborted",
        "with a runtime that is dropped",
        "on another thread",
        "in a blocking task",
        "shutdown inside a runtime",
    ] {
        assert_success(scenario);
    }
}

#[test]
fn without_blocking() {
    for scenario in [
        "shutdown_async, current_thread",
        "shutdown_async, multi_thread",
        "shutdown_async without tokio",
        "shutdown_async never polled",
        "flush_async, then return",
        "flush_async in a task, then return",
        "flush_async without tokio, then return",
    ] {
        assert_success(scenario);
    }
}

#[test]
fn a_run_that_says_it_failed() {
    for (scenario, code) in
        [("finish err", 0), ("fail", 0), ("fail, then finish ok", 0), ("exit 3", 3), ("exit 3 inside a runtime", 3)]
    {
        let left = run(scenario);
        assert_eq!(left.ended.status.code(), Some(code), "{scenario}: {:?}", left.ended);
        assert!(!left.is_success(), "{scenario}");
        assert_eq!((left.outcome("success"), left.outcome("failure")), (1.0, 0.0), "{scenario}: its stage did not");
    }
}

#[test]
fn a_run_in_which_nothing_ran_is_no_success() {
    let left = run("return without a stage");
    assert_eq!(left.ended.status.code(), Some(0));
    assert!(!left.is_success());
}

#[test]
fn a_failed_stage() {
    let left = run("a stage failed");
    assert_eq!(left.ended.status.code(), Some(0));
    assert!(!left.is_success());
    assert_eq!((left.outcome("failure"), left.failures("error")), (1.0, Some(1.0)));
}

#[test]
fn a_panic_through_the_guard() {
    for (scenario, failures, panics) in [("panic in a stage", 1.0, Some(1.0)), ("panic outside", 0.0, None)] {
        let left = run(scenario);
        assert_eq!(left.ended.status.code(), Some(101), "{scenario}: {:?}", left.ended);
        assert!(left.ended.stderr.contains("as told"), "{scenario}");
        assert!(!left.is_success(), "{scenario}");
        assert_eq!((left.outcome("failure"), left.failures("panic")), (failures, panics), "{scenario}");
    }
}

#[test]
fn a_panic_through_the_guard_inside_a_runtime() {
    for (scenario, code) in [("panic inside block_on", 101), ("panic of a task that has the guard", 0)] {
        let left = run(scenario);
        assert_eq!(left.ended.status.code(), Some(code), "{scenario}: {:?}", left.ended);
        assert!(left.ended.stderr.contains("as told"), "{scenario}");
        assert!(!left.is_success(), "{scenario}");
        assert_eq!((left.outcome("success"), left.outcome("failure")), (1.0, 0.0), "{scenario}: its stage had ended");
    }
}

/// No destructor runs: the documentation says so.
#[test]
fn a_guard_that_is_never_dropped_leaves_the_state_of_the_last_push() {
    for (scenario, code) in [("the guard forgotten", 0), ("process::exit", 3)] {
        let server = MockGateway::ok();
        let ended = ended(scenario, &server);
        assert_eq!(ended.status.code(), Some(code), "{scenario}: {ended:?}");
        assert!(ended.elapsed < Duration::from_secs(4), "nothing is waited for: {:?}", ended.elapsed);
        let requests = server.requests();
        assert!(requests.iter().all(|request| request.method == "POST"), "{scenario}: no report");
        assert_eq!(requests.len(), 2, "{scenario}: at install, and the flush");
        let last = exposition::parse(requests[1].text());
        assert_eq!(last.value("last_value", &[]), None, "{scenario}");
        assert!(last.expect("quant_run_start_timestamp_seconds", &[]) > 1.7e9, "{scenario}: it was seen to start");
        assert!(last.family("quant_run_last_completion_timestamp_seconds").is_none(), "{scenario}");
    }
}

#[test]
fn a_panic_elsewhere_that_the_run_survives() {
    for scenario in ["panic of a thread in a stage", "panic of a task"] {
        let left = run(scenario);
        assert_eq!(left.ended.status.code(), Some(0), "{scenario}: {:?}", left.ended);
        assert!(!left.is_success(), "{scenario}: an outermost stage failed");
        assert_eq!((left.outcome("failure"), left.failures("panic")), (1.0, Some(1.0)), "{scenario}");
    }
    assert_success("panic of a thread outside");
}

#[test]
fn an_exit_inside_a_stage_interrupts_it() {
    for (scenario, code) in [("exit 0 in a stage", 0), ("exit 3 in a stage", 3)] {
        let left = run(scenario);
        assert_eq!(left.ended.status.code(), Some(code), "{scenario}: {:?}", left.ended);
        assert!(!left.is_success(), "{scenario}");
        assert_eq!((left.outcome("failure"), left.failures("interrupted")), (1.0, Some(1.0)), "{scenario}");
        assert_eq!(left.ended.stderr.matches("stage a was still open at the final flush").count(), 1, "{scenario}");
    }
}

#[test]
fn the_report_comes_though_the_gateway_is_silent() {
    let server = MockGateway::start([Reply::Silent]);
    let (tell, told) = std::sync::mpsc::channel();
    let builder = MetricsLayer::builder()
        .with_pushgateway(Pushgateway::new(server.url(), "j").unwrap())
        .with_flush_timeout(Duration::from_millis(300))
        .with_run_report(move |report| tell.send(report.stage("a").unwrap().runs()).unwrap());
    let Measured { guard, log: _, default: _default } = measured(builder);
    stage("a");
    assert!(guard.flush().unwrap_err().is_timeout());
    assert!(told.try_recv().is_err(), "not for a flush on the way");
    stage("a");
    assert!(guard.shutdown().unwrap_err().is_timeout());
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [2]);
}

#[test]
fn a_report_that_panics_is_told_and_changes_nothing() {
    let server = MockGateway::ok();
    let builder = MetricsLayer::builder()
        .with_pushgateway(Pushgateway::new(server.url(), "j").unwrap())
        .with_run_report(|_| panic!("as told"));
    let Measured { guard, log, default: _default } = measured(builder);
    stage("a");
    assert_eq!(guard.finish(Ok::<_, ()>(7)), Ok(7));
    assert_eq!(log.own(), ["`with_run_report` panicked"]);
    assert!(server.requests().last().unwrap().text().contains("quant_run_last_success_timestamp_seconds "));
}
