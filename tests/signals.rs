//! SIGTERM and SIGINT with `with_flush_on_signals()`: the final state is delivered, then the signal kills the
//! process.
#![cfg(all(feature = "pushgateway", unix))]
#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod support;

#[path = "signals/not_caught.rs"]
mod not_caught;
#[path = "signals/one_guard.rs"]
mod one_guard;
#[path = "signals/scenarios.rs"]
mod scenarios;

use std::io::Write as _;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, kill_process};
use scenarios::GATE;
use support::child::{self, Ended, Running, Signal};
use support::exposition::{self, Exposition};
use support::mock_gateway::Answer;
use support::{MockGateway, Reply, servers};

/// Margin for a busy machine on top of a deadline.
const SLACK: Duration = Duration::from_millis(1_500);

fn command(scenario: &str, url: &str) -> Command {
    let mut command = child::command("scenarios::run_scenario", scenario);
    command.env("TV_PROMETHEUS_PUSHGATEWAY", url).env("TV_PROMETHEUS_JOB", "j");
    command.env("TV_PROMETHEUS_PUSH_INTERVAL", "1h").env("TV_PROMETHEUS_FLUSH_TIMEOUT", "20s");
    command
}

/// Starts a child and waits until it has run its stage and the gateway has its first push.
#[track_caller]
fn start_and_await_push(scenario: &str, server: &MockGateway) -> Running {
    let mut running = child::start(command(scenario, &server.url()));
    running.await_line("it works");
    server.await_requests(1);
    running
}

fn held_gate() -> MockGateway {
    MockGateway::start([Reply::Held(Answer::new(200))])
}

/// Starts a child and waits until it asks at the gate and the gateway has its first push.
#[track_caller]
fn start_at_gate(scenario: &str, server: &MockGateway, gate: &MockGateway) -> Running {
    let mut command = command(scenario, &server.url());
    command.env(GATE, gate.addr().to_string());
    let running = child::start(command);
    gate.await_requests(1);
    server.await_requests(1);
    running
}

#[track_caller]
fn last_push(server: &MockGateway) -> Exposition {
    exposition::parse(server.requests().last().unwrap().text())
}

/// The value of the only series with these labels; the gateway may add more labels.
#[track_caller]
fn value(exposition: &Exposition, name: &str, labels: &[(&str, &str)]) -> f64 {
    let samples = exposition.matching(name, labels);
    assert_eq!(samples.len(), 1, "{name}{labels:?}: {samples:?}");
    samples[0].value
}

#[track_caller]
fn assert_died_of(ended: &Ended, signal: Signal) {
    assert_eq!(ended.status.signal(), Some(signal.as_raw()), "{ended:?}");
}

#[track_caller]
fn assert_reported(ended: &Ended, report: &str) {
    assert_eq!(ended.stdout.matches("the report: ").count(), 1, "{ended:?}");
    assert!(ended.stdout.contains(report), "{ended:?}");
}

/// Asserts the final state of a run that a signal ended.
#[track_caller]
fn assert_interrupted(exposition: &Exposition) {
    assert_eq!(value(exposition, "last_value", &[]), 42.0, "the last recorded value");
    assert_eq!(value(exposition, "quant_stage_total", &[("stage_id", "done"), ("status", "success")]), 1.0);
    assert_eq!(value(exposition, "quant_stage_total", &[("stage_id", "open"), ("status", "failure")]), 1.0);
    assert_eq!(
        value(exposition, "quant_stage_failures_total", &[("stage_id", "open"), ("reason", "interrupted")]),
        1.0
    );
    assert_eq!(value(exposition, "quant_stage_duration_seconds_count", &[("stage_id", "open")]), 1.0);
    assert_eq!(value(exposition, "quant_stage_active", &[("stage_id", "open")]), 0.0);
    assert_eq!(value(exposition, "quant_stage_active", &[("stage_id", "done")]), 0.0);
    assert!(value(exposition, "quant_run_duration_seconds", &[]) > 0.0);
    assert!(value(exposition, "quant_run_last_completion_timestamp_seconds", &[]) > 1.7e9);
    assert!(exposition.family("quant_run_last_success_timestamp_seconds").is_none(), "the run is no success");
}

