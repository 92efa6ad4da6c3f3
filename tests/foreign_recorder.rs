//! The layer with a foreign recorder, through the `metrics` facade.

// Clippy's exemption for tests reaches `#[test]` functions only, not the functions they share.
#![allow(clippy::unwrap_used)]

#[path = "foreign_recorder/concurrent_gauges.rs"]
mod concurrent_gauges;
#[cfg(feature = "pushgateway")]
#[path = "foreign_recorder/exposition.rs"]
mod exposition;
#[path = "foreign_recorder/memory_recorder.rs"]
mod memory_recorder;
#[cfg(feature = "pushgateway")]
mod support;
#[path = "foreign_recorder/tracing_recorder.rs"]
mod tracing_recorder;

use std::fmt::Debug;
use std::sync::{Arc, Barrier, Mutex};

use memory_recorder::MemoryRecorder;
use metrics::Recorder;
use tracing::field::{Empty, Field};
use tracing::subscriber::with_default;
use tracing::{Dispatch, Event, Subscriber, dispatcher, error, info_span};
use tracing_stage_metrics::MetricsLayer;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::{Layer, Registry};

/// Runs the closure under the layer alone, which records into `recorder`.
fn under(recorder: &dyn Recorder, run: impl FnOnce()) {
    metrics::with_local_recorder(recorder, || with_default(Registry::default().with(MetricsLayer::new()), run));
}

#[test]
fn stages_have_names_labels_and_values_of_the_schema() {
    let recorder = MemoryRecorder::default();
    under(&recorder, || {
        info_span!("pipeline", profile = "p", run_id = "r").in_scope(|| {
            info_span!("x", stage_id = "a").in_scope(|| ());
            info_span!("x", stage_id = "a").in_scope(|| error!("it broke"));
        });
    });
    assert_eq!(
        recorder.counters(),
        [
            "quant_stage_failures_total{stage_id=a,profile=p,reason=error} 1",
            "quant_stage_total{stage_id=a,status=failure} 1",
            "quant_stage_total{stage_id=a,status=success} 1",
            "quant_telemetry_overflow_total{} 0",
        ]
    );
    let durations = recorder.durations("quant_stage_duration_seconds{stage_id=a,profile=p,run_id=r}");
    assert_eq!(durations.len(), 2);
    assert!(durations.iter().all(|seconds| (0.0..60.0).contains(seconds)), "{durations:?}");
    assert_eq!(recorder.gauge("quant_stage_active{stage_id=a,profile=p}"), Some(0.0));
    assert_eq!(recorder.gauge("quant_stage_last_duration_seconds{stage_id=a,profile=p}"), Some(durations[1]));
    let success = recorder.gauge("quant_stage_last_success_timestamp_seconds{stage_id=a,profile=p}").unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((now - 60.0..=now + 0.01).contains(&success), "{success} {now}");
}

#[test]
fn last_success_appears_after_a_success() {
    let recorder = MemoryRecorder::default();
    under(&recorder, || info_span!("x", stage_id = "a").in_scope(|| error!("it broke")));
    assert_eq!(recorder.gauge("quant_stage_last_success_timestamp_seconds{stage_id=a,profile=}"), None);
    assert!(recorder.gauge("quant_stage_last_duration_seconds{stage_id=a,profile=}").is_some());
}

#[test]
fn both_statuses_exist_from_the_first_span_of_a_stage() {
    let recorder = MemoryRecorder::default();
    under(&recorder, || {
        let open = info_span!("x", stage_id = "a");
        assert_eq!(
            recorder.counters(),
            [
                "quant_stage_failures_total{stage_id=a,profile=,reason=error} 0",
                "quant_stage_total{stage_id=a,status=failure} 0",
                "quant_stage_total{stage_id=a,status=success} 0",
                "quant_telemetry_overflow_total{} 0",
            ]
        );
        drop(open);
    });
}

#[test]
fn metrics_are_described_once() {
    let recorder = MemoryRecorder::default();
    under(&recorder, || {
        for stage in 0..10 {
            info_span!("x", stage_id = stage).in_scope(|| ());
        }
    });
    let described = recorder.described();
    for (name, kind, unit) in [
        ("quant_stage_duration_seconds", "histogram", "seconds"),
        ("quant_stage_total", "counter", "count"),
        ("quant_stage_active", "gauge", "count"),
        ("quant_stage_failures_total", "counter", "count"),
        ("quant_stage_last_duration_seconds", "gauge", "seconds"),
        ("quant_stage_last_success_timestamp_seconds", "gauge", "seconds"),
        ("quant_telemetry_overflow_total", "counter", "count"),
    ] {
        let descriptions: Vec<_> = described.iter().filter(|(metric, ..)| metric == name).collect();
        assert_eq!(descriptions.len(), 1, "{name}: {descriptions:?}");
        assert_eq!((descriptions[0].1, descriptions[0].2.as_str()), (kind, unit), "{name}");
        assert!(descriptions[0].3.ends_with('.'), "{name} has a help text: {}", descriptions[0].3);
    }
}

