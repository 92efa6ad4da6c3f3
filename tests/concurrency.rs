//! Stages on many threads at once: every count is exact.
#![cfg(feature = "pushgateway")]
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex};

use support::Pipeline;
use tracing::{Span, error, info_span};

const THREADS: usize = 8;
const SPANS: usize = 50_000;

/// Calls `run` with the number of the thread on all threads at once.
fn on_threads(pipeline: &Pipeline, run: impl Fn(usize) + Sync) {
    on_threads_while(pipeline, run, || ());
}

/// Calls `run` on all threads at once, and `meanwhile` on this thread.
fn on_threads_while(pipeline: &Pipeline, run: impl Fn(usize) + Sync, meanwhile: impl FnOnce()) {
    let start = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (dispatch, start, run) = (pipeline.dispatch(), &start, &run);
            scope.spawn(move || {
                tracing::dispatcher::with_default(&dispatch, || {
                    start.wait();
                    run(thread);
                });
            });
        }
        meanwhile();
    });
}

#[test]
fn concurrent_runs_of_one_stage_are_all_counted() {
    let pipeline = Pipeline::start();
    on_threads(&pipeline, |_| {
        for _ in 0..SPANS {
            info_span!("x", stage_id = "a", profile = "p", run_id = "r").in_scope(|| ());
        }
    });
    let now = pipeline.now();
    assert_eq!(now.totals(), ["a 400000 0"]);
    assert_eq!(now.runs(), ["a,p,r 400000"]);
    assert!(now.active().is_empty());
    let report = pipeline.guard().report();
    assert_eq!(report.stage("a").map(|stage| (stage.runs(), stage.failures())), Some((400_000, 0)));
}

#[test]
fn concurrent_stages_inherit_from_a_shared_root() {
    let pipeline = Pipeline::start();
    let root = info_span!("pipeline", profile = "p", run_id = "r");
    on_threads(&pipeline, |thread| {
        let id = format!("stage-{thread}");
        let _root = root.enter();
        for n in 0..SPANS / 2 {
            info_span!("x", stage_id = id.as_str()).in_scope(|| {
                info_span!("y", stage_id = "shared").in_scope(|| {
                    if n % 10 == 0 {
                        error!("it broke");
                    }
                });
            });
        }
    });
    let now = pipeline.now();
    let mut totals = vec!["shared 180000 20000".to_owned()];
    totals.extend((0..THREADS).map(|thread| format!("stage-{thread} 25000 0")));
    assert_eq!(now.totals(), totals);
    let mut runs = vec!["shared,p,r 200000".to_owned()];
    runs.extend((0..THREADS).map(|thread| format!("stage-{thread},p,r 25000")));
    assert_eq!(now.runs(), runs);
    assert_eq!(now.failures(), ["shared,p,error 20000"]);
    assert!(now.active().is_empty());
}

/// The values of the root change while stages close: each stage is counted once, under one of the values.
#[test]
fn concurrent_record_counts_each_stage_once() {
    let pipeline = Pipeline::start();
    let root = info_span!("pipeline", profile = 0);
    on_threads(&pipeline, |thread| {
        for n in 0..5_000 {
            if thread == 0 {
                root.record("profile", n % 10);
            } else {
                info_span!(parent: &root, "x", stage_id = "a").in_scope(|| ());
            }
        }
    });
    let now = pipeline.now();
    assert_eq!(now.totals(), ["a 35000 0"]);
    assert!(now.runs().len() <= 10, "{:?}", now.runs());
    root.record("profile", "last");
    info_span!(parent: &root, "x", stage_id = "b").in_scope(|| ());
    assert!(pipeline.now().runs().contains(&"b,last, 1".to_owned()));
}

/// Totals rendered meanwhile never decrease, and never exceed the number of stages.
#[test]
fn concurrent_render_never_goes_back() {
    let pipeline = Pipeline::with(|builder| builder.with_expected_stages(["a"]));
    let run = |thread| {
        for _ in 0..5_000 {
            info_span!("x", stage_id = "a", profile = thread).in_scope(|| ());
        }
    };
    on_threads_while(&pipeline, run, || {
        let mut before = 0.0;
        for _ in 0..50 {
            let exposition = support::exposition::parse(&pipeline.guard().render());
            let total = exposition.expect("quant_stage_total", &[("stage_id", "a"), ("status", "success")]);
            assert!((before..=40_000.0).contains(&total), "{before} {total}");
            before = total;
            let active: f64 = exposition.matching("quant_stage_active", &[]).iter().map(|sample| sample.value).sum();
            assert!((0.0..=THREADS as f64).contains(&active), "{active}");
        }
    });
    assert_eq!(pipeline.now().totals(), ["a 40000 0"]);
}

/// Stages that open, run and close during the final flush are counted once or not at all; later stages are not counted.
#[test]
fn concurrent_shutdown_counts_each_stage_once_at_most() {
    (0..20).for_each(|_| end_while_stages_run());
}

