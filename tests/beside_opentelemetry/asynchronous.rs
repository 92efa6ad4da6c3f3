//! Stages that are asynchronous: tasks, waiting, and being dropped.

use std::task::{Context, Waker};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio::task::{JoinSet, yield_now};
use tracing::{Instrument, dispatcher, error, info_span, instrument};
use tracing_stage_metrics::FailurePolicy;

use super::{agreed, in_both_orders, pass};

/// A runtime of each kind, whose threads have the subscriber of this one. (`with_subscriber` is not enough: the
/// registry closes a span's parent in whatever subscriber is the default then.)
fn runtimes() -> [Runtime; 2] {
    [Builder::new_current_thread(), Builder::new_multi_thread()].map(|mut builder| {
        let dispatch = dispatcher::get_default(Clone::clone);
        let attach = move || std::mem::forget(dispatcher::set_default(&dispatch));
        builder.worker_threads(2).enable_all().on_thread_start(attach).build().unwrap()
    })
}

/// Runs it on each; the two layers must agree. What they say is the same.
#[track_caller]
fn on_both(scenario: impl AsyncFn()) -> Vec<String> {
    let [one, other] = [0, 1].map(|kind| agreed(|| runtimes()[kind].block_on(scenario())));
    assert_eq!(one, other);
    one
}

#[instrument(err, ret)]
async fn stage(stage_id: &'static str, answer: Result<u32, u32>) -> Result<u32, u32> {
    yield_now().await;
    pass();
    yield_now().await;
    answer
}

#[test]
fn tasks() {
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
fn one_that_waits() {
    let lines = on_both(async || {
        let (done, waits) = oneshot::channel();
        let waiting = async { waits.await.unwrap() }.instrument(info_span!("x", stage_id = "a"));
        tokio::join!(waiting, async {
            yield_now().await;
            pass();
            done.send(()).unwrap();
        });
    });
    assert_eq!(lines, ["a success Unset"]);
}

#[test]
#[allow(clippy::async_yields_async)] // The task is to be awaited outside the stage.
fn one_that_leaves_a_task_behind() {
    let lines = on_both(async || {
        let (release, released) = oneshot::channel::<()>();
        let outer = async {
            let detached = async { released.await.unwrap() }.instrument(info_span!("detached"));
            tokio::spawn(detached)
        };
        let task = outer.instrument(info_span!("x", stage_id = "a")).await;
        pass();
        release.send(()).unwrap();
        task.await.unwrap();
    });
    assert_eq!(lines, ["a success Unset"]);
}

/// Dropped in four ways; each ends when it is dropped, which is after a pause.
async fn cancelled() {
    let pending = |stage_id| stage_of(stage_id, std::future::pending());
    tokio::time::timeout(Duration::from_millis(3), pending("timeout")).await.unwrap_err();

    tokio::select! {
        biased;
        _ = pending("lost") => unreachable!(),
        () = async {
            yield_now().await;
            pass();
        } => {}
    }

    let (started, is_started) = oneshot::channel();
    let task = tokio::spawn(stage_of("aborted", async {
        started.send(()).unwrap();
        std::future::pending().await
    }));
    is_started.await.unwrap();
    pass();
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());

    let never_polled = std::future::pending::<()>().instrument(info_span!("x", stage_id = "never.polled"));
    pass();
    drop(never_polled);

    let mut failed = Box::pin(stage_of("failed.before", async {
        error!("it broke");
        std::future::pending().await
    }));
    assert!(failed.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    pass();
    drop(failed);
}

#[instrument(skip(work), err, ret)]
async fn stage_of(stage_id: &'static str, work: impl Future<Output = ()> + Send) -> Result<u32, u32> {
    work.await;
    Ok(1)
}

#[test]
fn dropped_ones_are_no_failure_unless_they_said_so() {
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

/// A difference that is asked for: the trace does not know a dropped future.
#[test]
fn with_proven_success_dropped_ones_are_cancelled_here_alone() {
    let lines = in_both_orders(|setup| {
        let beside = setup.with_policy(FailurePolicy::ProvenSuccess).start();
        runtimes()[0].block_on(cancelled());
        beside.told().lines()
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
fn stages_in_turns_on_one_thread() {
    let lines = on_both(async || {
        let family = async |outer: &'static str, inner: &'static str| {
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
        tokio::join!(family("a", "b"), family("c", "d"));
    });
    assert_eq!(lines, ["a success Unset", "b success Unset", "c success Unset", "d error Error"]);
}

#[test]
fn a_future_that_moves_from_thread_to_thread() {
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
        pass();
        assert!(work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready());
    });
    assert_eq!(lines, ["a error Error"]);
}
