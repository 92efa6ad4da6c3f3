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

#[test]
fn duration_starts_at_creation() {
    let pipeline = Pipeline::start();
    let mut before = 0.0;
    let whole = timed(|| {
        let span = info_span!("x", stage_id = "a");
        before = busy_wait();
        span.in_scope(|| ());
    });
    let seconds = pipeline.now().seconds("a");
    assert!((before..=whole).contains(&seconds), "{before} {seconds} {whole}");
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
    let seconds = pipeline.now().seconds("a");
    assert!((PAUSE.as_secs_f64()..=until_exit).contains(&seconds), "{seconds} {until_exit}");
}

#[test]
fn duration_ends_at_the_last_of_several_exits() {
    let pipeline = Pipeline::start();
    let mut min = 0.0;
    let span = info_span!("x", stage_id = "a");
    let start = Instant::now();
    for _ in 0..3 {
        min += busy_wait();
        span.in_scope(|| ());
    }
    let max = start.elapsed().as_secs_f64() + 0.01;
    busy_wait();
    drop(span);
    let seconds = pipeline.now().seconds("a");
    assert!((min..=max).contains(&seconds), "{min} {seconds} {max}");
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
    let seconds = pipeline.now().seconds("a");
    assert!((passed..=whole).contains(&seconds), "{passed} {seconds} {whole}");
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
    info_span!("x", stage_id = "a").in_scope(|| tracing::error!("it fails"));
    let now = pipeline.now();
    let labels = [("stage_id", "a"), ("profile", "")];
    let last = now.exposition.expect("quant_stage_last_duration_seconds", &labels);
    assert!(last < now.seconds("a") - 0.9 * PAUSE.as_secs_f64(), "the failed stage was fast: {last}");
    let success = now.exposition.expect("quant_stage_last_success_timestamp_seconds", &labels);
    let until = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((since - 0.01..=until + 0.01).contains(&success), "{since} {success} {until}");
    let report = pipeline.guard().report();
    let stage = report.stage("a").unwrap();
    assert_eq!((stage.runs(), stage.failures()), (2, 1));
    assert!(stage.slowest() >= PAUSE && stage.total() > stage.slowest() && stage.mean() < stage.slowest());
}

#[test]
fn last_success_does_not_decrease_when_a_kept_handle_drops() {
    let pipeline = Pipeline::start();
    let now = || {
        let now = pipeline.now();
        ["quant_stage_last_success_timestamp_seconds", "quant_stage_last_duration_seconds"]
            .map(|gauge| now.exposition.expect(gauge, &[("stage_id", "a"), ("profile", "")]))
    };
    let kept = info_span!("x", stage_id = "a");
    let first = timed(|| {
        kept.in_scope(busy_wait);
    });
    busy_wait();
    info_span!("x", stage_id = "a").in_scope(|| ());
    let [success, duration] = now();
    assert!(duration < PAUSE.as_secs_f64(), "{duration}");
    drop(kept);
    let [success_after, duration] = now();
    assert_eq!(success_after, success);
    // The duration of the stage that closed last.
    assert!((PAUSE.as_secs_f64()..=first + PAUSE.as_secs_f64()).contains(&duration), "{duration}");
    info_span!("x", stage_id = "a").in_scope(busy_wait);
    assert!(now()[0] > success);
}
