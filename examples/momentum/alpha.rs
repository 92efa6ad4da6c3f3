//! `alpha.inference` and `alpha.policy`: from features to scores, and from scores to views.

use anyhow::{Result, bail, ensure};

use super::foundation::{DAYS_PER_YEAR, Features, LOOKBACK, Prices, SKIP, SYMBOLS};
use super::{Faults, Signal};

/// Scores below this, in standard deviations, are noise: no view.
const DEAD_ZONE: f64 = 0.25;
/// So many days contain the first trading day of a month with features.
pub(crate) const ENOUGH_DAYS: usize = LOOKBACK + 32;

/// Scores each asset by momentum over the volatility of the same span: the move of its price in standard deviations.
#[tracing::instrument(skip_all, fields(stage_id = "alpha.inference"), err)]
pub(crate) fn infer(prices: &Prices, features: &[Vec<Features>], faults: &Faults) -> Result<Vec<Signal>> {
    faults.check("alpha.inference")?;
    let years = (LOOKBACK - SKIP) as f64 / DAYS_PER_YEAR;
    let mut scores = Vec::new();
    for (day, date) in prices.dates.iter().enumerate().skip(LOOKBACK) {
        let mut values = [0.0; SYMBOLS.len()];
        for (asset, symbol) in SYMBOLS.iter().enumerate() {
            let Features { momentum, volatility } = features[asset][day - LOOKBACK];
            ensure!(
                volatility > 0.0,
                "{symbol} has a volatility of zero on {date}: its prices stand still, check the file"
            );
            values[asset] = momentum / (volatility * years.sqrt());
        }
        scores.push(Signal { day, values });
    }
    Ok(scores)
}

/// Decides views on the first trading day of each month, from -1 (short) to 1 (long).
///
/// Which day is the last of a month is known only on the next: a backtest that trades on the last day looks ahead.
#[tracing::instrument(skip_all, fields(stage_id = "alpha.policy"), err)]
pub(crate) fn decide(prices: &Prices, scores: &[Signal], faults: &Faults) -> Result<Vec<Signal>> {
    faults.check("alpha.policy")?;
    let month = |day: usize| prices.dates[day].first_of_month();
    let view = |score: f64| if score.abs() < DEAD_ZONE { 0.0 } else { score.clamp(-1.0, 1.0) };
    let monthly = scores.iter().filter(|scores| month(scores.day) != month(scores.day - 1));
    let views: Vec<_> = monthly.map(|scores| Signal { day: scores.day, values: scores.values.map(view) }).collect();
    let days = prices.dates.len();
    if views.is_empty() {
        bail!("{days} days with a price of every asset are too few, {ENOUGH_DAYS} are enough: give a longer file");
    }
    tracing::info!(decisions = views.len(), "decided on the first trading day of each month");
    Ok(views)
}
