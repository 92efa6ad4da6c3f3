//! Scenarios of the child processes.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use tracing_stage_metrics::MetricsLayer;
use tracing_subscriber::prelude::*;

use super::directory::await_no_payload;
use super::support::child;
use super::support::measured::{await_first_push, stage};

/// A child with a job of its own and this spool.
#[track_caller]
pub(crate) fn command(scenario: &str, url: &str, job: &str, spool: &std::path::Path) -> Command {
    super::directory::readdress(spool, url);
    let mut command = child::command("scenarios::run_scenario", scenario);
    command
        .env("TV_PROMETHEUS_PUSHGATEWAY", url)
        .env("TV_PROMETHEUS_JOB", job)
        .env("TV_PROMETHEUS_PUSH_INTERVAL", "1h")
        .env("TV_PROMETHEUS_FLUSH_TIMEOUT", "20s")
        .env("TV_PROMETHEUS_SPOOL_DIR", spool);
    command
}

/// Entry point of the child processes; does nothing in an ordinary test run.
#[test]
fn run_scenario() {
    let Some(scenario) = child::scenario() else { return };
    let builder = MetricsLayer::builder().with_env().unwrap().with_flush_on_signals();
    let (layer, guard) = builder.install().unwrap();
    let log = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(std::io::stderr);
    tracing_subscriber::registry().with(layer).with(log).init();
    stage("a");
    println!("go");
    match scenario.as_str() {
        "end" => guard.shutdown().unwrap(),
        "end after a push" => {
            await_first_push(&guard);
            guard.shutdown().unwrap();
        }
        "time the end" => {
            let start = Instant::now();
            guard.shutdown().unwrap();
            println!("shutdown: {} ms", start.elapsed().as_millis());
        }
        "fail" => drop(guard.shutdown().unwrap_err()),
        "end when the spool is empty" => {
            await_no_payload(&PathBuf::from(std::env::var_os("TV_PROMETHEUS_SPOOL_DIR").unwrap()));
            guard.shutdown().unwrap();
        }
        "stay with a metric that is refused" => {
            metrics::gauge!("rows").set(1.0);
            assert_eq!(guard.flush().unwrap_err().status(), Some(400));
            println!("refused");
            loop {
                std::thread::park();
            }
        }
        "stay" => loop {
            std::thread::park();
        },
        unknown => panic!("no scenario {unknown}"),
    }
}
