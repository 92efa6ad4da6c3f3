//! `risk.optimize`: from views to weights, mean-variance with a target volatility and a limit on leverage.

use super::error::PipelineError;
use super::fault::Faults;
use super::features::{DAYS_PER_YEAR, WeightedMean};
use super::policy::Decision;
use super::prices::Prices;

/// Annualised volatility aimed at when the strongest view is a full one; a weaker one gets a part of it.
const TARGET_VOLATILITY: f64 = 0.10;
/// The weights' absolute values add up to no more than this: nothing is borrowed.
const GROSS_LIMIT: f64 = 1.0;
/// How far correlations are drawn towards zero before optimising: an optimiser trusts them more than they deserve.
const SHRINKAGE: f64 = 0.5;
const TOLERANCE: f64 = 1e-12;
const MAX_SWEEPS: usize = 1_000;

/// What to hold from the close of a day on, as fractions of the portfolio's value; the rest is cash.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Allocation {
    pub(crate) day: usize,
    pub(crate) weights: Vec<f64>,
}

#[tracing::instrument(skip_all, fields(stage_id = "risk.optimize"), err)]
pub(crate) fn optimize(
    prices: &Prices,
    decisions: &[Decision],
    faults: &Faults,
) -> Result<Vec<Allocation>, PipelineError> {
    faults.check("risk.optimize")?;
    let mut covariance = Covariance::new(prices.assets.len());
    let mut known = 0;
    let mut limited = 0;
    let mut allocations = Vec::with_capacity(decisions.len());
    for decision in decisions {
        // Returns up to the close of the day of decision, and none after it.
        while known < decision.day {
            known += 1;
            covariance.add(&prices.assets.iter().map(|asset| asset.change(known)).collect::<Vec<_>>());
        }
        let covariance = covariance.annualised();
        let direction = best_direction(&covariance, &decision.views)
            .ok_or(PipelineError::NotConverged { date: prices.dates[decision.day], sweeps: MAX_SWEEPS })?;
        let (weights, at_limit) = scale(direction, &covariance, &decision.views);
        limited += usize::from(at_limit);
        allocations.push(Allocation { day: decision.day, weights });
    }
    tracing::info!(allocations = allocations.len(), limited, "weights found; the limit on leverage held some down");
    Ok(allocations)
}

type Matrix = Vec<Vec<f64>>;

/// Exponentially weighted second moments of returns, with the same weights as the volatility.
struct Covariance(Vec<Vec<WeightedMean>>);

impl Covariance {
    fn new(assets: usize) -> Self {
        Self(vec![vec![WeightedMean::default(); assets]; assets])
    }

    fn add(&mut self, returns: &[f64]) {
        for (row, left) in self.0.iter_mut().zip(returns) {
            for (moment, right) in row.iter_mut().zip(returns) {
                moment.add(left * right);
            }
        }
    }

    fn annualised(&self) -> Matrix {
        self.0.iter().map(|row| row.iter().map(|moment| moment.value() * DAYS_PER_YEAR).collect()).collect()
    }
}

/// The weights, up to a factor, that maximise `w·μ − ½ w·Σw` where no weight goes against its view.
///
/// A view stands for an expected return in units of the asset's own volatility: `μ_i = view_i σ_i`. Σ is shrunk. The
/// conditions bound each weight by itself, so going from weight to weight, each set to its best given the others,
/// arrives at the one optimum. `None` if it takes too long, or a variance is zero.
fn best_direction(covariance: &Matrix, views: &[f64]) -> Option<Vec<f64>> {
    let mut weights = vec![0.0; views.len()];
    for _ in 0..MAX_SWEEPS {
        let mut moved = 0.0_f64;
        for asset in 0..views.len() {
            let variance = covariance[asset][asset];
            let others: f64 = (0..views.len())
                .filter(|other| *other != asset)
                .map(|other| (1.0 - SHRINKAGE) * covariance[asset][other] * weights[other])
                .sum();
            let free = (views[asset] * variance.sqrt() - others) / variance;
            let best = if views[asset] == 0.0 || free * views[asset] < 0.0 { 0.0 } else { free };
            moved = moved.max((best - weights[asset]).abs());
            weights[asset] = best;
        }
        // A variance of zero leaves NaN, which `max` above passes over, and no sweep will mend.
        if !weights.iter().all(|weight| weight.is_finite()) {
            return None;
        }
        if moved <= TOLERANCE * weights.iter().fold(1.0, |largest: f64, weight| largest.max(weight.abs())) {
            return Some(weights);
        }
    }
    None
}

/// Scales the direction to the volatility aimed at, or to the limit on leverage where that comes first, and says
/// which. The volatility is that of the full covariance: shrinking would understate it.
fn scale(direction: Vec<f64>, covariance: &Matrix, views: &[f64]) -> (Vec<f64>, bool) {
    let strongest = views.iter().fold(0.0, |largest: f64, view| largest.max(view.abs()));
    let volatility = portfolio_volatility(&direction, covariance);
    if volatility <= 0.0 {
        return (direction, false);
    }
    let wanted = strongest * TARGET_VOLATILITY / volatility;
    let allowed = GROSS_LIMIT / gross(&direction);
    let factor = wanted.min(allowed);
    (direction.into_iter().map(|weight| weight * factor).collect(), allowed < wanted)
}

