//! One guard of a process has the signals at a time.

use std::time::Duration;

use super::support::child::{self, Signal};
use super::support::mock_gateway::Answer;
use super::support::{MockGateway, Reply};
use super::{assert_died_of, assert_interrupted, assert_reported, command, last_push, started, value};

#[test]
fn a_second_guard_that_wants_them_is_a_configuration_error_and_the_first_keeps_them() {
    let server = MockGateway::ok();
    let running = started("two guards at once", &server);
    running.signal(Signal::TERM);
    let ended = running.wait();
    assert_died_of(&ended, Signal::TERM);
    assert_reported(&ended, "the report: done (1, 0), open (1, 1)");
    assert_eq!(server.requests().len(), 2, "at install and at the end, and none of a second guard");
    assert_interrupted(&last_push(&server));
}

/// Whether the one before was shut down, dropped, or never came to be. Its last push takes longer than those before look
/// for signals that came at their end.
#[test]
fn a_guard_that_comes_after_another_has_them_as_that_had() {
    for signal in [Signal::TERM, Signal::INT] {
        let server = MockGateway::start_by(|request| match request.text().contains("stage_id=\"last\"") {
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
