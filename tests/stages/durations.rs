//! Durations: from the creation of the span to its last exit.

use std::time::{Duration, Instant};

use tracing::info_span;

use super::Pipeline;

const PAUSE: Duration = Duration::from_millis(30);

/// Busy-waits; returns the elapsed seconds.
fn busy_wait() -> f64 {
    let start = Instant::now();
    while start.elapsed() < PAUSE {
        std::hint::spin_loop();
    }
    start.elapsed().as_secs_f64()
}

/// Runs the closure; returns its duration by the test's own clock.
fn timed(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64()
}

/// Asserts that a measured duration is between two of the test's own clock. The layer's clock is calibrated against the
/// system's for about a millisecond, and less exactly on a busy machine.
#[track_caller]
fn assert_between(min: f64, seconds: f64, max: f64) {
    assert!((0.98 * min..=1.02 * max).contains(&seconds), "{min} {seconds} {max}");
}

#[test]
fn duration_starts_at_creation() {
    let pipeline = Pipeline::start();
    let mut before = 0.0;
    let whole = timed(|| {
        let span = info_span!("x", stage_id = "a");
        before = busy_wait();
        span.in_scope(|| ());
    });
    assert_between(before, pipeline.now().seconds("a"), whole);
}

#[test]
fn duration_ends_at_the_last_exit_despite_kept_handles() {
    let pipeline = Pipeline::start();
    let mut until_exit = 0.0;
    let mut span = tracing::Span::none();
    until_exit += timed(|| {
        span = info_span!("x", stage_id = "a");
        span.in_scope(busy_wait);
    });
    let (kept, child) = (span.clone(), info_span!(parent: &span, "detached"));
    busy_wait();
    drop(span);
    busy_wait();
    drop((kept, child));
    assert_between(PAUSE.as_secs_f64(), pipeline.now().seconds("a"), until_exit);
}

#[test]
fn duration_ends_at_the_last_of_several_exits() {
    let pipeline = Pipeline::start();
    let mut min = 0.0;
    let start = Instant::now();
    let span = info_span!("x", stage_id = "a");
    for _ in 0..3 {
        min += busy_wait();
        span.in_scope(|| ());
    }
    let max = start.elapsed().as_secs_f64();
    busy_wait();
    drop(span);
    assert_between(min, pipeline.now().seconds("a"), max);
}

#[test]
fn duration_without_enter_ends_at_close() {
    let pipeline = Pipeline::start();
    let mut passed = 0.0;
    let whole = timed(|| {
        let span = info_span!("x", stage_id = "a");
        passed = busy_wait();
        drop(span);
    });
    assert_between(passed, pipeline.now().seconds("a"), whole);
}

#[test]
fn duration_is_recorded_at_close() {
    let pipeline = Pipeline::start();
    let span = info_span!("x", stage_id = "a");
    span.in_scope(|| ());
    let now = pipeline.now();
    assert_eq!((now.totals(), now.runs()), (vec!["a 0 0".to_owned()], vec![]));
    assert_eq!(now.active(), ["a, 1"]);
    drop(span);
    assert_eq!(pipeline.now().runs(), ["a,, 1"]);
}

#[test]
fn duration_buckets_follow_the_builder() {
    let pipeline = Pipeline::with(|builder| builder.with_buckets(&[0.001, 3_600.0]));
    let span = info_span!("x", stage_id = "a");
    busy_wait();
    drop(span);
    let now = pipeline.now();
    let bucket = |le| {
        let labels = [("stage_id", "a"), ("profile", ""), ("run_id", ""), ("le", le)];
        now.exposition.value("quant_stage_duration_seconds_bucket", &labels)
    };
    assert_eq!([bucket("0.001"), bucket("3600"), bucket("+Inf")], [Some(0.0), Some(1.0), Some(1.0)]);
    assert_eq!(now.exposition.matching("quant_stage_duration_seconds_bucket", &[]).len(), 3);
}

#[test]
fn last_duration_and_last_success_follow_the_latest_stage() {
    let pipeline = Pipeline::start();
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let slow = info_span!("x", stage_id = "a");
    busy_wait();
    drop(slow);
    let fast = timed(|| info_span!("x", stage_id = "a").in_scope(|| tracing::error!("it fails")));
    let now = pipeline.now();
    let labels = [("stage_id", "a"), ("profile", "")];
    let last = now.exposition.expect("quant_stage_last_duration_seconds", &labels);
    assert_between(0.0, last, fast);
    assert_between(PAUSE.as_secs_f64(), now.seconds("a") - last, f64::MAX);
    let success = now.exposition.expect("quant_stage_last_success_timestamp_seconds", &labels);
    let until = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((since - 0.01..=until + 0.01).contains(&success), "{since} {success} {until}");
    let report = pipeline.guard().report();
    let stage = report.stage("a").unwrap();
    assert_eq!((stage.runs(), stage.failures()), (2, 1));
    assert_between(PAUSE.as_secs_f64(), stage.slowest().as_secs_f64(), f64::MAX);
    assert!(stage.total() > stage.slowest() && stage.mean() < stage.slowest());
}

#[test]
fn last_success_does_not_decrease_when_a_kept_handle_drops() {
    let pipeline = Pipeline::start();
    let now = || {
        let now = pipeline.now();
        ["quant_stage_last_success_timestamp_seconds", "quant_stage_last_duration_seconds"]
            .map(|gauge| now.exposition.expect(gauge, &[("stage_id", "a"), ("profile", "")]))
    };
    let mut kept = tracing::Span::none();
    let slow = timed(|| {
        kept = info_span!("x", stage_id = "a");
        kept.in_scope(busy_wait);
    });
    busy_wait();
    let fast = timed(|| info_span!("x", stage_id = "a").in_scope(|| ()));
    let [success, duration] = now();
    assert_between(0.0, duration, fast);
    drop(kept);
    let [success_after, duration] = now();
    assert_eq!(success_after, success);
    // The duration of the stage that closed last.
    assert_between(PAUSE.as_secs_f64(), duration, slow);
    info_span!("x", stage_id = "a").in_scope(busy_wait);
    assert!(now()[0] > success);
}