#[test]
fn signal_flushes_reports_once_and_kills() {
    for signal in [Signal::TERM, Signal::INT] {
        let server = MockGateway::ok();
        let running = start_and_await_push("in a stage", &server);
        running.signal(signal);
        let ended = running.wait();
        assert_died_of(&ended, signal);
        assert_reported(&ended, "the report: done (1, 0), open (1, 1)");
        assert_eq!(ended.stderr.matches("stage open was still open at the final flush").count(), 1, "{ended:?}");
        let name = if signal == Signal::TERM { "SIGTERM" } else { "SIGINT" };
        let warning = format!("the run is not a success: stage open failed (interrupted); {name} ended the program\n");
        assert_eq!(ended.stderr.matches(&warning).count(), 1, "{ended:?}");
        assert_eq!(server.requests().len(), 2, "at install and at the end");
        assert_interrupted(&last_push(&server));
    }
}

#[test]
fn signal_delivers_to_a_real_gateway() {
    let Some(server) = support::pushgateway() else { return };
    for signal in [Signal::TERM, Signal::INT] {
        let mut running = child::start(command("in a stage", &server.url()));
        running.await_line("it works");
        running.signal(signal);
        assert_died_of(&running.wait(), signal);
        assert_interrupted(&exposition::parse(&server.metrics()));
    }
}

#[test]
fn signal_interrupts_tasks_of_a_runtime() {
    let server = MockGateway::ok();
    let running = start_and_await_push("runtime", &server);
    running.signal(Signal::TERM);
    let ended = running.wait();
    assert_died_of(&ended, Signal::TERM);
    assert_reported(&ended, "the report: done (1, 0), open (1, 1)");
    let last = last_push(&server);
    assert_interrupted(&last);
    assert_eq!(value(&last, "quant_stage_total", &[("stage_id", "task"), ("status", "failure")]), 4.0);
    assert_eq!(value(&last, "quant_stage_failures_total", &[("stage_id", "task"), ("reason", "interrupted")]), 4.0);
    assert_eq!(value(&last, "quant_stage_active", &[("stage_id", "task")]), 0.0);
}

#[test]
fn silent_gateway_delays_death_until_the_timeout_only() {
    for replies in [vec![Reply::Silent], vec![Reply::ok(), Reply::Silent]] {
        let server = MockGateway::start(replies);
        let mut command = command("in a stage", &server.url());
        command.env("TV_PROMETHEUS_FLUSH_TIMEOUT", "700ms");
        let mut running = child::start(command);
        running.await_line("it works");
        server.await_requests(1);
        let start = Instant::now();
        running.signal(Signal::TERM);
        let ended = running.wait();
        assert!(start.elapsed() < Duration::from_millis(700) + SLACK, "{:?}", start.elapsed());
        assert_died_of(&ended, Signal::TERM);
        assert_reported(&ended, "the report: done (1, 0), open (1, 1)");
        assert_eq!(ended.stderr.matches("the last state of the metrics was not delivered").count(), 1, "{ended:?}");
    }
}

#[test]
fn second_signal_kills_at_once() {
    for (first, second) in [(Signal::TERM, Signal::TERM), (Signal::TERM, Signal::INT), (Signal::INT, Signal::TERM)] {
        let server = MockGateway::start([Reply::ok(), Reply::Silent]);
        let running = start_and_await_push("in a stage", &server);
        running.signal(first);
        server.await_requests(2);
        let start = Instant::now();
        running.signal(second);
        let ended = running.wait();
        assert!(start.elapsed() < SLACK, "the flush timeout is 20 s, the process took {:?}", start.elapsed());
        assert_died_of(&ended, second);
        assert_eq!(ended.stdout.matches("the report: ").count(), 0, "{ended:?}");
    }
}

