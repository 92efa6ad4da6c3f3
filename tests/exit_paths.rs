//! Whichever way the process ends, the crate delivers the last state, then passes the run report to the application
//! once, and keeps the exit code.
#![cfg(feature = "pushgateway")]
#![allow(clippy::unwrap_used)]

mod support;

#[path = "exit_paths/scenarios.rs"]
mod scenarios;

use std::time::Duration;

use support::child::{self, Ended};
use support::exposition::{self, Exposition};
use support::measured::{Measured, measured, stage};
use support::{MockGateway, Reply};
use tracing_stage_metrics::{MetricsLayer, Pushgateway};

/// The result of a scenario: the end of the child and its final push.
struct Outcome {
    ended: Ended,
    last: Exposition,
    pushes: usize,
}

#[track_caller]
fn run_child(scenario: &str, server: &MockGateway) -> Ended {
    let mut command = child::command("scenarios::run_scenario", scenario);
    command.env("TV_PROMETHEUS_PUSHGATEWAY", server.addr().to_string()).env("TV_PROMETHEUS_JOB", "j");
    child::start(command).wait()
}

/// Runs a scenario and checks the promises that hold for every scenario.
#[track_caller]
fn run(scenario: &str) -> Outcome {
    let server = MockGateway::ok();
    let ended = run_child(scenario, &server);
    let mut requests = server.requests();

    let report = requests.pop().unwrap_or_else(|| panic!("{scenario}: a request arrives: {ended:?}"));
    assert!(requests.iter().all(|request| request.method == "POST"), "{scenario}: the report comes once and last");
    let last = requests.last().unwrap_or_else(|| panic!("{scenario}: a push arrives: {ended:?}"));
    let last = exposition::parse(last.text());
    assert_eq!(last.expect("last_value", &[]), 42.0, "{scenario}: the last recorded value");
    assert!(last.expect("quant_run_duration_seconds", &[]) > 0.0, "{scenario}");
    assert!(last.expect("quant_run_last_completion_timestamp_seconds", &[]) > 1.7e9, "{scenario}");
    let stages = usize::from(scenario != "return without a stage");
    let active: Vec<f64> = last.matching("quant_stage_active", &[]).iter().map(|sample| sample.value).collect();
    assert_eq!(active, vec![0.0; stages], "{scenario}: no stage is active");
    let total = |status| last.value("quant_stage_total", &[("stage_id", "a"), ("status", status)]);
    let totals = (total("success"), total("failure"));
    let (succeeded, failed) = if stages == 0 { (0.0, 0.0) } else { (totals.0.unwrap(), totals.1.unwrap()) };
    assert_eq!(report.path, format!("/report/{}/{failed}", succeeded + failed), "{scenario}");
    Outcome { ended, pushes: requests.len(), last }
}

impl Outcome {
    fn is_success(&self) -> bool {
        self.last.value("quant_run_last_success_timestamp_seconds", &[]).is_some()
    }

    fn total(&self, status: &str) -> f64 {
        self.last.expect("quant_stage_total", &[("stage_id", "a"), ("status", status)])
    }

    fn failures(&self, reason: &str) -> Option<f64> {
        self.last.value("quant_stage_failures_total", &[("stage_id", "a"), ("profile", ""), ("reason", reason)])
    }
}

#[track_caller]
fn assert_success(scenario: &str) {
    let outcome = run(scenario);
    assert_eq!(outcome.ended.status.code(), Some(0), "{scenario}: {:?}", outcome.ended);
    assert!(outcome.is_success(), "{scenario}");
    assert_eq!((outcome.total("success"), outcome.total("failure")), (1.0, 0.0), "{scenario}");
    let pushes = if scenario.starts_with("flush") { 3 } else { 2 };
    assert_eq!(outcome.pushes, pushes, "{scenario}: one push at install, one for each flush");
}

#[test]
fn normal_return_delivers_a_success() {
    for scenario in ["return", "finish ok", "exit 0", "shutdown", "shutdown, then return", "flush, then return"] {
        assert_success(scenario);
    }
}