fn portfolio_volatility(weights: &[f64], covariance: &Matrix) -> f64 {
    let variance: f64 = covariance
        .iter()
        .zip(weights)
        .map(|(row, weight)| weight * row.iter().zip(weights).map(|(entry, other)| entry * other).sum::<f64>())
        .sum();
    variance.max(0.0).sqrt()
}

fn gross(weights: &[f64]) -> f64 {
    weights.iter().map(|weight| weight.abs()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Volatilities of 10, 20 and 40 %; the first two correlated by 0.9, the third with both by -0.2.
    fn covariance() -> Matrix {
        vec![vec![0.01, 0.018, -0.008], vec![0.018, 0.04, -0.016], vec![-0.008, -0.016, 0.16]]
    }

    /// How far `weights` are from optimal: the gradient must vanish where a weight is free, and must point against
    /// the view where the weight is held at zero.
    fn distance_from_optimum(weights: &[f64], covariance: &Matrix, views: &[f64]) -> f64 {
        let mut worst = 0.0_f64;
        for (asset, row) in covariance.iter().enumerate() {
            let risk: f64 = (0..views.len())
                .map(|other| if other == asset { 1.0 } else { 1.0 - SHRINKAGE } * row[other] * weights[other])
                .sum();
            let gradient = views[asset] * row[asset].sqrt() - risk;
            worst = worst.max(if views[asset] == 0.0 {
                weights[asset].abs()
            } else if weights[asset] == 0.0 {
                gradient * views[asset].signum()
            } else {
                gradient.abs().max(-weights[asset] * views[asset])
            });
        }
        worst
    }

    #[test]
    fn the_direction_is_the_optimum_for_all_kinds_of_views() {
        let levels = [-1.0, -0.3, 0.0, 0.3, 1.0];
        for first in levels {
            for second in levels {
                for third in levels {
                    let views = [first, second, third];
                    let weights = best_direction(&covariance(), &views).unwrap();
                    assert!(distance_from_optimum(&weights, &covariance(), &views) < 1e-11, "{views:?} {weights:?}");
                    assert!(
                        weights.iter().zip(views).all(|(weight, view)| weight * view >= 0.0),
                        "{views:?} {weights:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_check_for_the_optimum_can_fail() {
        let views = [1.0, 1.0, -1.0];
        let mut weights = best_direction(&covariance(), &views).unwrap();
        weights[0] *= 1.01;
        assert!(distance_from_optimum(&weights, &covariance(), &views) > 1e-4);
    }

    #[test]
    fn without_correlation_risk_is_spread_by_view_over_volatility() {
        let diagonal = vec![vec![0.01, 0.0, 0.0], vec![0.0, 0.04, 0.0], vec![0.0, 0.0, 0.16]];
        let weights = best_direction(&diagonal, &[1.0, -0.5, 0.0]).unwrap();
        assert!((weights[0] - 1.0 / 0.1).abs() < 1e-12 && (weights[1] + 0.5 / 0.2).abs() < 1e-12, "{weights:?}");
        assert_eq!(weights[2], 0.0);
    }

    #[test]
    fn a_weak_view_is_dropped_rather_than_traded_against() {
        // 0.9 shrunk to 0.45: the unconstrained optimum would be short of the second.
        let weights = best_direction(&covariance(), &[1.0, 0.3, 0.0]).unwrap();
        assert!(weights[0] > 0.0);
        assert_eq!(weights[1], 0.0);
    }

    #[test]
    fn weights_have_the_volatility_aimed_at() {
        let views = [0.0, 0.6, -0.4];
        let (weights, at_limit) = scale(best_direction(&covariance(), &views).unwrap(), &covariance(), &views);
        assert!(!at_limit);
        assert!((portfolio_volatility(&weights, &covariance()) - 0.6 * TARGET_VOLATILITY).abs() < 1e-14);
    }

    #[test]
    fn leverage_is_limited() {
        let calm: Matrix = covariance().iter().map(|row| row.iter().map(|entry| entry / 25.0).collect()).collect();
        let views = [1.0, 0.0, -1.0];
        let (weights, at_limit) = scale(best_direction(&calm, &views).unwrap(), &calm, &views);
        assert!(at_limit);
        assert!((gross(&weights) - GROSS_LIMIT).abs() < 1e-14);
        assert!(portfolio_volatility(&weights, &calm) < TARGET_VOLATILITY);
    }

    #[test]
    fn without_views_nothing_is_held() {
        let direction = best_direction(&covariance(), &[0.0; 3]).unwrap();
        assert_eq!(scale(direction, &covariance(), &[0.0; 3]), (vec![0.0; 3], false));
    }

    #[test]
    fn a_variance_of_zero_is_no_endless_search() {
        assert_eq!(best_direction(&vec![vec![0.0]], &[1.0]), None);
    }

    #[test]
    fn the_diagonal_of_the_covariance_is_the_squared_volatility() {
        let prices = Prices::random(100);
        let mut covariance = Covariance::new(3);
        for day in 1..100 {
            covariance.add(&prices.assets.iter().map(|asset| asset.change(day)).collect::<Vec<_>>());
        }
        let covariance = covariance.annualised();
        for (index, asset) in prices.assets.iter().enumerate() {
            let features = super::super::features::features(asset, &Faults::default()).unwrap();
            let volatility = features.volatility[99].unwrap();
            assert!((covariance[index][index].sqrt() - volatility).abs() < 1e-15);
        }
        let correlation = covariance[0][1] / (covariance[0][0] * covariance[1][1]).sqrt();
        assert!(correlation > 0.7, "{correlation}");
    }
}
