//! Each step of the calculation, with figures worked out by hand.

use jiff::civil::{Date, date};

use super::momentum::allocation::{COST, Performance, simulate};
use super::momentum::alpha::{decide, infer};
use super::momentum::foundation::{Features, LOOKBACK, PerAsset, Prices, SKIP, WeightedMean, features};
use super::momentum::risk::{GROSS_LIMIT, SHRINKAGE, TARGET_VOLATILITY, best_direction, best_weights, optimize};
use super::momentum::{Faults, Signal};
use super::whole;

#[track_caller]
fn assert_close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{found:?}");
    assert!(found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-12), "{found:?}");
}

/// Closes of the assets on consecutive days.
fn prices(closes: &[PerAsset]) -> Prices {
    Prices { closes: closes.to_vec(), ..whole::prices(closes.len()) }
}

/// Closes of the first asset; those of the others stay the same.
fn first_asset(closes: impl IntoIterator<Item = f64>) -> Prices {
    prices(&closes.into_iter().map(|close| [close, 1.0, 1.0]).collect::<Vec<_>>())
}

#[test]
fn momentum_is_the_log_return_of_a_year_without_its_last_month() {
    let momentum = |prices: &Prices| features(prices, 0, &Faults::default()).unwrap()[0].momentum;
    let growth = first_asset((0..=LOOKBACK as i32).map(|day| 100.0 * 1.001_f64.powi(day)));
    // 252 days without 21.
    assert_close(&[momentum(&growth)], &[231.0 * 1.001_f64.ln()]);
    let mut closes = vec![100.0; LOOKBACK + 1];
    closes[LOOKBACK - SKIP + 1..].fill(500.0);
    assert_eq!(momentum(&first_asset(closes.clone())), 0.0);
    closes[LOOKBACK - SKIP] = 200.0;
    assert_close(&[momentum(&first_asset(closes))], &[2.0_f64.ln()]);
}

#[test]
fn volatility_of_moves_of_one_size_is_that_size_annualised() {
    let mut close = 100.0;
    let moves = (0..=LOOKBACK + 1).map(|day| {
        close *= if day % 2 == 0 { 1.01 } else { 0.99 };
        close
    });
    let found = features(&first_asset(moves), 0, &Faults::default()).unwrap();
    let volatility: Vec<_> = found.iter().map(|day| day.volatility).collect();
    assert_close(&volatility, &[0.01 * 252.0_f64.sqrt(); 2]);
}

#[test]
fn weighted_mean_prefers_later_values() {
    let mut mean = WeightedMean::default();
    [3.0, -1.0, 4.0].into_iter().for_each(|value| mean.add(value));
    // The weights are 0.97², 0.97 and 1.
    assert_close(&[mean.value()], &[(3.0 * 0.9409 - 0.97 + 4.0) / (0.9409 + 0.97 + 1.0)]);
}

#[test]
fn score_is_momentum_in_standard_deviations_of_its_span() {
    let features =
        [(0.3, 0.2), (-0.1, 0.2), (0.1, 0.4)].map(|(momentum, volatility)| vec![Features { momentum, volatility }]);
    let scores = infer(&whole::prices(LOOKBACK + 1), &features, &Faults::default()).unwrap();
    // 231 of 252 days.
    let span = (11.0_f64 / 12.0).sqrt();
    assert_eq!((scores.len(), scores[0].day), (1, LOOKBACK));
    assert_close(&scores[0].values, &[1.5 / span, -0.5 / span, 0.25 / span]);
}

#[test]
fn views_are_decided_on_the_first_trading_day_of_a_month() {
    let dates = ["2018-01-30", "2018-01-31", "2018-02-02", "2018-02-05", "2018-03-01", "2019-03-04"];
    let prices = Prices { dates: dates.map(|date| date.parse().unwrap()).to_vec(), closes: Vec::new() };
    let scores: Vec<_> = (1..6).map(|day| Signal { day, values: [0.5, -2.0, 0.24] }).collect();
    // A weak score is no view, and a strong one is bounded.
    let views = [2, 4, 5].map(|day| Signal { day, values: [0.5, -1.0, 0.0] });
    assert_eq!(decide(&prices, &scores, &Faults::default()).unwrap(), views);
}

