//! Stages that are open when the run ends.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::channel;

use opentelemetry_sdk::trace::{InMemorySpanExporter, Sampler};
use tracing::instrument::WithSubscriber;
use tracing::{Dispatch, Instrument, dispatcher, error, info_span};
use tracing_opentelemetry::OpenTelemetryLayer;
use tracing_stage_metrics::{MetricsLayer, RunReport};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, Registry};

use super::{First, ORDERS, Traced, shared, trace_ids, tracer};
use crate::support::pipeline::Ended;

/// In both orders; at the beginning of a run, and when stages have gone before.
fn pipelines() -> impl Iterator<Item = Traced> {
    ORDERS.into_iter().flat_map(pipelines_in)
}

fn pipelines_in(first: First) -> impl Iterator<Item = Traced> {
    [0, 1, 300].into_iter().map(move |before| {
        let traced = Traced::start(first);
        (0..before).for_each(|_| info_span!("x", stage_id = "before").in_scope(|| ()));
        traced
    })
}

/// The stage must have failed once, for this reason, and be reported with the trace it is exported with.
#[track_caller]
fn known(ended: &Ended<()>, report: &RunReport, spans: &InMemorySpanExporter, stage: &str, reason: &str) {
    let exported = trace_ids(spans, stage);
    assert_eq!(exported.len(), 1);
    assert_eq!(report.stage(stage).unwrap().trace_id(), exported.first().map(String::as_str));
    // `before` went well, where it ran.
    assert_eq!(ended.last.failures(), [format!("{stage},,{reason} 1")]);
    let told: Vec<_> = ended.heard().into_iter().filter(|line| line.contains(&format!("\"{stage}\""))).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains(reason) && told[0].contains(&format!("trace_id={}", exported[0])), "{told:?}");
}

#[test]
fn one_that_is_entered() {
    for traced in pipelines_in(First::Traces) {
        let stage = info_span!("x", stage_id = "a").entered();
        let (ended, report, spans) = traced.end();
        drop(stage);
        known(&ended, &report, &spans, "a", "interrupted");
    }
}

#[test]
fn one_that_is_entered_on_another_thread() {
    for traced in pipelines_in(First::Traces) {
        let (entered, is_entered) = channel();
        let (leave, may_leave) = channel::<()>();
        let dispatch = traced.pipeline.dispatch();
        let thread = std::thread::spawn(move || {
            let _default = dispatcher::set_default(&dispatch);
            info_span!("x", stage_id = "a").in_scope(|| {
                entered.send(()).unwrap();
                may_leave.recv().unwrap();
            });
        });
        is_entered.recv().unwrap();
        let (ended, report, spans) = traced.end();
        leave.send(()).unwrap();
        thread.join().unwrap();
        known(&ended, &report, &spans, "a", "interrupted");
    }
}

/// Its own trace is current once it is entered, after the metrics were told of the enter.
#[test]
fn entered_stage_is_in_the_enclosing_trace_where_metrics_come_first() {
    for traced in pipelines_in(First::Metrics) {
        let pipeline = info_span!("x", stage_id = "pipeline").entered();
        let stage = info_span!("x", stage_id = "a").entered();
        let (ended, report, spans) = traced.end();
        drop(stage);
        drop(pipeline);
        assert_eq!(ended.last.failures(), ["a,,interrupted 1", "pipeline,,interrupted 1"]);
        assert_eq!(report.stage("pipeline").unwrap().trace_id(), None);
        let exported = trace_ids(&spans, "pipeline");
        assert_eq!((exported.len(), &exported), (1, &trace_ids(&spans, "a")));
        assert_eq!(report.stage("a").unwrap().trace_id(), Some(&*exported[0]));
    }
}

#[tokio::test]
async fn a_task_that_waits() {
    for traced in pipelines() {
        let stage = std::future::pending::<()>().instrument(info_span!("x", stage_id = "a"));
        let task = tokio::spawn(stage.with_subscriber(traced.pipeline.dispatch()));
        tokio::task::yield_now().await;
        let (ended, report, spans) = traced.end();
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        known(&ended, &report, &spans, "a", "unfinished");
    }
}

#[test]
fn one_that_is_kept_and_has_failed() {
    for traced in pipelines() {
        let stage = info_span!("x", stage_id = "a");
        stage.in_scope(|| error!("it broke"));
        let (ended, report, spans) = traced.end();
        drop(stage);
        known(&ended, &report, &spans, "a", "unfinished");
    }
}

#[test]
fn one_that_was_never_entered() {
    for traced in pipelines() {
        let stage = info_span!("x", stage_id = "a");
        let (ended, report, _) = traced.end();
        drop(stage);
        assert_eq!(ended.last.failures(), ["a,,unfinished 1"]);
        assert_eq!(report.stage("a").unwrap().trace_id(), None);
    }
}

/// The layer of the traces panics on the thread that asks, or on the one that closes. Each stage is counted once, or not
/// at all where it opened after the end.
#[test]
fn stages_that_close_while_the_run_ends() {
    for round in 0..100 {
        let (report, reported) = channel();
        let configured = MetricsLayer::builder().with_run_report(move |taken| report.send(taken).unwrap());
        let (layer, guard) = configured.build().unwrap();
        let traces = OpenTelemetryLayer::new(tracer(Sampler::AlwaysOn).0).boxed();
        let [one, other] = if round % 2 == 0 { [traces, layer.boxed()] } else { [layer.boxed(), traces] };
        let dispatch = Dispatch::new(Registry::default().with(one.and_then(other)));
        let [begin, may_begin] = shared(Barrier::new(3));
        let [state, state_of_threads] = shared(AtomicU8::new(RUNNING));
        let threads: Vec<_> = (0..2)
            .map(|thread| {
                let (begin, state, dispatch) = (may_begin.clone(), state_of_threads.clone(), dispatch.clone());
                std::thread::spawn(move || {
                    let _default = dispatcher::set_default(&dispatch);
                    // All of this thread, those that closed before the end began, and those that opened after it.
                    let (mut run, mut before, mut after) = (0, 0, 0);
                    loop {
                        let is_after = state.load(Ordering::SeqCst) == ENDED;
                        stage_that_closes(thread, run);
                        run += 1;
                        before += usize::from(state.load(Ordering::SeqCst) == RUNNING);
                        after += usize::from(is_after);
                        if run == 1 {
                            begin.wait();
                        }
                        if is_after {
                            return (run, before, after);
                        }
                    }
                })
            })
            .collect();
        begin.wait();
        state.store(ENDING, Ordering::SeqCst);
        guard.shutdown().unwrap();
        state.store(ENDED, Ordering::SeqCst);
        let report = reported.recv().unwrap();
        for (thread, joined) in threads.into_iter().enumerate() {
            let (run, before, after) = joined.join().unwrap();
            let stage = report.stage(&thread.to_string()).unwrap();
            assert!((before..=run - after).contains(&(stage.runs() as usize)), "{before} {stage:?} {run} {after}");
            assert_eq!((before >= 1, after, stage.open()), (true, 1, 0));
        }
    }
}

const RUNNING: u8 = 0;
const ENDING: u8 = 1;
const ENDED: u8 = 2;

fn stage_that_closes(stage_id: usize, n: usize) {
    let stage = info_span!("x", stage_id);
    match (n + stage_id) % 3 {
        0 => stage.in_scope(|| ()),
        1 => stage.in_scope(|| error!("it broke")),
        _ => {}
    }
    let child = info_span!(parent: &stage, "child");
    drop(stage);
    drop(child);
}
