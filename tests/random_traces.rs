//! Random programs of spans, in trees, threads and tasks, through `tracing-opentelemetry` and this layer at once: both
//! must say the same of every stage span, but for a panic, which a trace does not know.
#![cfg(feature = "pushgateway")]
// Clippy's exemption for tests reaches `#[test]` functions only, not the functions they share.
#![allow(clippy::print_stderr, clippy::unwrap_used)]

mod support;
#[path = "support/traces.rs"]
mod traces;

#[path = "random_traces/futures.rs"]
mod futures;
#[path = "random_traces/program.rs"]
mod program;
#[path = "random_traces/world.rs"]
mod world;

use std::sync::atomic::{AtomicUsize, Ordering};

use opentelemetry::trace::Status;
use program::{Node, Said, Step, Target, node};
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};
use traces::{First, Outcomes, Setup};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;
use world::Ran;

/// Runs the programs under both layers; `filtered`: both are shown nothing below INFO.
fn really(programs: &[Node], first: First, filtered: bool) -> (Ran, Outcomes) {
    let mut setup = Setup::new(first);
    if filtered {
        setup = setup.with_traces(|traces| traces.with_filter(LevelFilter::INFO).boxed());
        setup = setup.with_metrics(|metrics| metrics.with_filter(LevelFilter::INFO).boxed());
    }
    let beside = setup.start();
    let ran = world::run(programs, filtered);
    (ran, beside.outcomes())
}

/// What of it is wrong.
fn disagreement(ran: &Ran, told: &Outcomes) -> Option<String> {
    if told.stages.keys().ne(ran.stages.iter()) {
        return Some(format!("these stages ran: {:?}, these were told: {:?}", ran.stages, told.lines()));
    }
    told.stages.iter().find_map(|(stage, pair)| {
        let panicked = pair.metric.as_deref() == Some("panic") && pair.trace.is_some();
        let right = if ran.panicked.contains(stage) { panicked } else { pair.agrees() };
        (!right).then(|| format!("{stage} {pair}, of {:?}", told.lines()))
    })
}

fn quiet_about_panics_on_purpose() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !info.payload().is::<world::OnPurpose>() {
            hook(info);
        }
    }));
}

#[test]
fn random_programs_have_the_same_statuses_and_durations_in_both() {
    quiet_about_panics_on_purpose();
    let config = Config {
        source_file: Some(file!()),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        ..Config::with_cases(400)
    };
    let first = prop_oneof![Just(First::Traces), Just(First::Metrics)];
    let programs = (prop::collection::vec(node(), 1..4), first, any::<bool>());
    let [red, green, panicked] = [const { AtomicUsize::new(0) }; 3];
    let result = TestRunner::new(config).run(&programs, |(programs, first, filtered)| {
        let (ran, told) = really(&programs, first, filtered);
        let wrong = disagreement(&ran, &told);
        prop_assert!(wrong.is_none(), "{}", wrong.unwrap());
        for pair in told.stages.values() {
            let is_red = matches!(pair.trace, Some(Status::Error { .. }));
            if is_red { &red } else { &green }.fetch_add(1, Ordering::Relaxed);
        }
        panicked.fetch_add(ran.panicked.len(), Ordering::Relaxed);
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
    // The programs are worth running: each kind of end comes up often. The rarest some 130 times, give or take 30.
    let ends = [red, green, panicked].map(AtomicUsize::into_inner);
    assert!(ends.iter().all(|count| *count > 20), "red, green, panicked: {ends:?}");
}

#[test]
fn a_disagreement_is_found() {
    quiet_about_panics_on_purpose();
    let failing = Node { steps: vec![Step::Say(Target::Current, Said::Error)], ..Node::stage() };
    let (ran, mut told) = really(&[failing], First::Traces, false);
    assert_eq!(disagreement(&ran, &told), None);
    assert_eq!(told.lines(), ["s0 error Error"]);
    told.stages.get_mut("s0").unwrap().trace = Some(Status::Ok);
    assert!(disagreement(&ran, &told).unwrap().starts_with("s0 error Ok"));

    let panicking = Node { steps: vec![Step::Panic], ..Node::stage() };
    let (mut ran, told) = really(&[panicking], First::Metrics, false);
    assert_eq!((disagreement(&ran, &told), told.lines()), (None, vec!["s0 panic Unset".to_owned()]));
    ran.panicked.clear();
    assert!(disagreement(&ran, &told).is_some(), "a panic that is none");
    ran.stages.insert("s1".to_owned());
    assert!(disagreement(&ran, &told).unwrap().starts_with("these stages ran"));
}
