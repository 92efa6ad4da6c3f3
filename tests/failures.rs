//! What makes a stage fail, under each of the policies.
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

use std::panic::{AssertUnwindSafe, catch_unwind};

use support::Pipeline;
use tracing_stage_metrics::FailurePolicy::{self, ErrorEvents, ErrorsWithin, ProvenSuccess, ReturnedError};

/// In the order in which the tests list what they expect.
const POLICIES: [FailurePolicy; 4] = [ErrorEvents, ReturnedError, ErrorsWithin, ProvenSuccess];

const OK: &str = "success";

/// Runs the scenario under each policy and returns how its stage `a` ended there: `success`, or the reason. It must
/// be counted exactly once.
#[track_caller]
fn ends<T>(scenario: impl Fn() -> T) -> [String; 4] {
    POLICIES.map(|policy| {
        let pipeline = Pipeline::under(policy);
        drop(scenario());
        end_of(&pipeline, "a")
    })
}

#[track_caller]
fn end_of(pipeline: &Pipeline, stage: &str) -> String {
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
        counts => panic!("{stage} ended otherwise than once: {counts:?}"),
    }
}

/// Runs what must panic, and catches that.
#[track_caller]
fn panicking<T>(run: impl FnOnce() -> T) {
    assert!(catch_unwind(AssertUnwindSafe(run)).is_err(), "it did not panic");
}
