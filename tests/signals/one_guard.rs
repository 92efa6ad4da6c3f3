//! Only one guard of a process owns the signals at a time.

use std::time::Duration;

use super::support::child::{self, Signal};
use super::support::mock_gateway::Answer;
use super::support::{MockGateway, Reply};
use super::{assert_died_of, assert_interrupted, assert_reported, command, last_push, start_and_await_push, value};

#[test]
fn second_guard_with_signals_is_a_config_error() {
    let server = MockGateway::ok();
    let running = start_and_await_push("two guards at once", &server);
    running.signal(Signal::TERM);
    let ended = running.wait();
    assert_died_of(&ended, Signal::TERM);
    assert_reported(&ended, "the report: done (1, 0), open (1, 1)");
    assert_eq!(server.requests().len(), 2, "at install and at the end, none from a second guard");
    assert_interrupted(&last_push(&server));
}

/// Holds whether the guard before was shut down, dropped, or never built. The last push takes longer than the time
/// for which earlier guards still look for late signals.
#[test]
fn later_guard_catches_signals_after_an_earlier_one() {
    for signal in [Signal::TERM, Signal::INT] {
        let server = MockGateway::start_with(|request| match request.text().contains("stage_id=\"last\"") {
            true => Reply::Trickled(Answer::new(200), Duration::from_millis(5)),
            false => Reply::ok(),
        });
        let mut running = child::start(command("one guard after the other", &server.url()));
        running.await_line("it works");
        running.signal(signal);
        let ended = running.wait();
        assert_died_of(&ended, signal);
        assert_eq!(ended.stdout.matches("has measured the last stage: true").count(), 1, "after the flush: {ended:?}");
        let last = last_push(&server);
        assert_eq!(value(&last, "quant_stage_total", &[("stage_id", "last"), ("status", "success")]), 1.0);
        assert!(value(&last, "quant_run_duration_seconds", &[]) > 0.0, "the final flush was made");
    }
}