struct SetWhenDropped<'a>(&'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn end_while_stages_run() {
    let pipeline = Pipeline::start();
    let (started, stop) = (Barrier::new(THREADS + 1), AtomicBool::new(false));
    let (closed_before, opened_after) = (AtomicU64::new(0), AtomicU64::new(0));
    let (is_ending, has_ended) = (AtomicBool::new(false), AtomicBool::new(false));
    let dispatch = pipeline.dispatch();
    let (ended, run) = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let (dispatch, started, stop) = (dispatch.clone(), &started, &stop);
                let (closed_before, opened_after) = (&closed_before, &opened_after);
                let (is_ending, has_ended) = (&is_ending, &has_ended);
                scope.spawn(move || {
                    let mut run = 0;
                    let mut stage = || {
                        let is_after = has_ended.load(Ordering::SeqCst);
                        info_span!("x", stage_id = "a").in_scope(|| ());
                        closed_before.fetch_add(u64::from(!is_ending.load(Ordering::SeqCst)), Ordering::SeqCst);
                        opened_after.fetch_add(u64::from(is_after), Ordering::SeqCst);
                        run += 1;
                    };
                    tracing::dispatcher::with_default(&dispatch, || {
                        stage();
                        started.wait();
                        while !stop.load(Ordering::Relaxed) {
                            stage();
                        }
                        stage();
                    });
                    run
                })
            })
            .collect();
        // The threads end even if an assertion here fails.
        let stop = SetWhenDropped(&stop);
        started.wait();
        is_ending.store(true, Ordering::SeqCst);
        let ended = pipeline.end();
        has_ended.store(true, Ordering::SeqCst);
        drop(stop);
        (ended, threads.into_iter().map(|thread| thread.join().unwrap()).sum::<u64>())
    });
    // Reading the exposition has checked that durations, totals and reasons agree.
    let counts = |status| ended.last.exposition.expect("quant_stage_total", &[("stage_id", "a"), ("status", status)]);
    let counted = (counts("success") + counts("failure")) as u64;
    let (closed_before, opened_after) = (closed_before.into_inner(), opened_after.into_inner());
    // Every stage that closed before the end is counted, no stage that opened after it, and the others at most once.
    assert!(closed_before >= THREADS as u64 && opened_after >= THREADS as u64, "{closed_before} {opened_after}");
    assert!((closed_before..=run - opened_after).contains(&counted), "{closed_before} {counted} {run} {opened_after}");
    assert!(counts("failure") <= THREADS as f64, "each thread has one open stage at most");
    assert!(ended.last.active().is_empty());
}

/// A barrier for two threads that spins, so that both leave it at almost the same time.
#[derive(Default)]
struct SpinBarrier(AtomicU64);

impl SpinBarrier {
    fn wait(&self) {
        let arrived = self.0.fetch_add(1, Ordering::SeqCst);
        let both_arrived = (arrived / 2 + 1) * 2;
        for spin in 0.. {
            match self.0.load(Ordering::SeqCst) >= both_arrived {
                true => break,
                false if spin < 20_000 => std::hint::spin_loop(),
                false => std::thread::yield_now(),
            }
        }
    }
}

#[test]
fn first_stages_below_a_plain_span_inherit_on_two_threads() {
    const ROUNDS: u64 = 20_000;
    let pipeline = Pipeline::start();
    let (barrier, plain) = (SpinBarrier::default(), Mutex::new(Span::none()));
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (dispatch, barrier, plain) = (pipeline.dispatch(), &barrier, &plain);
            let work = move || {
                for _ in 0..ROUNDS {
                    if thread == 0 {
                        let root = info_span!("pipeline", profile = "p", run_id = "r");
                        *plain.lock().unwrap() = info_span!(parent: &root, "plain");
                    }
                    barrier.wait();
                    let parent = plain.lock().unwrap().clone();
                    barrier.wait();
                    drop(info_span!(parent: &parent, "x", stage_id = "a"));
                    drop(parent);
                    barrier.wait();
                }
            };
            scope.spawn(move || tracing::dispatcher::with_default(&dispatch, work));
        }
    });
    drop(plain);
    assert_eq!(pipeline.now().runs(), [format!("a,p,r {}", 2 * ROUNDS)]);
}

/// Renders while stages end, within each of the limits on label sets and beyond it.
#[test]
fn exposition_is_consistent_while_stages_close() {
    const LIMIT: usize = 4;
    let pipeline = Pipeline::with(|builder| builder.with_max_series(LIMIT));
    let run = |n: usize| {
        info_span!("x", stage_id = n % 7, profile = n % 3, run_id = n % 11).in_scope(|| {
            if n.is_multiple_of(2) {
                error!("it broke");
            }
        });
    };
    // Sequential, so that the stage and the profile of each label set are within their own limits.
    (0..LIMIT).for_each(run);
    let done = AtomicBool::new(false);
    let texts = std::thread::scope(|scope| {
        for thread in 0..4 {
            let (dispatch, done) = (pipeline.dispatch(), &done);
            scope.spawn(move || {
                tracing::dispatcher::with_default(&dispatch, || {
                    for n in thread.. {
                        run(n);
                        if done.load(Ordering::Relaxed) {
                            break;
                        }
                    }
                });
            });
        }
        let texts = (0..300).map(|_| pipeline.guard().render()).collect::<Vec<_>>();
        done.store(true, Ordering::Relaxed);
        texts
    });
    let mut before = 0.0;
    for text in texts {
        let exposition = support::exposition::parse(&text);
        let sum = |metric, labels: &[(&str, &str)]| {
            exposition.matching(metric, labels).iter().map(|sample| sample.value).sum::<f64>()
        };
        let runs = sum("quant_stage_duration_seconds_count", &[]);
        assert!(runs >= before, "{before} {text}");
        assert_eq!(runs, sum("quant_stage_total", &[]), "{text}");
        let failures = sum("quant_stage_total", &[("status", "failure")]);
        assert_eq!(failures, sum("quant_stage_failures_total", &[]), "{text}");
        let within: f64 = {
            let samples = exposition.matching("quant_stage_duration_seconds_count", &[]);
            samples.iter().filter(|s| s.labels["run_id"] != "_overflow").map(|s| s.value).sum()
        };
        assert_eq!(sum("quant_telemetry_overflow_total", &[]), runs - within, "{text}");
        assert!(sum("quant_stage_total", &[("stage_id", "_overflow")]) <= runs - within, "{text}");
        before = runs;
    }
    assert!(before > 0.0);
}
