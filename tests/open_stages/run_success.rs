//! Success of the run, for every ending that leaves the process alive.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::{Span, error, info_span, instrument};
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
    let handle = pipeline.guard().handle();
    let running = pipeline.now();
    assert!(!running.has("quant_run_last_success_timestamp_seconds"), "set at the final flush");
    assert!(!running.has("quant_run_duration_seconds") && !running.has("quant_run_last_completion_timestamp_seconds"));
    let ended = pipeline.end_by(ending);
    let (report, warned) = (handle.report(), ended.no_success());
    let last = ended.last;
    let after = now();
    let gauge = |name| last.exposition.expect(name, &[]);
    assert!((before..=after).contains(&gauge("quant_run_start_timestamp_seconds")));
    let completed = gauge("quant_run_last_completion_timestamp_seconds");
    assert!((before..=after).contains(&completed));
    assert!((0.0..=after - before).contains(&gauge("quant_run_duration_seconds")));
    let success = last.exposition.value("quant_run_last_success_timestamp_seconds", &[]);
    assert!(success.is_none_or(|success| success == completed));
    assert_eq!((report.succeeded(), report.reasons().count() == 0), (success.is_some(), success.is_some()));
    let reasons: Vec<_> = report.reasons().collect();
    let expected = if reasons.is_empty() { Vec::new() } else { vec![reasons.join("; ")] };
    assert_eq!(warned, expected, "one warning in the words of the report");
    success.is_some()
}

/// The reasons why a run with these stages and this ending is no success.
#[track_caller]
fn reasons(stages: impl FnOnce(), ending: impl FnOnce(FlushGuard)) -> Vec<String> {
    let pipeline = Pipeline::with(|builder| builder.with_expected_stages(["a", "b"]));
    stages();
    let handle = pipeline.guard().handle();
    pipeline.end_by(ending);
    handle.report().reasons().map(str::to_owned).collect()
}

#[test]
fn run_without_success_explains_itself() {
    let shut_down = |guard: FlushGuard| guard.shutdown().unwrap();
    let finish = |guard: FlushGuard| guard.finish(Ok::<(), ()>(())).unwrap();
    let never = ["expected stage a never ran", "expected stage b never ran"];
    let unmeasured = "no stage was measured: give its span the field `stage_id`, add the layer to the subscriber before, and \
                      check that no filter hides spans of level INFO";
    assert_eq!(reasons(|| (), shut_down), [&[unmeasured], &never[..]].concat());
    assert_eq!(reasons(|| good("c"), finish), never);
    let retried = || [(bad as fn(&str), "a"), (good, "a"), (good, "b")].iter().for_each(|(run, id)| run(id));
    assert_eq!(reasons(retried, shut_down), ["stage a failed 1 of 2 times (error): it broke"]);
    assert_eq!(reasons(retried, finish), [""; 0]);
    let failed = || [(bad as fn(&str), "a"), (bad, "a"), (good, "b")].iter().for_each(|(run, id)| run(id));
    assert_eq!(reasons(failed, finish), ["stage a failed 2 of 2 times (error): it broke"]);
    let nested = || info_span!("x", stage_id = "outer").in_scope(|| ["a", "b"].into_iter().for_each(bad));
    let expected = ["a", "b"].map(|id| format!("expected stage {id} failed (error): it broke"));
    assert_eq!(reasons(nested, finish), expected);
    let profile = || {
        info_span!("run", profile = "p").in_scope(|| bad("a"));
        ["a", "b"].into_iter().for_each(good);
    };
    assert_eq!(reasons(profile, finish), ["stage a (profile p) failed (error): it broke"]);
    let all = || ["a", "b"].into_iter().for_each(good);
    let by_err = |guard: FlushGuard| guard.finish(Err::<(), ()>(())).unwrap_err();
    assert_eq!(reasons(all, by_err), ["the program ended with an error: `finish` was given an `Err`"]);
    let by_hand = |guard: FlushGuard| {
        guard.fail();
        finish(guard);
    };
    assert_eq!(reasons(all, by_hand), ["`fail()` was called"]);
    let mut open = Vec::new();
    let opens = || {
        all();
        open.push(info_span!("x", stage_id = "open"));
    };
    assert_eq!(reasons(opens, finish), ["stage open failed (unfinished)"]);
}

/// Before the end a run is judged as if its guard were dropped now.
#[test]
fn report_of_a_running_job_judges_it_as_if_it_ended_now() {
    let pipeline = Pipeline::start();
    let reasons = || pipeline.guard().report().reasons().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(reasons().len(), 1);
    let outer = info_span!("x", stage_id = "outer", profile = "p");
    outer.in_scope(|| {
        good("a");
        let _inner = info_span!("x", stage_id = "inner").entered();
        assert_eq!(reasons(), ["stage outer (profile p) is still open"], "an inner stage fails no run");
    });
    drop(outer);
    assert_eq!(reasons(), [""; 0]);
    assert!(pipeline.guard().report().succeeded());
    bad("a");
    good("a");
    assert_eq!(reasons(), ["stage a failed 1 of 2 times (error): it broke"]);
    assert!(!pipeline.guard().report().succeeded());
    assert!(pipeline.heard().is_empty(), "only the final flush warns");
}

