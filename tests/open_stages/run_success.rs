//! Success of the run, for every ending that leaves the process alive.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::{error, info_span};
use tracing_stage_metrics::{FlushGuard, MetricsLayerBuilder};

use super::Pipeline;

fn good(stage_id: &str) {
    info_span!("x", stage_id).in_scope(|| ());
}

fn bad(stage_id: &str) {
    info_span!("x", stage_id).in_scope(|| error!("it broke"));
}

/// Whether a run with these stages and this ending is a success. Asserts that the run's gauges exist in either case.
#[track_caller]
fn succeeds_by(
    configure: impl FnOnce(MetricsLayerBuilder) -> MetricsLayerBuilder,
    stages: impl FnOnce(),
    ending: impl FnOnce(FlushGuard),
) -> bool {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let before = now();
    let pipeline = Pipeline::with(configure);
    stages();
    let running = pipeline.now();
    assert!(!running.has("quant_run_last_success_timestamp_seconds"), "set at the final flush");
    assert!(!running.has("quant_run_duration_seconds") && !running.has("quant_run_last_completion_timestamp_seconds"));
    let last = pipeline.end_by(ending).last;
    let after = now();
    let gauge = |name| last.exposition.expect(name, &[]);
    assert!((before..=after).contains(&gauge("quant_run_start_timestamp_seconds")));
    let completed = gauge("quant_run_last_completion_timestamp_seconds");
    assert!((before..=after).contains(&completed));
    assert!((0.0..=after - before).contains(&gauge("quant_run_duration_seconds")));
    let success = last.exposition.value("quant_run_last_success_timestamp_seconds", &[]);
    assert!(success.is_none_or(|success| success == completed));
    success.is_some()
}

#[track_caller]
fn succeeds(stages: impl FnOnce()) -> bool {
    succeeds_by(|builder| builder, stages, |guard| guard.shutdown().unwrap())
}

#[test]
fn run_succeeds_with_a_finished_outermost_stage_and_no_failure() {
    assert!(succeeds(|| good("a")));
    assert!(succeeds(|| (0..3).for_each(|_| good("a"))));
    assert!(!succeeds(|| ()));
    assert!(!succeeds(|| bad("a")));
    assert!(!succeeds(|| {
        good("a");
        bad("b");
        good("b");
    }));
    assert!(!succeeds(|| {
        std::panic::catch_unwind(|| info_span!("x", stage_id = "a").in_scope(|| panic!("on purpose"))).unwrap_err();
        good("a");
    }));
    assert!(!succeeds(|| info_span!("pipeline").in_scope(|| error!("no stage at all"))));
}

#[test]
fn failed_inner_stage_does_not_fail_the_run() {
    assert!(succeeds(|| {
        info_span!("x", stage_id = "outer").in_scope(|| info_span!("plain").in_scope(|| bad("inner")));
    }));
    assert!(
        !succeeds(|| info_span!("pipeline", profile = "p").in_scope(|| bad("a"))),
        "the pipeline span is not a stage"
    );
}

#[test]
fn open_stage_fails_the_run() {
    let mut open = Vec::new();
    assert!(!succeeds(|| {
        good("a");
        open.push(info_span!("x", stage_id = "open"));
    }));
    assert!(!succeeds(|| open.push(info_span!("x", stage_id = "open"))));
}

#[test]
fn open_inner_stage_fails_the_run() {
    // The outer stage cannot have closed either: both are open.
    let mut open = Vec::new();
    assert!(!succeeds(|| {
        good("a");
        info_span!("x", stage_id = "outer").in_scope(|| open.push(info_span!("x", stage_id = "inner")));
    }));
}

#[test]
fn every_expected_stage_must_succeed() {
    let expecting = |stages: fn()| {
        succeeds_by(|builder| builder.with_expected_stages(["a", "b"]), stages, |guard| guard.shutdown().unwrap())
    };
    assert!(expecting(|| {
        good("a");
        good("b");
    }));
    assert!(!expecting(|| good("a")));
    assert!(!expecting(|| ()));
    assert!(expecting(|| info_span!("x", stage_id = "outer").in_scope(|| {
        good("a");
        bad("b");
        good("b");
    })));
    assert!(!expecting(|| info_span!("x", stage_id = "outer").in_scope(|| {
        good("a");
        bad("b");
    })));
}

#[test]
fn run_success_follows_the_ending() {
    let ends_well = |ending: fn(FlushGuard)| succeeds_by(|builder| builder, || good("a"), ending);
    assert!(ends_well(|guard| guard.shutdown().unwrap()));
    assert!(ends_well(drop));
    assert!(ends_well(|guard| assert_eq!(guard.finish(Ok::<u32, u32>(3)), Ok(3))));
    assert!(!ends_well(|guard| assert_eq!(guard.finish(Err::<u32, u32>(3)), Err(3))));
    assert!(!ends_well(|guard| {
        guard.fail();
        guard.shutdown().unwrap();
    }));
    assert!(!ends_well(|guard| {
        guard.fail();
        assert_eq!(guard.finish(Ok::<u32, u32>(3)), Ok(3));
    }));
    assert!(!ends_well(|guard| {
        guard.fail();
        drop(guard);
    }));
    assert!(!ends_well(|guard| {
        catch_unwind(AssertUnwindSafe(|| {
            let _guard = guard;
            panic!("on purpose")
        }))
        .map(|()| unreachable!("it panics"))
        .unwrap_err();
    }));
    assert!(ends_well(|guard| {
        catch_unwind(|| panic!("on purpose")).map(|()| unreachable!("it panics")).unwrap_err();
        drop(guard);
    }));
    assert!(ends_well(|guard| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(guard.shutdown_async()).unwrap();
    }));
}

#[test]
fn finish_with_error_leaves_waiting_stage_unfinished() {
    let pipeline = Pipeline::start();
    let waits = info_span!("x", stage_id = "a");
    let ended = pipeline.end_by(|guard| guard.finish(Err::<(), _>("no")).unwrap_err());
    drop(waits);
    assert_eq!(ended.last.failures(), ["a,,unfinished 1"]);
}
