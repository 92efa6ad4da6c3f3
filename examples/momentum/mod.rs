//! The batch job of the examples: volatility-weighted momentum over three assets, against buy and hold, on real prices.
//!
//! The stages are functions under `#[tracing::instrument]`. No file here mentions metrics.

pub(crate) mod allocation;
pub(crate) mod alpha;
pub(crate) mod foundation;
pub(crate) mod risk;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::{panic, thread};

pub(crate) use allocation::Outcome;
use anyhow::{Result, ensure};
use foundation::{PerAsset, Prices, SYMBOLS, features, ingest};
use tracing::Span;

/// The stages in the order in which they run.
pub(crate) const STAGES: [&str; 6] = [
    "foundation.ingest",
    "foundation.features",
    "alpha.inference",
    "alpha.policy",
    "risk.optimize",
    "allocation.simulate",
];

/// The settings of a run.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) data: PathBuf,
    pub(crate) profile: String,
    pub(crate) run_id: String,
    pub(crate) faults: Faults,
}

impl Default for Job {
    /// Runs on the prices that come with the examples; the run id is the time in UTC.
    fn default() -> Self {
        Self {
            data: concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/daily_closes.csv").into(),
            profile: "multi_asset_daily".to_owned(),
            run_id: jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string(),
            faults: Faults::default(),
        }
    }
}

/// The stages that are to fail or to panic in this run, to show what that looks like from outside.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Faults {
    pub(crate) fail: BTreeSet<String>,
    pub(crate) panic: BTreeSet<String>,
}

impl Faults {
    /// Fails or panics if `stage` is to do so. Each stage calls this first.
    pub(crate) fn check(&self, stage: &str) -> Result<()> {
        assert!(!self.panic.contains(stage), "{stage} panics because --panic asked for it");
        ensure!(!self.fail.contains(stage), "{stage} fails because --fail asked for it");
        Ok(())
    }
}

/// One value per asset, known at the close of `day`: scores, views or weights.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Signal {
    pub(crate) day: usize,
    pub(crate) values: PerAsset,
}

/// Runs the pipeline. Every stage inherits `profile` and `run_id` from this span.
#[tracing::instrument(name = "pipeline", skip_all, fields(profile = job.profile, run_id = job.run_id))]
pub(crate) fn run(job: &Job) -> Result<Outcome> {
    let prices = ingest(&job.data, &job.faults)?;
    let momentum = plan(&prices, &job.faults)?;
    // Both portfolios start on the day of the first decision: results of different times cannot be compared.
    let start = momentum[0].day;
    let buy_and_hold = vec![Signal { day: start, values: [1.0 / SYMBOLS.len() as f64; SYMBOLS.len()] }];
    let portfolios = [("momentum", momentum), ("buy and hold", buy_and_hold)];
    let performances = in_parallel(&portfolios, |portfolio| allocation::simulate(&prices, portfolio, &job.faults))?;
    Ok(Outcome { from: prices.dates[start], to: prices.dates[prices.dates.len() - 1], performances })
}

/// Decides the weights to hold; there is at least one decision.
pub(crate) fn plan(prices: &Prices, faults: &Faults) -> Result<Vec<Signal>> {
    let features = in_parallel(&[0, 1, 2], |asset| features(prices, *asset, faults))?;
    let scores = alpha::infer(prices, &features, faults)?;
    let views = alpha::decide(prices, &scores, faults)?;
    risk::optimize(prices, &views, faults)
}

/// Does `work` on a thread per item and returns the results in the order of the items. A panic continues in the caller.
///
/// A new thread is outside every span: it enters the span of the caller, so that its stages inherit from it.
fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let (span, work) = (&Span::current(), &work);
    thread::scope(|scope| {
        let threads: Vec<_> = items.iter().map(|item| scope.spawn(move || span.in_scope(|| work(item)))).collect();
        let results: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        results.into_iter().map(|result| result.unwrap_or_else(|payload| panic::resume_unwind(payload))).collect()
    })
}
