//! The layer over a recorder that is not the crate's own, through the `metrics` facade.

// Clippy's exemption for tests reaches `#[test]` functions only, not the functions they share.
#![allow(clippy::unwrap_used)]

#[path = "foreign_recorder/book.rs"]
mod book;
#[cfg(feature = "pushgateway")]
#[path = "foreign_recorder/exposition.rs"]
mod exposition;
#[path = "foreign_recorder/loud.rs"]
mod loud;
#[path = "foreign_recorder/meeting.rs"]
mod meeting;
#[cfg(feature = "pushgateway")]
mod support;

use std::fmt::Debug;
use std::sync::{Arc, Barrier, Mutex};

use book::Book;
use metrics::Recorder;
use tracing::field::{Empty, Field};
use tracing::subscriber::with_default;
use tracing::{Dispatch, Event, Subscriber, dispatcher, error, info_span};
use tracing_stage_metrics::MetricsLayer;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::{Layer, Registry};

/// Runs it under the layer alone, which records into this book.
fn under(book: &Book, run: impl FnOnce()) {
    under_recorder(book, run);
}

fn under_recorder(recorder: &dyn Recorder, run: impl FnOnce()) {
    metrics::with_local_recorder(recorder, || with_default(Registry::default().with(MetricsLayer::new()), run));
}

#[test]
fn names_labels_and_values() {
    let book = Book::default();
    under(&book, || {
        info_span!("pipeline", profile = "p", run_id = "r").in_scope(|| {
            info_span!("x", stage_id = "a").in_scope(|| ());
            info_span!("x", stage_id = "a").in_scope(|| error!("it broke"));
        });
    });
    assert_eq!(
        book.counters(),
        [
            "quant_stage_failures_total{stage_id=a,profile=p,reason=error} 1",
            "quant_stage_total{stage_id=a,status=failure} 1",
            "quant_stage_total{stage_id=a,status=success} 1",
            "quant_telemetry_overflow_total{} 0",
        ]
    );
    let durations = book.durations("quant_stage_duration_seconds{stage_id=a,profile=p,run_id=r}");
    assert_eq!(durations.len(), 2);
    assert!(durations.iter().all(|seconds| (0.0..60.0).contains(seconds)), "{durations:?}");
    assert_eq!(book.gauge("quant_stage_active{stage_id=a,profile=p}"), Some(0.0));
    assert_eq!(book.gauge("quant_stage_last_duration_seconds{stage_id=a,profile=p}"), Some(durations[1]));
    let success = book.gauge("quant_stage_last_success_timestamp_seconds{stage_id=a,profile=p}").unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((now - 60.0..=now + 0.01).contains(&success), "{success} {now}");
}

#[test]
fn there_is_a_last_success_only_after_a_success() {
    let book = Book::default();
    under(&book, || info_span!("x", stage_id = "a").in_scope(|| error!("it broke")));
    assert_eq!(book.gauge("quant_stage_last_success_timestamp_seconds{stage_id=a,profile=}"), None);
    assert!(book.gauge("quant_stage_last_duration_seconds{stage_id=a,profile=}").is_some());
}

#[test]
fn both_statuses_exist_as_soon_as_the_stage_is_known() {
    let book = Book::default();
    under(&book, || {
        let open = info_span!("x", stage_id = "a");
        assert_eq!(
            book.counters(),
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
fn each_metric_is_described_once() {
    let book = Book::default();
    under(&book, || {
        for stage in 0..10 {
            info_span!("x", stage_id = stage).in_scope(|| ());
        }
    });
    let described = book.described();
    for (name, kind, unit) in [
        ("quant_stage_duration_seconds", "histogram", "seconds"),
        ("quant_stage_total", "counter", "count"),
        ("quant_stage_active", "gauge", "count"),
        ("quant_stage_failures_total", "counter", "count"),
        ("quant_stage_last_duration_seconds", "gauge", "seconds"),
        ("quant_stage_last_success_timestamp_seconds", "gauge", "seconds"),
        ("quant_telemetry_overflow_total", "counter", "count"),
    ] {
        let found: Vec<_> = described.iter().filter(|(of, ..)| of == name).collect();
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        assert_eq!((found[0].1, found[0].2.as_str()), (kind, unit), "{name}");
        assert!(found[0].3.ends_with('.'), "{name} has a help text: {}", found[0].3);
    }
}

#[test]
fn the_active_gauge_goes_up_and_down_and_moves() {
    let active = |book: &Book| book.nonzero_gauges("quant_stage_active");
    let book = Book::default();
    under(&book, || {
        let root = info_span!("pipeline", profile = Empty).entered();
        let (one, two) = (info_span!("x", stage_id = "a"), info_span!("x", stage_id = Empty, profile = "own"));
        assert_eq!(active(&book), ["quant_stage_active{stage_id=a,profile=} 1"]);
        two.record("stage_id", "a");
        assert_eq!(
            active(&book),
            ["quant_stage_active{stage_id=a,profile=own} 1", "quant_stage_active{stage_id=a,profile=} 1"]
        );
        root.record("profile", "own");
        assert_eq!(active(&book), ["quant_stage_active{stage_id=a,profile=own} 2"]);
        one.record("profile", "not declared");
        two.record("stage_id", "b");
        assert_eq!(
            active(&book),
            ["quant_stage_active{stage_id=a,profile=own} 1", "quant_stage_active{stage_id=b,profile=own} 1"]
        );
        drop(one);
        assert_eq!(active(&book), ["quant_stage_active{stage_id=b,profile=own} 1"]);
        let helper = info_span!(parent: &two, "helper", stage_id = Empty);
        helper.record("stage_id", "c");
        helper.record("stage_id", "b");
        assert_eq!(active(&book), ["quant_stage_active{stage_id=b,profile=own} 1"]);
        drop((helper, two));
        assert!(active(&book).is_empty());
        drop(root);
    });
}

/// A late value is looked up for all open stages, while they close on other threads.
#[test]
fn the_active_gauge_is_exact_under_threads() {
    const THREADS: usize = 4;
    let book = Book::default();
    let dispatch = Dispatch::new(Registry::default().with(MetricsLayer::new()));
    let bind = || dispatcher::with_default(&dispatch, || drop(info_span!("x", stage_id = "first")));
    metrics::with_local_recorder(&book, bind);
    let start = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (dispatch, start, book) = (&dispatch, &start, &book);
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
                metrics::with_local_recorder(book, || dispatcher::with_default(dispatch, run));
            });
        }
    });
    assert_eq!(book.nonzero_gauges("quant_stage_active"), Vec::<String>::new());
    let counted: u64 =
        book.counters().iter().filter(|line| line.contains("status=success")).map(|line| count(line)).sum();
    assert_eq!(counted, 1 + 4 * 5_000);
}

fn count(line: &str) -> u64 {
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

/// A layer that keeps the target and the message of every event.
#[derive(Clone, Default)]
struct Events(Arc<Mutex<Vec<(String, String)>>>);

impl<S: Subscriber> Layer<S> for Events {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut message = String::new();
        event.record(&mut |_: &Field, value: &dyn Debug| message = format!("{value:?}"));
        self.0.lock().unwrap().push((event.metadata().target().to_owned(), message));
    }
}

/// The application's log has what it always had, and nothing of the crate.
#[test]
fn without_any_recorder_stages_go_by_in_silence() {
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
    let own = (module_path!().to_owned(), "it broke".to_owned());
    assert_eq!(*events.0.lock().unwrap(), vec![own; 100]);
}
