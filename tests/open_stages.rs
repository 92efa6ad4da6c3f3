//! Stages that are open when the run ends, stages that open after it, and the success of the run.
#![cfg(feature = "pushgateway")]
// Clippy exempts `#[test]` functions only, not the functions they share.
#![allow(clippy::unwrap_used)]

mod support;

#[path = "open_stages/run_success.rs"]
mod run_success;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use support::Pipeline;
use tracing::instrument::WithSubscriber;
use tracing::{Instrument, error, info_span, instrument};
use tracing_stage_metrics::FailurePolicy::{ErrorEvents, ErrorsWithin, ProvenSuccess, ReturnedError};

const PAUSE: Duration = Duration::from_millis(30);

fn busy_wait() {
    let start = Instant::now();
    while start.elapsed() < PAUSE {
        std::hint::spin_loop();
    }
}

#[test]
fn entered_stage_is_interrupted_with_duration_to_the_end() {
    for policy in [ErrorEvents, ReturnedError, ErrorsWithin, ProvenSuccess] {
        let pipeline = Pipeline::under(policy);
        let start = Instant::now();
        let span = info_span!("x", stage_id = "a", profile = "p", run_id = "r").entered();
        busy_wait();
        let ended = pipeline.end();
        let max = start.elapsed();
        drop(span);
        assert_eq!(ended.last.runs(), ["a,p,r 1"]);
        assert_eq!(ended.last.failures(), ["a,p,interrupted 1"]);
        assert!((PAUSE.as_secs_f64()..=max.as_secs_f64()).contains(&ended.last.seconds("a")));
    }
}

#[test]
fn stage_entered_on_another_thread_is_interrupted() {
    let pipeline = Pipeline::start();
    let dispatch = pipeline.dispatch();
    let (entered, is_entered) = std::sync::mpsc::channel();
    let (leave, may_leave) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        tracing::dispatcher::with_default(&dispatch, || {
            info_span!("x", stage_id = "a").in_scope(|| {
                entered.send(()).unwrap();
                may_leave.recv().unwrap();
            });
        });
    });
    is_entered.recv().unwrap();
    let ended = pipeline.end();
    leave.send(()).unwrap();
    thread.join().unwrap();
    assert_eq!(ended.last.failures(), ["a,,interrupted 1"]);
}

#[test]
fn exited_stage_is_unfinished_with_duration_to_last_exit() {
    for policy in [ErrorEvents, ReturnedError, ErrorsWithin, ProvenSuccess] {
        let pipeline = Pipeline::under(policy);
        let start = Instant::now();
        let span = info_span!("x", stage_id = "a");
        span.in_scope(busy_wait);
        let max = start.elapsed();
        busy_wait();
        let ended = pipeline.end();
        drop(span);
        assert_eq!(ended.last.failures(), ["a,,unfinished 1"]);
        assert!((PAUSE.as_secs_f64()..=max.as_secs_f64()).contains(&ended.last.seconds("a")));
    }
}

#[test]
fn stage_never_entered_is_unfinished_with_duration_to_the_end() {
    let pipeline = Pipeline::start();
    let span = info_span!("x", stage_id = "a");
    busy_wait();
    let ended = pipeline.end();
    drop(span);
    assert_eq!(ended.last.failures(), ["a,,unfinished 1"]);
    assert!(ended.last.seconds("a") >= PAUSE.as_secs_f64());
}

#[test]
fn open_stage_reason_takes_precedence_over_logged_error() {
    let pipeline = Pipeline::start();
    let entered = info_span!("x", stage_id = "a").entered();
    error!("it broke");
    let exited = info_span!(parent: None, "x", stage_id = "b");
    exited.in_scope(|| error!("it broke"));
    let ended = pipeline.end();
    drop((entered, exited));
    assert_eq!(ended.last.failures(), ["a,,interrupted 1", "b,,unfinished 1"]);
}

/// A function whose span outlives it: a detached child span keeps it open.
#[instrument(fields(stage_id = "a"), err, ret)]
fn leaves_child_open(result: Result<u32, u32>) -> Result<u32, u32> {
    DETACHED.with(|detached| detached.replace(Some(info_span!("detached"))));
    result
}

