//! Totals through the spool: what the gateway lacks is added once.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tracing_stage_metrics::{MetricsLayer, Pushgateway};

use super::relay::{Mode, Relay};
use super::support::measured::{Measured, measured, stage};
use super::support::{self, http, sockets};
use super::{builder, directory, of_gateway, run, shown, spooling, totals};

/// Makes a run of two stages, the first of which a push shows. Everything after that push happens in this mode.
#[track_caller]
fn leave(relay: &Relay, mode: Mode, spool: &Path) {
    let Measured { guard, log: _, default: _default } =
        measured(spooling(&relay.url(), spool).with_flush_timeout(Duration::from_secs(1)));
    stage("a");
    guard.flush().unwrap();
    relay.set(mode);
    stage("a");
    guard.shutdown().unwrap_err();
    relay.set(Mode::Forward);
    directory::only_payload(spool);
}

/// Delivers the payloads from a run of another group, and returns its events.
#[track_caller]
pub(crate) fn sweep(url: &str, spool: &Path) -> Vec<String> {
    directory::readdress(spool, url);
    let Measured { guard, log, default: _default } = measured(sweeper(url, spool));
    directory::await_no_payload(spool);
    guard.shutdown().unwrap();
    log.own()
}

fn sweeper(url: &str, spool: &Path) -> tracing_stage_metrics::MetricsLayerBuilder {
    let gateway = Pushgateway::new(url, "sweeper").unwrap().with_timeout(Duration::from_millis(500));
    let builder = MetricsLayer::builder().with_pushgateway(gateway).with_spool_dir(spool);
    builder.with_push_interval(Duration::from_millis(100)).with_flush_timeout(Duration::from_secs(5))
}

/// The gateway was down, lost the last push, or has it without an answer. Delivery by a run of the group, or of another
/// group.
#[test]
fn last_state_that_did_not_arrive_counts_once() {
    for mode in [Mode::Refuse, Mode::Lose, Mode::LoseAnswers] {
        for sweeps in [false, true] {
            let Some(server) = support::pushgateway() else { return };
            let (relay, spool) = (Relay::start(&server), tempfile::tempdir().unwrap());
            assert!(run(builder(&relay.url()), &["a"], &[]));
            leave(&relay, mode, spool.path());
            if sweeps {
                assert_eq!(sweep(&relay.url(), spool.path()), [""; 0], "{mode:?}");
                assert_eq!(totals(&server), Some(shown([2, 0], [3, 0])), "{mode:?}");
            }
            assert!(run(spooling(&relay.url(), spool.path()), &["a"], &[]));
            assert_eq!(totals(&server), Some(shown([3, 0], [4, 0])), "{mode:?}");
            assert_eq!(directory::names(spool.path()), [""; 0]);
        }
    }
}

#[test]
fn runs_without_a_base_are_added() {
    for sweeps in [false, true] {
        let Some(server) = support::pushgateway() else { return };
        let spool = tempfile::tempdir().unwrap();
        assert!(run(builder(&server.url()), &["a"], &[]));
        for _ in 0..2 {
            let down = spooling("http://127.0.0.1:1", spool.path()).with_flush_timeout(Duration::from_secs(5));
            assert!(!run(down, &["a"], &["a"]));
        }
        assert_eq!(directory::payloads(spool.path()).len(), 2);
        directory::readdress(spool.path(), &server.url());
        if sweeps {
            assert_eq!(sweep(&server.url(), spool.path()), [""; 0]);
            assert_eq!(totals(&server), Some(shown([1, 2], [3, 2])));
        }
        assert!(run(spooling(&server.url(), spool.path()), &["a"], &[]));
        assert_eq!(totals(&server), Some(shown([2, 2], [4, 2])));
        assert_eq!(directory::names(spool.path()), [""; 0]);
    }
}

#[test]
fn frozen_gateway_that_applies_the_last_push_after_its_thaw_counts_it_once() {
    let Some(server) = support::pushgateway() else { return };
    let spool = tempfile::tempdir().unwrap();
    let Measured { guard, log: _, default: _default } =
        measured(spooling(&server.url(), spool.path()).with_flush_timeout(Duration::from_secs(1)));
    stage("a");
    guard.flush().unwrap();
    stage("a");
    server.freeze();
    guard.shutdown().unwrap_err();
    server.thaw();
    sockets::await_idle(server.addr());
    assert_eq!(totals(&server), Some(shown([1, 0], [2, 0])), "the gateway has applied the push");
    assert!(run(spooling(&server.url(), spool.path()), &["a"], &[]));
    assert_eq!(totals(&server), Some(shown([2, 0], [3, 0])));
}