/// Volatilities of 10, 20 and 40 %; the first two correlated by 0.9, the third with both by -0.2.
const COVARIANCE: PerAsset<PerAsset> = [[0.01, 0.018, -0.008], [0.018, 0.04, -0.016], [-0.008, -0.016, 0.16]];

fn volatility(weights: &PerAsset, covariance: &PerAsset<PerAsset>) -> f64 {
    let dot = |row: &PerAsset| row.iter().zip(weights).map(|(entry, weight)| entry * weight).sum::<f64>();
    covariance.iter().zip(weights).map(|(row, weight)| weight * dot(row)).sum::<f64>().sqrt()
}

/// At the optimum the gradient vanishes where a weight is free, and points against the view where the weight is zero.
#[test]
fn direction_is_the_optimum_for_all_kinds_of_views() {
    const LEVELS: [f64; 5] = [-1.0, -0.3, 0.0, 0.3, 1.0];
    for views in (0..125).map(|number| [number / 25, number / 5 % 5, number % 5].map(|level| LEVELS[level])) {
        let weights = best_direction(&COVARIANCE, &views).unwrap();
        for (asset, row) in COVARIANCE.iter().enumerate() {
            let shrunk = |other: usize| row[other] * if other == asset { 1.0 } else { 1.0 - SHRINKAGE };
            let risk: f64 = (0..3).map(|other| shrunk(other) * weights[other]).sum();
            let gradient = views[asset] * row[asset].sqrt() - risk;
            let is_optimal = if weights[asset] == 0.0 {
                gradient * views[asset] <= 0.0
            } else {
                gradient.abs() < 1e-11 && weights[asset] * views[asset] > 0.0
            };
            assert!(is_optimal, "{views:?} {weights:?}");
        }
    }
}

#[test]
fn direction_is_view_over_volatility_where_nothing_is_correlated() {
    let covariance = [[0.01, 0.0, 0.0], [0.0, 0.04, 0.0], [0.0, 0.0, 0.16]];
    assert_close(&best_direction(&covariance, &[1.0, -0.5, 0.0]).unwrap(), &[10.0, -2.5, 0.0]);
    assert_eq!(best_direction(&[[0.0; 3]; 3], &[1.0; 3]), None, "no variance");
}

/// The correlation of 0.9 counts as 0.45: the first takes more of the risk of the second than its view is worth.
#[test]
fn weak_view_is_dropped_rather_than_traded_against() {
    assert_close(&best_direction(&COVARIANCE, &[1.0, 0.3, 0.0]).unwrap(), &[10.0, 0.0, 0.0]);
}

#[test]
fn weights_have_the_target_volatility_up_to_the_limit_on_leverage() {
    let weights = best_weights(&COVARIANCE, &[0.0, 0.6, -0.4]).unwrap();
    assert_close(&[volatility(&weights, &COVARIANCE)], &[0.6 * TARGET_VOLATILITY]);
    let calm = COVARIANCE.map(|row| row.map(|entry| entry / 25.0));
    let weights = best_weights(&calm, &[1.0, 0.0, -1.0]).unwrap();
    assert_close(&[weights.iter().map(|weight| weight.abs()).sum()], &[GROSS_LIMIT]);
    assert!(volatility(&weights, &calm) < TARGET_VOLATILITY);
    assert_eq!(best_weights(&COVARIANCE, &[0.0; 3]), Some([0.0; 3]));
}

/// The covariance is that of the days up to the decision: moves of 1 %, 2 % and 4 % on one day each.
#[test]
fn optimizer_knows_the_days_up_to_the_decision() {
    let closes = [[1.0, 1.0, 1.0], [1.01, 1.0, 1.0], [1.01, 1.02, 1.0], [1.01, 1.02, 1.04], [9.0, 9.0, 9.0]];
    let weights =
        optimize(&prices(&closes), &[Signal { day: 3, values: [0.0, 1.0, 0.0] }], &Faults::default()).unwrap();
    let variance = 252.0 * 0.97 * 0.02_f64.powi(2) / (0.9409 + 0.97 + 1.0);
    assert_eq!((weights.len(), weights[0].day), (1, 3));
    assert_close(&weights[0].values, &[0.0, TARGET_VOLATILITY / variance.sqrt(), 0.0]);
}

