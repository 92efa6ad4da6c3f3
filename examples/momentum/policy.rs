//! `alpha.policy`: from scores to views, once a month.

use super::date::Date;
use super::error::PipelineError;
use super::fault::Faults;
use super::inference::Scores;

/// Scores below this, in standard deviations, are noise: no view.
const DEAD_ZONE: f64 = 0.25;
/// From here on the view is as strong as it gets.
const FULL_VIEW: f64 = 1.0;

/// What is thought of each asset after the close of a day.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Decision {
    pub(crate) day: usize,
    /// From -1 (short) to 1 (long), in the order of the assets.
    pub(crate) views: Vec<f64>,
}

/// Decides on the first trading day of each month. Which day is a month's last is only known on the next, and a
/// backtest that trades on it has looked ahead.
#[tracing::instrument(skip_all, fields(stage_id = "alpha.policy"), err)]
pub(crate) fn decide(dates: &[Date], scores: &Scores, faults: &Faults) -> Result<Vec<Decision>, PipelineError> {
    faults.check("alpha.policy")?;
    let decisions: Vec<_> = (1..dates.len())
        .filter(|day| !dates[*day].same_month(dates[day - 1]))
        .filter_map(|day| {
            let views = scores[day].as_ref()?.iter().copied().map(view).collect();
            Some(Decision { day, views })
        })
        .collect();
    if decisions.is_empty() {
        return Err(PipelineError::TooFewDays { have: dates.len() });
    }
    tracing::info!(decisions = decisions.len(), "decided on the first trading day of each month");
    Ok(decisions)
}

fn view(score: f64) -> f64 {
    if score.abs() < DEAD_ZONE { 0.0 } else { (score / FULL_VIEW).clamp(-1.0, 1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_is_nothing_when_weak_and_bounded_when_strong() {
        for (score, expected) in
            [(0.0, 0.0), (0.24, 0.0), (-0.24, 0.0), (0.25, 0.25), (-0.5, -0.5), (3.0, 1.0), (-3.0, -1.0)]
        {
            assert_eq!(view(score), expected, "{score}");
        }
    }

    #[test]
    fn decisions_fall_on_the_first_trading_day_of_a_month_with_scores() {
        let dates: Vec<Date> = ["2018-01-30", "2018-01-31", "2018-02-02", "2018-02-05", "2018-03-01", "2019-03-04"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        let mut scores: Scores = vec![Some(vec![0.5, -2.0, 0.1]); 6];
        scores[2] = None;
        let decisions = decide(&dates, &scores, &Faults::default()).unwrap();
        let views = vec![0.5, -1.0, 0.0];
        assert_eq!(decisions, [Decision { day: 4, views: views.clone() }, Decision { day: 5, views }]);
    }

    #[test]
    fn no_decision_at_all_is_an_error() {
        let dates: Vec<_> = (0..300).map(Date::from_days).collect();
        let error = decide(&dates, &vec![None; 300], &Faults::default()).expect_err("nothing to decide on");
        assert!(error.to_string().starts_with("300 days"), "{error}");
    }
}
