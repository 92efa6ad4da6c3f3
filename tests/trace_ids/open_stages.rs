//! Trace ids of stages that are open when the run ends.

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

/// Pipelines in both orders, each at the start of a run and after other stages.
fn pipelines() -> impl Iterator<Item = Traced> {
    ORDERS.into_iter().flat_map(|first| {
        [0, 1, 300].into_iter().map(move |before| {
            let traced = Traced::start(first);
            (0..before).for_each(|_| info_span!("x", stage_id = "before").in_scope(|| ()));
            traced
        })
    })
}

/// Asserts that the stage failed once, for this reason, and that report and warning have its exported trace id.
#[track_caller]
fn assert_trace_reported(
    ended: &Ended<()>,
    report: &RunReport,
    spans: &InMemorySpanExporter,
    stage: &str,
    reason: &str,
) {
    let exported = trace_ids(spans, stage);
    assert_eq!(exported.len(), 1);
    assert_eq!(report.stage(stage).unwrap().trace_id(), exported.first().map(String::as_str));
    // The stage `before` succeeded, if it ran.
    assert_eq!(ended.last.failures(), [format!("{stage},,{reason} 1")]);
    let warnings: Vec<_> = ended.heard().into_iter().filter(|line| line.contains(&format!("\"{stage}\""))).collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains(reason) && warnings[0].contains(&format!("trace_id={}", exported[0])), "{warnings:?}");
}

#[test]
fn entered_stage_has_its_trace() {
    for traced in pipelines() {
        let stage = info_span!("x", stage_id = "a").entered();
        let (ended, report, spans) = traced.end();
        drop(stage);
        assert_trace_reported(&ended, &report, &spans, "a", "interrupted");
    }
}

#[test]
fn stage_entered_on_another_thread_has_its_trace() {
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
        assert_trace_reported(&ended, &report, &spans, "a", "interrupted");
    }
}

#[tokio::test]
async fn waiting_task_has_its_trace() {
    for traced in pipelines() {
        let stage = std::future::pending::<()>().instrument(info_span!("x", stage_id = "a"));
        let task = tokio::spawn(stage.with_subscriber(traced.pipeline.dispatch()));
        tokio::task::yield_now().await;
        let (ended, report, spans) = traced.end();
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert_trace_reported(&ended, &report, &spans, "a", "unfinished");
    }
}

#[test]
fn failed_stage_with_kept_handle_has_its_trace() {
    for traced in pipelines() {
        let stage = info_span!("x", stage_id = "a");
        stage.in_scope(|| error!("it broke"));
        let (ended, report, spans) = traced.end();
        drop(stage);
        assert_trace_reported(&ended, &report, &spans, "a", "unfinished");
    }
}

/// The trace is available only if the traces layer cannot be closing the span at this moment.
#[test]
fn stage_never_entered_has_its_trace_if_metrics_come_first() {
    for (first, before, has_trace) in
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
        assert_eq!(report.stage("a").unwrap().trace_id(), exported.first().map(String::as_str).filter(|_| has_trace));
    }
}

/// A span processor that signals each start and then waits for a signal from another thread.
#[derive(Debug)]
struct StartGate {
    is_armed: AtomicBool,
    started: Sender<()>,
    released: Mutex<Receiver<()>>,
    waited: Sender<bool>,
}

#[derive(Debug)]
struct GateProcessor(Arc<StartGate>);

impl SpanProcessor for GateProcessor {
    fn on_start(&self, _: &mut SdkSpan, _: &Context) {
        if self.0.is_armed.load(Ordering::Relaxed) {
            self.0.started.send(()).unwrap();
            let released = self.0.released.lock().unwrap().recv_timeout(Duration::from_millis(50));
            self.0.waited.send(released.is_err()).unwrap();
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

/// Signals each exit and close. Its place is after the metrics layer and before the traces layer.
struct Signaller(Sender<()>);

impl<S: Subscriber> Layer<S> for Signaller {
    fn on_exit(&self, _: &Id, _: layer::Context<'_, S>) {
        let _ = self.0.send(());
    }

    fn on_close(&self, _: Id, _: layer::Context<'_, S>) {
        let _ = self.0.send(());
    }
}

/// The traces layer panics on a query for a span that is gone.
#[test]
fn exit_and_close_wait_for_a_trace_query() {
    for is_entered in [false, true] {
        let ((started, has_started), (release, released), (waits, waited)) = (channel(), channel(), channel());
        let (report, reported) = channel();
        let configured = MetricsLayer::builder().with_run_report(move |taken| report.send(taken).unwrap());
        let (layer, guard) = configured.build().unwrap();
        let [gate, processor] = shared(StartGate {
            is_armed: AtomicBool::new(false),
            started,
            released: Mutex::new(released),
            waited: waits,
        });
        let provider = SdkTracerProvider::builder().with_span_processor(GateProcessor(processor)).build();
        // Without context activation, an entered span has not started yet.
        let traces = OpenTelemetryLayer::new(provider.tracer("test")).with_context_activation(false);
        let dispatch = Dispatch::new(Registry::default().with(layer).with(Signaller(release)).with(traces));
        let _default = dispatcher::set_default(&dispatch);
        drop(info_span!("x", stage_id = "before"));
        let is_left = gate.released.lock().unwrap().try_iter().count();
        assert_eq!(is_left, 1, "the first stage has closed");

        let stage = info_span!("x", stage_id = "a");
        gate.is_armed.store(true, Ordering::Relaxed);
        let (opened, is_open) = channel();
        let thread = std::thread::spawn(move || {
            let stage = if is_entered { Ok(stage.entered()) } else { Err(stage) };
            opened.send(()).unwrap();
            has_started.recv().unwrap();
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

/// The traces layer may panic on the querying or the closing thread. Each stage is counted once, or not at all if it
/// opened after the end.
#[test]
fn stages_closing_at_the_end_are_counted_at_most_once() {
    for round in 0..100 {
        let (report, reported) = channel();
        let configured = MetricsLayer::builder().with_run_report(move |taken| report.send(taken).unwrap());
        let (layer, guard) = configured.build().unwrap();
        let traces = OpenTelemetryLayer::new(tracer(Sampler::AlwaysOn).0).boxed();
        let [inner, outer] = if round % 2 == 0 { [traces, layer.boxed()] } else { [layer.boxed(), traces] };
        let dispatch = Dispatch::new(Registry::default().with(inner.and_then(outer)));
        let [begin, may_begin] = shared(Barrier::new(3));
        let [state, state_of_threads] = shared(AtomicU8::new(RUNNING));
        let threads: Vec<_> = (0..2)
            .map(|thread| {
                let (begin, state, dispatch) = (may_begin.clone(), state_of_threads.clone(), dispatch.clone());
                std::thread::spawn(move || {
                    let _default = dispatcher::set_default(&dispatch);
                    // Stages of this thread: all, those closed before the end began, and those opened after it.
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
