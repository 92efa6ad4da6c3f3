//! Metrics and traces of the same stage spans: the layer comparison `tracing-opentelemetry`, in both layer orders.
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

use traces::{Comparison, ORDERS, Setup};

/// Far above the drift between the clocks of the two layers.
const PAUSE: Duration = Duration::from_millis(3);

fn spin() {
    let start = Instant::now();
    while start.elapsed() < PAUSE {
        std::hint::spin_loop();
    }
}

/// Runs the scenario in both layer orders and returns the outcomes by stage, such as `"a error Error"`. Panics unless
/// metric and trace agree on every stage.
#[track_caller]
fn agreed<T>(scenario: impl Fn() -> T) -> Vec<String> {
    in_both_orders(|setup| {
        let comparison = setup.start();
        drop(scenario());
        comparison.outcomes().agreed()
    })
}

/// Runs the scenario in both layer orders and returns the outcomes by stage. Metric and trace may disagree.
#[track_caller]
fn outcomes<T>(scenario: impl Fn() -> T) -> Vec<String> {
    outcomes_with(|setup| setup, scenario)
}

/// Returns the [`outcomes`] under layers that `configure` sets up.
#[track_caller]
fn outcomes_with<T>(configure: impl Fn(Setup) -> Setup, scenario: impl Fn() -> T) -> Vec<String> {
    in_both_orders(|setup| {
        let comparison = configure(setup).start();
        drop(scenario());
        comparison.outcomes().lines()
    })
}

/// Runs it in both layer orders and returns the lines. Panics unless they are the same in both.
#[track_caller]
fn in_both_orders(run: impl Fn(Setup) -> Vec<String>) -> Vec<String> {
    let [traces_first, metrics_first] = ORDERS.map(|first| run(Setup::new(first)));
    assert_eq!(traces_first, metrics_first, "both layer orders have the same outcomes");
    traces_first
}

#[test]
#[should_panic(expected = "is not in")]
fn comparison_fails_on_a_wrong_duration() {
    let comparison = Comparison::start(ORDERS[0]);
    let span = tracing::info_span!("x", stage_id = "a");
    span.in_scope(|| ());
    spin();
    drop(span);
    // The trace keeps the stage open until its span closes.
    comparison.outcomes_with(|span| span.end_time += PAUSE);
}

#[test]
#[should_panic(expected = "a success Error")]
fn comparison_fails_on_a_wrong_status() {
    let comparison = Comparison::start(ORDERS[0]);
    tracing::info_span!("x", stage_id = "a").in_scope(|| ());
    comparison.outcomes_with(|span| span.status = opentelemetry::trace::Status::error("no")).agreed();
}
