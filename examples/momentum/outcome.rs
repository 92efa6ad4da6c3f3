//! The result of the pipeline, as a table.

use std::fmt;

use super::date::Date;
use super::performance::Performance;
use super::simulate::COST;

#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) from: Date,
    pub(crate) to: Date,
    pub(crate) performances: Vec<Performance>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} to {}, after costs of {:.2} % of what is traded", self.from, self.to, 100.0 * COST)?;
        writeln!(f)?;
        write!(
            f,
            "{:<14}{:>10}{:>12}{:>8}{:>14}{:>12}",
            "", "return", "volatility", "Sharpe", "max drawdown", "turnover"
        )?;
        for row in &self.performances {
            write!(
                f,
                "\n{:<14}{:>8.2} %{:>10.2} %{:>8.2}{:>12.2} %{:>10.2} x",
                row.name,
                100.0 * row.annual_return,
                100.0 * row.volatility,
                row.sharpe,
                100.0 * row.max_drawdown,
                row.annual_turnover,
            )?;
        }
        write!(f, "\n\nA year; cash earns nothing; the indices are without dividends, and oil is a spot price.")
    }
}
