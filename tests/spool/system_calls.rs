//! The order of system calls that write, push and remove a payload. A test cannot cut the power, but it can check
//! that order.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::support::mock_gateway::{Answer, Request};
use super::support::{MockGateway, Reply, child, exposition, servers};
use super::{directory, leave_payload, request_lines, scenarios};

/// Whether strace works here; prints so if it does not.
#[track_caller]
pub(crate) fn can_trace() -> bool {
    if !servers::installed("strace") {
        return false;
    }
    let probe = Command::new("strace").args(["-o", "/dev/null", "true"]).stderr(Stdio::null()).status();
    let is_permitted = probe.is_ok_and(|status| status.success());
    if !is_permitted {
        let thread = std::thread::current();
        let test = thread.name().unwrap_or("a test");
        let _ = writeln!(std::io::stderr(), "LEFT OUT: {test} ({}): this system does not permit tracing", file!());
    }
    is_permitted
}

/// The command under strace, which writes to this file.
pub(crate) fn under_strace(inner: &Command, trace: &Path, options: &[&str]) -> Command {
    let mut outer = Command::new("strace");
    outer.arg("-f").args(options).arg("-o").arg(trace).arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer
}

/// Runs a process under strace that pushes at install and at the end, and returns what strace wrote.
#[track_caller]
fn trace_of_run(spool: &Path, options: &[&str]) -> String {
    // The server answers the final push once the payload has its name.
    let server = MockGateway::start([Reply::ok(), Reply::Held(Answer::new(200)), Reply::ok()]);
    let trace = tempfile::NamedTempFile::new().unwrap();
    let inner = scenarios::command("end after a push", &server.url(), "j", spool);
    let running = child::start(under_strace(&inner, trace.path(), options));
    directory::await_true("the payload", || directory::payloads(spool).len() == 1);
    server.release();
    let ended = running.wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    fs::read_to_string(trace.path()).unwrap()
}

/// System calls of such a run.
#[track_caller]
fn calls(spool: &Path) -> Vec<String> {
    // `-y` prints the paths of file handles. strace truncates data, but only after the first word of a request.
    let calls = "trace=fsync,rename,renameat,renameat2,unlink,unlinkat,write,writev,sendto";
    trace_of_run(spool, &["-y", "-e", calls]).lines().map(str::to_owned).collect()
}

/// Index of the last call that contains all parts.
#[track_caller]
fn last_index(calls: &[String], parts: &[&str]) -> usize {
    let index = calls.iter().rposition(|call| parts.iter().all(|part| call.contains(part)));
    index.unwrap_or_else(|| panic!("no call with {parts:?} in:\n{}", calls.join("\n")))
}

/// Runs a process with a slow system call. Returns how long its shutdown took,
/// which succeeded.
#[track_caller]
fn shutdown_time(
    server: &MockGateway,
    spool: &Path,
    timeout: &str,
    slow: (&str, Duration),
    running: impl FnOnce(),
) -> Duration {
    let trace = tempfile::NamedTempFile::new().unwrap();
    let mut inner = scenarios::command("time the end", &server.url(), "j", spool);
    inner.env("TV_PROMETHEUS_FLUSH_TIMEOUT", timeout);
    let (call, delay) = slow;
    let inject = format!("inject={call}:delay_enter={}", delay.as_micros());
    let mut child = child::start(under_strace(&inner, trace.path(), &["-e", &format!("trace={call}"), "-e", &inject]));
    running();
    let line = child.await_line("shutdown: ");
    let ended = child.wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let trace = fs::read_to_string(trace.path()).unwrap();
    assert!(trace.contains(&format!("{call}(")), "no {call} was delayed: {trace}");
    let last = exposition::parse(server.requests().last().unwrap().text());
    assert!(last.expect("quant_run_duration_seconds", &[]) > 0.0);
    Duration::from_millis(line.split(' ').rev().nth(1).unwrap().parse().unwrap())
}

