//! Directories and files with which not everything can be done, and file systems that lack something.
#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use tracing_stage_metrics::MetricsLayer;

use super::on_disk::{can_trace, traced};
use super::support::measured::{Measured, measured};
use super::support::{self, MockGateway, child};
use super::{builder, directory, leave, pushes_of, scenarios};

/// Runs a test on a thread that obeys the permissions of files, and so do those it starts, though it is the superuser's.
#[track_caller]
pub(crate) fn obeying_permissions(test: impl FnOnce() + Send) {
    let obey = || {
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH);
        set_capabilities(None, sets).unwrap();
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            obey();
            test();
        });
    });
}

#[test]
fn a_directory_that_cannot_be_listed_or_written_is_a_configuration_error() {
    obeying_permissions(|| {
        for (mode, what) in [(0o300, "read"), (0o500, "write to"), (0o600, "write to")] {
            let directory = tempfile::tempdir().unwrap();
            fs::set_permissions(directory.path(), fs::Permissions::from_mode(mode)).unwrap();
            let error = MetricsLayer::builder().with_spool_dir(directory.path()).build().unwrap_err();
            fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
            let text = format!("cannot {what} spool directory {:?}: check its permissions", directory.path());
            assert!(error.is_config() && error.to_string() == text, "{mode:o}: {error}");
            assert_eq!(directory::names(directory.path()), [""; 0]);
        }
    });
}

/// Another user's, as it were: it is said once, and keeps no other from delivery.
#[test]
fn a_payload_that_cannot_be_opened_is_left_and_said() {
    obeying_permissions(|| {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        for job in ["theirs", "ours", "theirs"] {
            leave(spool, job, "left");
        }
        let server = MockGateway::ok();
        directory::readdress(spool, &server.url());
        let theirs = directory::payloads(spool)[0].clone();
        fs::set_permissions(&theirs, fs::Permissions::from_mode(0o000)).unwrap();
        let Measured { guard, log, default: _default } = measured(builder(&server.url(), "later", spool));
        directory::await_true("the others are delivered", || directory::payloads(spool).len() == 1);
        guard.flush().unwrap();
        guard.shutdown().unwrap();
        assert_eq!((pushes_of(&server, "ours"), pushes_of(&server, "theirs")), (1, 1));
        assert_eq!(directory::only_payload(spool), theirs);
        let said = log.own();
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].starts_with("the spool does not work as it should"), "{said:?}");
        assert!(said[0].contains(&format!("cannot read payload {theirs:?}: it is left where it is")), "{said:?}");
    });
}

/// A FIFO would be waited for until somebody writes to it.
#[test]
fn what_is_no_regular_file_is_not_opened() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, elsewhere) = (directory.path(), tempfile::tempdir().unwrap());
    leave(spool, "left", "left");
    let name = directory::names(spool)[0].clone();
    for fifo in ["0.spool".to_owned(), format!("00000000000000000001{}", &name[20..])] {
        assert!(Command::new("mkfifo").arg(spool.join(fifo)).status().unwrap().success());
    }
    let victim = elsewhere.path().join("victim");
    fs::write(&victim, "whatever").unwrap();
    std::os::unix::fs::symlink(&victim, spool.join("link.spool")).unwrap();
    fs::create_dir(spool.join("directory.spool")).unwrap();
    let before = directory::names(spool);

    let server = MockGateway::ok();
    // `builder` would open them, to change them.
    directory::edit(&spool.join(&name), |line| {
        line.starts_with("gateway: ").then(|| format!("gateway: {}", server.url()))
    });
    let gateway = tracing_stage_metrics::Pushgateway::new(server.url(), "later").unwrap();
    let builder = MetricsLayer::builder().with_pushgateway(gateway).with_spool_dir(spool);
    let Measured { guard, log, default: _default } = measured(builder);
    directory::await_true("it is delivered", || !spool.join(&name).exists());
    guard.shutdown().unwrap();
    assert_eq!(pushes_of(&server, "left"), 1);
    let after: Vec<_> = before.into_iter().filter(|other| *other != name).collect();
    assert_eq!(directory::names(spool), after);
    assert_eq!(fs::read(victim).unwrap(), b"whatever");
    assert_eq!(log.own(), [""; 0]);
}

/// The log of a run whose system calls fail as `inject` says.
#[track_caller]
fn run_with_faults(scenario: &str, url: &str, job: &str, spool: &Path, inject: &[&str]) -> String {
    let trace = tempfile::NamedTempFile::new().unwrap();
    let inner = scenarios::command(scenario, url, job, spool);
    let ended = child::start(traced(&inner, trace.path(), inject)).wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(fs::read_to_string(trace.path()).unwrap().contains("(INJECTED)"), "nothing failed");
    ended.stderr
}

const DEGRADED: &str = "the spool does not work as it should";

#[test]
fn without_file_locks_payloads_are_kept_and_delivered_and_it_is_said() {
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
        let found = support::exposition::parse(&server.metrics());
        let labels = [("instance", ""), ("job", &*format!("first{error}"))];
        assert!(found.expect("quant_run_last_success_timestamp_seconds", &labels) > 1.7e9);
        assert_eq!(directory::names(spool), [""; 0]);
    }
}

/// The file is there, and that is not denied.
#[test]
fn a_directory_that_cannot_be_synced_keeps_payloads_and_it_is_said() {
    if !can_trace() {
        return;
    }
    for error in ["EINVAL", "EIO"] {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        let inject = format!("inject=fsync:error={error}");
        let of = spool.to_str().unwrap();
        let url = format!("http://{}", support::free_addr());
        let log = run_with_faults("fail", &url, "j", spool, &["-P", of, "-e", &inject]);
        assert_eq!(log.matches(DEGRADED).count(), 1, "{log}");
        assert!(log.contains("cannot be synced, so a loss of power may take a payload with it"), "{log}");
        assert!(!log.contains("is not in the spool"), "{log}");
        assert_eq!(directory::payloads(spool).len(), 1, "{error}");
    }
}

/// On NFS an exclusive lock is refused where the file is not open for writing.
#[test]
fn payloads_are_locked_through_descriptors_that_are_open_for_writing() {
    if !can_trace() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave(spool, "left", "left");
    let server = MockGateway::ok();
    let trace = tempfile::NamedTempFile::new().unwrap();
    let inner = scenarios::command("end when the spool is empty", &server.url(), "j", spool);
    let ended = child::start(traced(&inner, trace.path(), &["-y", "-e", "trace=openat,flock"])).wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let trace = fs::read_to_string(trace.path()).unwrap();
    let opened: Vec<_> = trace.lines().filter(|call| call.contains("openat(") && call.contains(".spool\"")).collect();
    assert!(!opened.is_empty() && opened.iter().all(|call| call.contains("O_RDWR")), "{opened:?}");
    let locked = trace.lines().filter(|call| call.contains("flock(") && call.contains(".spool>")).count();
    assert!(locked >= 1, "{trace}");
}