thread_local! {
    static DETACHED: std::cell::RefCell<Option<tracing::Span>> = const { std::cell::RefCell::new(None) };
}

#[test]
fn returned_stage_held_open_is_a_success() {
    for policy in [ErrorEvents, ReturnedError, ErrorsWithin, ProvenSuccess] {
        let pipeline = Pipeline::under(policy);
        let start = Instant::now();
        leaves_child_open(Ok(1)).unwrap();
        let max = start.elapsed();
        busy_wait();
        assert_eq!(pipeline.now().active(), ["a, 1"]);
        let ended = pipeline.end();
        drop(DETACHED.take());
        assert_eq!(ended.last.totals(), ["a 1 0"]);
        assert!(ended.last.seconds("a") <= max.as_secs_f64());
        assert!(ended.last.has("quant_run_last_success_timestamp_seconds"));
        assert!(ended.heard().is_empty(), "{:?}", ended.heard());
    }
}

#[test]
fn returned_error_held_open_is_an_error() {
    for policy in [ErrorEvents, ReturnedError, ErrorsWithin, ProvenSuccess] {
        let pipeline = Pipeline::under(policy);
        let start = Instant::now();
        leaves_child_open(Err(1)).unwrap_err();
        let max = start.elapsed();
        busy_wait();
        let ended = pipeline.end();
        drop(DETACHED.take());
        assert_eq!(ended.last.failures(), ["a,,error 1"]);
        assert!(ended.last.seconds("a") <= max.as_secs_f64());
        assert!(ended.heard().is_empty(), "a returned stage is no open stage: {:?}", ended.heard());
    }
}

/// Each kept span stays open, as with a stored error that holds a `SpanTrace`.
#[test]
fn returned_errors_with_kept_spans_are_errors() {
    #[instrument(fields(stage_id = id), err)]
    fn fails(id: &str) -> Result<(), String> {
        KEPT.with_borrow_mut(|kept| kept.push(tracing::Span::current()));
        Err("no".to_owned())
    }
    thread_local! {
        static KEPT: std::cell::RefCell<Vec<tracing::Span>> = const { std::cell::RefCell::new(Vec::new()) };
    }
    let pipeline = Pipeline::start();
    for _ in 0..3 {
        fails("a").unwrap_err();
    }
    let ended = pipeline.end();
    assert_eq!(KEPT.take().len(), 3);
    assert_eq!(ended.last.failures(), ["a,,error 3"]);
}

#[test]
fn open_stages_appear_in_the_run_report() {
    let (report, reported) = std::sync::mpsc::channel();
    let pipeline = Pipeline::with(|builder| builder.with_run_report(move |taken| report.send(taken).unwrap()));
    let open = info_span!("x", stage_id = "a");
    info_span!("y", stage_id = "b").in_scope(|| ());
    let ended = pipeline.end();
    drop(open);
    let report = reported.recv().unwrap();
    let stage = |id| report.stage(id).map(|stage| (stage.runs(), stage.failures(), stage.open()));
    assert_eq!((stage("a"), stage("b")), (Some((1, 1, 0)), Some((1, 0, 0))));
    assert_eq!(ended.last.totals(), ["a 0 1", "b 1 0"]);
}

#[test]
fn each_open_stage_is_named_in_a_warning() {
    let pipeline = Pipeline::start();
    let open = [
        info_span!("x", stage_id = "foundation.ingest", profile = "crypto", run_id = "42"),
        info_span!("x", stage_id = "alpha.inference"),
        info_span!("named", stage_id = tracing::field::Empty),
    ];
    let entered = open[1].clone().entered();
    let ended = pipeline.end();
    drop((entered, open));
    assert_eq!(ended.last.totals(), ["alpha.inference 0 1", "foundation.ingest 0 1", "named 0 1"]);
    let mut heard = ended.heard();
    heard.sort();
    assert_eq!(heard.len(), 3, "{heard:#?}");
    assert!(heard.iter().all(|line| line.starts_with("WARN")), "{heard:#?}");
    assert!(heard[0].contains("alpha.inference") && heard[0].contains("interrupted"), "{heard:#?}");
    assert!(heard[1].contains("foundation.ingest") && heard[1].contains("unfinished"), "{heard:#?}");
    assert!(heard[1].contains("crypto") && heard[1].contains("42"), "{heard:#?}");
    assert!(heard[2].contains("named") && heard[2].contains("unfinished"), "{heard:#?}");
}

