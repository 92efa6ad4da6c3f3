//! `risk.optimize`: from views to weights, mean-variance with a target volatility and a limit on leverage.

use anyhow::{Context as _, Result};

use super::foundation::{DAYS_PER_YEAR, PerAsset, Prices, SYMBOLS, WeightedMean};
use super::{Faults, Signal};

/// Annualised; reached with a full view. A weaker strongest view gets a part of it.
pub(crate) const TARGET_VOLATILITY: f64 = 0.10;
/// Limit on the sum of the absolute weights: nothing is borrowed.
pub(crate) const GROSS_LIMIT: f64 = 1.0;
/// How far correlations are drawn towards zero before optimising: an optimiser trusts them more than they deserve.
pub(crate) const SHRINKAGE: f64 = 0.5;
const TOLERANCE: f64 = 1e-12;
const MAX_SWEEPS: usize = 1_000;

/// Returns what to hold from the close of a day on, as fractions of the portfolio's value; the rest is cash.
#[tracing::instrument(skip_all, fields(stage_id = "risk.optimize"), err)]
pub(crate) fn optimize(prices: &Prices, views: &[Signal], faults: &Faults) -> Result<Vec<Signal>> {
    faults.check("risk.optimize")?;
    let mut moments: PerAsset<PerAsset<WeightedMean>> = Default::default();
    let mut day = 0;
    let weights = views.iter().map(|view| {
        // Returns up to the close of the day of decision, and none after it.
        while day < view.day {
            day += 1;
            let returns = prices.returns(day);
            for (row, left) in moments.iter_mut().zip(returns) {
                row.iter_mut().zip(returns).for_each(|(moment, right)| moment.add(left * right));
            }
        }
        let covariance = moments.map(|row| row.map(|moment| moment.value() * DAYS_PER_YEAR));
        let values = best_weights(&covariance, &view.values).with_context(|| {
            let date = prices.dates[day];
            format!("the weights of {date} still move after {MAX_SWEEPS} sweeps: the covariance is nearly singular")
        })?;
        Ok(Signal { day, values })
    });
    let weights = weights.collect::<Result<Vec<_>>>()?;
    tracing::info!(decisions = weights.len(), "weights found");
    Ok(weights)
}

/// Scales the best direction to the target volatility, or to the limit on leverage if that comes first. The volatility
/// is that of the full covariance: shrinking would understate it.
pub(crate) fn best_weights(covariance: &PerAsset<PerAsset>, views: &PerAsset) -> Option<PerAsset> {
    let direction = best_direction(covariance, views)?;
    let strongest = views.iter().fold(0.0, |largest: f64, view| largest.max(view.abs()));
    let dot = |row: &PerAsset| row.iter().zip(direction).map(|(entry, weight)| entry * weight).sum::<f64>();
    let variance: f64 = covariance.iter().zip(direction).map(|(row, weight)| weight * dot(row)).sum();
    if variance <= 0.0 {
        return Some(direction);
    }
    let wanted = strongest * TARGET_VOLATILITY / variance.sqrt();
    let allowed = GROSS_LIMIT / direction.iter().map(|weight| weight.abs()).sum::<f64>();
    Some(direction.map(|weight| weight * wanted.min(allowed)))
}

/// The weights, up to a factor, that maximise `w·μ − ½ w·Σw` where no weight goes against its view.
///
/// A view stands for an expected return in units of the asset's own volatility: `μ_i = view_i σ_i`. Σ is shrunk. Each
/// condition bounds one weight, so coordinate descent arrives at the one optimum. `None` if it does not converge, or if
/// a variance is zero.
pub(crate) fn best_direction(covariance: &PerAsset<PerAsset>, views: &PerAsset) -> Option<PerAsset> {
    let mut weights = [0.0; SYMBOLS.len()];
    for _ in 0..MAX_SWEEPS {
        let mut moved = 0.0_f64;
        for asset in 0..SYMBOLS.len() {
            let variance = covariance[asset][asset];
            let others = (0..SYMBOLS.len()).filter(|other| *other != asset);
            let others: f64 = others.map(|other| (1.0 - SHRINKAGE) * covariance[asset][other] * weights[other]).sum();
            let free = (views[asset] * variance.sqrt() - others) / variance;
            let best = if views[asset] == 0.0 || free * views[asset] < 0.0 { 0.0 } else { free };
            moved = moved.max((best - weights[asset]).abs());
            weights[asset] = best;
        }
        // A variance of zero leaves NaN, which `max` above ignores and no sweep mends.
        if !weights.iter().all(|weight| weight.is_finite()) {
            return None;
        }
        if moved <= TOLERANCE * weights.iter().fold(1.0, |largest: f64, weight| largest.max(weight.abs())) {
            return Some(weights);
        }
    }
    None
}
