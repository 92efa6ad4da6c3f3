//! `foundation.features`: momentum and volatility of one asset.

use super::error::PipelineError;
use super::fault::Faults;
use super::prices::Asset;

/// Momentum looks back one year ...
pub(crate) const LOOKBACK: usize = 252;
/// ... and leaves the last month out, in which returns tend to reverse.
pub(crate) const SKIP: usize = 21;
/// Decay of the exponentially weighted variance and covariance for each day: RiskMetrics' value for monthly horizons.
pub(crate) const DECAY: f64 = 0.97;
/// Returns that a volatility needs: a quarter's, nearly three half-lives of the weights.
pub(crate) const WARM_UP: usize = 63;
/// With so many days there is a first trading day of a month that has features.
pub(crate) const ENOUGH_DAYS: usize = LOOKBACK + 32;
pub(crate) const DAYS_PER_YEAR: f64 = 252.0;

/// Known on the close of each day, from that close and those before it. `None` while there are too few.
#[derive(Clone, Debug)]
pub(crate) struct Features {
    pub(crate) symbol: &'static str,
    /// The log return from `LOOKBACK` days ago to `SKIP` days ago.
    pub(crate) momentum: Vec<Option<f64>>,
    /// Annualised, from exponentially weighted squared returns.
    pub(crate) volatility: Vec<Option<f64>>,
}

#[tracing::instrument(skip_all, fields(stage_id = "foundation.features", symbol = asset.symbol), err)]
pub(crate) fn features(asset: &Asset, faults: &Faults) -> Result<Features, PipelineError> {
    faults.check("foundation.features")?;
    Ok(Features { symbol: asset.symbol, momentum: momentum(&asset.closes), volatility: volatility(asset) })
}

fn momentum(closes: &[f64]) -> Vec<Option<f64>> {
    (0..closes.len())
        .map(|day| day.checked_sub(LOOKBACK).map(|start| (closes[day - SKIP] / closes[start]).ln()))
        .collect()
}

/// The mean return is taken as zero: over a few months its estimate is mostly noise.
fn volatility(asset: &Asset) -> Vec<Option<f64>> {
    let mut variance = WeightedMean::default();
    (0..asset.closes.len())
        .map(|day| {
            if day > 0 {
                variance.add(asset.change(day).powi(2));
            }
            (day >= WARM_UP).then(|| (variance.value() * DAYS_PER_YEAR).sqrt())
        })
        .collect()
}

/// An exponentially weighted mean whose weights add up to one from the first value on, so it needs no starting value.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WeightedMean {
    sum: f64,
    weight: f64,
}

impl WeightedMean {
    pub(crate) fn add(&mut self, value: f64) {
        self.sum = DECAY * self.sum + value;
        self.weight = DECAY * self.weight + 1.0;
    }

    /// Zero before the first value.
    pub(crate) fn value(&self) -> f64 {
        if self.weight > 0.0 { self.sum / self.weight } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::super::prices::Prices;
    use super::*;

    fn asset(closes: Vec<f64>) -> Asset {
        Asset { symbol: "SP500", closes }
    }

    #[test]
    fn momentum_of_constant_growth_is_its_rate_times_the_days_between() {
        let closes: Vec<f64> = (0..300).map(|day| 100.0 * 1.001_f64.powi(day)).collect();
        let momentum = momentum(&closes);
        assert!(momentum[..LOOKBACK].iter().all(Option::is_none));
        for value in &momentum[LOOKBACK..] {
            assert!((value.unwrap() - 231.0 * 1.001_f64.ln()).abs() < 1e-12);
        }
    }

    #[test]
    fn momentum_does_not_see_the_last_month() {
        let mut closes = vec![100.0; 253];
        closes[252 - SKIP + 1..].fill(500.0);
        assert_eq!(momentum(&closes)[252], Some(0.0));
        closes[252 - SKIP] = 200.0;
        assert_eq!(momentum(&closes)[252], Some(2.0_f64.ln()));
    }

    #[test]
    fn volatility_of_moves_of_one_size_is_that_size_annualised() {
        let closes = (0..200).map(|day| if day % 2 == 0 { 100.0 } else { 101.0 }).collect();
        let volatility = volatility(&asset(closes));
        assert!(volatility[..WARM_UP].iter().all(Option::is_none));
        // Up by 1/100, down by 1/101.
        let bounds = (252.0_f64.sqrt() / 101.0, 252.0_f64.sqrt() / 100.0);
        for value in volatility[WARM_UP..].iter().map(|value| value.unwrap()) {
            assert!(bounds.0 < value && value < bounds.1, "{value}");
        }
    }

    #[test]
    fn a_weighted_mean_is_the_sum_it_stands_for() {
        let mut mean = WeightedMean::default();
        assert_eq!(mean.value(), 0.0);
        let values = [3.0, -1.0, 4.0];
        values.iter().for_each(|value| mean.add(*value));
        let weights = [DECAY * DECAY, DECAY, 1.0];
        let expected =
            values.iter().zip(weights).map(|(value, weight)| value * weight).sum::<f64>() / weights.iter().sum::<f64>();
        assert!((mean.value() - expected).abs() < 1e-15);
    }

    #[test]
    fn features_of_a_day_need_no_later_day() {
        let whole = Prices::random(400).assets.remove(0);
        let all = features(&whole, &Faults::default()).unwrap();
        for days in [253, 300, 399] {
            let known = features(&asset(whole.closes[..days].to_vec()), &Faults::default()).unwrap();
            assert_eq!(known.momentum, all.momentum[..days]);
            assert_eq!(known.volatility, all.volatility[..days]);
        }
    }
}
