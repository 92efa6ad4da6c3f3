//! Code of the application that the crate calls, or waits for, panics or blocks: the last state arrives all the same, and the
//! process aborts.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

use super::support::child::{self, Ended, Running, Signal};
use super::support::exposition::{self, Exposition};
use super::support::{MockGateway, Reply};
use super::{SLACK, built};

const TIMEOUT: Duration = Duration::from_secs(1);
/// A flush timeout that nothing may wait for.
const LONG: Duration = Duration::from_secs(20);

/// `None`, said out loud, where the program is not built.
#[track_caller]
fn start(scenario: &str, server: &MockGateway, timeout: Duration) -> Option<Running> {
    let mut command = Command::new(built("panic_abort_program")?);
    for (name, _) in std::env::vars_os() {
        if ["TV_PROMETHEUS_", "OTEL_", "RUST_"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command
        .arg(scenario)
        .env("TV_PROMETHEUS_PUSHGATEWAY", server.url())
        .env("TV_PROMETHEUS_JOB", "j")
        .env("TV_PROMETHEUS_PUSH_INTERVAL", "1h")
        .env("TV_PROMETHEUS_FLUSH_TIMEOUT", format!("{timeout:?}"));
    Some(child::start(command))
}

#[track_caller]
fn assert_aborted(ended: &Ended, within: Duration) {
    assert_eq!(ended.status.signal(), Some(Signal::ABORT.as_raw()), "{ended:?}");
    assert!(ended.stderr.contains("on purpose"), "{ended:?}");
    assert!(ended.elapsed < within, "{ended:?}");
}

fn last_push(server: &MockGateway) -> Exposition {
    exposition::parse(server.requests().last().unwrap().text())
}

#[track_caller]
fn assert_interrupted(last: &Exposition) {
    let labels = [("stage_id", "open"), ("profile", ""), ("reason", "interrupted")];
    assert_eq!(last.expect("quant_stage_failures_total", &labels), 1.0);
    assert!(last.expect("quant_run_duration_seconds", &[]) > 0.0);
}

/// After the push at install and the flush that was answered, so many more pushes have the rendering of that flush.
#[track_caller]
fn assert_last_rendering(server: &MockGateway, pushes: usize) {
    let requests = server.requests();
    assert_eq!(requests.len(), 2 + pushes);
    assert!(requests[2..].iter().all(|request| request.text() == requests[1].text()));
    assert_eq!(last_push(server).expect("rows_total", &[]), 7.0);
}

#[test]
fn a_recorder_that_panics_with_its_lock_held_has_its_last_rendering_delivered() {
    let server = MockGateway::ok();
    let Some(running) = start("recorder", &server, TIMEOUT) else { return };
    assert_aborted(&running.wait(), TIMEOUT + SLACK);
    assert_last_rendering(&server, 1);
}

/// The final flush does not wait for the thread that makes it.
#[test]
fn an_exposition_that_panics_has_its_last_rendering_delivered_at_once() {
    // The flush in which it panics has it too.
    for (scenario, pushes) in [("exposition", 2), ("exposition at the end", 1)] {
        let server = MockGateway::ok();
        let Some(running) = start(scenario, &server, LONG) else { return };
        assert_aborted(&running.wait(), TIMEOUT + SLACK);
        assert_last_rendering(&server, pushes);
    }
}

#[test]
fn a_subscriber_that_panics_in_an_event_of_the_crate_does_not_cost_the_last_state() {
    let server = MockGateway::start([Reply::status(401), Reply::ok()]);
    let Some(running) = start("subscriber", &server, LONG) else { return };
    assert_aborted(&running.wait(), TIMEOUT + SLACK);
    assert_eq!(server.requests().len(), 2, "at install and at the end");
    assert_interrupted(&last_push(&server));
}

/// It prints to a pipe that nobody reads, for one. The process is not ended before the hook returns.
#[test]
fn an_earlier_panic_hook_that_blocks_does_not_cost_the_last_state() {
    let server = MockGateway::ok();
    let begun = Instant::now();
    let Some(_running) = start("hook", &server, TIMEOUT) else { return };
    let last = server.await_request(|request| request.text().contains("quant_run_duration_seconds "));
    assert!(begun.elapsed() < TIMEOUT + SLACK, "{:?}", begun.elapsed());
    assert_interrupted(&exposition::parse(last.text()));
}
