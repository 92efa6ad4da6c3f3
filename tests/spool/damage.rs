//! Directories that are not as they should be, and files that are not ours or not whole.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, SystemTime};

use tracing_stage_metrics::MetricsLayer;

use super::support::measured::{Measured, measured, stage};
use super::support::{MockGateway, Reply};
use super::{all_asked, assert_has_stage, builder, directory, leave, pushes_of};

#[test]
fn torn_and_foreign_files_are_set_aside_and_the_others_delivered() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    for job in ["torn", "changed", "whole"] {
        leave(spool, job, "left");
    }
    let server = MockGateway::ok();
    directory::readdress(spool, &server.url());
    let payloads = directory::payloads(spool);
    let torn = fs::read(&payloads[0]).unwrap();
    fs::write(&payloads[0], &torn[..torn.len() / 2]).unwrap();
    let mut changed = fs::read(&payloads[1]).unwrap();
    let last_digit = changed.iter().rposition(u8::is_ascii_digit).unwrap();
    changed[last_digit] ^= 1;
    fs::write(&payloads[1], &changed).unwrap();
    // Foreign ones sort before ours and after.
    fs::write(spool.join("0.spool"), "whatever this is").unwrap();
    fs::write(spool.join("zero.spool"), "").unwrap();
    fs::write(spool.join("bytes.spool"), [0xff; 100_000]).unwrap();
    fs::create_dir(spool.join("directory.spool")).unwrap();
    symlink("/nonexistent", spool.join("nowhere.spool")).unwrap();
    fs::write(spool.join("notes.txt"), "hands off").unwrap();
    fs::create_dir(spool.join("subdirectory")).unwrap();

    let Measured { guard, log, default: _default } = measured(builder(&server.url(), "later", spool));
    stage("own");
    directory::await_true("the whole one is delivered", || !payloads[2].exists());
    guard.flush().unwrap();
    guard.shutdown().unwrap();
    assert_eq!((pushes_of(&server, "whole"), pushes_of(&server, "torn"), pushes_of(&server, "changed")), (1, 0, 0));
    assert_has_stage(server.requests().last().unwrap().text(), "own");
    let aside = |path: &std::path::Path| path.with_extension("torn");
    assert_eq!(fs::read(aside(&payloads[0])).unwrap(), &torn[..torn.len() / 2]);
    assert_eq!(fs::read(aside(&payloads[1])).unwrap(), changed);
    assert_eq!(fs::read(spool.join("0.torn")).unwrap(), b"whatever this is");
    assert!(spool.join("zero.torn").exists() && spool.join("bytes.torn").exists());
    assert_eq!(fs::read(spool.join("notes.txt")).unwrap(), b"hands off");
    assert!(spool.join("subdirectory").is_dir());
    assert!(fs::symlink_metadata(spool.join("nowhere.spool")).is_ok(), "it leads nowhere: left where it is");
    assert_eq!(log.own(), [""; 0], "{}", log.text());
}

/// Files that were set aside are for people: they are neither sent nor removed.
#[test]
fn what_is_set_aside_stays() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave(spool, "left", "left");
    let payload = directory::only_payload(spool);
    fs::rename(&payload, payload.with_extension("refused")).unwrap();
    let server = MockGateway::ok();
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "later", spool));
    guard.flush().unwrap();
    guard.shutdown().unwrap();
    assert_eq!(all_asked(&server), ["POST job/later"; 3]);
    assert!(payload.with_extension("refused").exists());
}

#[test]
fn a_directory_that_cannot_be_written_is_a_configuration_error() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [file.clone(), file.join("below")] {
        let error = MetricsLayer::builder().with_spool_dir(&path).build().unwrap_err();
        assert!(error.is_config());
        let expected = format!("cannot write to spool directory {path:?}: check its permissions");
        assert_eq!(error.to_string(), expected);
        let shown = format!("{error:?}");
        assert!(shown.starts_with(&expected) && shown.len() > expected.len(), "with its cause: {shown}");
    }
    assert_eq!(fs::read(&file).unwrap(), b"");
}

/// The state is pushed all the same.
#[test]
fn a_directory_that_is_gone_at_the_end_is_one_warning() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path().join("spool");
    let server = MockGateway::ok();
    let Measured { guard, log, default: _default } = measured(builder(&server.url(), "j", &spool));
    guard.flush().unwrap();
    fs::remove_dir_all(&spool).unwrap();
    stage("own");
    guard.shutdown().unwrap();
    assert_has_stage(server.requests().last().unwrap().text(), "own");
    let said = log.own();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].starts_with("the last state of the metrics is not in the spool"), "{said:?}");
    assert!(said[0].contains(&format!("cannot write to spool directory {spool:?}")), "{said:?}");
    assert!(said[0].contains("No such file or directory"), "with its cause: {said:?}");
}

#[test]
fn without_a_gateway_there_is_nothing_to_keep() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave(spool, "left", "left");
    let Measured { guard, log, default: _default } = measured(MetricsLayer::builder().with_spool_dir(spool));
    stage("own");
    guard.shutdown().unwrap();
    assert_eq!(directory::content(&directory::only_payload(spool)).0, "/metrics/job/left", "and nothing to deliver");
    assert_eq!(log.own(), [""; 0]);
}

/// A process that is killed as it opens the directory or writes to it leaves a file that is no payload.
#[test]
fn what_a_killed_writer_left_half_done_is_cleared_away() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave(spool, "left", "left");
    let payload = directory::only_payload(spool);
    let stem = payload.file_stem().unwrap().to_str().unwrap();
    // Of an hour ago: what is this young may be in the making.
    let half = fs::File::create(spool.join(format!(".{stem}.tmp"))).unwrap();
    half.set_modified(SystemTime::now() - Duration::from_secs(3_600)).unwrap();

    let server = MockGateway::start([Reply::ok()]);
    let Measured { guard, log, default: _default } = measured(builder(&server.url(), "later", spool));
    directory::await_no_payload(spool);
    guard.shutdown().unwrap();
    assert_eq!(pushes_of(&server, "left"), 1);
    assert_eq!(directory::names(spool), [""; 0]);
    assert_eq!(log.own(), [""; 0]);
}
