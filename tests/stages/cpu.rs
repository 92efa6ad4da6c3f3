//! `with_stage_cpu`: the CPU time of threads while they are inside a stage.

use std::hint::black_box;
use std::thread;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tracing::field::Empty;
use tracing::{Dispatch, Instrument, dispatcher, error, info_span};
use tracing_stage_metrics::{MetricsLayer, Pushgateway};
use tracing_subscriber::prelude::*;

use crate::support::{self, Pipeline, exposition};

const WORK: Duration = Duration::from_millis(40);
/// What the crate and the test do beside the work.
const SLACK: f64 = 0.03;

fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
}

/// Uses so much CPU time of this thread.
fn work() {
    let start = thread_cpu();
    while thread_cpu() - start < WORK {
        (0..1_000).for_each(|n| _ = black_box(n));
    }
}

fn start() -> Pipeline {
    Pipeline::with(|builder| builder.with_stage_cpu())
}

/// Asserts that a stage has the CPU time of so many calls of [`work`].
#[track_caller]
fn assert_works(pipeline: &Pipeline, stage: &str, works: f64) {
    let now = pipeline.now().exposition;
    let cpu = now.expect("quant_stage_cpu_seconds_total", &[("stage_id", stage), ("profile", "")]);
    let expected = works * WORK.as_secs_f64();
    assert!((expected..expected + SLACK).contains(&cpu), "{stage}: {cpu} of {expected}");
}

/// Runs `body` on a new thread with the subscriber of the pipeline.
fn on_new_thread(pipeline: &Pipeline, body: impl FnOnce() + Send) {
    let dispatch = pipeline.dispatch();
    thread::scope(|scope| {
        scope.spawn(move || dispatcher::with_default(&dispatch, body));
    });
}

#[test]
fn cpu_time_is_that_inside_the_stage() {
    let pipeline = start();
    let stage = info_span!("x", stage_id = "a");
    work();
    stage.in_scope(|| {
        work();
        thread::sleep(WORK * 2);
    });
    work();
    assert!(!pipeline.now().has("quant_stage_cpu_seconds_total"), "it counts when the stage finishes");
    drop(stage);
    assert_works(&pipeline, "a", 1.0);
    info_span!("x", stage_id = "a").in_scope(|| {
        work();
        error!("failed stages count too");
    });
    assert_works(&pipeline, "a", 2.0);
    info_span!("idle", stage_id = "idle").in_scope(|| thread::sleep(WORK * 2));
    assert_works(&pipeline, "idle", 0.0);
}

#[test]
fn time_of_a_stage_within_counts_for_both() {
    let pipeline = start();
    info_span!("x", stage_id = "outer").in_scope(|| {
        work();
        info_span!("plain").in_scope(|| info_span!("x", stage_id = "inner").in_scope(work));
        info_span!("helper", stage_id = "outer").in_scope(work);
    });
    assert_works(&pipeline, "inner", 1.0);
    assert_works(&pipeline, "outer", 3.0);
}

#[test]
fn repeated_enters_of_a_thread_count_once() {
    let pipeline = start();
    let stage = info_span!("x", stage_id = "a");
    stage.in_scope(|| {
        stage.in_scope(work);
        stage.in_scope(|| stage.in_scope(work));
        work();
    });
    drop(stage);
    assert_works(&pipeline, "a", 3.0);
}

#[test]
fn threads_in_one_stage_are_added_up() {
    let pipeline = start();
    let stage = info_span!("x", stage_id = "a");
    stage.in_scope(|| {
        for _ in 0..2 {
            on_new_thread(&pipeline, || stage.in_scope(work));
        }
        on_new_thread(&pipeline, work);
    });
    drop(stage);
    assert_works(&pipeline, "a", 2.0);
}

#[test]
fn stage_on_another_thread_counts_for_the_stages_around_it() {
    let pipeline = start();
    let outer = info_span!("x", stage_id = "outer");
    let middle = info_span!(parent: &outer, "x", stage_id = "middle");
    on_new_thread(&pipeline, || info_span!(parent: &middle, "x", stage_id = "inner").in_scope(work));
    // The helper is a span of the stage `middle`: what is within it counts once.
    on_new_thread(&pipeline, || {
        info_span!(parent: &middle, "helper", stage_id = "middle").in_scope(|| {
            work();
            info_span!("x", stage_id = "inner").in_scope(work);
        });
    });
    drop(middle);
    drop(outer);
    assert_works(&pipeline, "inner", 2.0);
    assert_works(&pipeline, "middle", 3.0);
    assert_works(&pipeline, "outer", 3.0);
}

/// A worker of `rayon` that waits in one stage may run another one.
#[test]
fn stages_of_one_thread_in_any_order_count_once() {
    let pipeline = start();
    let stages = || {
        let outer = info_span!("x", stage_id = "outer");
        let inner = info_span!(parent: &outer, "x", stage_id = "inner");
        let sibling = info_span!(parent: &outer, "x", stage_id = "sibling");
        [outer, inner, sibling, info_span!(parent: None, "x", stage_id = "other")]
    };
    let [outer, inner, ..] = stages();
    let (left_first, left_last) = (outer.entered(), inner.entered());
    work();
    drop(left_first);
    work();
    drop(left_last);
    assert_works(&pipeline, "outer", 2.0);
    assert_works(&pipeline, "inner", 2.0);

    let [outer, inner, ..] = stages();
    inner.in_scope(|| outer.in_scope(work));
    drop((inner, outer));
    assert_works(&pipeline, "outer", 3.0);
    assert_works(&pipeline, "inner", 3.0);

    let [outer, inner, sibling, other] = stages();
    other.in_scope(|| {
        work();
        inner.in_scope(|| {
            work();
            sibling.in_scope(work);
            outer.in_scope(work);
        });
    });
    drop((inner, sibling, outer, other));
    assert_works(&pipeline, "outer", 6.0);
    assert_works(&pipeline, "inner", 6.0);
    assert_works(&pipeline, "sibling", 1.0);
    assert_works(&pipeline, "other", 4.0);
}

