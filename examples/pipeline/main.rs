//! A small batch pipeline on real prices, measured without a word about metrics in its stages.
//!
//! `cargo run --example pipeline` needs no server: it prints its result and the report of the run, and writes the
//! metrics to a text file. With `TV_PROMETHEUS_PUSHGATEWAY=http://localhost:9091` it pushes them as well. See what a
//! failure looks like with `--fail alpha.policy` or `--panic risk.optimize`; `--help` lists the rest.
//!
//! All that concerns metrics is in [`measured`]. The stages are functions under `#[tracing::instrument]`.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod date;
mod error;
mod fault;
mod features;
mod inference;
mod options;
mod outcome;
mod parallel;
mod performance;
mod policy;
mod prices;
mod risk;
mod simulate;
#[cfg(test)]
mod tests;

use std::error::Error;
use std::process::ExitCode;
use std::{env, io};

use tracing_stage_metrics::MetricsLayer;
use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

use crate::error::{Chain, PipelineError};
use crate::fault::Faults;
use crate::options::{Options, Stop};
use crate::outcome::Outcome;
use crate::parallel::in_parallel;
use crate::performance::Performance;
use crate::prices::Prices;
use crate::risk::Allocation;
use crate::simulate::Portfolio;

/// In the order in which they run.
const STAGES: [&str; 6] = [
    "foundation.ingest",
    "foundation.features",
    "alpha.inference",
    "alpha.policy",
    "risk.optimize",
    "allocation.simulate",
];

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

    Ok(guard.finish(run(options))?)
}

/// The pipeline. Every stage inherits `profile` and `run_id` from this span.
#[tracing::instrument(name = "pipeline", skip_all, fields(profile = options.profile, run_id = options.run_id))]
fn run(options: &Options) -> Result<Outcome, PipelineError> {
    let prices = prices::ingest(&options.data, &options.faults)?;
    let schedule = plan(&prices, &options.faults)?;

    // Both start on the day of the first decision: a comparison over different times would say nothing.
    let start = schedule[0].day;
    let portfolios = [Portfolio { name: "momentum", schedule }, Portfolio::buy_and_hold(start, prices.assets.len())];
    let simulations = in_parallel(&portfolios, |portfolio| simulate::simulate(&prices, portfolio, &options.faults));
    let simulations = simulations.into_iter().collect::<Result<Vec<_>, _>>()?;
    let performances = simulations.iter().map(|simulation| Performance::of(simulation, &prices.dates)).collect();
    Ok(Outcome { from: prices.dates[start], to: prices.dates[prices.dates.len() - 1], performances })
}

/// What to hold when, of which there is at least one.
fn plan(prices: &Prices, faults: &Faults) -> Result<Vec<Allocation>, PipelineError> {
    let features = in_parallel(&prices.assets, |asset| features::features(asset, faults));
    let features = features.into_iter().collect::<Result<Vec<_>, _>>()?;
    let scores = inference::infer(&prices.dates, &features, faults)?;
    let decisions = policy::decide(&prices.dates, &scores, faults)?;
    risk::optimize(prices, &decisions, faults)
}
