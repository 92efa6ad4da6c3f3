//! From the creation of the span to its last exit.

use std::time::{Duration, Instant};

use tracing::info_span;

use super::Pipeline;

const PAUSE: Duration = Duration::from_millis(30);

/// Lets time pass without a sleep, and says how much.
fn pass() -> f64 {
    let begun = Instant::now();
    while begun.elapsed() < PAUSE {
        std::hint::spin_loop();
    }
    begun.elapsed().as_secs_f64()
}

/// Runs it and returns how long that took by the clock of the test.
fn timed(run: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    run();
    begun.elapsed().as_secs_f64()
}

#[test]
fn from_the_creation_of_the_span() {
    let pipeline = Pipeline::start();
    let mut before = 0.0;
    let whole = timed(|| {
        let span = info_span!("x", stage_id = "a");
        before = pass();
        span.in_scope(|| ());
    });
    let seconds = pipeline.now().seconds("a");
    assert!((before..=whole).contains(&seconds), "{before} {seconds} {whole}");
}

#[test]
fn to_its_last_exit_however_long_a_handle_is_kept() {
    let pipeline = Pipeline::start();
    let mut until_exit = 0.0;
    let mut span = tracing::Span::none();
    until_exit += timed(|| {
        span = info_span!("x", stage_id = "a");
        span.in_scope(pass);
    });
    let (kept, child) = (span.clone(), info_span!(parent: &span, "detached"));
    pass();
    drop(span);
    pass();
    drop((kept, child));
    let seconds = pipeline.now().seconds("a");
    assert!((PAUSE.as_secs_f64()..=until_exit).contains(&seconds), "{seconds} {until_exit}");
}

#[test]
fn the_last_of_several_exits() {
    let pipeline = Pipeline::start();
    let mut least = 0.0;
    let span = info_span!("x", stage_id = "a");
    let begun = Instant::now();
    for _ in 0..3 {
        least += pass();
        span.in_scope(|| ());
    }
    let most = begun.elapsed().as_secs_f64() + 0.01;
    pass();
    drop(span);
    let seconds = pipeline.now().seconds("a");
    assert!((least..=most).contains(&seconds), "{least} {seconds} {most}");
}

#[test]
fn to_its_close_where_it_was_never_entered() {
    let pipeline = Pipeline::start();
    let mut passed = 0.0;
    let whole = timed(|| {
        let span = info_span!("x", stage_id = "a");
        passed = pass();
        drop(span);
    });
    let seconds = pipeline.now().seconds("a");
    assert!((passed..=whole).contains(&seconds), "{passed} {seconds} {whole}");
}

#[test]
fn emitted_when_it_closes() {
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
fn the_buckets_are_the_ones_asked_for() {
    let pipeline = Pipeline::with(|builder| builder.with_buckets(&[0.001, 3_600.0]));
    let span = info_span!("x", stage_id = "a");
    pass();
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
fn the_last_duration_and_the_last_success_are_those_of_the_last() {
    let pipeline = Pipeline::start();
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let slow = info_span!("x", stage_id = "a");
    pass();
    drop(slow);
    info_span!("x", stage_id = "a").in_scope(|| tracing::error!("it fails"));
    let now = pipeline.now();
    let labels = [("stage_id", "a"), ("profile", "")];
    let last = now.exposition.expect("quant_stage_last_duration_seconds", &labels);
    assert!(last < now.seconds("a") - 0.9 * PAUSE.as_secs_f64(), "the one that failed was fast: {last}");
    let success = now.exposition.expect("quant_stage_last_success_timestamp_seconds", &labels);
    let until = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((since - 0.01..=until + 0.01).contains(&success), "{since} {success} {until}");
    let report = pipeline.guard().report();
    let stage = report.stage("a").unwrap();
    assert_eq!((stage.runs(), stage.failures()), (2, 1));
    assert!(stage.slowest() >= PAUSE && stage.total() > stage.slowest() && stage.mean() < stage.slowest());
}

#[test]
fn last_success_does_not_go_back_when_a_kept_handle_is_dropped() {
    let pipeline = Pipeline::start();
    let now = || {
        let now = pipeline.now();
        ["quant_stage_last_success_timestamp_seconds", "quant_stage_last_duration_seconds"]
            .map(|gauge| now.exposition.expect(gauge, &[("stage_id", "a"), ("profile", "")]))
    };
    let kept = info_span!("x", stage_id = "a");
    let first = timed(|| {
        kept.in_scope(pass);
    });
    pass();
    info_span!("x", stage_id = "a").in_scope(|| ());
    let [success, duration] = now();
    assert!(duration < PAUSE.as_secs_f64(), "{duration}");
    drop(kept);
    let [success_after, duration] = now();
    assert_eq!(success_after, success);
    // The stage that closed last.
    assert!((PAUSE.as_secs_f64()..=first + PAUSE.as_secs_f64()).contains(&duration), "{duration}");
    info_span!("x", stage_id = "a").in_scope(pass);
    assert!(now()[0] > success);
}
