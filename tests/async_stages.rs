//! Asynchronous stages: concurrent tasks, tasks that move between threads, cancelled futures.
#![cfg(feature = "pushgateway")]
// Clippy's exemption for tests reaches `#[test]` functions only, not the functions they share.
#![allow(clippy::unwrap_used)]

mod support;

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use support::Pipeline;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Barrier, oneshot};
use tokio::task::{JoinSet, yield_now};
use tracing::{Instrument, Span, dispatcher, error, info_span, instrument};
use tracing_stage_metrics::FailurePolicy;

/// A current-thread and a multi-thread runtime. The pipeline's subscriber is the default of all their threads.
fn runtimes(pipeline: &Pipeline) -> [Runtime; 2] {
    [Builder::new_current_thread(), Builder::new_multi_thread()].map(|mut builder| {
        let dispatch = pipeline.dispatch();
        let attach = move || std::mem::forget(dispatcher::set_default(&dispatch));
        builder.worker_threads(4).enable_all().on_thread_start(attach).build().unwrap()
    })
}

/// Runs the scenario twice: on a current-thread and on a multi-thread runtime, each with a pipeline of its own.
fn on_both(run: impl AsyncFn(&Pipeline)) {
    for kind in 0..2 {
        let pipeline = Pipeline::start();
        let [current, multi] = runtimes(&pipeline);
        [&current, &multi][kind].block_on(run(&pipeline));
    }
}

#[instrument(err)]
async fn stage(stage_id: &str, answer: Result<u32, u32>) -> Result<u32, u32> {
    yield_now().await;
    answer
}

#[test]
fn parallel_stages_of_one_root_inherit_from_it() {
    on_both(async |pipeline| {
        let root = info_span!("pipeline", profile = "p", run_id = "r");
        async {
            let mut tasks = JoinSet::new();
            for n in 0..100_u32 {
                let id = format!("stage-{}", n % 4);
                let answer = if n < 80 { Ok(n) } else { Err(n) };
                tasks.spawn(async move { stage(&id, answer).await }.in_current_span());
            }
            assert_eq!(tasks.join_all().await.into_iter().filter(Result::is_err).count(), 20);
        }
        .instrument(root)
        .await;
        let now = pipeline.now();
        assert_eq!(now.totals(), ["stage-0 20 5", "stage-1 20 5", "stage-2 20 5", "stage-3 20 5"]);
        assert_eq!(now.runs(), ["stage-0,p,r 25", "stage-1,p,r 25", "stage-2,p,r 25", "stage-3,p,r 25"]);
        assert!(now.active().is_empty());
    });
}

#[test]
fn task_without_a_span_inherits_nothing() {
    on_both(async |pipeline| {
        let task = async { tokio::spawn(async { stage("a", Ok(1)).await.unwrap() }).await.unwrap() };
        task.instrument(info_span!("pipeline", profile = "p")).await;
        assert_eq!(pipeline.now().runs(), ["a,, 1"]);
    });
}

#[test]
fn interleaved_stages_on_one_thread_do_not_mix() {
    on_both(async |pipeline| {
        let run_family = async |profile: &str| {
            async {
                for n in 0..10 {
                    let child = async {
                        yield_now().await;
                        if profile == "q" && n == 3 {
                            error!("it broke");
                        }
                        yield_now().await;
                    };
                    child.instrument(info_span!("x", stage_id = "child")).await;
                }
            }
            .instrument(info_span!("x", stage_id = "parent", profile))
            .await;
        };
        tokio::join!(run_family("p"), run_family("q"), run_family("r"));
        let now = pipeline.now();
        assert_eq!(
            now.runs(),
            ["child,p, 10", "child,q, 10", "child,r, 10", "parent,p, 1", "parent,q, 1", "parent,r, 1"]
        );
        assert_eq!(now.failures(), ["child,q,error 1"]);
    });
}

#[test]
fn concurrently_open_stages_are_all_active() {
    on_both(async |pipeline| {
        let barrier = std::sync::Arc::new(Barrier::new(21));
        let mut tasks = JoinSet::new();
        for n in 0..20 {
            let barrier = std::sync::Arc::clone(&barrier);
            let waits = async move {
                barrier.wait().await;
                barrier.wait().await;
            };
            tasks.spawn(waits.instrument(info_span!("x", stage_id = "a", profile = n % 2)));
        }
        barrier.wait().await;
        assert_eq!(pipeline.now().active(), ["a,0 10", "a,1 10"]);
        barrier.wait().await;
        tasks.join_all().await;
        assert!(pipeline.now().active().is_empty());
        assert_eq!(pipeline.now().totals(), ["a 20 0"]);
    });
}

#[test]
fn blocking_task_inherits_from_the_span_it_enters() {
    on_both(async |pipeline| {
        async {
            let span = Span::current();
            let blocking = move || {
                span.in_scope(|| {
                    info_span!("x", stage_id = "inner").in_scope(|| ());
                    error!("it broke");
                });
            };
            tokio::task::spawn_blocking(blocking).await.unwrap();
        }
        .instrument(info_span!("x", stage_id = "outer", profile = "p"))
        .await;
        assert_eq!(pipeline.now().runs(), ["inner,p, 1", "outer,p, 1"]);
        assert_eq!(pipeline.now().failures(), ["outer,p,error 1"]);
    });
}

