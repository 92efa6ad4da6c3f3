//! `alpha.inference`: how sure the past is about the direction of each asset.

use super::date::Date;
use super::error::PipelineError;
use super::fault::Faults;
use super::features::{DAYS_PER_YEAR, Features, LOOKBACK, SKIP};

/// A score for each day and asset, in the order of the features; `None` until every asset has one.
pub(crate) type Scores = Vec<Option<Vec<f64>>>;

/// The score is the momentum over the volatility of the same span: how many standard deviations the price has moved.
#[tracing::instrument(skip_all, fields(stage_id = "alpha.inference"), err)]
pub(crate) fn infer(dates: &[Date], features: &[Features], faults: &Faults) -> Result<Scores, PipelineError> {
    faults.check("alpha.inference")?;
    dates
        .iter()
        .enumerate()
        .map(|(day, date)| features.iter().map(|asset| score(asset, day, *date).transpose()).collect())
        .map(Option::transpose)
        .collect()
}

fn score(asset: &Features, day: usize, date: Date) -> Result<Option<f64>, PipelineError> {
    let Some((momentum, volatility)) = asset.momentum[day].zip(asset.volatility[day]) else {
        return Ok(None);
    };
    if volatility <= 0.0 {
        return Err(PipelineError::NoVolatility { symbol: asset.symbol, date });
    }
    let years = (LOOKBACK - SKIP) as f64 / DAYS_PER_YEAR;
    Ok(Some(momentum / (volatility * years.sqrt())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(momentum: Vec<Option<f64>>, volatility: Vec<Option<f64>>) -> Features {
        Features { symbol: "WTI", momentum, volatility }
    }

    #[test]
    fn a_score_is_momentum_in_standard_deviations_of_its_span() {
        let dates: Vec<_> = (0..3).map(Date::from_days).collect();
        let one = features(vec![None, Some(0.3), Some(-0.1)], vec![Some(0.2); 3]);
        let two = features(vec![Some(0.1); 3], vec![None, None, Some(0.4)]);
        let scores = infer(&dates, &[one, two], &Faults::default()).unwrap();
        assert_eq!(scores[..2], [None, None], "the first lacks on day 0, the second on day 1");
        let span = (231.0_f64 / 252.0).sqrt();
        let expected = [-0.1 / (0.2 * span), 0.1 / (0.4 * span)];
        let day = scores[2].as_ref().unwrap();
        assert!(day.iter().zip(expected).all(|(score, expected)| (score - expected).abs() < 1e-15), "{day:?}");
    }

    #[test]
    fn a_price_that_stands_still_is_an_error_that_names_it() {
        let flat = features(vec![Some(0.0)], vec![Some(0.0)]);
        let error = infer(&[Date::from_days(0)], &[flat], &Faults::default()).expect_err("no volatility");
        assert!(error.to_string().contains("WTI has a volatility of zero on 1970-01-01"), "{error}");
    }
}
