//! Random programs of spans, executed with real spans and by a model of the contract; both must give the same
//! metrics.
#![cfg(feature = "pushgateway")]
// Clippy exempts `#[test]` functions only, not the functions they share.
#![allow(clippy::print_stderr, clippy::unwrap_used)]

mod support;

#[path = "random_programs/model.rs"]
mod model;
#[path = "random_programs/program.rs"]
mod program;
#[path = "random_programs/runner.rs"]
mod runner;

use program::{Node, node};
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};
use support::Pipeline;
use tracing_stage_metrics::FailurePolicy::{self, ErrorEvents, ErrorsWithin, ReturnedError};

/// The compared results: series that are not zero, and the active gauges at each `ReadActive` step.
#[derive(Debug, Default, PartialEq, Eq)]
struct Observed {
    totals: Vec<String>,
    runs: Vec<String>,
    failures: Vec<String>,
    active_readings: Vec<Vec<String>>,
}

fn measure(programs: &[Node], policy: FailurePolicy) -> Observed {
    let pipeline = Pipeline::under(policy);
    let active_readings = runner::run(&pipeline, programs);
    let now = pipeline.now();
    assert!(now.active().is_empty(), "{:?}", now.active());
    let mut totals = now.totals();
    // A stage whose id changed has series under both ids.
    totals.retain(|line| !line.ends_with(" 0 0"));
    Observed { totals, runs: now.runs(), failures: now.failures(), active_readings }
}

fn check(cases: u32, programs: impl Strategy<Value = Vec<Node>>) {
    // Intended panics print nothing.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !info.payload().is::<runner::IntendedPanic>() {
            hook(info);
        }
    }));
    let config = Config {
        source_file: Some(file!()),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        ..Config::with_cases(cases)
    };
    let policy = prop_oneof![Just(ErrorEvents), Just(ReturnedError), Just(ErrorsWithin)];
    let result = TestRunner::new(config).run(&(programs, policy), |(programs, policy)| {
        let expected = model::run(&programs, policy);
        prop_assume!(expected.is_some(), "the contract leaves this program open");
        prop_assert_eq!(measure(&programs, policy), expected.unwrap());
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn random_programs_give_the_metrics_of_the_model() {
    check(400, prop::collection::vec(node(), 1..5));
}

#[test]
fn model_counts_stages_errors_and_panics() {
    let stage = |stage: &'static str| Node { stage: Some(stage), ..Node::stage() };
    let observed = |program: Node| model::run(&[program], ErrorEvents).unwrap();
    assert_eq!(observed(stage("a")).runs, ["a,, 1"]);
    assert_eq!(observed(stage("b")).totals, ["b 1 0"]);
    let failing = Node { steps: vec![program::Step::Error], ..stage("a") };
    assert_eq!(observed(failing).failures, ["a,,error 1"]);
    let panicking = Node { steps: vec![program::Step::Panic], ..stage("a") };
    assert_eq!(observed(panicking.clone()).failures, ["a,,panic 1"]);
    assert_eq!(observed(panicking.clone()), measure(&[panicking], ErrorEvents));
}
