//! Programs without `with_flush_on_signals()`, and a signal that nobody can handle.

use std::time::{Duration, Instant};

use super::support::child::{self, Signal};
use super::support::{self, MockGateway, PATIENCE, exposition};
use super::{assert_died_of, command, last_push, started, value};

#[test]
fn the_state_of_the_last_push_is_what_there_is() {
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

/// Its guard is dropped when it is done, and it ends as it likes.
#[test]
fn a_program_with_a_handler_of_its_own_ends_in_its_own_way() {
    let server = MockGateway::ok();
    let running = started("a handler of its own", &server);
    running.signal(Signal::TERM);
    let ended = running.wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert_eq!(ended.stdout.matches("the report: done (1, 0)").count(), 1, "{ended:?}");
    assert_eq!(server.requests().len(), 2, "at install and at the end");
    let last = last_push(&server);
    assert_eq!(value(&last, "last_value", &[]), 42.0, "what its handler recorded");
    assert!(value(&last, "quant_run_last_success_timestamp_seconds", &[]) > 1.7e9, "the run was a success");
}

/// The gateway shows that a run began, when, and what it was at.
#[test]
fn a_run_that_is_killed_in_its_first_stage_was_seen_to_start() {
    let Some(server) = support::pushgateway() else { return };
    let mut command = command("in a stage", &server.url());
    command.env("TV_PROMETHEUS_PUSH_INTERVAL", "50ms");
    let running = child::start(command);
    let active = [("instance", ""), ("job", "j"), ("stage_id", "open"), ("profile", "")];
    let begun = Instant::now();
    while exposition::parse(&server.metrics()).value("quant_stage_active", &active) != Some(1.0) {
        assert!(begun.elapsed() < PATIENCE, "it is not seen: {}", server.metrics());
        std::thread::sleep(Duration::from_millis(5));
    }
    running.signal(Signal::KILL);
    assert_died_of(&running.wait(), Signal::KILL);
    let found = exposition::parse(&server.metrics());
    assert!(value(&found, "quant_run_start_timestamp_seconds", &[]) > 1.7e9);
    assert_eq!(value(&found, "quant_stage_active", &[("stage_id", "open")]), 1.0);
    assert!(found.family("quant_run_last_completion_timestamp_seconds").is_none(), "and not to end");
}
