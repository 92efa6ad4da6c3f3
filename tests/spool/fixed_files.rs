//! Files that were delivered and cannot be removed: they are sent once, and nothing turns in a circle.
#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::file_systems::obeying_permissions;
use super::support::measured::{Measured, measured};
use super::support::mock_gateway::Answer;
use super::support::{MockGateway, Reply};
use super::{SLACK, all_asked, asked, builder, directory, leave, pushes_of};

/// A directory in which nothing can be removed, until the value is dropped.
struct Fixed<'a>(&'a Path);

impl<'a> Fixed<'a> {
    #[track_caller]
    fn new(spool: &'a Path) -> Self {
        fs::set_permissions(spool, fs::Permissions::from_mode(0o500)).unwrap();
        assert!(fs::write(spool.join("probe"), "").is_err(), "nothing can be changed in it");
        Self(spool)
    }
}

impl Drop for Fixed<'_> {
    fn drop(&mut self) {
        fs::set_permissions(self.0, fs::Permissions::from_mode(0o700)).unwrap();
    }
}

/// The first push does not succeed, so that nothing is delivered in the background.
#[test]
fn at_the_end_each_is_sent_once() {
    obeying_permissions(|| {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        for job in ["one", "two", "later"] {
            leave(spool, job, "left");
        }
        let server = MockGateway::start([Reply::status(401)]);
        let Measured { guard, log, default: _default } = measured(builder(&server.url(), "later", spool));
        directory::await_true("the first push is known to have failed", || log.own().len() == 1);
        let before = all_asked(&server);
        assert_eq!(before, ["GET /metrics", "POST job/later", "POST job/later"], "what its group left, then its own");
        server.set_replies([Reply::ok()]);
        let fixed = Fixed::new(spool);
        let begun = Instant::now();
        guard.shutdown().unwrap();
        assert!(begun.elapsed() < SLACK, "it has 20 s and took {:?}", begun.elapsed());
        let wanted = ["POST job/later", "GET /metrics", "POST job/one", "GET /metrics", "POST job/two"];
        assert_eq!(all_asked(&server)[before.len()..], wanted);
        drop(fixed);
        assert_eq!(directory::payloads(spool).len(), 3);
    });
}

#[test]
fn in_the_background_none_keeps_the_others_and_none_is_sent_on_and_on() {
    obeying_permissions(|| {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        for job in ["one", "two"] {
            leave(spool, job, "left");
        }
        let server = MockGateway::start([Reply::Held(Answer::new(200)), Reply::ok()]);
        let builder = builder(&server.url(), "now", spool).with_push_interval(Duration::from_millis(200));
        let Measured { guard, log: _, default: _default } = measured(builder);
        server.await_requests(1);
        let fixed = Fixed::new(spool);
        server.release();
        server.await_request(|request| asked(request) == "POST job/two");
        let tries = pushes_of(&server, "one");
        guard.flush().unwrap();
        guard.flush().unwrap();
        let begun = Instant::now();
        guard.shutdown().unwrap();
        assert!(begun.elapsed() < SLACK, "it has 20 s and took {:?}", begun.elapsed());
        // A push that is due takes the time of a replay, which is then made again.
        assert_eq!(pushes_of(&server, "one"), tries, "not again in this process: {:?}", all_asked(&server));
        let (left, own) = (tries + pushes_of(&server, "two"), pushes_of(&server, "now"));
        assert!(left <= own, "one at a time, after a push of its own: {:?}", all_asked(&server));
        drop(fixed);
        assert_eq!(directory::payloads(spool).len(), 2);
    });
}