#[test]
fn open_helpers_and_plain_spans_are_not_counted() {
    let pipeline = Pipeline::start();
    let outer = info_span!("x", stage_id = "a");
    let open =
        outer.in_scope(|| [info_span!("helper", stage_id = "a"), info_span!("plain"), info_span!("p", profile = 1)]);
    let ended = pipeline.end();
    drop((open, outer));
    assert_eq!(ended.last.totals(), ["a 0 1"]);
    assert_eq!(ended.heard().len(), 1);
}

#[test]
fn active_gauge_is_zero_after_the_end() {
    let pipeline = Pipeline::start();
    let open: Vec<_> = (0..10).map(|n| info_span!("x", stage_id = n % 2, profile = n)).collect();
    assert_eq!(pipeline.now().active().len(), 10);
    let ended = pipeline.end();
    drop(open);
    let active = ended.last.exposition.matching("quant_stage_active", &[]);
    assert_eq!((active.len(), active.iter().map(|sample| sample.value).sum::<f64>()), (10, 0.0));
}

#[test]
fn stages_after_the_guard_log_one_warning() {
    let ended = Pipeline::start().end();
    for _ in 0..3 {
        info_span!("x", stage_id = "late").in_scope(|| info_span!("y", stage_id = "later").in_scope(|| ()));
    }
    let heard = ended.heard();
    assert_eq!(heard.len(), 1, "{heard:#?}");
    assert!(heard[0].starts_with("WARN") && heard[0].contains("_guard"), "{heard:#?}");
    assert!(ended.last.totals().is_empty());
}

#[test]
fn stages_after_the_guard_log_one_warning_without_enter() {
    let ended = Pipeline::start().end();
    drop(info_span!("x", stage_id = "late"));
    drop(info_span!("x", stage_id = "late"));
    assert_eq!(ended.heard().len(), 1, "{:#?}", ended.heard());
}

#[test]
fn plain_spans_after_the_guard_log_no_warning() {
    let ended = Pipeline::start().end();
    info_span!("pipeline", profile = "p").in_scope(|| error!("it broke"));
    assert!(ended.heard().is_empty());
}

#[tokio::test]
async fn waiting_task_is_unfinished_at_the_end() {
    let pipeline = Pipeline::start();
    let stage = std::future::pending::<()>().instrument(info_span!("x", stage_id = "a"));
    let task = tokio::spawn(stage.with_subscriber(pipeline.dispatch()));
    tokio::task::yield_now().await;
    let ended = pipeline.end();
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    assert_eq!(ended.last.failures(), ["a,,unfinished 1"]);
}

#[test]
fn panic_that_drops_the_guard_interrupts_open_stages() {
    let pipeline = Pipeline::start();
    let (waits, entered) = (info_span!("x", stage_id = "waits"), info_span!(parent: None, "x", stage_id = "entered"));
    waits.in_scope(|| ());
    let returned = leaves_child_open(Ok(1));
    let ended = pipeline.end_by(|guard| {
        catch_unwind(AssertUnwindSafe(|| {
            let _guard = guard;
            let _entered = entered.enter();
            panic!("on purpose")
        }))
        .map(|()| unreachable!("it panics"))
        .is_err()
    });
    drop((waits, DETACHED.take()));
    assert!(ended.result && returned.is_ok());
    assert!(!ended.last.has("quant_run_last_success_timestamp_seconds"));
    // The panic left `entered` before it dropped the guard.
    assert_eq!(ended.last.failures(), ["entered,,panic 1", "waits,,interrupted 1"]);
    assert_eq!(ended.last.totals(), ["a 1 0", "entered 0 1", "waits 0 1"]);
}
