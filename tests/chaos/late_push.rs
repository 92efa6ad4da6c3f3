//! A frozen gateway keeps the pushes that its clients gave up, and applies them after the thaw, in any order: the final
//! state stands all the same.

use std::thread;
use std::time::Duration;

use tracing_stage_metrics::{MetricsLayer, Pushgateway};

use super::directory;
use super::job::PUSH_INTERVAL;
use super::support::measured::{Measured, measured, stage};
use super::support::{self, exposition, sockets};

/// The rounds after which `shutdown()` is an error, the gateway shows an older state, or the spool has a payload.
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
            directory::await_true("the push is given up", || {
                sockets::connections(addr).iter().any(|connection| connection.given_up)
            });
            // An interval push never waits that long: this is the final one.
            sockets::await_pending(addr, 2 * PUSH_INTERVAL);
            gateway.thaw();
            ending.join().unwrap()
        });
        sockets::await_idle(addr);
        let shown = exposition::parse(&gateway.metrics());
        let labels = [("instance", ""), ("job", &job), ("stage_id", "last"), ("status", "success")];
        let last = shown.value("quant_stage_total", &labels);
        let left = directory::payloads(spool.path()).len();
        if result.is_err() || last != Some(1.0) || left != 0 {
            wrong.push(format!("round {round}: {result:?}, the last stage {last:?}, {left} payloads in the spool"));
        }
    }
    wrong
}

#[test]
fn final_state_stands_after_interval_push_was_given_up() {
    let wrong = wrong_rounds(20, PUSH_INTERVAL, Duration::from_secs(20));
    assert_eq!(wrong, [""; 0], "{} of 20", wrong.len());
}

/// With an interval as long as by default: the final flush gives up the first push after a part of its own time.
#[test]
fn final_state_stands_after_first_push_was_given_up() {
    let wrong = wrong_rounds(8, Duration::from_secs(3_600), Duration::from_secs(3));
    assert_eq!(wrong, [""; 0], "{} of 8", wrong.len());
}