/// The replay of an earlier payload goes on while the final payload is written. The first push waits for it, so the final
/// flush takes its place.
/// `delivered_later.rs` tests the opposite case, a frozen gateway.
#[test]
fn slow_disk_does_not_delay_a_push() {
    const DELAY: Duration = Duration::from_secs(4);
    if !can_trace() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave_payload(spool, "j", "earlier");
    let server = MockGateway::start([Reply::Held(Answer::new(200)), Reply::ok()]);
    let is_writing = || directory::names(spool).iter().any(|name| name.ends_with(".tmp"));
    let elapsed = shutdown_time(&server, spool, "20s", ("fsync", DELAY), || {
        server.await_requests(1);
        directory::await_true("the write has begun", is_writing);
        server.release();
    });
    assert_eq!(request_lines(&server), ["GET /metrics", "POST job/j", "POST job/j"]);
    assert!(elapsed < DELAY, "{elapsed:?}");
}

/// The gateway may apply the earlier payload after the last state of this run, so the last state is sent again.
#[test]
fn slow_disk_does_not_hide_that_another_process_delivers_an_earlier_payload() {
    if !can_trace() {
        return;
    }
    let (server, directory) = (MockGateway::ok(), tempfile::tempdir().unwrap());
    let spool = directory.path();
    leave_payload(spool, "j", "earlier");
    let payload = directory::only_payload(spool);
    let lock = fs::File::open(&payload).unwrap();
    lock.lock().unwrap();
    let is_writing = || directory::names(spool).iter().any(|name| name.ends_with(".tmp"));
    let is_final = |request: &Request| request.text().contains("quant_run_duration_seconds ");
    // After a push: one at the end could have the end of the run and come before the check for the lock.
    let mut inner = scenarios::command("end after a push", &server.url(), "j", spool);
    inner.env("TV_PROMETHEUS_FLUSH_TIMEOUT", "20s");
    let slow = ["-e", "trace=fsync", "-e", "inject=fsync:delay_enter=2000000"];
    let running = child::start(under_strace(&inner, Path::new("/dev/null"), &slow));
    directory::await_true("the write has begun", is_writing);
    server.await_request(is_final);
    fs::remove_file(&payload).unwrap();
    drop(lock);
    let ended = running.wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let sent: Vec<_> = server.requests().into_iter().filter(is_final).map(|request| request.body).collect();
    assert_eq!(sent.len(), 2);
    assert_eq!(sent[0], sent[1]);
    assert_eq!(directory::names(spool), [""; 0]);
}

/// The process cannot find out whether there are earlier payloads.
#[test]
fn slow_directory_does_not_cost_the_push() {
    if !can_trace() {
        return;
    }
    let (server, directory) = (MockGateway::ok(), tempfile::tempdir().unwrap());
    shutdown_time(&server, directory.path(), "2s", ("getdents64", Duration::from_secs(3)), || {});
}

/// One thread writes the file while another pushes.
#[test]
fn payload_is_synced_before_its_rename_and_removed_after_the_push() {
    if !can_trace() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let calls = calls(directory.path());
    let directory_handle = format!("<{}>", directory.path().display());
    let on_disk: [&[&str]; 5] = [
        &["write(", ".tmp>"],
        &["fsync(", ".tmp>"],
        &["rename", ".tmp", ".spool"],
        &["fsync(", &directory_handle],
        &["unlink", ".spool"],
    ];
    let pushed: [&[&str]; 2] = [&["POST /metrics/job/j"], &["unlink", ".spool"]];
    for steps in [&on_disk[..], &pushed[..]] {
        let indices: Vec<_> = steps.iter().map(|parts| last_index(&calls, parts)).collect();
        assert!(indices.is_sorted(), "{indices:?} of {steps:?} in:\n{}", calls.join("\n"));
    }
}

/// A later run would send a payload that is not removed.
#[test]
fn process_ends_after_its_payload_is_removed() {
    if !can_trace() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    // The delay is in microseconds.
    let slow = ["-e", "trace=unlink,unlinkat", "-e", "inject=unlink,unlinkat:delay_enter=100000"];
    assert!(trace_of_run(directory.path(), &slow).contains(".spool\""), "nothing was removed");
    assert_eq!(directory::names(directory.path()), [""; 0]);
}
