//! The scenarios of the child processes: each runs a stage, records a last value and ends.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use tracing_stage_metrics::{FlushGuard, MetricsLayer};
use tracing_subscriber::prelude::*;

use super::support::measured::{await_first_push, failing_stage, stage};
use super::support::{child, http};

/// Sets up the globals as an application does. The report goes to the gateway as a request, so that its position among
/// the pushes is visible.
fn set_up() -> FlushGuard {
    let gateway: SocketAddr = std::env::var("TV_PROMETHEUS_PUSHGATEWAY").unwrap().parse().unwrap();
    let (layer, guard) = MetricsLayer::builder()
        .with_env()
        .unwrap()
        .with_run_report(move |report| {
            let counts = report.stage("a").map_or((0, 0), |stage| (stage.runs(), stage.failures()));
            http::get(gateway, &format!("/report/{}/{}", counts.0, counts.1)).unwrap();
        })
        .install()
        .unwrap();
    let log = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(std::io::stderr);
    tracing_subscriber::registry().with(layer).with(log).init();
    await_first_push(&guard);
    guard
}

/// Records the last value of a scenario.
fn record_last_value() {
    metrics::gauge!("last_value").set(42.0);
}

fn current_thread() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn multi_thread() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// An executor without tokio: polls on this thread and parks in between.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = std::sync::Arc::new(Unpark(std::thread::current())).into();
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut std::task::Context::from_waker(&waker)) {
            std::task::Poll::Ready(result) => return result,
            std::task::Poll::Pending => std::thread::park(),
        }
    }
}

