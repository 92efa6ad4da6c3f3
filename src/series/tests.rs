//! Tests of the table of series.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

use super::FinishedStage;
use super::interner::{Interner, Role};
use super::outcome::Outcome;
use super::table::SeriesTable;
use crate::recorder::{RecorderHandle, RecorderTarget};

/// A recorder with a barrier for two threads that register series of one metric.
#[derive(Default)]
struct BarrierRecorder {
    is_armed: bool,
    registered: Mutex<HashMap<String, usize>>,
    has_more: Condvar,
}

impl BarrierRecorder {
    fn wait_for_the_other(&self, key: &Key) {
        if !self.is_armed || key.labels().len() == 0 {
            return;
        }
        let mut registered = self.registered.lock().unwrap();
        *registered.entry(key.name().to_owned()).or_default() += 1;
        self.has_more.notify_all();
        let is_alone = |registered: &mut HashMap<String, usize>| registered[key.name()] < 2;
        let (_registered, timeout) =
            self.has_more.wait_timeout_while(registered, Duration::from_secs(30), is_alone).unwrap();
        assert!(!timeout.timed_out(), "one thread alone registers {}", key.name());
    }
}

impl Recorder for BarrierRecorder {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        self.wait_for_the_other(key);
        Counter::noop()
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        self.wait_for_the_other(key);
        Gauge::noop()
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        self.wait_for_the_other(key);
        Histogram::noop()
    }
}

fn series(max_series: usize, is_armed: bool) -> (SeriesTable, Arc<Interner>) {
    let recorder = RecorderTarget::Own(Arc::new(BarrierRecorder { is_armed, ..BarrierRecorder::default() }));
    let recorder = RecorderHandle::new(recorder, "x".to_owned(), true);
    let labels = Arc::new(Interner::new(1_000));
    let table = SeriesTable::new(
        recorder,
        Arc::clone(&labels),
        max_series,
        None,
        #[cfg(feature = "trace-id")]
        None,
        quanta::Clock::new(),
    );
    (table, labels)
}

fn finish(series: &SeriesTable, labels: &Interner, stage: &str, profile: &str, run_id: &str) {
    let finished = FinishedStage {
        stage: labels.intern(Role::Stage, stage),
        profile: labels.intern(Role::Profile, profile),
        run_id: labels.intern(Role::RunId, run_id),
        cached: None,
        outcome: Outcome::Success,
        is_outermost: true,
        nanos: 1,
        ended: 1,
        #[cfg(feature = "trace-id")]
        trace: None,
    };
    series.finish(finished, None);
}

fn totals(series: &SeriesTable, labels: &Interner) -> Vec<(String, u64)> {
    series.totals().map(|(stage, totals)| (labels.text(stage).to_owned(), totals.succeeded)).collect()
}

/// Both threads have seen that the series is absent.
#[test]
fn concurrent_new_label_set_has_one_series() {
    let (series, labels) = series(10, true);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| finish(&series, &labels, "a", "p", "r"));
        }
    });
    assert_eq!(series.lens(), (1, 1, 1));
    assert_eq!(totals(&series, &labels), [("a".to_owned(), 2)]);
}

#[test]
fn runs_beyond_the_limit_share_a_series_per_stage_and_profile() {
    let (series, labels) = series(1, false);
    for run in 0..50 {
        for (stage, profile) in [("a", "p"), ("a", "q"), ("b", "p"), ("b", "q")] {
            finish(&series, &labels, stage, profile, &run.to_string());
        }
    }
    // The first run's series, that of `a` in `p`, of `a` in other profiles, and of other stages.
    assert_eq!(series.lens().2, 4);
    assert_eq!(totals(&series, &labels), [("a".to_owned(), 100), ("_overflow".to_owned(), 100)]);
}