#[test]
fn active_gauge_follows_late_records() {
    let active = |recorder: &MemoryRecorder| recorder.nonzero_gauges("quant_stage_active");
    let recorder = MemoryRecorder::default();
    under(&recorder, || {
        let root = info_span!("pipeline", profile = Empty).entered();
        let (a, b) = (info_span!("x", stage_id = "a"), info_span!("x", stage_id = Empty, profile = "own"));
        assert_eq!(active(&recorder), ["quant_stage_active{stage_id=a,profile=} 1"]);
        b.record("stage_id", "a");
        assert_eq!(
            active(&recorder),
            ["quant_stage_active{stage_id=a,profile=own} 1", "quant_stage_active{stage_id=a,profile=} 1"]
        );
        root.record("profile", "own");
        assert_eq!(active(&recorder), ["quant_stage_active{stage_id=a,profile=own} 2"]);
        a.record("profile", "not declared");
        b.record("stage_id", "b");
        assert_eq!(
            active(&recorder),
            ["quant_stage_active{stage_id=a,profile=own} 1", "quant_stage_active{stage_id=b,profile=own} 1"]
        );
        drop(a);
        assert_eq!(active(&recorder), ["quant_stage_active{stage_id=b,profile=own} 1"]);
        let helper = info_span!(parent: &b, "helper", stage_id = Empty);
        helper.record("stage_id", "c");
        helper.record("stage_id", "b");
        assert_eq!(active(&recorder), ["quant_stage_active{stage_id=b,profile=own} 1"]);
        drop((helper, b));
        assert!(active(&recorder).is_empty());
        drop(root);
    });
}

/// A late record updates the gauge of all open stages while they close on other threads.
#[test]
fn active_gauge_is_exact_under_threads() {
    const THREADS: usize = 4;
    let recorder = MemoryRecorder::default();
    let dispatch = Dispatch::new(Registry::default().with(MetricsLayer::new()));
    let bind = || dispatcher::with_default(&dispatch, || drop(info_span!("x", stage_id = "first")));
    metrics::with_local_recorder(&recorder, bind);
    let start = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (dispatch, start, recorder) = (&dispatch, &start, &recorder);
            let run = move || {
                for n in 0..5_000 {
                    let span = info_span!("x", stage_id = n % 3, profile = Empty);
                    if n % 2 == thread % 2 {
                        span.record("profile", n % 5);
                    }
                    span.in_scope(|| ());
                }
            };
            scope.spawn(move || {
                start.wait();
                metrics::with_local_recorder(recorder, || dispatcher::with_default(dispatch, run));
            });
        }
    });
    assert_eq!(recorder.nonzero_gauges("quant_stage_active"), Vec::<String>::new());
    let counted: u64 =
        recorder.counters().iter().filter(|line| line.contains("status=success")).map(|line| count(line)).sum();
    assert_eq!(counted, 1 + 4 * 5_000);
}

fn count(line: &str) -> u64 {
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

/// A layer that stores the target and the message of every event.
#[derive(Clone, Default)]
struct Events(Arc<Mutex<Vec<(String, String)>>>);

impl<S: Subscriber> Layer<S> for Events {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut message = String::new();
        event.record(&mut |_: &Field, value: &dyn Debug| message = format!("{value:?}"));
        self.0.lock().unwrap().push((event.metadata().target().to_owned(), message));
    }
}

/// The application's log has its own events and none of the crate.
#[test]
fn stages_without_a_recorder_emit_no_events() {
    let events = Events::default();
    metrics::with_local_recorder(&metrics::NoopRecorder, || {
        with_default(Registry::default().with(MetricsLayer::new()).with(events.clone()), || {
            for _ in 0..100 {
                let span = info_span!("x", stage_id = "a", profile = Empty);
                span.record("profile", "late");
                span.in_scope(|| error!("it broke"));
            }
            let open = info_span!("x", stage_id = "open").entered();
            drop(open);
        });
    });
    let event = (module_path!().to_owned(), "it broke".to_owned());
    assert_eq!(*events.0.lock().unwrap(), vec![event; 100]);
}