/// The drop of the guard does not see the returned error; `finish` does.
#[test]
fn error_returned_by_a_question_mark_delivers_a_success() {
    assert_success("an error by ?");
}

#[test]
fn guard_dropped_in_or_after_a_runtime_delivers_a_success() {
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
fn async_shutdown_and_flush_deliver_a_success() {
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
fn failed_run_keeps_its_exit_code() {
    for (scenario, code) in
        [("finish err", 0), ("fail", 0), ("fail, then finish ok", 0), ("exit 3", 3), ("exit 3 inside a runtime", 3)]
    {
        let outcome = run(scenario);
        assert_eq!(outcome.ended.status.code(), Some(code), "{scenario}: {:?}", outcome.ended);
        assert!(!outcome.is_success(), "{scenario}");
        assert_eq!((outcome.total("success"), outcome.total("failure")), (1.0, 0.0), "{scenario}: its stage succeeded");
    }
}

#[test]
fn run_without_a_stage_is_no_success() {
    let outcome = run("return without a stage");
    assert_eq!(outcome.ended.status.code(), Some(0));
    assert!(!outcome.is_success());
}

#[test]
fn failed_stage_fails_the_run() {
    let outcome = run("a stage failed");
    assert_eq!(outcome.ended.status.code(), Some(0));
    assert!(!outcome.is_success());
    assert_eq!((outcome.total("failure"), outcome.failures("error")), (1.0, Some(1.0)));
}

#[test]
fn panic_through_the_guard_fails_the_run() {
    for (scenario, failures, panics) in [("panic in a stage", 1.0, Some(1.0)), ("panic outside", 0.0, None)] {
        let outcome = run(scenario);
        assert_eq!(outcome.ended.status.code(), Some(101), "{scenario}: {:?}", outcome.ended);
        assert!(outcome.ended.stderr.contains("on purpose"), "{scenario}");
        assert!(!outcome.is_success(), "{scenario}");
        assert_eq!((outcome.total("failure"), outcome.failures("panic")), (failures, panics), "{scenario}");
    }
}

#[test]
fn panic_through_the_guard_inside_a_runtime_fails_the_run() {
    for (scenario, code) in [("panic inside block_on", 101), ("panic of a task that has the guard", 0)] {
        let outcome = run(scenario);
        assert_eq!(outcome.ended.status.code(), Some(code), "{scenario}: {:?}", outcome.ended);
        assert!(outcome.ended.stderr.contains("on purpose"), "{scenario}");
        assert!(!outcome.is_success(), "{scenario}");
        assert_eq!(
            (outcome.total("success"), outcome.total("failure")),
            (1.0, 0.0),
            "{scenario}: its stage succeeded before the panic"
        );
    }
}

#[test]
fn exit_code_zero_says_that_a_retried_stage_is_no_failure() {
    for (scenario, is_success) in [("a retried stage, exit 0", true), ("a retried stage, return", false)] {
        let outcome = run(scenario);
        assert_eq!(outcome.ended.status.code(), Some(0), "{scenario}: {:?}", outcome.ended);
        assert_eq!((outcome.total("success"), outcome.total("failure")), (1.0, 1.0), "{scenario}");
        assert_eq!(outcome.is_success(), is_success, "{scenario}");
    }
}

#[test]
fn one_warning_says_why_the_run_is_no_success() {
    for (scenario, why) in [
        ("return without a stage", "no stage was measured: give its span the field `stage_id`, "),
        ("a stage failed", "stage a failed (error)"),
        ("a retried stage, return", "stage a failed 1 of 2 times (error)"),
        ("finish err", "the program ended with an error: `finish` was given an `Err`\n"),
        ("fail, then finish ok", "`fail()` was called\n"),
        ("panic in a stage", "stage a failed (panic); the program panicked\n"),
        ("exit 0 in a stage", "stage a failed (interrupted)\n"),
        ("exit 3", "the program exited with code 3\n"),
    ] {
        let stderr = run(scenario).ended.stderr;
        let warnings = stderr.split("the run is not a success: ").skip(1).collect::<Vec<_>>();
        assert_eq!(warnings.len(), 1, "{scenario}: {stderr}");
        assert!(warnings[0].starts_with(why), "{scenario}: {stderr}");
    }
    assert!(!run("return").ended.stderr.contains("the run is not a success"));
}

/// No destructor runs, as the documentation says.
#[test]
fn guard_never_dropped_leaves_the_state_of_the_last_push() {
    for (scenario, code) in [("the guard forgotten", 0), ("process::exit", 3)] {
        let server = MockGateway::ok();
        let ended = run_child(scenario, &server);
        assert_eq!(ended.status.code(), Some(code), "{scenario}: {ended:?}");
        assert!(ended.elapsed < Duration::from_secs(4), "the process waits for no flush: {:?}", ended.elapsed);
        let requests = server.requests();
        assert!(requests.iter().all(|request| request.method == "POST"), "{scenario}: no report");
        assert_eq!(requests.len(), 2, "{scenario}: one push at install, one for the flush");
        let last = exposition::parse(requests[1].text());
        assert_eq!(last.value("last_value", &[]), None, "{scenario}");
        assert!(
            last.expect("quant_run_start_timestamp_seconds", &[]) > 1.7e9,
            "{scenario}: the start of the run is pushed"
        );
        assert!(last.family("quant_run_last_completion_timestamp_seconds").is_none(), "{scenario}");
    }
}

#[test]
fn caught_panic_fails_the_run_only_inside_a_stage() {
    for scenario in ["panic of a thread in a stage", "panic of a task"] {
        let outcome = run(scenario);
        assert_eq!(outcome.ended.status.code(), Some(0), "{scenario}: {:?}", outcome.ended);
        assert!(!outcome.is_success(), "{scenario}: an outermost stage failed");
        assert_eq!((outcome.total("failure"), outcome.failures("panic")), (1.0, Some(1.0)), "{scenario}");
    }
    assert_success("panic of a thread outside");
}

#[test]
fn exit_inside_a_stage_interrupts_it() {
    for (scenario, code) in [("exit 0 in a stage", 0), ("exit 3 in a stage", 3)] {
        let outcome = run(scenario);
        assert_eq!(outcome.ended.status.code(), Some(code), "{scenario}: {:?}", outcome.ended);
        assert!(!outcome.is_success(), "{scenario}");
        assert_eq!((outcome.total("failure"), outcome.failures("interrupted")), (1.0, Some(1.0)), "{scenario}");
        assert_eq!(outcome.ended.stderr.matches("stage a was still open at the final flush").count(), 1, "{scenario}");
    }
}

#[test]
fn silent_gateway_does_not_prevent_the_report() {
    let server = MockGateway::start([Reply::Silent]);
    let (sender, runs) = std::sync::mpsc::channel();
    let builder = MetricsLayer::builder()
        .with_pushgateway(Pushgateway::new(server.url(), "j").unwrap())
        .with_flush_timeout(Duration::from_millis(300))
        .with_run_report(move |report| sender.send(report.stage("a").unwrap().runs()).unwrap());
    let Measured { guard, log: _, default: _default } = measured(builder);
    stage("a");
    assert!(guard.flush().unwrap_err().is_timeout());
    assert!(runs.try_recv().is_err(), "an intermediate flush makes no report");
    stage("a");
    assert!(guard.shutdown().unwrap_err().is_timeout());
    assert_eq!(runs.try_iter().collect::<Vec<_>>(), [2]);
}

#[test]
fn panicking_report_is_one_warning_and_keeps_the_result() {
    let server = MockGateway::ok();
    let builder = MetricsLayer::builder()
        .with_pushgateway(Pushgateway::new(server.url(), "j").unwrap())
        .with_run_report(|_| panic!("on purpose"));
    let Measured { guard, log, default: _default } = measured(builder);
    stage("a");
    assert_eq!(guard.finish(Ok::<_, ()>(7)), Ok(7));
    assert_eq!(log.own(), ["`with_run_report` panicked"]);
    assert!(server.requests().last().unwrap().text().contains("quant_run_last_success_timestamp_seconds "));
}
