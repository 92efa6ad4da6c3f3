//! `allocation.simulate`: what holding the weights would have returned.

use super::error::PipelineError;
use super::fault::Faults;
use super::prices::Prices;
use super::risk::Allocation;

/// Cost of a trade as a fraction of what is traded: ten basis points.
pub(crate) const COST: f64 = 0.001;

/// A portfolio: its name, and what it is to hold when.
#[derive(Clone, Debug)]
pub(crate) struct Portfolio {
    pub(crate) name: &'static str,
    pub(crate) schedule: Vec<Allocation>,
}

impl Portfolio {
    /// The same part of the value in each asset on the close of `day`, and never touched again.
    pub(crate) fn buy_and_hold(day: usize, assets: usize) -> Self {
        let weights = vec![1.0 / assets as f64; assets];
        Self { name: "buy and hold", schedule: vec![Allocation { day, weights }] }
    }
}

/// A portfolio day by day.
#[derive(Clone, Debug)]
pub(crate) struct Simulation {
    pub(crate) name: &'static str,
    /// The day whose close is the starting point.
    pub(crate) first_day: usize,
    /// After costs, one for each day after the first. A trade's cost is in the return of the day that follows it.
    pub(crate) returns: Vec<f64>,
    /// Bought and sold over the whole time, in multiples of the portfolio's value.
    pub(crate) turnover: f64,
}

/// Weights decided on the close of a day are traded on that close, and earn the returns of the days after it.
///
/// Between trades the weights drift with the prices; turnover is measured against the drifted ones. Cash earns nothing,
/// and an asset to sell short is borrowed for nothing.
#[tracing::instrument(skip_all, fields(stage_id = "allocation.simulate", portfolio = portfolio.name), err)]
pub(crate) fn simulate(prices: &Prices, portfolio: &Portfolio, faults: &Faults) -> Result<Simulation, PipelineError> {
    faults.check("allocation.simulate")?;
    let days = prices.dates.len();
    let first_day = portfolio.schedule.first().map_or(days, |allocation| allocation.day);
    let mut schedule = portfolio.schedule.iter().peekable();
    let mut held = vec![0.0; prices.assets.len()];
    let mut turnover = 0.0;
    let mut returns = Vec::with_capacity(days - first_day);
    for day in first_day + 1..days {
        let mut cost = 0.0;
        if let Some(allocation) = schedule.next_if(|allocation| allocation.day == day - 1) {
            let traded: f64 = allocation.weights.iter().zip(&held).map(|(new, old)| (new - old).abs()).sum();
            turnover += traded;
            cost = traded * COST;
            held.clone_from(&allocation.weights);
        }
        let changes: Vec<f64> = prices.assets.iter().map(|asset| asset.change(day)).collect();
        let growth = 1.0 + held.iter().zip(&changes).map(|(weight, change)| weight * change).sum::<f64>();
        if growth <= 0.0 {
            return Err(PipelineError::Ruined { portfolio: portfolio.name, date: prices.dates[day] });
        }
        for (weight, change) in held.iter_mut().zip(&changes) {
            *weight *= (1.0 + change) / growth;
        }
        returns.push((1.0 - cost) * growth - 1.0);
    }
    Ok(Simulation { name: portfolio.name, first_day, returns, turnover })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn portfolio(schedule: &[(usize, [f64; 3])]) -> Portfolio {
        let schedule =
            schedule.iter().map(|(day, weights)| Allocation { day: *day, weights: weights.to_vec() }).collect();
        Portfolio { name: "test", schedule }
    }

    fn run(prices: &Prices, schedule: &[(usize, [f64; 3])]) -> Simulation {
        simulate(prices, &portfolio(schedule), &Faults::default()).unwrap()
    }

    fn assert_close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-14, "{found} is not {expected}");
        }
    }

    #[test]
    fn weights_earn_from_the_day_after_the_decision_on_and_drift() {
        let prices = Prices::of([&[100.0, 110.0, 121.0, 121.0], &[10.0, 10.0, 5.0, 10.0], &[1.0, 1.0, 1.0, 1.0]]);
        let simulation = run(&prices, &[(1, [0.5, 0.25, 0.0])]);
        // The rise of day 1 is not earned. Day 2: 0.5 * 10 % - 0.25 * 50 % = -7.5 %, after the cost of trading 0.75.
        // Then 0.25 * 0.5 / 0.925 is left in the second, which doubles.
        let second = 0.125 / 0.925;
        assert_close(&simulation.returns, &[(1.0 - 0.75 * COST) * 0.925 - 1.0, second]);
        assert_close(&[simulation.turnover], &[0.75]);
        assert_eq!(simulation.first_day, 1);
    }

    #[test]
    fn turnover_is_measured_against_drifted_weights() {
        let prices = Prices::of([&[100.0, 200.0, 200.0], &[1.0; 3], &[1.0; 3]]);
        let simulation = run(&prices, &[(0, [0.5, 0.5, 0.0]), (1, [0.5, 0.5, 0.0])]);
        // 0.5 doubles to 2/3 of the value: back to a half is 1/6 sold and 1/6 bought.
        assert_close(&[simulation.turnover], &[1.0 + 1.0 / 3.0]);
        assert_close(&simulation.returns, &[(1.0 - COST) * 1.5 - 1.0, -COST / 3.0]);
    }

    #[test]
    fn a_short_position_gains_when_the_price_falls_and_shrinks_with_it() {
        let prices = Prices::of([&[100.0, 50.0, 100.0], &[1.0; 3], &[1.0; 3]]);
        let simulation = run(&prices, &[(0, [-0.5, 0.0, 0.0])]);
        // Sold one half at 100, worth a quarter at 50 and again one half at 100, where nothing is gained.
        let value: f64 = simulation.returns.iter().map(|change| 1.0 + change).product();
        assert_close(&[simulation.returns[0], value], &[(1.0 - 0.5 * COST) * 1.25 - 1.0, 1.0 - 0.5 * COST]);
    }

    #[test]
    fn buy_and_hold_is_the_mean_of_what_the_prices_did() {
        let prices = Prices::random(500);
        let simulation = simulate(&prices, &Portfolio::buy_and_hold(100, 3), &Faults::default()).unwrap();
        let value: f64 = simulation.returns.iter().map(|change| 1.0 + change).product();
        let mean = prices.assets.iter().map(|asset| asset.closes[499] / asset.closes[100]).sum::<f64>() / 3.0;
        assert!((value / (mean * (1.0 - COST)) - 1.0).abs() < 1e-12, "{value} {mean}");
        assert_eq!(simulation.returns.len(), 399);
    }

    #[test]
    fn a_portfolio_that_loses_everything_ends_with_an_error() {
        let prices = Prices::of([&[100.0, 300.0], &[1.0; 2], &[1.0; 2]]);
        let error = simulate(&prices, &portfolio(&[(0, [-0.5, 0.0, 0.0])]), &Faults::default()).expect_err("ruin");
        assert!(error.to_string().contains("`test` lost everything on 1999-01-02"), "{error}");
    }
}
