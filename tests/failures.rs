//! The failure rules, under each failure policy.
#![cfg(feature = "pushgateway")]
// Clippy's exemption for tests reaches `#[test]` functions only, not the functions they share.
#![allow(clippy::unwrap_used)]

mod support;

#[path = "failures/asynchronous.rs"]
mod asynchronous;
#[path = "failures/declared.rs"]
mod declared;
#[path = "failures/events.rs"]
mod events;
#[path = "failures/panics.rs"]
mod panics;
#[path = "failures/proven.rs"]
mod proven;
#[path = "failures/returned.rs"]
mod returned;
#[path = "failures/texts.rs"]
mod texts;

use std::panic::{AssertUnwindSafe, catch_unwind};

use support::Pipeline;
use tracing_stage_metrics::FailurePolicy::{self, ErrorEvents, ErrorsWithin, ProvenSuccess, ReturnedError};

/// The policies, in the order of the expected outcomes in the tests.
const POLICIES: [FailurePolicy; 4] = [ErrorEvents, ReturnedError, ErrorsWithin, ProvenSuccess];

const OK: &str = "success";

/// Runs the scenario under each policy and returns the outcomes of its stage `a`: `success` or the failure reason.
/// Panics unless each policy counts the stage exactly once.
#[track_caller]
fn outcomes<T>(scenario: impl Fn() -> T) -> [String; 4] {
    POLICIES.map(|policy| {
        let pipeline = Pipeline::under(policy);
        drop(scenario());
        outcome_of(&pipeline, "a")
    })
}

#[track_caller]
fn outcome_of(pipeline: &Pipeline, stage: &str) -> String {
    let now = pipeline.now();
    let count = |status| now.exposition.expect("quant_stage_total", &[("stage_id", stage), ("status", status)]);
    let failures: Vec<String> =
        now.failures().into_iter().filter(|line| line.starts_with(&format!("{stage},"))).collect();
    match (count("success"), count("failure")) {
        (1.0, 0.0) => OK.to_owned(),
        (0.0, 1.0) => {
            assert_eq!(failures.len(), 1, "{failures:?}");
            failures[0].rsplit_once(',').unwrap().1.strip_suffix(" 1").unwrap().to_owned()
        }
        counts => panic!("{stage} is counted exactly once: {counts:?}"),
    }
}

/// Runs a closure that panics, and catches the panic.
#[track_caller]
fn panicking<T>(run: impl FnOnce() -> T) {
    assert!(catch_unwind(AssertUnwindSafe(run)).is_err(), "the closure panics");
}
