//! Spool directories and files with restricted permissions, and file systems without locks or directory sync.
#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use tracing_stage_metrics::MetricsLayer;

use super::support::measured::{Measured, measured};
use super::support::{self, MockGateway, child};
use super::system_calls::{can_trace, under_strace};
use super::{builder, directory, leave_payload, push_count, scenarios};

/// Runs a test on a thread that obeys file permissions even for the superuser; threads it starts inherit that.
#[track_caller]
pub(crate) fn obeying_permissions(test: impl FnOnce() + Send) {
    let drop_capabilities = || {
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH);
        set_capabilities(None, sets).unwrap();
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            drop_capabilities();
            test();
        });
    });
}

#[test]
fn unreadable_or_unwritable_directory_is_a_config_error() {
    obeying_permissions(|| {
        for (mode, action) in [(0o300, "read"), (0o500, "write to"), (0o600, "write to")] {
            let directory = tempfile::tempdir().unwrap();
            fs::set_permissions(directory.path(), fs::Permissions::from_mode(mode)).unwrap();
            let error = MetricsLayer::builder().with_spool_dir(directory.path()).build().unwrap_err();
            fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
            let text = format!("cannot {action} spool directory {:?}: check its permissions", directory.path());
            assert!(error.is_config() && error.to_string() == text, "{mode:o}: {error}");
            assert_eq!(directory::names(directory.path()), [""; 0]);
        }
    });
}

/// A payload of another user causes one warning and does not delay other payloads.
#[test]
fn unreadable_payload_stays_with_one_warning() {
    obeying_permissions(|| {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        for job in ["theirs", "ours", "theirs"] {
            leave_payload(spool, job, "left");
        }
        let server = MockGateway::ok();
        directory::readdress(spool, &server.url());
        let unreadable = directory::payloads(spool)[0].clone();
        fs::set_permissions(&unreadable, fs::Permissions::from_mode(0o000)).unwrap();
        let Measured { guard, log, default: _default } = measured(builder(&server.url(), "later", spool));
        directory::await_true("the others are delivered", || directory::payloads(spool).len() == 1);
        guard.flush().unwrap();
        guard.shutdown().unwrap();
        assert_eq!((push_count(&server, "ours"), push_count(&server, "theirs")), (1, 1));
        assert_eq!(directory::only_payload(spool), unreadable);
        let warnings = log.own();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].starts_with("the spool does not work as it should"), "{warnings:?}");
        assert!(
            warnings[0].contains(&format!("cannot read payload {unreadable:?}: it is left where it is")),
            "{warnings:?}"
        );
    });
}

/// The payload of another user may be readable only. A lock needs no handle for writing.
#[test]
fn read_only_payload_is_delivered() {
    obeying_permissions(|| {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        leave_payload(spool, "left", "left");
        let server = MockGateway::ok();
        directory::readdress(spool, &server.url());
        fs::set_permissions(directory::only_payload(spool), fs::Permissions::from_mode(0o400)).unwrap();
        let Measured { guard, log, default: _default } = measured(builder(&server.url(), "later", spool));
        directory::await_no_payload(spool);
        guard.shutdown().unwrap();
        assert_eq!(push_count(&server, "left"), 1);
        assert_eq!(log.own(), [""; 0]);
    });
}

/// Opening a FIFO would block until another process writes to it.
#[test]
fn irregular_files_are_not_opened() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, outside) = (directory.path(), tempfile::tempdir().unwrap());
    leave_payload(spool, "left", "left");
    let name = directory::names(spool)[0].clone();
    for fifo in ["0.spool".to_owned(), format!("00000000000000000001{}", &name[20..])] {
        assert!(Command::new("mkfifo").arg(spool.join(fifo)).status().unwrap().success());
    }
    let victim = outside.path().join("victim");
    fs::write(&victim, "whatever").unwrap();
    std::os::unix::fs::symlink(&victim, spool.join("link.spool")).unwrap();
    fs::create_dir(spool.join("directory.spool")).unwrap();
    let before = directory::names(spool);

    let server = MockGateway::ok();
    // `builder` would open every entry to readdress it.
    directory::edit_header(&spool.join(&name), |line| {
        line.starts_with("gateway: ").then(|| format!("gateway: {}", server.url()))
    });
    let gateway = tracing_stage_metrics::Pushgateway::new(server.url(), "later").unwrap();
    let builder = MetricsLayer::builder().with_pushgateway(gateway).with_spool_dir(spool);
    let Measured { guard, log, default: _default } = measured(builder);
    directory::await_true("the payload is delivered", || !spool.join(&name).exists());
    guard.shutdown().unwrap();
    assert_eq!(push_count(&server, "left"), 1);
    let after: Vec<_> = before.into_iter().filter(|other| *other != name).collect();
    assert_eq!(directory::names(spool), after);
    assert_eq!(fs::read(victim).unwrap(), b"whatever");
    assert_eq!(log.own(), [""; 0]);
}

