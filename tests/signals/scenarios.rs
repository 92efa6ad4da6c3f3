//! Scenarios of the child processes: run stages, print progress, and wait for a signal or for the test.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::signal::unix;
use tracing_stage_metrics::{Error, FlushGuard, MetricsLayer, RunReport};
use tracing_subscriber::prelude::*;

use super::support::measured::stage;
use super::support::{child, http};

/// Address at which a child asks for permission to go on; the response is held until then.
pub(crate) const GATE: &str = "TSM_GATE";

/// Installs everything globally, as an application does.
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

fn record_last_value() {
    metrics::gauge!("last_value").set(42.0);
}

/// Waits until the test releases the gate.
fn await_gate() {
    let gate: SocketAddr = std::env::var(GATE).unwrap().parse().unwrap();
    assert_eq!(http::get(gate, "/").unwrap().status, 200);
}

/// Waits until no thread of the crate remains.
fn await_threads_gone() {
    let is_own_thread = |task: std::fs::DirEntry| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with("stage-metrics"))
    };
    while std::fs::read_dir("/proc/self/task").is_ok_and(|mut tasks| tasks.any(|task| task.is_ok_and(is_own_thread))) {
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn print_and_park(line: &str) -> ! {
    println!("{line}");
    loop {
        std::thread::park();
    }
}

/// Builds a second guard that asks for the signals, besides the global one.
fn second_guard() -> Result<(MetricsLayer, FlushGuard), Error> {
    let report =
        |report: RunReport| println!("second guard has measured the last stage: {}", report.stage("last").is_some());
    MetricsLayer::builder().with_env().unwrap().with_flush_on_signals().with_run_report(report).build()
}

/// Runs a stage under the layer of another guard.
fn run_stage_under(layer: MetricsLayer, stage_id: &str) {
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || stage(stage_id));
}

#[track_caller]
fn assert_signals_are_taken() {
    let Err(error) = second_guard() else { panic!("two guards have the signals") };
    assert!(error.is_config(), "{error:?}");
    assert!(error.to_string().contains("`with_flush_on_signals()`"), "{error}");
}

/// Entry point of the child processes; does nothing in an ordinary test run.
#[test]
fn run_scenario() {
    let Some(scenario) = child::scenario() else { return };
    let guard = set_up(!["without the flush", "a handler of its own"].contains(&scenario.as_str()));
    stage("done");
    match scenario.as_str() {
        "in a stage" => {
            let _open = tracing::info_span!("work", stage_id = "open").entered();
            record_last_value();
            print_and_park("it works")
        }
        // `/proc` shows the processes of the namespace in which it was mounted.
        "as process 1" => {
            assert_eq!(std::process::id(), 1);
            record_last_value();
            print_and_park(&format!("it is {}.", std::fs::read_link("/proc/self").unwrap().display()))
        }
        "without the flush" => {
            guard.flush().unwrap();
            stage("done");
            print_and_park("it works")
        }
        "a handler of its own" => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut terminated = unix::signal(unix::SignalKind::terminate()).unwrap();
                println!("it works");
                terminated.recv().await;
            });
            record_last_value();
            drop(guard);
        }
        "through the gate" => {
            record_last_value();
            await_gate();
        }
        "guard gone" => {
            await_gate();
            guard.shutdown().unwrap();
            await_threads_gone();
            print_and_park("the guard is gone")
        }
        "shutdown through the gate" => {
            record_last_value();
            await_gate();
            // If a signal interferes, the result may be either.
            let _ = guard.shutdown();
            print_and_park("the guard is gone")
        }
        "exit through the gate" => {
            record_last_value();
            await_gate();
            guard.exit(3)
        }
        "runtime" => {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let (started, mut all) = tokio::sync::mpsc::channel(4);
                for _ in 0..4 {
                    tokio::spawn(in_a_task(started.clone()));
                }
                for _ in 0..4 {
                    all.recv().await.unwrap();
                }
                tokio::task::spawn_blocking(|| {
                    let _open = tracing::info_span!("blocking", stage_id = "open").entered();
                    record_last_value();
                    print_and_park("it works")
                })
                .await
                .unwrap()
            })
        }
        "two guards at once" => {
            let _open = tracing::info_span!("work", stage_id = "open").entered();
            assert_signals_are_taken();
            // The refusal has neither taken the signals from the first guard nor given them away.
            assert_signals_are_taken();
            record_last_value();
            print_and_park("it works")
        }
        "one guard after the other" => {
            guard.shutdown().unwrap();
            for stage_id in ["second", "third"] {
                let (layer, guard) = second_guard().unwrap();
                assert_signals_are_taken();
                run_stage_under(layer, stage_id);
                drop(guard);
            }
            // The global recorder still belongs to the first guard.
            assert!(MetricsLayer::builder().with_flush_on_signals().install().unwrap_err().is_config());
            let (layer, _guard) = second_guard().unwrap();
            run_stage_under(layer, "last");
            print_and_park("it works")
        }
        "panic later" => {
            let _guard = guard;
            record_last_value();
            await_gate();
            panic!("on purpose");
        }
        unknown => panic!("no scenario {unknown}"),
    }
}

#[tracing::instrument(skip_all, fields(stage_id = "task"))]
async fn in_a_task(started: tokio::sync::mpsc::Sender<()>) {
    started.send(()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3_600)).await;
}