/// Not a test: the scenarios of the child processes. Each runs a stage `a` and ends in its own way.
#[test]
fn run_scenario() {
    let Some(scenario) = child::scenario() else { return };
    let guard = set_up();
    let in_async = async {
        stage("a");
        tokio::time::sleep(Duration::from_millis(1)).await;
        record_last_value();
    };
    match scenario.as_str() {
        "return" => {
            stage("a");
            record_last_value();
        }
        "return without a stage" => record_last_value(),
        "finish ok" => {
            stage("a");
            record_last_value();
            assert_eq!(guard.finish(Ok::<_, String>(7)), Ok(7));
        }
        "finish err" => {
            stage("a");
            record_last_value();
            assert_eq!(guard.finish(Err::<(), _>("why")), Err("why"));
        }
        "fail" => {
            stage("a");
            record_last_value();
            guard.fail();
        }
        "fail, then finish ok" => {
            stage("a");
            record_last_value();
            guard.fail();
            guard.finish(Ok::<_, ()>(())).unwrap();
        }
        "an error by ?" => {
            fn fails() -> Result<(), std::num::ParseIntError> {
                stage("a");
                record_last_value();
                "x".parse().map(|_: u8| ())
            }
            let main = || -> Result<(), std::num::ParseIntError> {
                let _guard = guard;
                fails()?;
                unreachable!("the question mark returns")
            };
            assert!(main().is_err());
        }
        "a stage failed" => {
            failing_stage("a");
            record_last_value();
        }
        "panic in a stage" => tracing::info_span!("stage", stage_id = "a").in_scope(|| {
            record_last_value();
            panic!("on purpose");
        }),
        "panic outside" => {
            stage("a");
            record_last_value();
            panic!("on purpose");
        }
        "panic of a thread in a stage" => {
            let thread =
                std::thread::spawn(|| tracing::info_span!("stage", stage_id = "a").in_scope(|| panic!("on purpose")));
            assert!(thread.join().is_err());
            record_last_value();
        }
        "panic of a thread outside" => {
            stage("a");
            assert!(std::thread::spawn(|| panic!("on purpose")).join().is_err());
            record_last_value();
        }
        "panic of a task" => {
            let runtime = multi_thread();
            let task = async { tracing::info_span!("stage", stage_id = "a").in_scope(|| panic!("on purpose")) };
            assert!(runtime.block_on(async { tokio::spawn(task).await }).is_err());
            record_last_value();
        }
        "panic inside block_on" => current_thread().block_on(async {
            let _guard = guard;
            in_async.await;
            panic!("on purpose");
        }),
        "panic of a task that has the guard" => {
            let task = async move {
                let _guard = guard;
                in_async.await;
                panic!("on purpose");
            };
            let runtime = multi_thread();
            assert!(runtime.block_on(async { tokio::spawn(task).await }).is_err());
        }
        "the guard forgotten" => {
            guard.flush().unwrap();
            stage("a");
            record_last_value();
            std::mem::forget(guard);
        }
        "process::exit" => {
            guard.flush().unwrap();
            stage("a");
            record_last_value();
            std::process::exit(3);
        }
        "a retried stage, exit 0" => {
            failing_stage("a");
            stage("a");
            record_last_value();
            guard.exit(0);
        }
        "a retried stage, return" => {
            failing_stage("a");
            stage("a");
            record_last_value();
        }
        "exit 0" => {
            stage("a");
            record_last_value();
            guard.exit(0);
        }
        "exit 3" => {
            stage("a");
            record_last_value();
            guard.exit(3);
        }
        "exit 0 in a stage" => tracing::info_span!("stage", stage_id = "a").in_scope(|| {
            record_last_value();
            guard.exit(0);
        }),
        "exit 3 in a stage" => tracing::info_span!("stage", stage_id = "a").in_scope(|| {
            record_last_value();
            guard.exit(3);
        }),
        "exit 3 inside a runtime" => current_thread().block_on(async {
            in_async.await;
            guard.exit(3);
        }),
        "shutdown" => {
            stage("a");
            record_last_value();
            guard.shutdown().unwrap();
        }
        "shutdown, then return" => {
            stage("a");
            record_last_value();
            guard.shutdown().unwrap();
            stage("a");
        }
        "flush, then return" => {
            stage("a");
            guard.flush().unwrap();
            record_last_value();
        }
        "after a current_thread runtime" => current_thread().block_on(in_async),
        "after a multi_thread runtime" => multi_thread().block_on(in_async),
        "inside block_on, current_thread" => current_thread().block_on(async {
            in_async.await;
            drop(guard);
        }),
        "inside block_on, multi_thread" => multi_thread().block_on(async {
            in_async.await;
            drop(guard);
        }),
        "in a task" => multi_thread().block_on(async {
            let task = async move {
                in_async.await;
                drop(guard);
            };
            tokio::spawn(task).await.unwrap();
        }),
        "in a task that is aborted" => multi_thread().block_on(async {
            in_async.await;
            let task = tokio::spawn(async move {
                let _guard = guard;
                std::future::pending::<()>().await;
            });
            tokio::task::yield_now().await;
            task.abort();
            assert!(task.await.unwrap_err().is_cancelled());
        }),
        "with a runtime that is dropped" => {
            let runtime = multi_thread();
            runtime.block_on(in_async);
            runtime.spawn(async move {
                let _guard = guard;
                std::future::pending::<()>().await;
            });
            drop(runtime);
        }
        "on another thread" => {
            stage("a");
            record_last_value();
            std::thread::spawn(move || drop(guard)).join().unwrap();
        }
        "in a blocking task" => current_thread().block_on(async {
            in_async.await;
            tokio::task::spawn_blocking(move || drop(guard)).await.unwrap();
        }),
        "shutdown inside a runtime" => current_thread().block_on(async {
            in_async.await;
            guard.shutdown().unwrap();
        }),
        "shutdown_async, current_thread" => current_thread().block_on(async {
            in_async.await;
            guard.shutdown_async().await.unwrap();
        }),
        "shutdown_async, multi_thread" => multi_thread().block_on(async {
            in_async.await;
            tokio::spawn(guard.shutdown_async()).await.unwrap().unwrap();
        }),
        "shutdown_async without tokio" => {
            stage("a");
            record_last_value();
            block_on(guard.shutdown_async()).unwrap();
        }
        "shutdown_async never polled" => {
            stage("a");
            record_last_value();
            drop(guard.shutdown_async());
        }
        "flush_async, then return" => current_thread().block_on(async {
            stage("a");
            guard.flush_async().await.unwrap();
            record_last_value();
        }),
        "flush_async in a task, then return" => multi_thread().block_on(async {
            stage("a");
            let shared = std::sync::Arc::new(guard);
            let flushing = std::sync::Arc::clone(&shared);
            tokio::spawn(async move { flushing.flush_async().await }).await.unwrap().unwrap();
            record_last_value();
        }),
        "flush_async without tokio, then return" => {
            stage("a");
            block_on(guard.flush_async()).unwrap();
            record_last_value();
        }
        unknown => panic!("unknown scenario: {unknown}"),
    }
}