#[test]
fn signal_ignored_at_start_stays_ignored() {
    for (ignored, other) in [(Signal::TERM, Signal::INT), (Signal::INT, Signal::TERM)] {
        let name = if ignored == Signal::TERM { "TERM" } else { "INT" };
        let (server, gate) = (MockGateway::ok(), held_gate());
        let running = start_ignoring(name, "through the gate", &server, &gate);
        running.signal(ignored);
        gate.release();
        let ended = running.wait();
        assert_eq!(ended.status.code(), Some(0), "SIG{name} is ignored: {ended:?}");
        assert_reported(&ended, "the report: done (1, 0), open (0, 0)");
        let last = last_push(&server);
        assert_eq!(value(&last, "last_value", &[]), 42.0);
        assert!(value(&last, "quant_run_last_success_timestamp_seconds", &[]) > 1.7e9, "the run was a success");

        // The other signal is still caught.
        let (server, gate) = (MockGateway::ok(), held_gate());
        let running = start_ignoring(name, "through the gate", &server, &gate);
        running.signal(other);
        let ended = running.wait();
        assert_died_of(&ended, other);
        let last = last_push(&server);
        assert_eq!(value(&last, "last_value", &[]), 42.0);
        assert!(last.family("quant_run_last_success_timestamp_seconds").is_none());
    }
}

/// Starts a child at the gate with a signal ignored, as `nohup` does.
#[track_caller]
fn start_ignoring(signal: &str, scenario: &str, server: &MockGateway, gate: &MockGateway) -> Running {
    let inner = command(scenario, &server.url());
    let mut command = Command::new("sh");
    command.args(["-c", &format!("trap '' {signal}; exec \"$0\" \"$@\"")]);
    child::wrap(&mut command, &inner);
    command.env(GATE, gate.addr().to_string());
    let running = child::start(command);
    gate.await_requests(1);
    server.await_requests(1);
    running
}

#[test]
fn signal_after_the_guard_takes_its_default_action() {
    for signal in [Signal::TERM, Signal::INT] {
        let (server, gate) = (MockGateway::ok(), held_gate());
        let mut running = start_at_gate("guard gone", &server, &gate);
        gate.release();
        running.await_line("the guard is gone");
        running.signal(signal);
        let ended = running.wait();
        assert_died_of(&ended, signal);
        assert_reported(&ended, "the report: done (1, 0), open (0, 0)");
        assert_eq!(server.requests().len(), 2, "no third push");
        assert!(value(&last_push(&server), "quant_run_last_success_timestamp_seconds", &[]) > 1.7e9);
    }
}

/// The run has succeeded before the signal arrives: that state is delivered once, then the process dies of the
/// signal.
#[test]
fn signal_during_shutdown_keeps_one_final_flush() {
    let (server, gate) = (MockGateway::start([Reply::ok(), Reply::Held(Answer::new(200))]), held_gate());
    let running = start_at_gate("shutdown through the gate", &server, &gate);
    gate.release();
    server.await_requests(2);
    running.signal(Signal::TERM);
    server.release();
    let ended = running.wait();
    assert_died_of(&ended, Signal::TERM);
    assert_reported(&ended, "the report: done (1, 0), open (0, 0)");
    assert_eq!(server.requests().len(), 2, "one final flush");
    let last = last_push(&server);
    assert_eq!(value(&last, "last_value", &[]), 42.0);
    assert!(value(&last, "quant_run_last_success_timestamp_seconds", &[]) > 1.7e9);
}

/// A lost signal would leave the process running for ever.
#[test]
fn signal_at_the_end_of_the_final_flush_is_not_lost() {
    for round in 0..30 {
        let server = MockGateway::start([Reply::ok(), Reply::Held(Answer::new(200))]);
        let gate = held_gate();
        let running = start_at_gate("shutdown through the gate", &server, &gate);
        gate.release();
        server.await_requests(2);
        if round % 2 == 0 {
            server.release();
            std::thread::sleep(Duration::from_micros(20 * round));
            running.signal(Signal::TERM);
        } else {
            running.signal(Signal::TERM);
            server.release();
        }
        let ended = running.wait_for(Duration::from_secs(10));
        assert_died_of(&ended, Signal::TERM);
        assert_reported(&ended, "the report: done (1, 0), open (0, 0)");
        assert!(value(&last_push(&server), "quant_run_last_success_timestamp_seconds", &[]) > 1.7e9);
    }
}

/// `exit` has begun: the process ends with its code, and the flush is complete.
#[test]
fn signal_during_exit_keeps_the_exit_code() {
    let (server, gate) = (MockGateway::start([Reply::ok(), Reply::Held(Answer::new(200))]), held_gate());
    let running = start_at_gate("exit through the gate", &server, &gate);
    gate.release();
    server.await_requests(2);
    running.signal(Signal::TERM);
    server.release();
    let ended = running.wait();
    assert_eq!(ended.status.code(), Some(3), "the first final flush decides the ending: {ended:?}");
    assert_reported(&ended, "the report: done (1, 0), open (0, 0)");
    assert_eq!(server.requests().len(), 2, "one final flush");
}

