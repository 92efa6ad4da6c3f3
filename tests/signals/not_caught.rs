//! Programs without `with_flush_on_signals()`, and SIGKILL.

use std::time::{Duration, Instant};

use super::support::child::{self, Signal};
use super::support::{self, MockGateway, WAIT_TIMEOUT, exposition};
use super::{assert_died_of, command, last_push, start_and_await_push, value};

#[test]
fn signal_without_the_option_leaves_the_last_push() {
    let server = MockGateway::ok();
    let mut running = child::start(command("without the flush", &server.url()));
    running.await_line("it works");
    running.signal(Signal::TERM);
    let ended = running.wait();
    assert_died_of(&ended, Signal::TERM);
    assert_eq!(ended.stdout.matches("the report: ").count(), 0, "{ended:?}");
    let last = last_push(&server);
    assert_eq!(value(&last, "quant_stage_total", &[("stage_id", "done"), ("status", "success")]), 1.0, "two ran");
    assert!(last.family("quant_run_last_completion_timestamp_seconds").is_none());
}

/// The handler lets `main` return, so the guard is dropped.
#[test]
fn program_with_its_own_handler_ends_normally() {
    let server = MockGateway::ok();
    let running = start_and_await_push("a handler of its own", &server);
    running.signal(Signal::TERM);
    let ended = running.wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert_eq!(ended.stdout.matches("the report: done (1, 0)").count(), 1, "{ended:?}");
    assert_eq!(server.requests().len(), 2, "at install and at the end");
    let last = last_push(&server);
    assert_eq!(value(&last, "last_value", &[]), 42.0, "recorded after the signal");
    assert!(value(&last, "quant_run_last_success_timestamp_seconds", &[]) > 1.7e9, "the run was a success");
}

/// The gateway shows that the run started, when it did, and the active stage.
#[test]
fn run_killed_in_its_first_stage_has_pushed_its_start() {
    let Some(server) = support::pushgateway() else { return };
    let mut command = command("in a stage", &server.url());
    command.env("TV_PROMETHEUS_PUSH_INTERVAL", "50ms");
    let running = child::start(command);
    let active = [("instance", ""), ("job", "j"), ("stage_id", "open"), ("profile", "")];
    let start = Instant::now();
    while exposition::parse(&server.metrics()).value("quant_stage_active", &active) != Some(1.0) {
        assert!(start.elapsed() < WAIT_TIMEOUT, "no active stage on the gateway: {}", server.metrics());
        std::thread::sleep(Duration::from_millis(5));
    }
    running.signal(Signal::KILL);
    assert_died_of(&running.wait(), Signal::KILL);
    let exposition = exposition::parse(&server.metrics());
    assert!(value(&exposition, "quant_run_start_timestamp_seconds", &[]) > 1.7e9);
    assert_eq!(value(&exposition, "quant_stage_active", &[("stage_id", "open")]), 1.0);
    assert!(exposition.family("quant_run_last_completion_timestamp_seconds").is_none(), "the run has not completed");
}
