//! In which order a payload comes to be on disk, is pushed and removed, as the system sees it: that what was written
//! survives the loss of power is nothing a test could wait for.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use super::support::mock_gateway::Answer;
use super::support::{MockGateway, Reply, child, exposition, servers};
use super::{directory, scenarios};

/// Whether processes can be looked at here; said out loud where they cannot.
#[track_caller]
pub(crate) fn can_trace() -> bool {
    if !servers::installed("strace") {
        return false;
    }
    let probe = Command::new("strace").args(["-o", "/dev/null", "true"]).stderr(Stdio::null()).status();
    let may = probe.is_ok_and(|status| status.success());
    if !may {
        let thread = std::thread::current();
        let test = thread.name().unwrap_or("a test");
        let _ = writeln!(std::io::stderr(), "LEFT OUT: {test} ({}): this system lets nobody trace", file!());
    }
    may
}

/// The command under strace, which writes to this file.
pub(crate) fn traced(inner: &Command, trace: &Path, options: &[&str]) -> Command {
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

/// The calls of a run that pushes when it begins and when it ends.
#[track_caller]
fn calls(spool: &Path) -> Vec<String> {
    // The last push is answered once the payload has its name.
    let server = MockGateway::start([Reply::ok(), Reply::Held(Answer::new(200)), Reply::ok()]);
    let directory = tempfile::tempdir().unwrap();
    let trace = directory.path().join("trace");
    let inner = scenarios::command("end", &server.url(), "j", spool);
    // With the paths of file handles. Data is cut, but not before the first word of a request.
    let calls = "trace=fsync,rename,renameat,renameat2,unlink,unlinkat,write,writev,sendto";
    let outer = traced(&inner, &trace, &["-y", "-e", calls]);
    let running = child::start(outer);
    directory::await_true("the payload", || directory::payloads(spool).len() == 1);
    server.release();
    let ended = running.wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    fs::read_to_string(trace).unwrap().lines().map(str::to_owned).collect()
}

/// Where the last call is that has all of this in it.
#[track_caller]
fn place(calls: &[String], parts: &[&str]) -> usize {
    let found = calls.iter().rposition(|call| parts.iter().all(|part| call.contains(part)));
    found.unwrap_or_else(|| panic!("no call with {parts:?} in:\n{}", calls.join("\n")))
}

/// The other way round, a frozen gateway, is in `delivered_later.rs`.
#[test]
fn a_disk_that_is_slower_than_the_flush_timeout_does_not_cost_the_push() {
    const TIMEOUT_MS: u128 = 2_000;
    if !can_trace() {
        return;
    }
    let (server, directory) = (MockGateway::ok(), tempfile::tempdir().unwrap());
    let trace = tempfile::NamedTempFile::new().unwrap();
    let mut inner = scenarios::command("time the end", &server.url(), "j", directory.path());
    inner.env("TV_PROMETHEUS_FLUSH_TIMEOUT", format!("{TIMEOUT_MS}ms"));
    // Microseconds.
    let inject = format!("inject=fsync:delay_enter={}", 1_500 * TIMEOUT_MS);
    let mut running = child::start(traced(&inner, trace.path(), &["-e", "trace=fsync", "-e", &inject]));
    let line = running.await_line("shutdown: ");
    let ended = running.wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let took: u128 = line.split(' ').rev().nth(1).unwrap().parse().unwrap();
    assert!(took < TIMEOUT_MS, "{line}");
    let trace = fs::read_to_string(trace.path()).unwrap();
    assert!(trace.contains("fsync("), "the disk was not slow: {trace}");
    let last = exposition::parse(server.requests().last().unwrap().text());
    assert!(last.expect("quant_run_duration_seconds", &[]) > 0.0);
}

/// The file is written by one thread, and pushed by another at the same time.
#[test]
fn a_payload_is_synced_before_it_is_named_and_removed_after_the_push() {
    if !can_trace() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let calls = calls(directory.path());
    let of_directory = format!("<{}>", directory.path().display());
    let on_disk: [&[&str]; 5] = [
        &["write(", ".tmp>"],
        &["fsync(", ".tmp>"],
        &["rename", ".tmp", ".spool"],
        &["fsync(", &of_directory],
        &["unlink", ".spool"],
    ];
    let pushed: [&[&str]; 2] = [&["POST /metrics/job/j"], &["unlink", ".spool"]];
    for steps in [&on_disk[..], &pushed[..]] {
        let places: Vec<_> = steps.iter().map(|parts| place(&calls, parts)).collect();
        assert!(places.is_sorted(), "{places:?} of {steps:?} in:\n{}", calls.join("\n"));
    }
}