#[track_caller]
fn simulated(prices: &Prices, schedule: &[(usize, PerAsset)]) -> Performance {
    let schedule = schedule.iter().map(|(day, values)| Signal { day: *day, values: *values }).collect();
    simulate(prices, &("test", schedule), &Faults::default()).unwrap()
}

#[test]
fn weights_earn_from_the_day_after_the_decision_on_and_drift() {
    let closes = [[100.0, 10.0, 1.0], [110.0, 10.0, 1.0], [121.0, 5.0, 1.0], [121.0, 10.0, 1.0]];
    // The rise of day 1 is not earned. Day 2 earns 0.5 * 10 % - 0.25 * 50 % = -7.5 %, after the cost of a trade of 0.75.
    // Then 0.25 * 0.5 / 0.925 is left in the second, which doubles.
    let returns = simulated(&prices(&closes), &[(1, [0.5, 0.25, 0.0])]).returns;
    assert_close(&returns, &[(1.0 - 0.75 * COST) * 0.925 - 1.0, 0.125 / 0.925]);
}

#[test]
fn turnover_is_measured_against_drifted_weights() {
    let half = [0.5, 0.5, 0.0];
    let performance = simulated(&first_asset([100.0, 200.0, 200.0]), &[(0, half), (1, half)]);
    // The half that doubled is two thirds of the value: a sixth is sold and a sixth bought.
    assert_close(&performance.returns, &[(1.0 - COST) * 1.5 - 1.0, -COST / 3.0]);
    assert_close(&[performance.annual_turnover * 2.0 / 365.25], &[1.0 + 1.0 / 3.0]);
}

#[test]
fn short_position_gains_when_the_price_falls_and_shrinks_with_it() {
    let returns = simulated(&first_asset([100.0, 50.0, 100.0]), &[(0, [-0.5, 0.0, 0.0])]).returns;
    // A half sold at 100 is worth a quarter at 50. At 100 it is a half again, and nothing is gained.
    assert_close(&returns, &[(1.0 - 0.5 * COST) * 1.25 - 1.0, 1.0 / 1.25 - 1.0]);
}

#[test]
fn buy_and_hold_is_the_mean_of_the_prices() {
    let prices = whole::prices(500);
    let returns = simulated(&prices, &[(100, [1.0 / 3.0; 3])]).returns;
    let value: f64 = returns.iter().map(|change| 1.0 + change).product();
    let mean = prices.closes[499].iter().zip(prices.closes[100]).map(|(last, first)| last / first).sum::<f64>() / 3.0;
    assert_eq!(returns.len(), 399);
    assert_close(&[value], &[mean * (1.0 - COST)]);
}

/// Returns of 50 % less costs, -20 % and 20 %, over four years.
#[test]
fn rates_are_annual() {
    let dates: Vec<Date> = vec![date(1999, 1, 1), date(2000, 1, 1), date(2001, 1, 1), date(2003, 1, 1)];
    let prices = Prices { dates, ..first_asset([100.0, 150.0, 120.0, 144.0]) };
    let found = simulated(&prices, &[(0, [1.0, 0.0, 0.0])]);
    // 0.999 * 1.44 in all. The returns 0.4985, -0.2 and 0.2 have the mean 0.4985 / 3.
    let mean: f64 = 0.4985 / 3.0;
    let deviation = ((0.4985_f64.powi(2) + 0.04 + 0.04 - 3.0 * mean * mean) / 2.0).sqrt();
    let year = 252.0_f64.sqrt();
    assert_close(&[found.annual_return, found.annual_turnover], &[(0.999 * 1.44_f64).powf(0.25) - 1.0, 0.25]);
    assert_close(&[found.volatility, found.sharpe], &[deviation * year, mean / deviation * year]);
}

#[test]
fn drawdown_runs_from_a_high_to_the_lowest_low_after_it() {
    for (closes, expected) in [
        (&[10.0, 9.0][..], 1.0 - 0.9 * (1.0 - COST)),
        (&[1.0, 1.1, 1.32], 0.0),
        (&[1.0, 2.0, 1.5, 1.8, 0.9, 3.0], 0.55),
    ] {
        let found = simulated(&first_asset(closes.iter().copied()), &[(0, [1.0, 0.0, 0.0])]);
        assert_close(&[found.max_drawdown()], &[expected]);
    }
}
