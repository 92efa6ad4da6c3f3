//! `allocation.simulate`: what holding the weights would have returned, and the table of it.

use std::fmt;

use anyhow::{Result, ensure};
use jiff::civil::Date;

use super::foundation::{DAYS_PER_YEAR, Prices, SYMBOLS};
use super::{Faults, Signal};

/// Cost of a trade as a fraction of what is traded: ten basis points.
pub(crate) const COST: f64 = 0.001;

/// A name, and what to hold from which day on.
pub(crate) type Portfolio = (&'static str, Vec<Signal>);

/// Trades the weights at the close of their day; they earn the returns of the days after it.
///
/// Between trades the weights drift with the prices; turnover is measured against the drifted ones. Cash earns nothing,
/// and borrowing an asset to sell it short costs nothing.
#[tracing::instrument(skip_all, fields(stage_id = "allocation.simulate", portfolio = *name), err)]
pub(crate) fn simulate(prices: &Prices, (name, weights): &Portfolio, faults: &Faults) -> Result<Performance> {
    faults.check("allocation.simulate")?;
    let (mut returns, mut turnover) = (Vec::new(), 0.0);
    let mut held = [0.0; SYMBOLS.len()];
    let mut schedule = weights.iter().peekable();
    for (day, date) in prices.dates.iter().enumerate().skip(weights[0].day + 1) {
        let mut cost = 0.0;
        if let Some(target) = schedule.next_if(|weights| weights.day == day - 1) {
            let traded: f64 = target.values.iter().zip(held).map(|(new, old)| (new - old).abs()).sum();
            turnover += traded;
            cost = traded * COST;
            held = target.values;
        }
        let changes = prices.returns(day);
        let growth = 1.0 + held.iter().zip(changes).map(|(weight, change)| weight * change).sum::<f64>();
        ensure!(growth > 0.0, "the portfolio `{name}` lost everything on {date}: check the prices of that day");
        for (weight, change) in held.iter_mut().zip(changes) {
            *weight *= (1.0 + change) / growth;
        }
        returns.push((1.0 - cost) * growth - 1.0);
    }
    Ok(Performance::new(name, returns, turnover, &prices.dates[weights[0].day..]))
}

#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) from: Date,
    pub(crate) to: Date,
    pub(crate) performances: Vec<Performance>,
}

/// Fractions, not per cent.
#[derive(Debug)]
pub(crate) struct Performance {
    pub(crate) name: &'static str,
    /// After costs, one for each day after the first trade. The cost of a trade is in the return of the next day.
    pub(crate) returns: Vec<f64>,
    /// Compound, over calendar time.
    pub(crate) annual_return: f64,
    /// The standard deviation of daily returns, annualised.
    pub(crate) volatility: f64,
    /// Of daily returns over cash that earns nothing, annualised. Zero if nothing varied.
    pub(crate) sharpe: f64,
    /// Bought and sold in a year, in multiples of the portfolio's value.
    pub(crate) annual_turnover: f64,
}

impl Performance {
    /// `dates` are those of the returns and the day before them. All rates of a single date are zero.
    fn new(name: &'static str, returns: Vec<f64>, turnover: f64, dates: &[Date]) -> Self {
        let years = f64::from((dates[dates.len() - 1] - dates[0]).get_days().max(1)) / 365.25;
        let count = returns.len().max(1) as f64;
        let mean = returns.iter().sum::<f64>() / count;
        let squares: f64 = returns.iter().map(|change| (change - mean).powi(2)).sum();
        let deviation = (squares / (count - 1.0).max(1.0)).sqrt();
        let log_growth: f64 = returns.iter().map(|change| change.ln_1p()).sum();
        Self {
            name,
            annual_return: (log_growth / years).exp_m1(),
            volatility: deviation * DAYS_PER_YEAR.sqrt(),
            sharpe: if deviation > 0.0 { mean / deviation * DAYS_PER_YEAR.sqrt() } else { 0.0 },
            annual_turnover: turnover / years,
            returns,
        }
    }

    /// The largest fall from a high, as a positive fraction of that high. The start counts as a high.
    pub(crate) fn max_drawdown(&self) -> f64 {
        let (mut value, mut high, mut worst) = (1.0_f64, 1.0_f64, 0.0_f64);
        for change in &self.returns {
            value *= 1.0 + change;
            high = high.max(value);
            worst = worst.max(1.0 - value / high);
        }
        worst
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to, cost) = (self.from, self.to, 100.0 * COST);
        writeln!(f, "{from} to {to}, after costs of {cost:.2} % of what is traded\n")?;
        writeln!(f, "{:<14}    return  volatility  Sharpe  max drawdown    turnover", "")?;
        for row in &self.performances {
            let Performance { name, annual_return, volatility, sharpe, annual_turnover, .. } = row;
            write!(f, "{name:<14}{:>8.2} %{:>10.2} %", 100.0 * annual_return, 100.0 * volatility)?;
            writeln!(f, "{sharpe:>8.2}{:>12.2} %{annual_turnover:>10.2} x", 100.0 * row.max_drawdown())?;
        }
        write!(f, "\nFigures are per year. Cash earns nothing, the indices exclude dividends, and oil is a spot price.")
    }
}
