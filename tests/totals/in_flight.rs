//! A delivery is in flight when the final flush begins. What it does later is neither lost nor counted twice.

use std::thread;
use std::time::Duration;

use super::relay::{Mode, Relay};
use super::support;
use super::support::measured::{Measured, measured, stage};
use super::{builder, directory, run, shown, spooling, totals};

/// The base arrives after the final flush has decided that the run has none.
#[test]
fn base_that_comes_after_the_last_state_does_not_count_a_stage_twice() {
    let Some(server) = support::pushgateway() else { return };
    let (relay, spool) = (Relay::start(&server), tempfile::tempdir().unwrap());
    relay.set(Mode::Hide(503, ""));
    let Measured { guard, log: _, default: _default } = measured(spooling(&relay.url(), spool.path()));
    stage("a");
    guard.flush().unwrap();
    relay.set(Mode::HoldReads);
    let handle = guard.handle();
    thread::scope(|scope| {
        let flush = scope.spawn(|| handle.flush());
        relay.await_requests("GET", 3 + 1);
        let end = scope.spawn(|| guard.shutdown());
        support::await_true("a payload", || !directory::payloads(spool.path()).is_empty());
        relay.set(Mode::Forward);
        relay.release();
        let _ = flush.join().unwrap();
        end.join().unwrap().unwrap();
    });
    assert!(run(spooling(&relay.url(), spool.path()), &["a"], &[]));
    assert_eq!(totals(&server), Some(shown([2, 0], [2, 0])));
}

/// The answer to an earlier push arrives after the payload is written, and the last push is refused.
#[test]
fn push_that_is_answered_after_the_payload_is_written_does_not_count_a_stage_twice() {
    let Some(server) = support::pushgateway() else { return };
    let (relay, spool) = (Relay::start(&server), tempfile::tempdir().unwrap());
    let builder_of_run = spooling(&relay.url(), spool.path()).with_flush_timeout(Duration::from_secs(30));
    let Measured { guard, log: _, default: _default } = measured(builder_of_run);
    guard.flush().unwrap();
    let pushes = relay.pushes().len();
    relay.set(Mode::HoldPushes);
    stage("a");
    let handle = guard.handle();
    thread::scope(|scope| {
        let flush = scope.spawn(|| handle.flush());
        relay.await_requests("POST", pushes + 1);
        let end = scope.spawn(|| guard.shutdown());
        support::await_true("a payload", || !directory::payloads(spool.path()).is_empty());
        relay.set(Mode::Refuse);
        relay.release();
        let _ = flush.join().unwrap();
        end.join().unwrap().unwrap_err();
    });
    relay.set(Mode::Forward);
    assert!(run(builder(&server.url()), &["a"], &[]));
    super::spooled::sweep(&relay.url(), spool.path());
    assert_eq!(totals(&server), Some(shown([1, 1], [2, 0])));
}
