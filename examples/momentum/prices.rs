//! `foundation.ingest`: the price file in, aligned prices out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::date::Date;
use super::error::{LineProblem, PipelineError};
use super::fault::Faults;

/// What is traded.
pub(crate) const UNIVERSE: [&str; 3] = ["SP500", "NASDAQ", "WTI"];

const HEADER: &str = "date,symbol,close";
/// How the source writes a day without a price.
const MISSING: &str = ".";

/// Closing prices of every asset on the same days.
#[derive(Clone, Debug)]
pub(crate) struct Prices {
    pub(crate) dates: Vec<Date>,
    pub(crate) assets: Vec<Asset>,
}

#[derive(Clone, Debug)]
pub(crate) struct Asset {
    pub(crate) symbol: &'static str,
    /// One for each date.
    pub(crate) closes: Vec<f64>,
}

impl Asset {
    /// The simple return from the close before `day` to the close of `day`; `day` is at least 1.
    pub(crate) fn change(&self, day: usize) -> f64 {
        self.closes[day] / self.closes[day - 1] - 1.0
    }
}

/// Reads the file and keeps the days on which every asset has a price.
///
/// A missing price could also be filled with the one before. That invents a day of standing still and puts two days'
/// move into the next, which understates volatility and correlation. Leaving the day out makes the next return span
/// two days for all assets alike, and invents nothing.
#[tracing::instrument(skip_all, fields(stage_id = "foundation.ingest"), err)]
pub(crate) fn ingest(path: &Path, faults: &Faults) -> Result<Prices, PipelineError> {
    faults.check("foundation.ingest")?;
    let text = fs::read_to_string(path).map_err(|source| PipelineError::Read { path: path.to_owned(), source })?;
    let table =
        Table::parse(&text).map_err(|(line, problem)| PipelineError::Line { path: path.to_owned(), line, problem })?;
    for (symbol, days) in UNIVERSE.iter().zip(&table.missing) {
        if *days > 0 {
            tracing::warn!(symbol, days, "prices are missing");
        }
    }
    let (partial, prices) = table.align();
    let (Some(first), Some(last)) = (prices.dates.first(), prices.dates.last()) else {
        return Err(PipelineError::TooFewDays { have: 0 });
    };
    tracing::info!(
        days = prices.dates.len(),
        %first,
        %last,
        left_out = partial,
        "prices aligned on the days that all assets have; the days left out have a price of some"
    );
    Ok(prices)
}

/// The file's prices before they are aligned.
#[derive(Debug, Default)]
struct Table {
    /// By date, a price for each of the universe or none.
    rows: BTreeMap<Date, [Option<f64>; UNIVERSE.len()]>,
    /// How many values of each were given as missing.
    missing: [usize; UNIVERSE.len()],
}

impl Table {
    fn parse(text: &str) -> Result<Self, (usize, LineProblem)> {
        let mut lines = text.lines();
        let header = lines.next().unwrap_or_default();
        if header != HEADER {
            return Err((1, LineProblem::Header { found: header.to_owned() }));
        }
        let mut table = Self::default();
        let mut seen = BTreeSet::new();
        for (index, line) in lines.enumerate() {
            table.add(line, &mut seen).map_err(|problem| (index + 2, problem))?;
        }
        Ok(table)
    }

    fn add(&mut self, line: &str, seen: &mut BTreeSet<(Date, usize)>) -> Result<(), LineProblem> {
        let columns: Vec<&str> = line.split(',').collect();
        let [date, symbol, close] = columns[..] else {
            return Err(LineProblem::Columns { found: columns.len() });
        };
        let date: Date = date.parse().map_err(LineProblem::Date)?;
        let asset = UNIVERSE
            .iter()
            .position(|known| *known == symbol)
            .ok_or_else(|| LineProblem::UnknownSymbol { found: symbol.to_owned(), known: &UNIVERSE })?;
        if !seen.insert((date, asset)) {
            return Err(LineProblem::Duplicate { date, symbol: UNIVERSE[asset] });
        }
        let row = self.rows.entry(date).or_default();
        if close == MISSING {
            self.missing[asset] += 1;
        } else {
            row[asset] = Some(parse_close(close)?);
        }
        Ok(())
    }

    /// The days that all assets have, and how many days only some have.
    fn align(self) -> (usize, Prices) {
        let mut partial = 0;
        let mut dates = Vec::with_capacity(self.rows.len());
        let mut assets = UNIVERSE.map(|symbol| Asset { symbol, closes: Vec::with_capacity(self.rows.len()) });
        for (date, row) in self.rows {
            if row.iter().all(Option::is_some) {
                dates.push(date);
                for (asset, close) in assets.iter_mut().zip(row) {
                    asset.closes.extend(close);
                }
            } else if row.iter().any(Option::is_some) {
                partial += 1;
            }
        }
        (partial, Prices { dates, assets: assets.into() })
    }
}

