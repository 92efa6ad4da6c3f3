//! Asynchronous stages: concurrent_tasks_agree, waiting, cancelled futures.

use std::task::{Context, Waker};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio::task::{JoinSet, yield_now};
use tracing::{Instrument, dispatcher, error, info_span, instrument};
use tracing_stage_metrics::FailurePolicy;

use super::{agreed, in_both_orders, spin};

/// A current-thread and a multi-thread runtime whose threads have this thread's subscriber as their default.
/// (`with_subscriber` is not enough: the registry closes a span's parent in the subscriber that is the default then.)
fn runtimes() -> [Runtime; 2] {
    [Builder::new_current_thread(), Builder::new_multi_thread()].map(|mut builder| {
        let dispatch = dispatcher::get_default(Clone::clone);
        let attach = move || std::mem::forget(dispatcher::set_default(&dispatch));
        builder.worker_threads(2).enable_all().on_thread_start(attach).build().unwrap()
    })
}

/// Runs the scenario on both runtimes and returns the outcomes. Panics unless metric and trace agree, and both runtimes
/// have the same outcomes.
#[track_caller]
fn on_both(scenario: impl AsyncFn()) -> Vec<String> {
    let [current_thread, multi_thread] = [0, 1].map(|kind| agreed(|| runtimes()[kind].block_on(scenario())));
    assert_eq!(current_thread, multi_thread, "both runtimes have the same outcomes");
    current_thread
}

#[instrument(err, ret)]
async fn stage(stage_id: &'static str, answer: Result<u32, u32>) -> Result<u32, u32> {
    yield_now().await;
    spin();
    yield_now().await;
    answer
}

#[test]
fn concurrent_tasks_agree() {
    let lines = on_both(async || {
        let mut tasks = JoinSet::new();
        for (stage_id, answer) in [("a", Ok(1)), ("b", Err(1)), ("c", Ok(1))] {
            tasks.spawn(stage(stage_id, answer).in_current_span());
        }
        assert_eq!(tasks.join_all().await.into_iter().filter(Result::is_err).count(), 1);
    });
    assert_eq!(lines, ["a success Unset", "b error Error", "c success Unset"]);
}

#[test]
fn waiting_stage_agrees() {
    let lines = on_both(async || {
        let (done, waits) = oneshot::channel();
        let waiting = async { waits.await.unwrap() }.instrument(info_span!("x", stage_id = "a"));
        tokio::join!(waiting, async {
            yield_now().await;
            spin();
            done.send(()).unwrap();
        });
    });
    assert_eq!(lines, ["a success Unset"]);
}

#[test]
#[allow(clippy::async_yields_async)] // The task is to be awaited outside the stage.
fn stage_with_a_detached_task_agrees() {
    let lines = on_both(async || {
        let (release, released) = oneshot::channel::<()>();
        let outer = async {
            let detached = async { released.await.unwrap() }.instrument(info_span!("detached"));
            tokio::spawn(detached)
        };
        let task = outer.instrument(info_span!("x", stage_id = "a")).await;
        spin();
        release.send(()).unwrap();
        task.await.unwrap();
    });
    assert_eq!(lines, ["a success Unset"]);
}

/// Drops futures in five ways. Each stage ends when its future is dropped, which is after a pause.
async fn cancelled() {
    let pending = |stage_id| stage_of(stage_id, std::future::pending());
    tokio::time::timeout(Duration::from_millis(3), pending("timeout")).await.unwrap_err();

    tokio::select! {
        biased;
        _ = pending("lost") => unreachable!(),
        () = async {
            yield_now().await;
            spin();
        } => {}
    }

    let (started, is_started) = oneshot::channel();
    let task = tokio::spawn(stage_of("aborted", async {
        started.send(()).unwrap();
        std::future::pending().await
    }));
    is_started.await.unwrap();
    spin();
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());

    let never_polled = std::future::pending::<()>().instrument(info_span!("x", stage_id = "never.polled"));
    spin();
    drop(never_polled);

    let mut failed = Box::pin(stage_of("failed.before", async {
        error!("it broke");
        std::future::pending().await
    }));
    assert!(failed.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    spin();
    drop(failed);
}

#[instrument(skip(work), err, ret)]
async fn stage_of(stage_id: &'static str, work: impl Future<Output = ()> + Send) -> Result<u32, u32> {
    work.await;
    Ok(1)
}

#[test]
fn dropped_future_is_a_success_without_an_error() {
    assert_eq!(
        on_both(async || cancelled().await),
        [
            "aborted success Unset",
            "failed.before error Error",
            "lost success Unset",
            "never.polled success Unset",
            "timeout success Unset"
        ]
    );
}

/// An intended difference: the trace has no status for a dropped future.
#[test]
fn dropped_future_is_cancelled_in_the_metric_alone_under_proven_success() {
    let lines = in_both_orders(|setup| {
        let comparison = setup.with_policy(FailurePolicy::ProvenSuccess).start();
        runtimes()[0].block_on(cancelled());
        comparison.outcomes().lines()
    });
    assert_eq!(
        lines,
        [
            "aborted cancelled Unset",
            "failed.before cancelled Error",
            "lost cancelled Unset",
            "never.polled cancelled Unset",
            "timeout cancelled Unset"
        ]
    );
}

#[test]
fn interleaved_stages_on_one_thread_agree() {
    let lines = on_both(async || {
        let run_family = async |outer: &'static str, inner: &'static str| {
            async {
                let work = async {
                    yield_now().await;
                    if inner == "d" {
                        error!("it broke");
                    }
                    yield_now().await;
                };
                work.instrument(info_span!("x", stage_id = inner)).await;
            }
            .instrument(info_span!("x", stage_id = outer))
            .await;
        };
        tokio::join!(run_family("a", "b"), run_family("c", "d"));
    });
    assert_eq!(lines, ["a success Unset", "b success Unset", "c success Unset", "d error Error"]);
}

#[test]
fn future_polled_on_two_threads_agrees() {
    let lines = agreed(|| {
        let work = async {
            yield_now().await;
            error!("it broke");
        };
        let mut work = Box::pin(work.instrument(info_span!("x", stage_id = "a")));
        let dispatch = dispatcher::get_default(Clone::clone);
        let turn = move || {
            let _default = dispatcher::set_default(&dispatch);
            assert!(work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            work
        };
        let mut work = std::thread::spawn(turn).join().unwrap();
        spin();
        assert!(work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready());
    });
    assert_eq!(lines, ["a error Error"]);
}
