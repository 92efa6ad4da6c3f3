//! A frozen gateway keeps the pushes that its clients have aborted, and applies them after the thaw, in any order. The
//! final state must be the last one applied.

use std::thread;
use std::time::Duration;

use tracing_stage_metrics::{MetricsLayer, Pushgateway};

use super::directory;
use super::job::PUSH_INTERVAL;
use super::support::measured::{Measured, measured, stage};
use super::support::sockets::{self, Connection};
use super::support::{self, exposition};

/// The client aborts the push in flight after a part of this time.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(4);

/// The rounds after which `shutdown()` returns an error, the gateway shows an older state, or the spool has a payload.
#[track_caller]
fn wrong_rounds(rounds: usize, interval: Duration, timeout: Duration) -> Vec<String> {
    let Some(gateway) = support::pushgateway() else { return Vec::new() };
    let addr = gateway.addr();
    let mut wrong = Vec::new();
    for round in 0..rounds {
        let spool = tempfile::tempdir().unwrap();
        let job = format!("r{round}");
        gateway.freeze();
        let builder = MetricsLayer::builder()
            .with_pushgateway(Pushgateway::new(gateway.url(), &job).unwrap())
            .with_push_interval(interval)
            .with_flush_timeout(timeout)
            .with_spool_dir(spool.path());
        let Measured { guard, log: _, default: _default } = measured(builder);
        stage("first");
        sockets::await_pending(addr, Duration::ZERO);
        stage("last");
        let result = thread::scope(|scope| {
            let ending = scope.spawn(|| guard.shutdown());
            directory::await_true("the client has aborted the push", || {
                sockets::connections(addr).iter().any(|connection| connection.closed_by_client)
            });
            // A request that is still pending this long after the abort is the final push.
            sockets::await_pending(addr, 2 * PUSH_INTERVAL);
            gateway.thaw();
            ending.join().unwrap()
        });
        sockets::await_idle(addr);
        let shown = exposition::parse(&gateway.metrics());
        let labels = [("instance", ""), ("job", &job), ("stage_id", "last"), ("status", "success")];
        let last = shown.value("quant_stage_total", &labels);
        let spooled = directory::payloads(spool.path()).len();
        if result.is_err() || last != Some(1.0) || spooled != 0 {
            wrong.push(format!("round {round}: {result:?}, the last stage {last:?}, {spooled} payloads in the spool"));
        }
    }
    wrong
}

#[test]
fn final_state_outlasts_an_aborted_interval_push() {
    let wrong = wrong_rounds(20, PUSH_INTERVAL, FLUSH_TIMEOUT);
    assert_eq!(wrong, [""; 0], "{} of 20", wrong.len());
}

/// The push interval is long: the final flush aborts the first push after a part of its own timeout.
#[test]
fn final_state_outlasts_an_aborted_first_push() {
    let wrong = wrong_rounds(8, Duration::from_secs(3_600), FLUSH_TIMEOUT);
    assert_eq!(wrong, [""; 0], "{} of 8", wrong.len());
}

/// A process killed while it waits for an earlier push loses nothing.
#[test]
fn last_state_is_spooled_while_an_earlier_push_is_in_flight() {
    let Some(gateway) = support::pushgateway() else { return };
    gateway.freeze();
    let spool = tempfile::tempdir().unwrap();
    let builder = MetricsLayer::builder()
        .with_pushgateway(Pushgateway::new(gateway.url(), "job").unwrap())
        .with_flush_timeout(Duration::from_secs(20))
        .with_spool_dir(spool.path());
    let Measured { guard, log: _, default: _default } = measured(builder);
    let first = sockets::await_pending(gateway.addr(), Duration::ZERO);
    stage("last");
    thread::scope(|scope| {
        let ending = scope.spawn(|| guard.shutdown());
        directory::await_true("the last state is in the spool", || !directory::payloads(spool.path()).is_empty());
        let connections = sockets::connections(gateway.addr());
        let is_first =
            |connection: &Connection| connection.client_port == first.client_port && !connection.closed_by_client;
        assert!(connections.iter().any(is_first), "the earlier push is still in flight: {connections:?}");
        gateway.thaw();
        ending.join().unwrap().unwrap();
    });
    assert_eq!(directory::names(spool.path()), [""; 0]);
}
