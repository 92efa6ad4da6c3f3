//! The batch job of the examples: volatility-weighted momentum over three assets, against buy and hold, on real prices.
//!
//! Nothing in here knows of metrics. The stages are functions under `#[tracing::instrument]`.

pub(crate) mod date;
pub(crate) mod error;
pub(crate) mod fault;
mod features;
mod inference;
pub(crate) mod outcome;
mod parallel;
mod performance;
mod policy;
mod prices;
mod risk;
mod simulate;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use error::PipelineError;
use fault::Faults;
use outcome::Outcome;
use parallel::in_parallel;
use performance::Performance;
use prices::Prices;
use risk::Allocation;
use simulate::Portfolio;

/// In the order in which they run.
pub(crate) const STAGES: [&str; 6] = [
    "foundation.ingest",
    "foundation.features",
    "alpha.inference",
    "alpha.policy",
    "risk.optimize",
    "allocation.simulate",
];

/// The prices that come with the examples.
pub(crate) const PRICES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/daily_closes.csv");

/// One run of it.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) data: PathBuf,
    pub(crate) profile: String,
    pub(crate) run_id: String,
    pub(crate) faults: Faults,
}

/// The pipeline. Every stage inherits `profile` and `run_id` from this span.
#[tracing::instrument(name = "pipeline", skip_all, fields(profile = job.profile, run_id = job.run_id))]
pub(crate) fn run(job: &Job) -> Result<Outcome, PipelineError> {
    let prices = prices::ingest(&job.data, &job.faults)?;
    let schedule = plan(&prices, &job.faults)?;

    // Both start on the day of the first decision: a comparison over different times would say nothing.
    let start = schedule[0].day;
    let portfolios = [Portfolio { name: "momentum", schedule }, Portfolio::buy_and_hold(start, prices.assets.len())];
    let simulations = in_parallel(&portfolios, |portfolio| simulate::simulate(&prices, portfolio, &job.faults));
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
