//! What can go wrong in the pipeline.

use std::error::Error;
use std::num::ParseFloatError;
use std::path::PathBuf;
use std::{fmt, io};

use super::date::{Date, DateError};
use super::features::ENOUGH_DAYS;

#[derive(Debug)]
pub(crate) enum PipelineError {
    /// The price file cannot be read.
    Read { path: PathBuf, source: io::Error },
    /// A line of the price file is not what it should be. Lines are counted from 1, the header's.
    Line { path: PathBuf, line: usize, problem: LineProblem },
    /// There are fewer days than the pipeline needs to decide anything.
    TooFewDays { have: usize },
    /// A price that does not move cannot be weighed by its volatility.
    NoVolatility { symbol: &'static str, date: Date },
    /// The optimiser did not settle.
    NotConverged { date: Date, sweeps: usize },
    /// The portfolio lost everything.
    Ruined { portfolio: &'static str, date: Date },
    /// `--fail` asked for it.
    Injected { stage: &'static str },
}

#[derive(Debug)]
pub(crate) enum LineProblem {
    Header { found: String },
    Columns { found: usize },
    Date(DateError),
    UnknownSymbol { found: String, known: &'static [&'static str] },
    NotANumber { text: String, source: ParseFloatError },
    NotPositive { text: String },
    Duplicate { date: Date, symbol: &'static str },
}

impl fmt::Display for PipelineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { path, .. } => write!(f, "cannot read the prices in {}", path.display()),
            Self::Line { path, line, .. } => write!(f, "line {line} of {} is not a price", path.display()),
            Self::TooFewDays { have } => {
                write!(
                    f,
                    "{have} days with a price of every asset are too few, {ENOUGH_DAYS} are enough: give a longer file"
                )
            }
            Self::NoVolatility { symbol, date } => {
                write!(f, "{symbol} has a volatility of zero on {date}: its prices stand still, check the file")
            }
            Self::NotConverged { date, sweeps } => {
                write!(f, "the weights of {date} still move after {sweeps} sweeps: the covariance is nearly singular")
            }
            Self::Ruined { portfolio, date } => {
                write!(f, "the portfolio `{portfolio}` lost everything on {date}: check the prices of that day")
            }
            Self::Injected { stage } => write!(f, "{stage} fails because --fail asked for it"),
        }
    }
}

impl Error for PipelineError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Read { source, .. } => Some(source),
            Self::Line { problem, .. } => Some(problem),
            Self::TooFewDays { .. }
            | Self::NoVolatility { .. }
            | Self::NotConverged { .. }
            | Self::Ruined { .. }
            | Self::Injected { .. } => None,
        }
    }
}

impl fmt::Display for LineProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header { found } => write!(f, "the header is `{found}`, expected `date,symbol,close`"),
            Self::Columns { found } => write!(f, "{found} columns, expected 3: date,symbol,close"),
            Self::Date(_) => write!(f, "the first column is not a date"),
            Self::UnknownSymbol { found, known } => write!(f, "unknown symbol `{found}`, known: {}", known.join(", ")),
            Self::NotANumber { text, .. } => write!(f, "close `{text}` is not a number (a missing one is `.`)"),
            Self::NotPositive { text } => write!(f, "close `{text}` is not a positive, finite price"),
            Self::Duplicate { date, symbol } => write!(f, "a second price of {symbol} on {date}"),
        }
    }
}

impl Error for LineProblem {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Date(source) => Some(source),
            Self::NotANumber { source, .. } => Some(source),
            Self::Header { .. }
            | Self::Columns { .. }
            | Self::UnknownSymbol { .. }
            | Self::NotPositive { .. }
            | Self::Duplicate { .. } => None,
        }
    }
}

/// An error with its causes, on one line: `what: why: why`.
pub(crate) struct Chain<'a>(pub(crate) &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