#[test]
fn open_stage_has_one_reason() {
    #[instrument(fields(stage_id = "returned"), err)]
    fn returned() -> Result<Span, String> {
        let held = Span::current();
        std::mem::forget(held);
        Err("no such file".to_owned())
    }
    let pipeline = Pipeline::with(|builder| builder.with_expected_stages(["outer", "inner", "later"]));
    let handle = pipeline.guard().handle();
    let reasons = || handle.report().reasons().map(str::to_owned).collect::<Vec<_>>();
    returned().unwrap_err();
    let outer = info_span!("x", stage_id = "outer");
    let inner = info_span!(parent: &outer, "x", stage_id = "inner");
    let open = [
        "stage returned failed (error) and is still open",
        "stage outer is still open",
        "expected stage inner is still open",
        "expected stage later never ran",
    ];
    assert_eq!(reasons(), open);
    pipeline.end_by(|guard| guard.finish(Ok::<(), ()>(())).unwrap());
    drop((inner, outer));
    let mut ended = reasons();
    ended.sort();
    let expected = [
        "expected stage inner failed (unfinished)",
        "expected stage later never ran",
        "stage outer failed (unfinished)",
        "stage returned failed (error): no such file",
    ];
    assert_eq!(ended, expected);
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

/// The success of a run by what the program says at its end: nothing, `finish(Ok)`, `finish(Err)`.
#[track_caller]
fn succeeds_by_word(stages: impl Fn()) -> [bool; 3] {
    let by = |ending: fn(FlushGuard)| succeeds_by(|builder| builder, &stages, ending);
    [
        by(drop),
        by(|guard| guard.finish(Ok::<(), ()>(())).unwrap()),
        by(|guard| guard.finish(Err::<(), ()>(())).unwrap_err()),
    ]
}

#[test]
fn retried_stage_does_not_fail_a_run_that_finishes_well() {
    let retried = [false, true, false];
    assert_eq!(succeeds_by_word(|| bad("a")), [false; 3]);
    assert_eq!(succeeds_by_word(|| ()), [false; 3]);
    assert_eq!(succeeds_by_word(|| good("a")), [true, true, false]);
    assert_eq!(succeeds_by_word(|| [bad, bad, good].iter().for_each(|run| run("a"))), retried);
    assert_eq!(succeeds_by_word(|| [good, bad].iter().for_each(|run| run("a"))), retried, "one bad item of many");
    let another_failed = || [(good as fn(&str), "a"), (bad, "b"), (good, "a")].iter().for_each(|(run, id)| run(id));
    assert_eq!(succeeds_by_word(another_failed), [false; 3]);
    let failed_by_hand = |guard: FlushGuard| {
        guard.fail();
        guard.finish(Ok::<(), ()>(())).unwrap();
    };
    assert!(!succeeds_by(|builder| builder, || good("a"), failed_by_hand));
}

#[test]
fn success_in_another_profile_is_no_retry() {
    let of = |profile, run: fn(&str)| info_span!("run", profile).in_scope(|| run("a"));
    assert_eq!(succeeds_by_word(|| [bad, good].into_iter().for_each(|run| of("p", run))), [false, true, false]);
    assert_eq!(
        succeeds_by_word(|| [("p", bad as fn(&str)), ("q", good)].into_iter().for_each(|(p, run)| of(p, run))),
        [false; 3]
    );
}

#[test]
fn nested_success_makes_up_for_an_outermost_failure() {
    let nested = |run: fn(&str)| info_span!("x", stage_id = "outer").in_scope(|| run("a"));
    let retried = || {
        bad("a");
        nested(good);
    };
    assert_eq!(succeeds_by_word(retried), [false, true, false]);
    let failed_inside = || {
        good("a");
        nested(bad);
    };
    assert_eq!(succeeds_by_word(failed_inside), [true, true, false]);
    let failed_twice = || {
        bad("a");
        nested(bad);
    };
    assert_eq!(succeeds_by_word(failed_twice), [false; 3]);
}

#[test]
fn open_stage_counts_as_a_failure_that_may_be_made_up_for() {
    let open = std::cell::RefCell::new(Vec::new());
    let opens = || open.borrow_mut().push(info_span!("x", stage_id = "a"));
    assert_eq!(succeeds_by_word(opens), [false; 3]);
    let opens_again = || {
        good("a");
        opens();
    };
    assert_eq!(succeeds_by_word(opens_again), [false, true, false]);
}

#[test]
fn expected_stage_must_succeed_however_the_program_ends() {
    let expecting = |stages: fn(), ending: fn(FlushGuard)| {
        succeeds_by(|builder| builder.with_expected_stages(["a", "b"]), stages, ending)
    };
    let well = |guard: FlushGuard| guard.finish(Ok::<(), ()>(())).unwrap();
    assert!(!expecting(|| good("a"), well));
    assert!(expecting(|| ["a", "b"].into_iter().for_each(good), well));
    let retried = || [(bad as fn(&str), "b"), (good, "a"), (good, "b")].iter().for_each(|(run, id)| run(id));
    assert!(expecting(retried, well));
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
