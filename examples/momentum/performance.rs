//! What a simulated portfolio achieved.

use super::date::Date;
use super::features::DAYS_PER_YEAR;
use super::simulate::Simulation;

const CALENDAR_DAYS_PER_YEAR: f64 = 365.25;

/// Fractions, not per cent.
#[derive(Clone, Debug)]
pub(crate) struct Performance {
    pub(crate) name: &'static str,
    /// Compound, over calendar time.
    pub(crate) annual_return: f64,
    /// The standard deviation of daily returns, annualised.
    pub(crate) volatility: f64,
    /// Of daily returns over cash that earns nothing, annualised. Zero where nothing varied.
    pub(crate) sharpe: f64,
    /// The largest fall from a high, as a positive fraction of that high.
    pub(crate) max_drawdown: f64,
    /// Bought and sold in a year, in multiples of the portfolio's value.
    pub(crate) annual_turnover: f64,
}

impl Performance {
    /// `dates` are those the simulation ran over. One of fewer than two returns has no spread: all its rates are zero.
    pub(crate) fn of(simulation: &Simulation, dates: &[Date]) -> Self {
        let returns = &simulation.returns;
        let (mean, deviation) = mean_and_deviation(returns);
        let years = match (dates.get(simulation.first_day), dates.last()) {
            (Some(first), Some(last)) => (last.days() - first.days()) as f64 / CALENDAR_DAYS_PER_YEAR,
            _ => 0.0,
        };
        let a_year = |total: f64| if years > 0.0 { total / years } else { 0.0 };
        let log_growth: f64 = returns.iter().map(|change| change.ln_1p()).sum();
        Self {
            name: simulation.name,
            annual_return: a_year(log_growth).exp_m1(),
            volatility: deviation * DAYS_PER_YEAR.sqrt(),
            sharpe: if deviation > 0.0 { mean / deviation * DAYS_PER_YEAR.sqrt() } else { 0.0 },
            max_drawdown: max_drawdown(returns),
            annual_turnover: a_year(simulation.turnover),
        }
    }
}

/// The mean and the sample standard deviation.
fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    if values.len() < 2 {
        return (0.0, 0.0);
    }
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (squares / (count - 1.0)).sqrt())
}

/// The start counts as a high: a portfolio that only falls has a drawdown from there.
fn max_drawdown(returns: &[f64]) -> f64 {
    let (mut value, mut high, mut worst) = (1.0_f64, 1.0_f64, 0.0_f64);
    for change in returns {
        value *= 1.0 + change;
        high = high.max(value);
        worst = worst.max(1.0 - value / high);
    }
    worst
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-12, "{found} is not {expected}");
    }

    #[test]
    fn the_numbers_are_those_of_a_hand_calculation() {
        let dates: Vec<Date> = (0..1_462).map(Date::from_days).collect();
        let mut returns = vec![0.0; 1_461];
        returns[..3].copy_from_slice(&[0.5, -0.2, 0.2]);
        let simulation = Simulation { name: "test", first_day: 0, returns, turnover: 6.0 };
        let performance = Performance::of(&simulation, &dates);
        // 1461 days are four years: 1.5 * 0.8 * 1.2 = 1.44 in all.
        assert_close(performance.annual_return, 1.44_f64.powf(0.25) - 1.0);
        assert_close(performance.annual_turnover, 1.5);
        let mean: f64 = 0.5 / 1_461.0;
        let variance: f64 = (0.25 + 0.04 + 0.04 - 1_461.0 * mean * mean) / 1_460.0;
        assert_close(performance.volatility, (252.0 * variance).sqrt());
        assert_close(performance.sharpe, mean / variance.sqrt() * 252.0_f64.sqrt());
        assert_close(performance.max_drawdown, 0.2);
    }

    #[test]
    fn a_drawdown_runs_from_the_highest_high_to_the_lowest_low_after_it() {
        assert_close(max_drawdown(&[-0.1]), 0.1);
        assert_close(max_drawdown(&[0.1, 0.2]), 0.0);
        // 2, 1.5, 1.8, 0.9, 3: from 2 to 0.9.
        assert_close(max_drawdown(&[1.0, -0.25, 0.2, -0.5, 0.9 / 0.27 - 1.0]), 0.55);
    }

    #[test]
    fn nothing_simulated_is_nothing_achieved() {
        let simulation = Simulation { name: "test", first_day: 5, returns: vec![], turnover: 0.0 };
        let performance = Performance::of(&simulation, &[]);
        assert_eq!((performance.annual_return, performance.sharpe, performance.max_drawdown), (0.0, 0.0, 0.0));
    }
}