/// Runs a scenario whose system calls fail according to `inject`; returns its log.
#[track_caller]
fn run_with_faults(scenario: &str, url: &str, job: &str, spool: &Path, inject: &[&str]) -> String {
    let trace = tempfile::NamedTempFile::new().unwrap();
    let inner = scenarios::command(scenario, url, job, spool);
    let ended = child::start(under_strace(&inner, trace.path(), inject)).wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(fs::read_to_string(trace.path()).unwrap().contains("(INJECTED)"), "no system call failed");
    ended.stderr
}

const DEGRADED: &str = "the spool does not work as it should";

#[test]
fn missing_file_locks_degrade_with_one_warning() {
    if !can_trace() {
        return;
    }
    let Some(mut server) = support::pushgateway() else { return };
    for error in ["ENOLCK", "ENOSYS", "EOPNOTSUPP", "EBADF"] {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        let inject = format!("inject=flock:error={error}");
        server.stop();
        let log = run_with_faults("fail", &server.url(), &format!("first{error}"), spool, &["-e", &inject]);
        assert_eq!(log.matches(DEGRADED).count(), 1, "{log}");
        assert!(log.contains("has no file locks, so two processes may deliver the same payload"), "{log}");
        assert!(!log.contains("is not in the spool"), "{log}");
        assert_eq!(directory::payloads(spool).len(), 1, "{error}");
        server.restart();
        let scenario = "end when the spool is empty";
        let log = run_with_faults(scenario, &server.url(), &format!("second{error}"), spool, &["-e", &inject]);
        assert_eq!(log.matches(DEGRADED).count(), 1, "{log}");
        let exposition = support::exposition::parse(&server.metrics());
        let labels = [("instance", ""), ("job", &*format!("first{error}"))];
        assert!(exposition.expect("quant_run_last_success_timestamp_seconds", &labels) > 1.7e9);
        assert_eq!(directory::names(spool), [""; 0]);
    }
}

/// The payload exists, and no warning denies that.
#[test]
fn failed_directory_sync_degrades_with_one_warning() {
    if !can_trace() {
        return;
    }
    for error in ["EINVAL", "EIO"] {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        let inject = format!("inject=fsync:error={error}");
        let path = spool.to_str().unwrap();
        let url = format!("http://{}", support::free_addr());
        let log = run_with_faults("fail", &url, "j", spool, &["-P", path, "-e", &inject]);
        assert_eq!(log.matches(DEGRADED).count(), 1, "{log}");
        assert!(log.contains("cannot be synced, so a loss of power may take a payload with it"), "{log}");
        assert!(!log.contains("is not in the spool"), "{log}");
        assert_eq!(directory::payloads(spool).len(), 1, "{error}");
    }
}

/// NFS refuses an exclusive lock unless the file is open for writing.
#[test]
fn payloads_are_locked_through_writable_descriptors() {
    if !can_trace() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave_payload(spool, "left", "left");
    let server = MockGateway::ok();
    let trace = tempfile::NamedTempFile::new().unwrap();
    let inner = scenarios::command("end when the spool is empty", &server.url(), "j", spool);
    let ended = child::start(under_strace(&inner, trace.path(), &["-y", "-e", "trace=openat,flock"])).wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let trace = fs::read_to_string(trace.path()).unwrap();
    let opened: Vec<_> = trace.lines().filter(|call| call.contains("openat(") && call.contains(".spool\"")).collect();
    assert!(!opened.is_empty() && opened.iter().all(|call| call.contains("O_RDWR")), "{opened:?}");
    let locked = trace.lines().filter(|call| call.contains("flock(") && call.contains(".spool>")).count();
    assert!(locked >= 1, "{trace}");
}
