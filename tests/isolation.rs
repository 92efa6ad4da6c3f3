//! Code of the application that blocks: a log, a report closure, a recorder. The last state arrives all the same, within the
//! flush timeout, and the process ends as it would have.
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
/// What a busy machine may add to a time that is kept.
const SLACK: Duration = Duration::from_millis(1_500);

fn start(scenario: &str, server: &MockGateway) -> child::Running {
    start_with(scenario, server, &[])
}

/// `environment`: further variables of the child.
fn start_with(scenario: &str, server: &MockGateway, environment: &[(&str, &str)]) -> child::Running {
    let mut command = child::command("scenarios::block", scenario);
    command.envs(environment.iter().copied());
    command.env("TV_PROMETHEUS_PUSHGATEWAY", server.url());
    command.env("TV_PROMETHEUS_JOB", "j").env("TV_PROMETHEUS_FLUSH_TIMEOUT", "1s");
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

/// A child that waits in an open stage, while the main thread holds what the crate is about to use.
#[track_caller]
fn dies_of_sigterm_in_time(scenario: &str) {
    dies_of_sigterm_in_time_with(scenario, &[]);
}

#[track_caller]
fn dies_of_sigterm_in_time_with(scenario: &str, environment: &[(&str, &str)]) {
    let server = MockGateway::ok();
    let mut running = start_with(scenario, &server, environment);
    running.await_line("it blocks");
    let start = Instant::now();
    running.signal(Signal::TERM);
    let ended = running.wait();
    assert!(start.elapsed() < TIMEOUT + SLACK, "{:?}: {ended:?}", start.elapsed());
    assert_eq!(ended.status.signal(), Some(Signal::TERM.as_raw()), "{ended:?}");
    assert_final(&last_push(&server), "interrupted");
}

#[test]
fn sigterm_flushes_while_main_holds_the_lock_of_standard_output() {
    dies_of_sigterm_in_time("stdout locked");
}

#[test]
fn sigterm_flushes_while_the_report_waits_for_a_lock_of_main() {
    dies_of_sigterm_in_time("report waits");
}

/// The loss of the collector is being reported meanwhile.
#[cfg(feature = "otlp")]
#[test]
fn sigterm_flushes_while_the_log_blocks_and_the_collector_is_lost() {
    let collector = format!("http://{}", support::free_addr());
    let environment = [
        ("OTEL_METRICS_EXPORTER", "otlp"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector),
        ("TV_PROMETHEUS_PUSH_INTERVAL", "100ms"),
    ];
    dies_of_sigterm_in_time_with("log blocks", &environment);
}

#[test]
fn shutdown_returns_while_the_log_is_a_pipe_that_nobody_reads() {
    let server = MockGateway::ok();
    let ended = start("pipe full", &server).wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(ended.stdout.contains("shutdown: Ok(())"), "{ended:?}");
    assert_final(&last_push(&server), "unfinished");
}

#[test]
fn the_last_rendering_is_delivered_while_the_recorder_does_not_return() {
    let server = MockGateway::ok();
    let mut running = start("recorder locked", &server);
    running.await_line("it blocks");
    let ended = running.wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(ended.stdout.contains("shutdown: Ok(())"), "{ended:?}");
    let last = last_push(&server);
    assert_eq!(last.expect("rows_total", &[]), 7.0);
    assert_eq!(last.value("quant_run_duration_seconds", &[]), None, "the recorder takes nothing any more");
    assert!(ended.stderr.contains("its last rendering is delivered"), "{ended:?}");
}

#[test]
fn install_without_a_file_handle_left_is_an_error() {
    let server = MockGateway::start([Reply::ok()]);
    let ended = start("no file handles", &server).wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(ended.stdout.contains("install: cannot "), "{ended:?}");
    assert!(ended.stdout.contains("Too many open files"), "{ended:?}");
}

#[test]
fn a_fork_is_told_at_once_that_it_has_no_threads() {
    let server = MockGateway::ok();
    let ended = start("fork", &server).wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(ended.stdout.contains("flush: this process, "), "{ended:?}");
    assert!(ended.stdout.contains("shutdown: this process, "), "{ended:?}");
    assert!(ended.stdout.contains("call `install()` after the fork"), "{ended:?}");
    assert!(ended.elapsed < TIMEOUT, "{ended:?}");
}