/// A run that does not share the spool comes in between. It found the first run without an end.
#[test]
fn increments_that_cannot_have_arrived_are_added_to_the_totals_of_another_run() {
    let Some(server) = support::pushgateway() else { return };
    let (relay, spool) = (Relay::start(&server), tempfile::tempdir().unwrap());
    leave(&relay, Mode::Refuse, spool.path());
    assert!(run(builder(&server.url()), &["a"], &[]));
    assert_eq!(totals(&server), Some(shown([1, 1], [2, 0])));
    assert_eq!(sweep(&relay.url(), spool.path()), [""; 0]);
    assert_eq!(totals(&server), Some(shown([1, 1], [3, 0])), "the run is counted as killed");
}

#[test]
fn run_that_never_reached_the_gateway_is_added_to_the_totals_of_another_run() {
    let Some(server) = support::pushgateway() else { return };
    let (relay, spool) = (Relay::start(&server), tempfile::tempdir().unwrap());
    assert!(run(builder(&server.url()), &["a"], &[]));
    relay.set(Mode::Refuse);
    assert!(!run(spooling(&relay.url(), spool.path()), &["a"], &[]));
    assert!(run(builder(&server.url()), &["a"], &[]));
    relay.set(Mode::Forward);
    assert_eq!(sweep(&relay.url(), spool.path()), [""; 0]);
    assert_eq!(totals(&server), Some(shown([3, 0], [3, 0])));
}

#[test]
fn increments_that_may_have_arrived_are_dropped_after_another_run_with_one_warning() {
    for mode in [Mode::Lose, Mode::LoseAnswers] {
        let Some(server) = support::pushgateway() else { return };
        let (relay, spool) = (Relay::start(&server), tempfile::tempdir().unwrap());
        leave(&relay, mode, spool.path());
        assert!(run(builder(&server.url()), &["a"], &[]));
        let before = totals(&server);
        let events = sweep(&relay.url(), spool.path());
        let [warning] = &events[..] else { panic!("{events:?}") };
        assert!(warning.starts_with("the cumulative totals lack earlier runs"), "{warning}");
        assert_eq!(totals(&server), before, "{mode:?}");
    }
}

/// The answer to the request that adds the increments is lost, and the process ends.
#[test]
fn replay_that_adds_increments_counts_them_once() {
    for mode in [Mode::Lose, Mode::LoseAnswers] {
        let Some(server) = support::pushgateway() else { return };
        let (relay, spool) = (Relay::start(&server), tempfile::tempdir().unwrap());
        leave(&relay, Mode::Refuse, spool.path());
        assert!(run(builder(&server.url()), &["a"], &[]));
        relay.set(mode);
        let pushes = relay.pushes().len();
        let Measured { guard, log: _, default: _default } = measured(sweeper(&relay.url(), spool.path()));
        support::await_true("a replay", || relay.pushes().len() > pushes);
        guard.shutdown().unwrap();
        assert_eq!(directory::payloads(spool.path()).len(), 1);
        relay.set(Mode::Forward);
        assert_eq!(sweep(&relay.url(), spool.path()), [""; 0]);
        assert_eq!(totals(&server), Some(shown([1, 1], [3, 0])), "{mode:?}");
    }
}

/// A payload of the group waits while a run of another directory is at work: its next push would replace the sum.
#[test]
fn payload_waits_for_the_end_of_a_run_of_its_group() {
    let Some(server) = support::pushgateway() else { return };
    let (relay, spool) = (Relay::start(&server), tempfile::tempdir().unwrap());
    relay.set(Mode::Refuse);
    assert!(!run(spooling(&relay.url(), spool.path()), &["a"], &[]));
    relay.set(Mode::Forward);
    let Measured { guard, log: _, default } = measured(builder(&server.url()));
    stage("a");
    guard.flush().unwrap();
    let Measured { guard: other, log: _, default: _other } = measured(sweeper(&relay.url(), spool.path()));
    other.flush().unwrap();
    other.shutdown().unwrap();
    directory::only_payload(spool.path());
    assert_eq!(totals(&server), Some(shown([0, 0], [1, 0])));
    guard.shutdown().unwrap();
    drop(default);
    assert_eq!(sweep(&relay.url(), spool.path()), [""; 0]);
    assert_eq!(totals(&server), Some(shown([2, 0], [2, 0])));
}

/// A killed run is shown, and the run after it never reached the gateway.
#[test]
fn payload_does_not_wait_for_a_run_before_its_own() {
    let Some(server) = support::pushgateway() else { return };
    let (relay, spool) = (Relay::start(&server), tempfile::tempdir().unwrap());
    let Measured { guard, log: _, default } = measured(builder(&server.url()));
    stage("a");
    guard.flush().unwrap();
    std::mem::forget((guard, default));
    relay.set(Mode::Refuse);
    assert!(!run(spooling(&relay.url(), spool.path()), &["a"], &[]));
    relay.set(Mode::Forward);
    assert_eq!(sweep(&relay.url(), spool.path()), [""; 0]);
    assert_eq!(totals(&server), Some(shown([1, 1], [2, 0])));
}

