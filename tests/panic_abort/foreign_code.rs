//! Application code that the crate calls or waits for panics or blocks; the final state still arrives, and the
//! process aborts.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

use super::support::child::{self, Ended, Running, Signal};
use super::support::exposition::{self, Exposition};
use super::support::{MockGateway, Reply};
use super::{SLACK, example_program};

const TIMEOUT: Duration = Duration::from_secs(1);
/// A flush timeout too long to wait for.
const LONG: Duration = Duration::from_secs(20);

/// Starts the program for one scenario; `None` if it was not built.
#[track_caller]
fn start(scenario: &str, server: &MockGateway, timeout: Duration) -> Option<Running> {
    let mut command = Command::new(example_program("panic_abort_program")?);
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

/// Asserts that after the push at install and the answered flush came `pushes` more, all with the rendering of that
/// flush.
#[track_caller]
fn assert_last_rendering(server: &MockGateway, pushes: usize) {
    let requests = server.requests();
    assert_eq!(requests.len(), 2 + pushes);
    assert!(requests[2..].iter().all(|request| request.text() == requests[1].text()));
    assert_eq!(last_push(server).expect("rows_total", &[]), 7.0);
}

#[test]
fn recorder_panic_with_held_lock_delivers_the_last_rendering() {
    let server = MockGateway::ok();
    let Some(running) = start("recorder", &server, TIMEOUT) else { return };
    assert_aborted(&running.wait(), TIMEOUT + SLACK);
    assert_last_rendering(&server, 1);
}

/// The final flush does not wait for the rendering thread, which has panicked.
#[test]
fn exposition_panic_delivers_the_last_rendering_at_once() {
    // The flush during which the exposition panics delivers the last rendering too.
    for (scenario, pushes) in [("exposition", 2), ("exposition at the end", 1)] {
        let server = MockGateway::ok();
        let Some(running) = start(scenario, &server, LONG) else { return };
        assert_aborted(&running.wait(), TIMEOUT + SLACK);
        assert_last_rendering(&server, pushes);
    }
}

#[test]
fn subscriber_panic_in_an_own_event_does_not_lose_the_final_state() {
    let server = MockGateway::start([Reply::status(401), Reply::ok()]);
    let Some(running) = start("subscriber", &server, LONG) else { return };
    assert_aborted(&running.wait(), TIMEOUT + SLACK);
    assert_eq!(server.requests().len(), 2, "at install and at the end");
    assert_interrupted(&last_push(&server));
}

/// Such a hook may print to a pipe that nobody reads. The process does not end before the hook returns.
#[test]
fn blocking_panic_hook_does_not_lose_the_final_state() {
    let server = MockGateway::ok();
    let started = Instant::now();
    let Some(_running) = start("hook", &server, TIMEOUT) else { return };
    let last = server.await_request(|request| request.text().contains("quant_run_duration_seconds "));
    assert!(started.elapsed() < TIMEOUT + SLACK, "{:?}", started.elapsed());
    assert_interrupted(&exposition::parse(last.text()));
}
