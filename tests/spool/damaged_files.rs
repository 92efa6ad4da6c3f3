//! Wrong directories, foreign files and damaged payloads.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, SystemTime};

use tracing_stage_metrics::MetricsLayer;

use super::support::measured::{Measured, measured, stage};
use super::support::{MockGateway, Reply};
use super::{assert_has_stage, builder, directory, leave_payload, push_count, request_lines};

#[test]
fn damaged_and_foreign_files_are_quarantined_and_others_delivered() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    for job in ["torn", "changed", "whole"] {
        leave_payload(spool, job, "left");
    }
    let server = MockGateway::ok();
    directory::readdress(spool, &server.url());
    let payloads = directory::payloads(spool);
    let truncated = fs::read(&payloads[0]).unwrap();
    fs::write(&payloads[0], &truncated[..truncated.len() / 2]).unwrap();
    let mut changed = fs::read(&payloads[1]).unwrap();
    let last_digit = changed.iter().rposition(u8::is_ascii_digit).unwrap();
    changed[last_digit] ^= 1;
    fs::write(&payloads[1], &changed).unwrap();
    // Foreign names sort before and after those of the spool.
    fs::write(spool.join("0.spool"), "whatever this is").unwrap();
    fs::write(spool.join("zero.spool"), "").unwrap();
    fs::write(spool.join("bytes.spool"), [0xff; 100_000]).unwrap();
    fs::create_dir(spool.join("directory.spool")).unwrap();
    symlink("/nonexistent", spool.join("nowhere.spool")).unwrap();
    fs::write(spool.join("notes.txt"), "hands off").unwrap();
    fs::create_dir(spool.join("subdirectory")).unwrap();

    let Measured { guard, log, default: _default } = measured(builder(&server.url(), "later", spool));
    stage("own");
    directory::await_true("the undamaged payload is delivered", || !payloads[2].exists());
    guard.flush().unwrap();
    guard.shutdown().unwrap();
    assert_eq!((push_count(&server, "whole"), push_count(&server, "torn"), push_count(&server, "changed")), (1, 0, 0));
    assert_has_stage(server.requests().last().unwrap().text(), "own");
    let quarantined = |path: &std::path::Path| path.with_extension("torn");
    assert_eq!(fs::read(quarantined(&payloads[0])).unwrap(), &truncated[..truncated.len() / 2]);
    assert_eq!(fs::read(quarantined(&payloads[1])).unwrap(), changed);
    assert_eq!(fs::read(spool.join("0.torn")).unwrap(), b"whatever this is");
    assert!(spool.join("zero.torn").exists() && spool.join("bytes.torn").exists());
    assert_eq!(fs::read(spool.join("notes.txt")).unwrap(), b"hands off");
    assert!(spool.join("subdirectory").is_dir());
    assert!(fs::symlink_metadata(spool.join("nowhere.spool")).is_ok(), "a dangling link stays where it is");
    // A payload is lost, unless somebody repairs it.
    let warnings = log.own();
    let damaged = ["0.spool", "zero.spool", "bytes.spool"].map(|name| spool.join(name));
    for path in damaged.iter().chain(&payloads[..2]) {
        let is_of_path = |warning: &&String| warning.contains(&format!("payload {path:?} is damaged"));
        assert_eq!(warnings.iter().filter(is_of_path).count(), 1, "{path:?}: {}", log.text());
    }
    assert_eq!(warnings.len(), 5, "{}", log.text());
}

/// Quarantined files are kept for inspection: they are neither sent nor removed.
#[test]
fn quarantined_files_stay() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave_payload(spool, "left", "left");
    let payload = directory::only_payload(spool);
    fs::rename(&payload, payload.with_extension("refused")).unwrap();
    let server = MockGateway::ok();
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "later", spool));
    guard.flush().unwrap();
    guard.shutdown().unwrap();
    assert_eq!(request_lines(&server), ["POST job/later"; 3]);
    assert!(payload.with_extension("refused").exists());
}

#[test]
fn unwritable_path_is_a_config_error() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [file.clone(), file.join("below")] {
        let error = MetricsLayer::builder().with_spool_dir(&path).build().unwrap_err();
        assert!(error.is_config());
        let expected = format!("cannot write to spool directory {path:?}: check its permissions");
        assert_eq!(error.to_string(), expected);
        let debug = format!("{error:?}");
        assert!(debug.starts_with(&expected) && debug.len() > expected.len(), "Debug adds the cause: {debug}");
    }
    assert_eq!(fs::read(&file).unwrap(), b"");
}

/// The final state is pushed nevertheless.
#[test]
fn directory_removed_during_the_run_is_one_warning() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path().join("spool");
    let server = MockGateway::ok();
    let Measured { guard, log, default: _default } = measured(builder(&server.url(), "j", &spool));
    guard.flush().unwrap();
    fs::remove_dir_all(&spool).unwrap();
    stage("own");
    guard.shutdown().unwrap();
    assert_has_stage(server.requests().last().unwrap().text(), "own");
    let warnings = log.own();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].starts_with("the last state of the metrics is not in the spool"), "{warnings:?}");
    assert!(warnings[0].contains(&format!("cannot write to spool directory {spool:?}")), "{warnings:?}");
    assert!(warnings[0].contains("No such file or directory"), "the warning includes the cause: {warnings:?}");
}

#[test]
fn spool_without_a_gateway_keeps_and_delivers_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave_payload(spool, "left", "left");
    let Measured { guard, log, default: _default } = measured(MetricsLayer::builder().with_spool_dir(spool));
    stage("own");
    guard.shutdown().unwrap();
    assert_eq!(
        directory::content(&directory::only_payload(spool)).0,
        "/metrics/job/left",
        "the waiting payload is not delivered"
    );
    assert_eq!(log.own(), [""; 0]);
}

/// A process killed while it opens the directory or writes to it leaves a file that is not a payload.
#[test]
fn temporary_files_of_killed_writers_are_removed() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave_payload(spool, "left", "left");
    let payload = directory::only_payload(spool);
    let stem = payload.file_stem().unwrap().to_str().unwrap();
    // One hour old: a younger file may still be written.
    let temporary = fs::File::create(spool.join(format!(".{stem}.tmp"))).unwrap();
    temporary.set_modified(SystemTime::now() - Duration::from_secs(3_600)).unwrap();

    let server = MockGateway::start([Reply::ok()]);
    let Measured { guard, log, default: _default } = measured(builder(&server.url(), "later", spool));
    directory::await_no_payload(spool);
    guard.shutdown().unwrap();
    assert_eq!(push_count(&server, "left"), 1);
    assert_eq!(directory::names(spool), [""; 0]);
    assert_eq!(log.own(), [""; 0]);
}
