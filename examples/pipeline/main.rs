//! A small batch pipeline on real prices, measured without a word about metrics in its stages.
//!
//! `cargo run --example pipeline` needs no server: it prints its result and the report of the run, and writes the
//! metrics to a text file. With `TV_PROMETHEUS_PUSHGATEWAY=http://localhost:9091` it pushes them as well. See what a
//! failure looks like with `--fail alpha.policy` or `--panic risk.optimize`; `--help` lists the rest.
//!
//! All that concerns metrics is in [`measured`]. The stages are functions under `#[tracing::instrument]`, in
//! `examples/momentum`.

#![allow(clippy::print_stdout, clippy::print_stderr)]

#[path = "../momentum/mod.rs"]
mod momentum;
mod options;

use std::error::Error;
use std::process::ExitCode;
use std::{env, io};

use momentum::error::Chain;
use momentum::outcome::Outcome;
use tracing_stage_metrics::MetricsLayer;
use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

use crate::momentum::STAGES;
use crate::options::{Options, Stop};

fn main() -> ExitCode {
    let options = match Options::parse(env::args().skip(1)) {
        Ok(options) => options,
        Err(Stop::Help) => {
            println!("{}", Stop::Help);
            return ExitCode::SUCCESS;
        }
        Err(wrong) => {
            eprintln!("error: {wrong}");
            return ExitCode::from(2);
        }
    };
    match measured(&options) {
        Ok(outcome) => {
            println!("{outcome}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {}", Chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// Runs the pipeline with its stages measured. Whether it returns, fails or panics: the metrics are delivered.
fn measured(options: &Options) -> Result<Outcome, Box<dyn Error>> {
    let (layer, guard) = MetricsLayer::builder()
        .with_env()? // TV_PROMETHEUS_PUSHGATEWAY and the others
        .with_expected_stages(STAGES)
        .with_textfile(&options.textfile)
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
    eprintln!("metrics are written to {}{also}", options.textfile.display());

    Ok(guard.finish(momentum::run(&options.job))?)
}
