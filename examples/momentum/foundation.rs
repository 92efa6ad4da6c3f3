//! `foundation.ingest` and `foundation.features`: the price file in, momentum and volatility of each asset out.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use jiff::civil::Date;

use super::Faults;

/// The assets that are traded.
pub(crate) const SYMBOLS: [&str; 3] = ["SP500", "NASDAQ", "WTI"];

/// One value for each of [`SYMBOLS`].
pub(crate) type PerAsset<T = f64> = [T; SYMBOLS.len()];

/// Momentum looks back one year ...
pub(crate) const LOOKBACK: usize = 252;
/// ... and leaves out the last month, in which returns tend to reverse.
pub(crate) const SKIP: usize = 21;
pub(crate) const DAYS_PER_YEAR: f64 = 252.0;
/// Daily decay of the weights of variance and covariance: RiskMetrics' value for monthly horizons.
pub(crate) const DECAY: f64 = 0.97;

/// Closing prices of every asset on the same days.
#[derive(Clone, Debug, Default)]
pub(crate) struct Prices {
    pub(crate) dates: Vec<Date>,
    pub(crate) closes: Vec<PerAsset>,
}

impl Prices {
    /// The simple returns from the close before `day` to the close of `day`; `day` is at least 1.
    pub(crate) fn returns(&self, day: usize) -> PerAsset {
        std::array::from_fn(|asset| self.closes[day][asset] / self.closes[day - 1][asset] - 1.0)
    }
}

/// Reads the file and keeps the days on which every asset has a price.
///
/// Filling a gap with the price before it would invent a day without a move and put the move of two days into the next,
/// which understates volatility and correlation. Without the day, the next return spans two days for all assets alike.
#[tracing::instrument(skip_all, fields(stage_id = "foundation.ingest"), err)]
pub(crate) fn ingest(path: &Path, faults: &Faults) -> Result<Prices> {
    faults.check("foundation.ingest")?;
    let prices = File::open(path).map_err(anyhow::Error::from).and_then(read);
    prices.with_context(|| format!("cannot read the prices in {}", path.display()))
}

pub(crate) fn read(file: impl Read) -> Result<Prices> {
    let mut reader = csv::Reader::from_reader(file);
    let header: Vec<&str> = reader.headers()?.iter().collect();
    ensure!(header == ["date", "symbol", "close"], "the header is {header:?}, expected date,symbol,close");
    let mut rows = BTreeMap::<Date, PerAsset<Option<f64>>>::new();
    for record in reader.records() {
        let record = record?;
        let line = record.position().map_or(0, csv::Position::line);
        let (date, asset, close) = parse(&record).with_context(|| format!("line {line} is not a price"))?;
        let earlier = rows.entry(date).or_default()[asset].replace(close);
        ensure!(earlier.is_none(), "line {line} is a second price of {} on {date}", SYMBOLS[asset]);
    }
    let mut prices = Prices::default();
    let (mut missing, mut left_out) = ([0; SYMBOLS.len()], 0);
    for (date, row) in rows {
        missing.iter_mut().zip(row).for_each(|(days, close)| *days += usize::from(close.is_some_and(f64::is_nan)));
        let closes: Vec<f64> = row.into_iter().flatten().filter(|close| !close.is_nan()).collect();
        if let Ok(closes) = PerAsset::try_from(closes.as_slice()) {
            prices.dates.push(date);
            prices.closes.push(closes);
        } else if !closes.is_empty() {
            left_out += 1;
        }
    }
    for (symbol, days) in SYMBOLS.iter().zip(missing).filter(|(_, days)| *days > 0) {
        tracing::warn!(symbol, days, "prices are missing");
    }
    tracing::info!(days = prices.dates.len(), left_out, "kept the days on which all assets have a price");
    Ok(prices)
}

/// A missing price is NaN.
fn parse(record: &csv::StringRecord) -> Result<(Date, usize, f64)> {
    let (date, symbol, close) = (&record[0], &record[1], &record[2]);
    let date = date.parse().with_context(|| format!("`{date}` is not a date, expected YYYY-MM-DD"))?;
    let asset = SYMBOLS.iter().position(|known| *known == symbol);
    let asset = asset.with_context(|| format!("unknown symbol `{symbol}`, known: {}", SYMBOLS.join(", ")))?;
    let price = match close {
        "." => Some(f64::NAN),
        close => close.parse().ok().filter(|price: &f64| price.is_finite() && *price > 0.0),
    };
    let price = price.with_context(|| format!("close `{close}` is not a positive, finite number (`.` if missing)"))?;
    Ok((date, asset, price))
}

/// What the close of a day and those before it say of an asset.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Features {
    /// The log return from `LOOKBACK` days ago to `SKIP` days ago.
    pub(crate) momentum: f64,
    /// Annualised, from squared returns: over a few months, an estimate of their mean is mostly noise.
    pub(crate) volatility: f64,
}

/// Returns the features of each day from `LOOKBACK` on.
#[tracing::instrument(skip_all, fields(stage_id = "foundation.features", symbol = SYMBOLS[asset]), err)]
pub(crate) fn features(prices: &Prices, asset: usize, faults: &Faults) -> Result<Vec<Features>> {
    faults.check("foundation.features")?;
    let mut variance = WeightedMean::default();
    let mut features = Vec::new();
    for day in 1..prices.dates.len() {
        variance.add(prices.returns(day)[asset].powi(2));
        if day >= LOOKBACK {
            let momentum = (prices.closes[day - SKIP][asset] / prices.closes[day - LOOKBACK][asset]).ln();
            features.push(Features { momentum, volatility: (variance.value() * DAYS_PER_YEAR).sqrt() });
        }
    }
    Ok(features)
}

/// An exponentially weighted mean. Its weights add up to one from the first value on, so it needs no starting value.
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

    /// NaN before the first value.
    pub(crate) fn value(&self) -> f64 {
        self.sum / self.weight
    }
}