#[test]
fn task_counts_on_every_thread_that_polls_it() {
    let pipeline = start();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).build().unwrap();
    let dispatch = pipeline.dispatch();
    let task = |id: &'static str| {
        let stage = info_span!("x", stage_id = id);
        let body = async {
            for _ in 0..4 {
                work();
                tokio::task::yield_now().await;
            }
        };
        tracing::instrument::WithSubscriber::with_subscriber(body.instrument(stage), dispatch.clone())
    };
    runtime.block_on(async {
        let tasks = ["a", "b", "c"].map(|id| tokio::spawn(task(id)));
        for task in tasks {
            task.await.unwrap();
        }
    });
    ["a", "b", "c"].into_iter().for_each(|id| assert_works(&pipeline, id, 4.0));
}

/// This is not allowed, as it confuses `tracing` too; other stages are not affected.
#[test]
fn exit_on_another_thread_loses_that_time_alone() {
    let pipeline = start();
    let stage = info_span!("x", stage_id = "moved");
    let id = stage.id().unwrap();
    pipeline.dispatch().enter(&id);
    work();
    on_new_thread(&pipeline, || dispatcher::get_default(|current| current.exit(&id)));
    drop(stage);
    info_span!(parent: None, "x", stage_id = "a").in_scope(work);
    assert_works(&pipeline, "a", 1.0);
}

#[test]
fn labels_are_those_at_the_close() {
    let pipeline = start();
    let stage = info_span!("x", stage_id = Empty, profile = Empty);
    stage.in_scope(work);
    stage.record("stage_id", "late");
    stage.record("profile", "p");
    drop(stage);
    let now = pipeline.now().exposition;
    let labels = [("stage_id", "late"), ("profile", "p")];
    assert!(now.expect("quant_stage_cpu_seconds_total", &labels) >= WORK.as_secs_f64());
    assert_eq!(now.matching("quant_stage_cpu_seconds_total", &[]).len(), 1);
}

/// The thread that ends the run is inside the stage.
#[test]
fn open_stage_counts_at_the_end_of_the_run() {
    let pipeline = start();
    let outer = info_span!("x", stage_id = "outer").entered();
    let inner = info_span!("x", stage_id = "inner").entered();
    work();
    let ended = pipeline.end();
    drop((inner, outer));
    for stage in ["outer", "inner"] {
        let labels = [("stage_id", stage), ("profile", "")];
        let cpu = ended.last.exposition.expect("quant_stage_cpu_seconds_total", &labels);
        assert!((WORK.as_secs_f64()..WORK.as_secs_f64() + SLACK).contains(&cpu), "{stage}: {cpu}");
    }
}

#[test]
fn two_pipelines_of_one_thread_do_not_disturb_each_other() {
    let build = || MetricsLayer::builder().with_stage_cpu().build().unwrap();
    let ((layer, guard), (other_layer, other)) = (build(), build());
    let dispatch: Dispatch = tracing_subscriber::registry().with(layer).with(other_layer).into();
    dispatcher::with_default(&dispatch, || {
        info_span!("x", stage_id = "outer").in_scope(|| info_span!("x", stage_id = "inner").in_scope(work));
    });
    for guard in [guard, other] {
        let now = exposition::parse(&guard.render());
        for stage in ["outer", "inner"] {
            let cpu = now.expect("quant_stage_cpu_seconds_total", &[("stage_id", stage), ("profile", "")]);
            assert!((WORK.as_secs_f64()..WORK.as_secs_f64() + SLACK).contains(&cpu), "{stage}: {cpu}");
        }
    }
}

#[test]
fn without_the_setting_there_is_no_cpu_time() {
    let pipeline = Pipeline::start();
    info_span!("x", stage_id = "a").in_scope(|| ());
    assert!(!pipeline.now().has("quant_stage_cpu_seconds_total"));
}

/// The recorder of the application has counters of integers, so the crate adds the series.
#[test]
fn prometheus_has_the_cpu_time_beside_any_recorder() {
    let Some(server) = support::pushgateway() else { return };
    let Some(prometheus) = support::prometheus(&[("pushgateway", server.addr(), true)]) else { return };
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    metrics::with_local_recorder(&recorder, || {
        for is_foreign in [false, true] {
            let job = if is_foreign { "foreign" } else { "own" };
            let gateway = Pushgateway::new(server.url(), job).unwrap();
            let builder = MetricsLayer::builder().with_stage_cpu().with_pushgateway(gateway);
            let handle = handle.clone();
            let builder = if is_foreign { builder.with_exposition(move || handle.render()) } else { builder };
            let (layer, guard) = builder.build().unwrap();
            let _default = tracing_subscriber::registry().with(layer).set_default();
            info_span!("x", stage_id = "a").in_scope(work);
            guard.shutdown().unwrap();
        }
    });
    let all = prometheus.await_query("quant_stage_cpu_seconds_total", |series| series.len() == 2);
    for (labels, cpu) in all {
        assert!((WORK.as_secs_f64()..WORK.as_secs_f64() + SLACK).contains(&cpu), "{labels:?}: {cpu}");
    }
}