fn parse_close(text: &str) -> Result<f64, LineProblem> {
    let close: f64 = text.parse().map_err(|source| LineProblem::NotANumber { text: text.to_owned(), source })?;
    // "NaN" and "inf" are numbers to the parser; a price below zero has no return.
    if close.is_finite() && close > 0.0 { Ok(close) } else { Err(LineProblem::NotPositive { text: text.to_owned() }) }
}

#[cfg(test)]
impl Prices {
    /// Prices on consecutive days from 1999-01-01, one slice for each asset.
    pub(crate) fn of(closes: [&[f64]; UNIVERSE.len()]) -> Self {
        let start = "1999-01-01".parse::<Date>().unwrap().days();
        let dates = (0..closes[0].len()).map(|day| Date::from_days(start + day as i64)).collect();
        let assets =
            UNIVERSE.iter().zip(closes).map(|(symbol, closes)| Asset { symbol, closes: closes.to_vec() }).collect();
        Self { dates, assets }
    }

    /// Three random walks, the first two of them correlated; the same every time.
    pub(crate) fn random(days: usize) -> Self {
        let mut state = 7_u64;
        let mut uniform = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1_u64 << 53) as f64 - 0.5
        };
        let mut closes = [vec![100.0], vec![50.0], vec![20.0]];
        for _ in 1..days {
            let common = uniform();
            let moves = [0.02 * common + 0.005 * uniform(), 0.03 * common + 0.01 * uniform(), 0.06 * uniform()];
            for (closes, change) in closes.iter_mut().zip(moves) {
                closes.push(closes[closes.len() - 1] * (1.0 + change));
            }
        }
        Self::of([&closes[0], &closes[1], &closes[2]])
    }
}

#[cfg(test)]
mod tests {
    use super::super::error::Chain;
    use super::*;

    #[test]
    fn only_days_that_all_have_are_kept() {
        let table = Table::parse(
            "date,symbol,close\n\
             2018-01-03,WTI,60.5\n2018-01-03,SP500,2700\n2018-01-03,NASDAQ,7000\n\
             2018-01-01,WTI,.\n\
             2018-01-02,SP500,2600\n2018-01-02,NASDAQ,6900\n2018-01-02,WTI,.\n\
             2017-12-29,SP500,2500\n2017-12-29,NASDAQ,6800\n2017-12-29,WTI,60\n",
        )
        .unwrap();
        assert_eq!(table.missing, [0, 0, 2]);
        let (partial, prices) = table.align();
        assert_eq!(partial, 1, "the second of January; on the first nobody has a price");
        let dates: Vec<_> = prices.dates.iter().map(Date::to_string).collect();
        assert_eq!(dates, ["2017-12-29", "2018-01-03"], "in the order of time, whatever the file's");
        assert_eq!(prices.assets[0].closes, [2500.0, 2700.0]);
        assert_eq!(prices.assets[2].closes, [60.0, 60.5]);
        assert!((prices.assets[0].change(1) - 0.08).abs() < 1e-15);
    }

    #[test]
    fn a_bad_line_is_named_with_its_number_and_its_value() {
        for (line, expected) in [
            ("2018-01-02,WTI", "2 columns"),
            ("", "1 columns"),
            ("2018-02-30,WTI,1", "`2018-02-30`"),
            ("2018-01-02,GOLD,1", "`GOLD`, known: SP500, NASDAQ, WTI"),
            ("2018-01-02,WTI,1x", "`1x` is not a number"),
            ("2018-01-02,WTI,", "`` is not a number"),
            ("2018-01-02,WTI,NaN", "`NaN` is not a positive"),
            ("2018-01-02,WTI,-37.63", "`-37.63` is not a positive"),
            ("2018-01-01,WTI,61", "a second price of WTI on 2018-01-01"),
        ] {
            let text = format!("date,symbol,close\n2018-01-01,WTI,60\n{line}\n");
            let (number, problem) = Table::parse(&text).expect_err(line);
            assert_eq!(number, 3, "{line}");
            let text = Chain(&problem).to_string();
            assert!(text.contains(expected), "{text}");
        }
        let (number, problem) = Table::parse("day,symbol,close\n").expect_err("a wrong header");
        assert_eq!((number, problem.to_string().contains("`day,symbol,close`")), (1, true));
    }

    #[test]
    fn a_file_that_is_not_there_is_named_with_the_cause() {
        let error = ingest(Path::new("no/such/prices.csv"), &Faults::default()).expect_err("no such file");
        let text = Chain(&error).to_string();
        assert!(text.contains("no/such/prices.csv: "), "{text}");
    }
}
