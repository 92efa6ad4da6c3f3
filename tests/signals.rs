//! SIGTERM and SIGINT with `with_flush_on_signals()`: the last state is delivered, then the process dies of that signal.
#![cfg(all(feature = "pushgateway", unix))]
#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod support;

#[path = "signals/one_guard.rs"]
mod one_guard;
#[path = "signals/scenarios.rs"]
mod scenarios;
#[path = "signals/without_it.rs"]
mod without_it;

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

/// What a busy machine may add to a time that is kept.
const SLACK: Duration = Duration::from_millis(1_500);

fn command(scenario: &str, url: &str) -> Command {
    let mut command = child::command("scenarios::end_as_told", scenario);
    command.env("TV_PROMETHEUS_PUSHGATEWAY", url).env("TV_PROMETHEUS_JOB", "j");
    command.env("TV_PROMETHEUS_PUSH_INTERVAL", "1h").env("TV_PROMETHEUS_FLUSH_TIMEOUT", "20s");
    command
}

/// A child that has run its stage, and the gateway that took its first push.
#[track_caller]
fn started(scenario: &str, server: &MockGateway) -> Running {
    let mut running = child::start(command(scenario, &server.url()));
    running.await_line("it works");
    server.await_requests(1);
    running
}

fn holding_gate() -> MockGateway {
    MockGateway::start([Reply::Held(Answer::new(200))])
}

