//! Stages that are open when the run ends.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{InMemorySpanExporter, Sampler, SdkTracerProvider, Span as SdkSpan};
use opentelemetry_sdk::trace::{SpanData, SpanProcessor};
use tracing::instrument::WithSubscriber;
use tracing::{Dispatch, Id, Instrument, Subscriber, dispatcher, error, info_span};
use tracing_opentelemetry::OpenTelemetryLayer;
use tracing_stage_metrics::{MetricsLayer, RunReport};
use tracing_subscriber::layer::{self, SubscriberExt};
use tracing_subscriber::{Layer, Registry};

use super::{First, ORDERS, Traced, shared, trace_ids, tracer};
use crate::support::pipeline::Ended;

/// In both orders; at the beginning of a run, and when stages have gone before.
fn pipelines() -> impl Iterator<Item = Traced> {
    ORDERS.into_iter().flat_map(|first| {
        [0, 1, 300].into_iter().map(move |before| {
            let traced = Traced::start(first);
            (0..before).for_each(|_| info_span!("x", stage_id = "before").in_scope(|| ()));
            traced
        })
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
    for traced in pipelines() {
        let stage = info_span!("x", stage_id = "a").entered();
        let (ended, report, spans) = traced.end();
        drop(stage);
        known(&ended, &report, &spans, "a", "interrupted");
    }
}

#[test]
fn one_that_is_entered_on_another_thread() {
    for traced in pipelines() {
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

/// It can be asked for only where it is certain that it is not being closed to the traces at this moment.
#[test]
fn one_that_was_never_entered() {
    for (first, before, is_known) in
        [(First::Traces, true, false), (First::Metrics, true, true), (First::Traces, false, false)]
    {
        let traced = Traced::start(first);
        if before {
            info_span!("x", stage_id = "before").in_scope(|| ());
        }
        let stage = info_span!("x", stage_id = "a");
        let (ended, report, spans) = traced.end();
        drop(stage);
        assert_eq!(ended.last.failures(), ["a,,unfinished 1"]);
        let exported = trace_ids(&spans, "a");
        assert_eq!(report.stage("a").unwrap().trace_id(), exported.first().map(String::as_str).filter(|_| is_known));
    }
}

/// Tells when it is inside the SDK, and waits there to be told that something has gone on meanwhile.
#[derive(Debug)]
struct Starting {
    is_asked: AtomicBool,
    asking: Sender<()>,
    gone_on: Mutex<Receiver<()>>,
    waited: Sender<bool>,
}

#[derive(Debug)]
struct Shared(Arc<Starting>);

impl SpanProcessor for Shared {
    fn on_start(&self, _: &mut SdkSpan, _: &Context) {
        if self.0.is_asked.load(Ordering::Relaxed) {
            self.0.asking.send(()).unwrap();
            let gone_on = self.0.gone_on.lock().unwrap().recv_timeout(Duration::from_millis(50));
            self.0.waited.send(gone_on.is_err()).unwrap();
        }
    }

    fn on_end(&self, _: SpanData) {}

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Tells when a span is left, or closed. It is told after the metrics and before the traces.
struct Between(Sender<()>);

impl<S: Subscriber> Layer<S> for Between {
    fn on_exit(&self, _: &Id, _: layer::Context<'_, S>) {
        let _ = self.0.send(());
    }

    fn on_close(&self, _: Id, _: layer::Context<'_, S>) {
        let _ = self.0.send(());
    }
}

/// The layer of the traces panics when it is asked for a span that is no more.
#[test]
fn who_leaves_or_closes_a_stage_waits_while_it_is_asked_for() {
    for is_entered in [false, true] {
        let ((asking, is_asking), (go_on, gone_on), (waits, waited)) = (channel(), channel(), channel());
        let (report, reported) = channel();
        let configured = MetricsLayer::builder().with_run_report(move |taken| report.send(taken).unwrap());
        let (layer, guard) = configured.build().unwrap();
        let [starting, processor] =
            shared(Starting { is_asked: AtomicBool::new(false), asking, gone_on: Mutex::new(gone_on), waited: waits });
        let provider = SdkTracerProvider::builder().with_span_processor(Shared(processor)).build();
        // Without activation a span that is entered has not started yet.
        let traces = OpenTelemetryLayer::new(provider.tracer("test")).with_context_activation(false);
        let dispatch = Dispatch::new(Registry::default().with(layer).with(Between(go_on)).with(traces));
        let _default = dispatcher::set_default(&dispatch);
        drop(info_span!("x", stage_id = "before"));
        let is_left = starting.gone_on.lock().unwrap().try_iter().count();
        assert_eq!(is_left, 1, "the stage before has closed");

        let stage = info_span!("x", stage_id = "a");
        starting.is_asked.store(true, Ordering::Relaxed);
        let (opened, is_open) = channel();
        let thread = std::thread::spawn(move || {
            let stage = if is_entered { Ok(stage.entered()) } else { Err(stage) };
            opened.send(()).unwrap();
            is_asking.recv().unwrap();
            drop(stage);
        });
        is_open.recv().unwrap();
        guard.shutdown().unwrap();
        assert_eq!(waited.recv(), Ok(true), "{is_entered}");
        thread.join().unwrap();
        let stages: Vec<_> =
            reported.recv().unwrap().stages().map(|s| (s.stage_id().to_owned(), s.runs(), s.failures())).collect();
        assert_eq!(stages, [("before".to_owned(), 1, 0), ("a".to_owned(), 1, 1)]);
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
