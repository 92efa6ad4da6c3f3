//! A batch pipeline on real prices. [`measured`] has all code that concerns metrics.
//!
//! `cargo run --example pipeline` needs no server: it prints its result and the run report, and writes the metrics to a
//! text file. With `TV_PROMETHEUS_PUSHGATEWAY=http://localhost:9091` it pushes them as well. `--fail alpha.policy` and
//! `--panic risk.optimize` show what a failure looks like; `--help` lists the rest. The stages are functions under
//! `#[tracing::instrument]` in `examples/momentum`.

#![allow(clippy::print_stdout, clippy::print_stderr)]

#[path = "../momentum/mod.rs"]
mod momentum;
mod options;

use std::path::Path;
use std::process::ExitCode;
use std::{env, io};

use momentum::{Job, Outcome, STAGES};
use tracing_stage_metrics::MetricsLayer;
use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

fn main() -> ExitCode {
    let (job, textfile) = match options::parse(lexopt::Parser::from_env()) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("error: {error}, see --help");
            return ExitCode::from(2);
        }
    };
    match measured(&job, &textfile) {
        Ok(outcome) => {
            println!("{outcome}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the job with its stages measured. The metrics are delivered whether it returns, fails or panics.
fn measured(job: &Job, textfile: &Path) -> anyhow::Result<Outcome> {
    let (layer, guard) = MetricsLayer::builder()
        .with_env()? // TV_PROMETHEUS_PUSHGATEWAY and the others
        .with_expected_stages(STAGES)
        .with_textfile(textfile)
        .with_flush_on_signals()
        .with_flush_on_panic_abort()
        .with_run_report(|report| eprintln!("{report}"))
        .install()?;
    let log = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::registry()
        .with(layer.with_filter(LevelFilter::INFO))
        .with(fmt::layer().with_writer(io::stderr).with_filter(log))
        .init();

    let pushes = env::var_os("TV_PROMETHEUS_PUSHGATEWAY").is_some_and(|url| !url.is_empty());
    let also = if pushes { ", and are pushed to the Pushgateway" } else { "" };
    eprintln!("metrics are written to {}{also}", textfile.display());

    guard.finish(momentum::run(job))
}