#[test]
#[allow(clippy::async_yields_async)] // The task is to be awaited outside the stage.
fn detached_task_keeps_its_parent_open_without_extending_its_duration() {
    on_both(async |pipeline| {
        let (release, released) = oneshot::channel::<()>();
        let start = Instant::now();
        let mut task = None;
        let stage = async {
            let detached = async move { released.await.unwrap() }.instrument(info_span!("detached"));
            task = Some(tokio::spawn(detached));
        };
        stage.instrument(info_span!("x", stage_id = "a")).await;
        let upper_bound = start.elapsed().as_secs_f64();
        assert_eq!(pipeline.now().active(), ["a, 1"]);
        spin();
        release.send(()).unwrap();
        task.unwrap().await.unwrap();
        let now = pipeline.now();
        assert_eq!(now.totals(), ["a 1 0"]);
        assert!(now.seconds("a") <= upper_bound, "{} {upper_bound}", now.seconds("a"));
    });
}

const PAUSE: Duration = Duration::from_millis(20);

fn spin() {
    let start = Instant::now();
    while start.elapsed() < PAUSE {
        std::hint::spin_loop();
    }
}

/// Returns `Pending` at the first poll and `Ready` at the second.
async fn pending_once() {
    let mut first = true;
    std::future::poll_fn(|_| if std::mem::take(&mut first) { Poll::Pending } else { Poll::Ready(()) }).await;
}

fn poll<T>(future: &mut Pin<Box<dyn Future<Output = T> + Send>>) -> Poll<T> {
    future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn task_polled_on_several_threads_is_one_stage() {
    let pipeline = Pipeline::start();
    let work = async {
        pending_once().await;
        async { pending_once().await }.instrument(info_span!("x", stage_id = "inner")).await;
        error!("it broke");
        pending_once().await;
    };
    let start = Instant::now();
    let mut task: Pin<Box<dyn Future<Output = ()> + Send>> =
        Box::pin(work.instrument(info_span!("x", stage_id = "outer", profile = "p")));
    let mut turns = 0;
    let mut done = false;
    while !done {
        turns += 1;
        let dispatch = pipeline.dispatch();
        let turn = move || {
            dispatcher::with_default(&dispatch, || {
                spin();
                let done = poll(&mut task).is_ready();
                (task, done)
            })
        };
        (task, done) = std::thread::spawn(turn).join().unwrap();
    }
    drop(task);
    let upper_bound = start.elapsed().as_secs_f64();
    assert_eq!(turns, 4);
    let now = pipeline.now();
    assert_eq!(now.runs(), ["inner,p, 1", "outer,p, 1"]);
    assert_eq!(now.failures(), ["outer,p,error 1"]);
    // The duration includes the time between two polls.
    assert!(
        (4.0 * PAUSE.as_secs_f64()..=upper_bound).contains(&now.seconds("outer")),
        "{} {upper_bound}",
        now.seconds("outer")
    );
}

#[test]
fn dropped_future_ends_its_stage() {
    on_both(async |pipeline| {
        tokio::select! {
            biased;
            () = std::future::pending().instrument(info_span!("x", stage_id = "dropped")) => unreachable!(),
            answer = stage("won", Ok(1)) => assert_eq!(answer, Ok(1)),
        }
        let now = pipeline.now();
        assert_eq!(now.totals(), ["dropped 1 0", "won 1 0"]);
        assert!(now.active().is_empty());
    });
}

#[tokio::test]
async fn timed_out_stage_fails_only_under_proven_success() {
    #[instrument(skip(work), fields(stage_id = "slow"), err, ret)]
    async fn slow(work: impl Future<Output = ()>) -> Result<u32, u32> {
        work.await;
        Ok(1)
    }
    for (policy, totals) in [(FailurePolicy::ErrorEvents, "slow 1 0"), (FailurePolicy::ProvenSuccess, "slow 0 1")] {
        let pipeline = Pipeline::under(policy);
        tokio::time::timeout(Duration::ZERO, slow(std::future::pending())).await.unwrap_err();
        assert_eq!(pipeline.now().totals(), [totals]);
    }
    let pipeline = Pipeline::under(FailurePolicy::ProvenSuccess);
    tokio::time::timeout(support::WAIT_TIMEOUT, slow(yield_now())).await.unwrap().unwrap();
    assert_eq!(pipeline.now().totals(), ["slow 1 0"]);
}

#[test]
fn guard_works_inside_a_runtime() {
    for kind in 0..2 {
        let pipeline = Pipeline::start();
        let [current, multi] = runtimes(&pipeline);
        let runtime = [&current, &multi][kind];
        runtime.block_on(stage("a", Ok(1))).unwrap();
        runtime.block_on(pipeline.guard().flush_async()).unwrap();
        let ended = pipeline.end_by(|guard| runtime.block_on(guard.shutdown_async()));
        ended.result.unwrap();
        assert_eq!(ended.last.totals(), ["a 1 0"]);
        assert!(ended.last.has("quant_run_last_success_timestamp_seconds"));
    }
}