/// The totals of the first run arrive with the second one, which finds them before its own base.
#[test]
fn next_run_waits_for_the_payloads_of_the_group() {
    let Some(server) = support::pushgateway() else { return };
    let (relay, spool) = (Relay::start(&server), tempfile::tempdir().unwrap());
    leave(&relay, Mode::Refuse, spool.path());
    relay.set(Mode::Refuse);
    let Measured { guard, log: _, default: _default } = measured(spooling(&relay.url(), spool.path()));
    stage("a");
    guard.flush().unwrap_err();
    relay.set(Mode::Forward);
    guard.flush().unwrap();
    assert_eq!(totals(&server), Some(shown([1, 0], [3, 0])));
    guard.shutdown().unwrap();
    assert_eq!(totals(&server), Some(shown([2, 0], [3, 0])));
    assert_eq!(directory::names(spool.path()), [""; 0]);
}

/// A payload in the form of text, which people may read and edit.
#[test]
fn payload_says_what_the_gateway_lacks() {
    for (mode, flags) in [(Mode::Refuse, "confirmed"), (Mode::Lose, "confirmed sent")] {
        let Some(server) = support::pushgateway() else { return };
        let (relay, spool) = (Relay::start(&server), tempfile::tempdir().unwrap());
        leave(&relay, mode, spool.path());
        let text = fs::read_to_string(directory::only_payload(spool.path())).unwrap();
        assert!(text.contains(&format!("\nincrements: 1 0 {flags}\nincrements-stage: a  1 0 ")), "{text}");
        assert!(text.contains("\nquant_runs_total{status=\"success\"} 1\n"), "{text}");
    }
}

/// Each namespace has totals of its own.
#[test]
fn payload_of_another_namespace_is_not_the_base() {
    let Some(server) = support::pushgateway() else { return };
    let (relay, spool) = (Relay::start(&server), tempfile::tempdir().unwrap());
    leave(&relay, Mode::Refuse, spool.path());
    assert!(run(spooling(&relay.url(), spool.path()).with_namespace("acme"), &["a"], &[]));
    let runs = |name| of_gateway(&server).expect(name, &[("instance", ""), ("job", "j"), ("status", "success")]);
    assert_eq!(["quant_runs_total", "acme_runs_total"].map(runs), [1.0, 1.0]);
}

/// Somebody has pushed the name with a value that no run writes. The state of the payload matters more.
#[test]
fn payload_is_delivered_although_the_totals_of_the_gateway_are_no_counts() {
    let Some(server) = support::pushgateway() else { return };
    let (relay, spool) = (Relay::start(&server), tempfile::tempdir().unwrap());
    leave(&relay, Mode::Refuse, spool.path());
    let text = b"# TYPE quant_runs_total counter\nquant_runs_total{status=\"success\"} 1.5\n";
    http::request(server.addr(), "POST", "/metrics/job/j", &[], text).unwrap();
    let Measured { guard, log, default: _default } = measured(spooling(&relay.url(), spool.path()));
    stage("a");
    guard.flush().unwrap();
    guard.shutdown().unwrap();
    assert_eq!(directory::names(spool.path()), [""; 0]);
    let events = log.own();
    let [lack, hidden] = &events[..] else { panic!("{events:?}") };
    assert!(lack.starts_with("the cumulative totals lack earlier runs"), "{lack}");
    assert!(hidden.contains("shows totals of this group that are no counts"), "{hidden}");
}

/// The proxy of a cluster has no backend, and takes the gateway for a page that does not exist.
#[test]
fn run_behind_a_proxy_without_its_gateway_is_added_later() {
    let Some(server) = support::pushgateway() else { return };
    let (relay, spool) = (Relay::start(&server), tempfile::tempdir().unwrap());
    assert!(run(spooling(&relay.url(), spool.path()), &["a"], &[]));
    relay.set(Mode::Away);
    for _ in 0..2 {
        assert!(!run(spooling(&relay.url(), spool.path()), &["a"], &[]));
    }
    relay.set(Mode::Forward);
    let Measured { guard, log, default: _default } = measured(spooling(&relay.url(), spool.path()));
    stage("a");
    guard.shutdown().unwrap();
    assert_eq!(totals(&server), Some(shown([4, 0], [4, 0])));
    assert_eq!((log.own(), directory::names(spool.path())), (vec![], vec![]));
}

/// The second run counts the first as killed, and its last answer is lost. Of the first run only a stage is missing then.
#[test]
fn replay_keeps_the_stages_of_a_payload_from_another_directory() {
    let Some(server) = support::pushgateway() else { return };
    let relay = Relay::start(&server);
    let [first, second] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    leave(&relay, Mode::Refuse, first.path());
    leave(&relay, Mode::LoseAnswers, second.path());
    assert_eq!(totals(&server), Some(shown([1, 1], [3, 0])));
    for spool in [first, second] {
        assert_eq!(sweep(&relay.url(), spool.path()), [""; 0]);
        assert_eq!(totals(&server), Some(shown([1, 1], [4, 0])));
    }
}
