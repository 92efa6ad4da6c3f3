//! Random programs of spans, in trees, threads and tasks, under `tracing-opentelemetry` and this layer at once. Both
//! must report the same status and duration for every stage span; only a panic has no status in a trace.
#![cfg(feature = "pushgateway")]
// Clippy exempts `#[test]` functions only, not the functions they share.
#![allow(clippy::print_stderr, clippy::unwrap_used)]

mod support;
#[path = "support/traces.rs"]
mod traces;

#[path = "random_traces/futures.rs"]
mod futures;
#[path = "random_traces/program.rs"]
mod program;
#[path = "random_traces/runner.rs"]
mod runner;

use std::sync::atomic::{AtomicUsize, Ordering};

use opentelemetry::trace::Status;
use program::{EventKind, Node, Step, Target, node};
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};
use runner::Executed;
use traces::{First, Outcomes, Setup};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;

/// Runs the programs under both layers. With `filtered`, both layers see INFO and above only.
fn run_under_both_layers(programs: &[Node], first: First, filtered: bool) -> (Executed, Outcomes) {
    let mut setup = Setup::new(first);
    if filtered {
        setup = setup.with_traces(|traces| traces.with_filter(LevelFilter::INFO).boxed());
        setup = setup.with_metrics(|metrics| metrics.with_filter(LevelFilter::INFO).boxed());
    }
    let beside = setup.start();
    let executed = runner::run(programs, filtered);
    (executed, beside.outcomes())
}

/// Describes the first disagreement between the layers, or between them and the program.
fn disagreement(executed: &Executed, told: &Outcomes) -> Option<String> {
    if told.stages.keys().ne(executed.stages.iter()) {
        return Some(format!("executed stages: {:?}, reported stages: {:?}", executed.stages, told.lines()));
    }
    told.stages.iter().find_map(|(stage, pair)| {
        let panicked = pair.metric.as_deref() == Some("panic") && pair.trace.is_some();
        let agrees = if executed.panicked.contains(stage) { panicked } else { pair.agrees() };
        (!agrees).then(|| format!("{stage} {pair}, of {:?}", told.lines()))
    })
}

fn silence_intended_panics() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !info.payload().is::<runner::IntendedPanic>() {
            hook(info);
        }
    }));
}

#[test]
fn random_programs_get_equal_statuses_and_durations_from_both_layers() {
    silence_intended_panics();
    let config = Config {
        source_file: Some(file!()),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        ..Config::with_cases(400)
    };
    let first = prop_oneof![Just(First::Traces), Just(First::Metrics)];
    let programs = (prop::collection::vec(node(), 1..4), first, any::<bool>());
    let [failed, succeeded, panicked] = [const { AtomicUsize::new(0) }; 3];
    let result = TestRunner::new(config).run(&programs, |(programs, first, filtered)| {
        let (executed, told) = run_under_both_layers(&programs, first, filtered);
        let disagreement_found = disagreement(&executed, &told);
        prop_assert!(disagreement_found.is_none(), "{}", disagreement_found.unwrap());
        for pair in told.stages.values() {
            let is_failed = matches!(pair.trace, Some(Status::Error { .. }));
            if is_failed { &failed } else { &succeeded }.fetch_add(1, Ordering::Relaxed);
        }
        panicked.fetch_add(executed.panicked.len(), Ordering::Relaxed);
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
    // Each kind of outcome occurs often: the rarest about 130 times, plus or minus 30.
    let ends = [failed, succeeded, panicked].map(AtomicUsize::into_inner);
    assert!(ends.iter().all(|count| *count > 20), "failed, succeeded, panicked: {ends:?}");
}

#[test]
fn disagreement_is_reported() {
    silence_intended_panics();
    let failing = Node { steps: vec![Step::Event(Target::Current, EventKind::Error)], ..Node::stage() };
    let (executed, mut told) = run_under_both_layers(&[failing], First::Traces, false);
    assert_eq!(disagreement(&executed, &told), None);
    assert_eq!(told.lines(), ["s0 error Error"]);
    told.stages.get_mut("s0").unwrap().trace = Some(Status::Ok);
    assert!(disagreement(&executed, &told).unwrap().starts_with("s0 error Ok"));

    let panicking = Node { steps: vec![Step::Panic], ..Node::stage() };
    let (mut executed, told) = run_under_both_layers(&[panicking], First::Metrics, false);
    assert_eq!((disagreement(&executed, &told), told.lines()), (None, vec!["s0 panic Unset".to_owned()]));
    executed.panicked.clear();
    assert!(disagreement(&executed, &told).is_some(), "a panic the program did not have");
    executed.stages.insert("s1".to_owned());
    assert!(disagreement(&executed, &told).unwrap().starts_with("executed stages"));
}
