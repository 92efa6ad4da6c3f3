//! Beside `tracing-opentelemetry`, in both orders: what the metric and the trace say of the same stage span.
#![cfg(feature = "pushgateway")]
// Clippy's exemption for tests reaches `#[test]` functions only, not the functions they share.
#![allow(clippy::unwrap_used)]

mod support;
#[path = "support/traces.rs"]
mod traces;

#[path = "beside_opentelemetry/asynchronous.rs"]
mod asynchronous;
#[path = "beside_opentelemetry/differences.rs"]
mod differences;
#[path = "beside_opentelemetry/durations.rs"]
mod durations;
#[path = "beside_opentelemetry/statuses.rs"]
mod statuses;

use std::time::{Duration, Instant};

use traces::{Beside, ORDERS, Setup};

/// Far above what the clocks of the two may drift apart.
const PAUSE: Duration = Duration::from_millis(3);

fn pass() {
    let begun = Instant::now();
    while begun.elapsed() < PAUSE {
        std::hint::spin_loop();
    }
}

/// Runs it in both orders; the two must agree on every stage. What they say: `"a error Error"`, by stage.
#[track_caller]
fn agreed<T>(scenario: impl Fn() -> T) -> Vec<String> {
    in_both_orders(|setup| {
        let beside = setup.start();
        drop(scenario());
        beside.told().agreed()
    })
}

/// The same where they do not agree on each.
#[track_caller]
fn told<T>(scenario: impl Fn() -> T) -> Vec<String> {
    told_by(|setup| setup, scenario)
}

#[track_caller]
fn told_by<T>(configure: impl Fn(Setup) -> Setup, scenario: impl Fn() -> T) -> Vec<String> {
    in_both_orders(|setup| {
        let beside = configure(setup).start();
        drop(scenario());
        beside.told().lines()
    })
}

/// The lines, which are the same in both orders.
#[track_caller]
fn in_both_orders(run: impl Fn(Setup) -> Vec<String>) -> Vec<String> {
    let [one, other] = ORDERS.map(|first| run(Setup::new(first)));
    assert_eq!(one, other);
    one
}

#[test]
#[should_panic(expected = "is not in")]
fn a_wrong_duration_is_found() {
    let beside = Beside::start(ORDERS[0]);
    let span = tracing::info_span!("x", stage_id = "a");
    span.in_scope(|| ());
    pass();
    drop(span);
    // As if the trace had the stage open until its span closed.
    beside.told_with(|span| span.end_time += PAUSE);
}

#[test]
#[should_panic(expected = "a success Error")]
fn a_wrong_status_is_found() {
    let beside = Beside::start(ORDERS[0]);
    tracing::info_span!("x", stage_id = "a").in_scope(|| ());
    beside.told_with(|span| span.status = opentelemetry::trace::Status::error("no")).agreed();
}
