//! Delivered payloads that cannot be removed: each is sent once, without an endless loop.
#![cfg(target_os = "linux")]

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::file_systems::obeying_permissions;
use super::support::measured::{Measured, measured};
use super::support::mock_gateway::Answer;
use super::support::{MockGateway, Reply};
use super::{SLACK, builder, directory, leave_payload, push_count, request_line, request_lines};

/// Makes a directory read-only until it is dropped.
struct ReadOnly<'a>(&'a Path);

impl<'a> ReadOnly<'a> {
    #[track_caller]
    fn new(spool: &'a Path) -> Self {
        fs::set_permissions(spool, fs::Permissions::from_mode(0o500)).unwrap();
        assert!(fs::write(spool.join("probe"), "").is_err(), "the directory is read-only");
        Self(spool)
    }
}

impl Drop for ReadOnly<'_> {
    fn drop(&mut self) {
        fs::set_permissions(self.0, fs::Permissions::from_mode(0o700)).unwrap();
    }
}

/// The first push fails, so that no replay happens in the background.
#[test]
fn undeletable_payloads_are_sent_once_at_the_end() {
    obeying_permissions(|| {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        for job in ["one", "two", "later"] {
            leave_payload(spool, job, "left");
        }
        let server = MockGateway::start([Reply::status(401)]);
        let Measured { guard, log, default: _default } = measured(builder(&server.url(), "later", spool));
        directory::await_true("the first push has failed", || log.own().len() == 1);
        let before = request_lines(&server);
        assert_eq!(
            before,
            ["GET /metrics", "POST job/later", "POST job/later"],
            "the check for the payload of the own group, then the own push"
        );
        server.set_replies([Reply::ok()]);
        let read_only = ReadOnly::new(spool);
        let start = Instant::now();
        guard.shutdown().unwrap();
        assert!(start.elapsed() < SLACK, "the timeout is 20 s, the shutdown took {:?}", start.elapsed());
        let expected = ["POST job/later", "GET /metrics", "POST job/one", "GET /metrics", "POST job/two"];
        assert_eq!(request_lines(&server)[before.len()..], expected);
        drop(read_only);
        assert_eq!(directory::payloads(spool).len(), 3);
    });
}

#[test]
fn undeletable_payloads_do_not_block_others_in_the_background() {
    obeying_permissions(|| {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        for job in ["one", "two"] {
            leave_payload(spool, job, "left");
        }
        let server = MockGateway::start([Reply::Held(Answer::new(200)), Reply::ok()]);
        let builder = builder(&server.url(), "now", spool).with_push_interval(Duration::from_millis(200));
        let Measured { guard, log: _, default: _default } = measured(builder);
        server.await_requests(1);
        let read_only = ReadOnly::new(spool);
        server.release();
        server.await_request(|request| request_line(request) == "POST job/two");
        let attempts = push_count(&server, "one");
        guard.flush().unwrap();
        guard.flush().unwrap();
        let start = Instant::now();
        guard.shutdown().unwrap();
        assert!(start.elapsed() < SLACK, "the timeout is 20 s, the shutdown took {:?}", start.elapsed());
        // A due push may preempt a replay, which is then repeated.
        assert_eq!(
            push_count(&server, "one"),
            attempts,
            "not again after the first delivery: {:?}",
            request_lines(&server)
        );
        let (replays, own) = (attempts + push_count(&server, "two"), push_count(&server, "now"));
        assert!(replays <= own, "at most one replay after each own push: {:?}", request_lines(&server));
        drop(read_only);
        assert_eq!(directory::payloads(spool).len(), 2);
    });
}

/// The gateway has a later state of the group, so only the last success of the payload is sent.
#[test]
fn outdated_payload_is_queried_once() {
    const STATE: &str = "push_time_seconds{instance=\"\",job=\"old\"} 4e9\npushgateway_build_info 1\n";
    obeying_permissions(|| {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        for job in ["old", "other"] {
            leave_payload(spool, job, "left");
        }
        let server = MockGateway::start_with(|request| match &*request_line(request) {
            "GET /metrics" => Reply::Answer(Answer::new(200).with_body(STATE)),
            "POST job/now" => Reply::Held(Answer::new(200)),
            _ => Reply::ok(),
        });
        let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "now", spool));
        server.await_request(|request| request_line(request) == "POST job/now");
        let read_only = ReadOnly::new(spool);
        server.release();
        server.await_request(|request| request_line(request) == "POST job/other");
        let is_free = |payload: &PathBuf| File::open(payload).unwrap().try_lock().is_ok();
        directory::await_true("the process keeps no payload", || directory::payloads(spool).iter().all(is_free));
        guard.shutdown().unwrap();
        drop(read_only);
        let lines = request_lines(&server);
        assert_eq!(lines.iter().filter(|line| *line == "GET /metrics").count(), 2, "{lines:?}");
        assert_eq!(push_count(&server, "old"), 1, "{lines:?}");
        assert_eq!(directory::payloads(spool).len(), 2);
    });
}