/// The main thread ends during the flush and does not overtake it.
#[test]
fn exit_during_the_flush_of_a_signal_waits() {
    let (server, gate) = (MockGateway::start([Reply::ok(), Reply::Held(Answer::new(200))]), held_gate());
    let running = start_at_gate("exit through the gate", &server, &gate);
    running.signal(Signal::TERM);
    server.await_requests(2);
    gate.release();
    // No event shows that the main thread waits. Without the wait the process would have ended by then.
    std::thread::sleep(Duration::from_millis(200));
    server.release();
    assert_died_of(&running.wait(), Signal::TERM);
    assert_eq!(server.requests().len(), 2, "one final flush");
}

/// The final flush of a signal blocks every other ending until the process is dead, a panic on another thread
/// included.
#[test]
fn panic_during_the_flush_of_a_signal_dies_of_the_signal() {
    let (server, gate) = (MockGateway::start([Reply::ok(), Reply::Held(Answer::new(200))]), held_gate());
    let running = start_at_gate("panic later", &server, &gate);
    running.signal(Signal::TERM);
    server.await_requests(2);
    gate.release();
    // The panic may happen before or after the response: it waits for the same flush.
    server.release();
    let ended = running.wait();
    assert_died_of(&ended, Signal::TERM);
    assert_reported(&ended, "the report: done (1, 0), open (0, 0)");
    assert_eq!(server.requests().len(), 2, "one final flush");
}

/// Starts a child as process 1 of a PID namespace; if that is not permitted, prints so and returns `None`.
#[track_caller]
fn start_as_process_1(server: &MockGateway) -> Option<(Running, Pid)> {
    const NAMESPACE: [&str; 3] = ["--pid", "--fork", "--kill-child"];
    if !servers::installed("unshare") {
        return None;
    }
    let probe = Command::new("unshare").args(NAMESPACE).arg("true").stderr(Stdio::piped()).output().unwrap();
    if !probe.status.success() {
        let err = String::from_utf8_lossy(&probe.stderr).trim().to_owned();
        let thread = std::thread::current();
        let test = thread.name().unwrap_or("a test");
        let _ = writeln!(std::io::stderr(), "LEFT OUT: {test} ({}): cannot create a PID namespace: {err}", file!());
        return None;
    }
    let mut outer = Command::new("unshare");
    outer.args(NAMESPACE);
    child::wrap(&mut outer, &command("as process 1", &server.url()));
    let mut running = child::start(outer);
    let line = running.await_line("it is ");
    let id = line.rsplit_once("it is ").and_then(|(_, id)| id.strip_suffix('.')?.parse().ok());
    server.await_requests(1);
    Some((running, id.and_then(Pid::from_raw).unwrap()))
}

#[test]
fn process_1_exits_with_128_plus_the_signal() {
    for signal in [Signal::TERM, Signal::INT] {
        let server = MockGateway::ok();
        let Some((running, process_1)) = start_as_process_1(&server) else { return };
        kill_process(process_1, signal).unwrap();
        let ended = running.wait();
        assert_eq!(ended.status.code(), Some(128 + signal.as_raw()), "{ended:?}");
        assert_reported(&ended, "the report: done (1, 0), open (0, 0)");
        let last = last_push(&server);
        assert_eq!(value(&last, "last_value", &[]), 42.0);
        assert!(last.family("quant_run_last_success_timestamp_seconds").is_none());
    }
}

#[test]
fn second_signal_ends_process_1_at_once() {
    let server = MockGateway::start([Reply::ok(), Reply::Silent]);
    let Some((running, process_1)) = start_as_process_1(&server) else { return };
    kill_process(process_1, Signal::TERM).unwrap();
    server.await_requests(2);
    let start = Instant::now();
    kill_process(process_1, Signal::TERM).unwrap();
    let ended = running.wait();
    assert!(start.elapsed() < SLACK, "the flush timeout is 20 s, the process took {:?}", start.elapsed());
    assert_eq!(ended.status.code(), Some(128 + 15), "{ended:?}");
    assert_eq!(ended.stdout.matches("the report: ").count(), 0, "{ended:?}");
}