/// The same, at the gate: it asks there when its first push is through.
#[track_caller]
fn at_the_gate(scenario: &str, server: &MockGateway, gate: &MockGateway) -> Running {
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

/// The one series with these labels, whatever the gateway adds.
#[track_caller]
fn value(found: &Exposition, name: &str, labels: &[(&str, &str)]) -> f64 {
    let samples = found.matching(name, labels);
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

/// What the final flush of a run that a signal ended carries.
#[track_caller]
fn assert_interrupted(found: &Exposition) {
    assert_eq!(value(found, "last_value", &[]), 42.0, "the last recorded value");
    assert_eq!(value(found, "quant_stage_total", &[("stage_id", "done"), ("status", "success")]), 1.0);
    assert_eq!(value(found, "quant_stage_total", &[("stage_id", "open"), ("status", "failure")]), 1.0);
    assert_eq!(value(found, "quant_stage_failures_total", &[("stage_id", "open"), ("reason", "interrupted")]), 1.0);
    assert_eq!(value(found, "quant_stage_duration_seconds_count", &[("stage_id", "open")]), 1.0);
    assert_eq!(value(found, "quant_stage_active", &[("stage_id", "open")]), 0.0);
    assert_eq!(value(found, "quant_stage_active", &[("stage_id", "done")]), 0.0);
    assert!(value(found, "quant_run_duration_seconds", &[]) > 0.0);
    assert!(value(found, "quant_run_last_completion_timestamp_seconds", &[]) > 1.7e9);
    assert!(found.family("quant_run_last_success_timestamp_seconds").is_none(), "it was no success");
}

#[test]
fn a_signal_flushes_reports_once_and_kills() {
    for signal in [Signal::TERM, Signal::INT] {
        let server = MockGateway::ok();
        let running = started("in a stage", &server);
        running.signal(signal);
        let ended = running.wait();
        assert_died_of(&ended, signal);
        assert_reported(&ended, "the report: done (1, 0), open (1, 1)");
        assert_eq!(ended.stderr.matches("stage open was still open at the final flush").count(), 1, "{ended:?}");
        assert_eq!(server.requests().len(), 2, "at install and at the end");
        assert_interrupted(&last_push(&server));
    }
}

#[test]
fn the_real_gateway_has_it() {
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
fn in_the_middle_of_a_runtime() {
    let server = MockGateway::ok();
    let running = started("runtime", &server);
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
fn a_silent_gateway_does_not_keep_it_alive() {
    for replies in [vec![Reply::Silent], vec![Reply::ok(), Reply::Silent]] {
        let server = MockGateway::start(replies);
        let mut command = command("in a stage", &server.url());
        command.env("TV_PROMETHEUS_FLUSH_TIMEOUT", "700ms");
        let mut running = child::start(command);
        running.await_line("it works");
        server.await_requests(1);
        let begun = Instant::now();
        running.signal(Signal::TERM);
        let ended = running.wait();
        assert!(begun.elapsed() < Duration::from_millis(700) + SLACK, "{:?}", begun.elapsed());
        assert_died_of(&ended, Signal::TERM);
        assert_reported(&ended, "the report: done (1, 0), open (1, 1)");
        assert_eq!(ended.stderr.matches("the last state of the metrics was not delivered").count(), 1, "{ended:?}");
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    for (first, second) in [(Signal::TERM, Signal::TERM), (Signal::TERM, Signal::INT), (Signal::INT, Signal::TERM)] {
        let server = MockGateway::start([Reply::ok(), Reply::Silent]);
        let running = started("in a stage", &server);
        running.signal(first);
        server.await_requests(2);
        let begun = Instant::now();
        running.signal(second);
        let ended = running.wait();
        assert!(begun.elapsed() < SLACK, "it has 20 s for the flush and took {:?}", begun.elapsed());
        assert_died_of(&ended, second);
        assert_eq!(ended.stdout.matches("the report: ").count(), 0, "{ended:?}");
    }
}

#[test]
fn a_signal_that_was_ignored_at_the_start_stays_ignored() {
    for (ignored, other) in [(Signal::TERM, Signal::INT), (Signal::INT, Signal::TERM)] {
        let name = if ignored == Signal::TERM { "TERM" } else { "INT" };
        let (server, gate) = (MockGateway::ok(), holding_gate());
        let running = ignoring(name, "through the gate", &server, &gate);
        running.signal(ignored);
        gate.release();
        let ended = running.wait();
        assert_eq!(ended.status.code(), Some(0), "SIG{name} is ignored: {ended:?}");
        assert_reported(&ended, "the report: done (1, 0), open (0, 0)");
        let last = last_push(&server);
        assert_eq!(value(&last, "last_value", &[]), 42.0);
        assert!(value(&last, "quant_run_last_success_timestamp_seconds", &[]) > 1.7e9, "the run was a success");

        // The other one is not.
        let (server, gate) = (MockGateway::ok(), holding_gate());
        let running = ignoring(name, "through the gate", &server, &gate);
        running.signal(other);
        let ended = running.wait();
        assert_died_of(&ended, other);
        let last = last_push(&server);
        assert_eq!(value(&last, "last_value", &[]), 42.0);
        assert!(last.family("quant_run_last_success_timestamp_seconds").is_none());
    }
}

/// A child at the gate, started as `nohup` would: with a signal ignored.
#[track_caller]
fn ignoring(signal: &str, scenario: &str, server: &MockGateway, gate: &MockGateway) -> Running {
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
fn with_the_guard_gone_signals_act_as_if_never_caught() {
    for signal in [Signal::TERM, Signal::INT] {
        let server = MockGateway::ok();
        let mut running = child::start(command("guard gone", &server.url()));
        running.await_line("the guard is gone");
        running.signal(signal);
        let ended = running.wait();
        assert_died_of(&ended, signal);
        assert_reported(&ended, "the report: done (1, 0), open (0, 0)");
        assert_eq!(server.requests().len(), 2, "no third push");
        assert!(value(&last_push(&server), "quant_run_last_success_timestamp_seconds", &[]) > 1.7e9);
    }
}

/// The run has ended well when the signal comes: it is delivered so, once, and then the process dies of the signal.
#[test]
fn while_the_guard_makes_its_own_final_flush() {
    let (server, gate) = (MockGateway::start([Reply::ok(), Reply::Held(Answer::new(200))]), MockGateway::ok());
    let running = at_the_gate("shutdown through the gate", &server, &gate);
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

/// However close it comes to the end of the flush, the signal is not lost: the process would go on for ever.
#[test]
fn a_signal_as_the_final_flush_ends_is_not_lost() {
    for round in 0..30 {
        let server = MockGateway::start([Reply::ok(), Reply::Held(Answer::new(200))]);
        let gate = MockGateway::ok();
        let running = at_the_gate("shutdown through the gate", &server, &gate);
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

/// `exit` is under way already: its code, or the signal, never another end, and the flush is whole.
#[test]
fn while_the_guard_exits() {
    let (server, gate) = (MockGateway::start([Reply::ok(), Reply::Held(Answer::new(200))]), MockGateway::ok());
    let running = at_the_gate("exit through the gate", &server, &gate);
    server.await_requests(2);
    running.signal(Signal::TERM);
    server.release();
    let ended = running.wait();
    assert_eq!(ended.status.code(), Some(3), "the flush that was first ends it: {ended:?}");
    assert_reported(&ended, "the report: done (1, 0), open (0, 0)");
    assert_eq!(server.requests().len(), 2, "one final flush");
}

/// The final flush of a signal holds everything else until the process is dead: a panic on another thread too.
#[test]
fn a_panic_during_the_flush_of_a_signal() {
    let (server, gate) = (MockGateway::start([Reply::ok(), Reply::Held(Answer::new(200))]), holding_gate());
    let running = at_the_gate("panic later", &server, &gate);
    running.signal(Signal::TERM);
    server.await_requests(2);
    gate.release();
    // Its end may come before or after the answer: it waits for the same flush.
    server.release();
    let ended = running.wait();
    assert_died_of(&ended, Signal::TERM);
    assert_reported(&ended, "the report: done (1, 0), open (0, 0)");
    assert_eq!(server.requests().len(), 2, "one final flush");
}

/// A child that is process 1 of a namespace of its own; `None`, said out loud, where that is not permitted.
#[track_caller]
fn as_process_1(server: &MockGateway) -> Option<(Running, Pid)> {
    const NAMESPACE: [&str; 3] = ["--pid", "--fork", "--kill-child"];
    if !servers::installed("unshare") {
        return None;
    }
    let probe = Command::new("unshare").args(NAMESPACE).arg("true").stderr(Stdio::piped()).output().unwrap();
    if !probe.status.success() {
        let why = String::from_utf8_lossy(&probe.stderr).trim().to_owned();
        let thread = std::thread::current();
        let test = thread.name().unwrap_or("a test");
        let _ = writeln!(std::io::stderr(), "LEFT OUT: {test} ({}): no process 1 may be made here: {why}", file!());
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
fn process_1_of_a_container_exits_with_128_and_the_number() {
    for signal in [Signal::TERM, Signal::INT] {
        let server = MockGateway::ok();
        let Some((running, process_1)) = as_process_1(&server) else { return };
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
fn a_second_signal_ends_process_1_at_once() {
    let server = MockGateway::start([Reply::ok(), Reply::Silent]);
    let Some((running, process_1)) = as_process_1(&server) else { return };
    kill_process(process_1, Signal::TERM).unwrap();
    server.await_requests(2);
    let begun = Instant::now();
    kill_process(process_1, Signal::TERM).unwrap();
    let ended = running.wait();
    assert!(begun.elapsed() < SLACK, "it has 20 s for the flush and took {:?}", begun.elapsed());
    assert_eq!(ended.status.code(), Some(128 + 15), "{ended:?}");
    assert_eq!(ended.stdout.matches("the report: ").count(), 0, "{ended:?}");
}
