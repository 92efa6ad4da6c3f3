//! Random programs of spans, run for real and by a model written from the contract: the metrics must be the same.
#![cfg(feature = "pushgateway")]
// Clippy's exemption for tests reaches `#[test]` functions only, not the functions they share.
#![allow(clippy::print_stderr, clippy::unwrap_used)]

mod support;

#[path = "random_programs/model.rs"]
mod model;
#[path = "random_programs/program.rs"]
mod program;
#[path = "random_programs/real.rs"]
mod real;

use program::{Node, node};
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};
use support::Pipeline;
use tracing_stage_metrics::FailurePolicy::{self, ErrorEvents, ErrorsWithin, ReturnedError};

/// What is compared: the series that are not zero, and the active gauges each time the program looked.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    totals: Vec<String>,
    runs: Vec<String>,
    failures: Vec<String>,
    looks: Vec<Vec<String>>,
}

fn really(programs: &[Node], policy: FailurePolicy) -> Seen {
    let pipeline = Pipeline::under(policy);
    let looks = real::run(&pipeline, programs);
    let now = pipeline.now();
    assert!(now.active().is_empty(), "{:?}", now.active());
    let mut totals = now.totals();
    // A stage whose id changed is known under both.
    totals.retain(|line| !line.ends_with(" 0 0"));
    Seen { totals, runs: now.runs(), failures: now.failures(), looks }
}

fn check(cases: u32, programs: impl Strategy<Value = Vec<Node>>) {
    // The panics that are on purpose say nothing.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !info.payload().is::<real::OnPurpose>() {
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
        prop_assume!(expected.is_some(), "the contract leaves it open");
        prop_assert_eq!(really(&programs, policy), expected.unwrap());
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn random_programs_are_measured_as_the_contract_says() {
    check(400, prop::collection::vec(node(), 1..5));
}

#[test]
fn the_model_tells_programs_apart() {
    let stage = |stage: &'static str| Node { stage: Some(stage), ..Node::stage() };
    let of = |program: Node| model::run(&[program], ErrorEvents).unwrap();
    assert_eq!(of(stage("a")).runs, ["a,, 1"]);
    assert_eq!(of(stage("b")).totals, ["b 1 0"]);
    let failing = Node { steps: vec![program::Step::Error], ..stage("a") };
    assert_eq!(of(failing).failures, ["a,,error 1"]);
    let panicking = Node { steps: vec![program::Step::Panic], ..stage("a") };
    assert_eq!(of(panicking.clone()).failures, ["a,,panic 1"]);
    assert_eq!(of(panicking.clone()), really(&[panicking], ErrorEvents));
}
