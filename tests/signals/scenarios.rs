//! What the child processes do: run stages, tell that they have, wait for a signal or for a word from the test.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::signal::unix;
use tracing_stage_metrics::{Error, FlushGuard, MetricsLayer, RunReport};
use tracing_subscriber::prelude::*;

use super::support::measured::stage;
use super::support::{child, http};

/// Where a child asks whether it may go on: the answer is held until it may.
pub(crate) const GATE: &str = "TSM_GATE";

/// Everything global, as in an application.
fn set_up(on_signals: bool) -> FlushGuard {
    let builder = MetricsLayer::builder().with_env().unwrap().with_run_report(|report| {
        let stage = |id| report.stage(id).map_or((0, 0), |stage| (stage.runs(), stage.failures()));
        println!("the report: done {:?}, open {:?}", stage("done"), stage("open"));
    });
    let builder = if on_signals { builder.with_flush_on_signals() } else { builder };
    let (layer, guard) = builder.install().unwrap();
    let log = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(std::io::stderr);
    tracing_subscriber::registry().with(layer).with(log).init();
    guard
}

fn last_value() {
    metrics::gauge!("last_value").set(42.0);
}

/// Waits until the test says so.
fn pass_gate() {
    let gate: SocketAddr = std::env::var(GATE).unwrap().parse().unwrap();
    assert_eq!(http::get(gate, "/").unwrap().status, 200);
}

/// Waits until nobody of the crate looks for signals any more.
fn await_no_thread() {
    let is_ours = |task: std::fs::DirEntry| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with("stage-metrics"))
    };
    while std::fs::read_dir("/proc/self/task").is_ok_and(|mut tasks| tasks.any(|task| task.is_ok_and(is_ours))) {
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn wait_for_the_end(said: &str) -> ! {
    println!("{said}");
    loop {
        std::thread::park();
    }
}

/// Another guard that is to have the signals, beside the global one.
fn another() -> Result<(MetricsLayer, FlushGuard), Error> {
    let report =
        |report: RunReport| println!("another has measured the last stage: {}", report.stage("last").is_some());
    MetricsLayer::builder().with_env().unwrap().with_flush_on_signals().with_run_report(report).build()
}

/// Stages of another guard, which is gone already or still to come when a signal does.
fn measured_by(layer: MetricsLayer, stage_id: &str) {
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || stage(stage_id));
}

#[track_caller]
fn assert_has_to_wait() {
    let Err(error) = another() else { panic!("two guards have the signals") };
    assert!(error.is_config(), "{error:?}");
    assert!(error.to_string().contains("`with_flush_on_signals()`"), "{error}");
}

/// Not a test: what the children do.
#[test]
fn end_as_told() {
    let Some(scenario) = child::scenario() else { return };
    let guard = set_up(!["without the flush", "a handler of its own"].contains(&scenario.as_str()));
    stage("done");
    match scenario.as_str() {
        "in a stage" => {
            let _open = tracing::info_span!("work", stage_id = "open").entered();
            last_value();
            wait_for_the_end("it works")
        }
        // `/proc` shows the processes of the namespace it was mounted in.
        "as process 1" => {
            assert_eq!(std::process::id(), 1);
            last_value();
            wait_for_the_end(&format!("it is {}.", std::fs::read_link("/proc/self").unwrap().display()))
        }
        "without the flush" => {
            guard.flush().unwrap();
            stage("done");
            wait_for_the_end("it works")
        }
        "a handler of its own" => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut terminated = unix::signal(unix::SignalKind::terminate()).unwrap();
                println!("it works");
                terminated.recv().await;
            });
            last_value();
            drop(guard);
        }
        "through the gate" => {
            last_value();
            pass_gate();
        }
        "guard gone" => {
            guard.shutdown().unwrap();
            await_no_thread();
            wait_for_the_end("the guard is gone")
        }
        "shutdown through the gate" => {
            last_value();
            pass_gate();
            // With a signal in the middle this does not say.
            let _ = guard.shutdown();
            wait_for_the_end("the guard is gone")
        }
        "exit through the gate" => {
            last_value();
            pass_gate();
            guard.exit(3)
        }
        "runtime" => {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let (begun, mut all) = tokio::sync::mpsc::channel(4);
                for _ in 0..4 {
                    tokio::spawn(in_a_task(begun.clone()));
                }
                for _ in 0..4 {
                    all.recv().await.unwrap();
                }
                tokio::task::spawn_blocking(|| {
                    let _open = tracing::info_span!("blocking", stage_id = "open").entered();
                    last_value();
                    wait_for_the_end("it works")
                })
                .await
                .unwrap()
            })
        }
        "two guards at once" => {
            let _open = tracing::info_span!("work", stage_id = "open").entered();
            assert_has_to_wait();
            // The refusal has not taken them from the first, nor given them to anyone.
            assert_has_to_wait();
            last_value();
            wait_for_the_end("it works")
        }
        "one guard after the other" => {
            guard.shutdown().unwrap();
            for stage_id in ["second", "third"] {
                let (layer, guard) = another().unwrap();
                assert_has_to_wait();
                measured_by(layer, stage_id);
                drop(guard);
            }
            // The recorder of the process is the first guard's.
            assert!(MetricsLayer::builder().with_flush_on_signals().install().unwrap_err().is_config());
            let (layer, _guard) = another().unwrap();
            measured_by(layer, "last");
            wait_for_the_end("it works")
        }
        "panic later" => {
            let _guard = guard;
            last_value();
            pass_gate();
            panic!("as told");
        }
        unknown => panic!("no scenario {unknown}"),
    }
}

#[tracing::instrument(skip_all, fields(stage_id = "task"))]
async fn in_a_task(begun: tokio::sync::mpsc::Sender<()>) {
    begun.send(()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3_600)).await;
}
