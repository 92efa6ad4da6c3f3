//! Application code that blocks: a log, a report closure, a recorder. The last state arrives within the flush timeout
//! all the same, and the process ends as it would without the crate.
#![cfg(all(feature = "http", unix))]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "isolation/in_process.rs"]
mod in_process;
#[path = "isolation/scenarios.rs"]
mod scenarios;
mod support;

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use support::child::{self, Signal};
use support::exposition::{self, Exposition};
use support::{MockGateway, Reply};

/// The flush timeout of the children.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Allowance for a busy machine.
const SLACK: Duration = Duration::from_millis(1_500);

fn start(scenario: &str, server: &MockGateway) -> child::Running {
    start_with(scenario, server, &[])
}

/// Starts a child with further environment variables.
fn start_with(scenario: &str, server: &MockGateway, environment: &[(&str, &str)]) -> child::Running {
    let mut command = child::command("scenarios::run_scenario", scenario);
    command.env("TV_PROMETHEUS_PUSHGATEWAY", server.url());
    command.env("TV_PROMETHEUS_JOB", "j").env("TV_PROMETHEUS_FLUSH_TIMEOUT", "1s");
    command.envs(environment.iter().copied());
    child::start(command)
}

fn last_push(server: &MockGateway) -> Exposition {
    exposition::parse(server.requests().last().unwrap().text())
}

#[track_caller]
fn assert_final(last: &Exposition, reason: &str) {
    let labels = [("stage_id", "open"), ("profile", ""), ("reason", reason)];
    assert_eq!(last.expect("quant_stage_failures_total", &labels), 1.0);
    assert!(last.expect("quant_run_duration_seconds", &[]) > 0.0);
}

/// Sends SIGTERM to a child with an open stage whose main thread holds a lock that the crate needs. Checks that the
/// child delivers its last state and dies of the signal within the timeout.
#[track_caller]
fn assert_sigterm_flushes(scenario: &str) {
    assert_sigterm_flushes_with(scenario, &[]);
}

#[track_caller]
fn assert_sigterm_flushes_with(scenario: &str, environment: &[(&str, &str)]) {
    let server = MockGateway::ok();
    let mut running = start_with(scenario, &server, environment);
    running.await_line("blocked");
    let start = Instant::now();
    running.signal(Signal::TERM);
    let ended = running.wait();
    assert!(start.elapsed() < TIMEOUT + SLACK, "{:?}: {ended:?}", start.elapsed());
    assert_eq!(ended.status.signal(), Some(Signal::TERM.as_raw()), "{ended:?}");
    assert_final(&last_push(&server), "interrupted");
}

#[test]
fn sigterm_flushes_while_main_holds_the_stdout_lock() {
    assert_sigterm_flushes("stdout locked");
}

#[test]
fn sigterm_flushes_while_the_report_closure_waits_for_a_lock() {
    assert_sigterm_flushes("report waits");
}

/// The event about the failing collector is the one that blocks.
#[cfg(feature = "otlp")]
#[test]
fn sigterm_flushes_while_the_log_blocks_and_the_collector_is_down() {
    let collector = format!("http://{}", support::free_addr());
    let environment = [
        ("OTEL_METRICS_EXPORTER", "otlp"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector),
        ("TV_PROMETHEUS_PUSH_INTERVAL", "100ms"),
    ];
    assert_sigterm_flushes_with("log blocks", &environment);
}

#[test]
fn shutdown_returns_while_the_log_is_a_full_pipe() {
    let server = MockGateway::ok();
    let ended = start("pipe full", &server).wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(ended.stdout.contains("shutdown: Ok(())"), "{ended:?}");
    assert_final(&last_push(&server), "unfinished");
}

#[test]
fn last_rendering_is_delivered_while_the_recorder_blocks() {
    let server = MockGateway::ok();
    let mut running = start("recorder locked", &server);
    running.await_line("blocked");
    let ended = running.wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(ended.stdout.contains("shutdown: Ok(())"), "{ended:?}");
    let last = last_push(&server);
    assert_eq!(last.expect("rows_total", &[]), 7.0);
    assert_eq!(
        last.value("quant_run_duration_seconds", &[]),
        None,
        "the final values do not reach the blocked recorder"
    );
    assert!(ended.stderr.contains("its last rendering is delivered"), "{ended:?}");
}

#[test]
fn install_without_free_file_handles_is_an_error() {
    let server = MockGateway::start([Reply::ok()]);
    let ended = start("no file handles", &server).wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(ended.stdout.contains("install: cannot "), "{ended:?}");
    assert!(ended.stdout.contains("Too many open files"), "{ended:?}");
}

#[test]
fn flush_in_a_forked_child_is_an_error() {
    let server = MockGateway::ok();
    // Long, since the start of a process takes its time on a busy machine.
    let ended = start_with("fork", &server, &[("TV_PROMETHEUS_FLUSH_TIMEOUT", "20s")]).wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(ended.stdout.contains("flush: this process, "), "{ended:?}");
    assert!(ended.stdout.contains("shutdown: this process, "), "{ended:?}");
    assert!(ended.stdout.contains("call `install()` after the fork"), "{ended:?}");
    assert!(ended.elapsed < Duration::from_secs(20), "no call waits for its timeout: {ended:?}");
}

#[test]
fn second_signal_ends_a_fork_and_not_its_parent() {
    let server = MockGateway::ok();
    let ended = start("fork with signals", &server).wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(ended.stdout.contains("second guard: another guard of this process flushes on signals"), "{ended:?}");
    assert!(ended.stdout.contains("the fork survives a signal\n"), "{ended:?}");
    assert!(!ended.stdout.contains("the fork survives two signals"), "{ended:?}");
    assert!(ended.stdout.contains("the fork ended by signal Some(15)\nflush: Ok(())\n"), "{ended:?}");
}
