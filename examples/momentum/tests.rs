//! The pipeline as a whole.

use std::panic::{self, AssertUnwindSafe};

use super::*;
use fault::Fault;
use simulate::simulate;

fn job(faults: &[(&str, Fault)]) -> Job {
    let mut all = Faults::default();
    faults.iter().for_each(|(stage, fault)| all.add(stage, *fault));
    Job { data: PRICES.into(), profile: "test".to_owned(), run_id: "1".to_owned(), faults: all }
}

/// The expected numbers come from a second implementation that shares nothing with this one: explicit weights instead
/// of recursions, an optimum found by trying every set of assets, and a simulation that counts shares and cash.
#[test]
fn the_outcome_on_the_real_prices_is_that_of_an_independent_calculation() {
    let outcome = run(&job(&[])).unwrap();
    assert_eq!((outcome.from.to_string(), outcome.to.to_string()), ("2000-02-01".into(), "2018-12-28".into()));
    let expected = [
        ("momentum", [0.040356431607, 0.096356152068, 0.460852678086, 0.154736211624, 2.696217338544]),
        ("buy and hold", [0.027175796757, 0.243230783807, 0.232627635803, 0.687531527937, 0.052896451846]),
    ];
    assert_eq!(outcome.performances.len(), expected.len());
    for (found, (name, numbers)) in outcome.performances.iter().zip(expected) {
        assert_eq!(found.name, name);
        let found = [found.annual_return, found.volatility, found.sharpe, found.max_drawdown, found.annual_turnover];
        for (found, expected) in found.iter().zip(numbers) {
            assert!((found - expected).abs() < 1e-9, "{name}: {found} is not {expected}");
        }
    }
}

#[test]
fn weights_and_returns_of_a_day_do_not_depend_on_later_prices() {
    let prices = Prices::random(700);
    let (plan_then, returns_then) = plan_and_returns(&prices);
    for cut in [300, plan_then[5].day, plan_then[9].day, 698] {
        let mut other = prices.clone();
        change_after(cut, &mut other);
        let (plan_now, returns_now) = plan_and_returns(&other);
        let known = plan_then.iter().filter(|allocation| allocation.day <= cut).count();
        assert!(known > 0);
        assert_eq!(plan_now[..known], plan_then[..known], "cut at {cut}");
        // The first return is that of the day after the first decision.
        let earned = cut - plan_then[0].day;
        assert_eq!(returns_now[..earned], returns_then[..earned], "cut at {cut}");
        assert_ne!(returns_now[earned], returns_then[earned], "the change would not have been seen");
    }
}

#[test]
fn the_price_of_the_day_of_decision_is_used() {
    let prices = Prices::random(700);
    let (plan_then, _) = plan_and_returns(&prices);
    let decided = plan_then[5].day;
    let mut other = prices.clone();
    change_after(decided - 1, &mut other);
    let (plan_now, _) = plan_and_returns(&other);
    assert_eq!(plan_now[..5], plan_then[..5]);
    assert_ne!(plan_now[5].weights, plan_then[5].weights);
}

fn plan_and_returns(prices: &Prices) -> (Vec<Allocation>, Vec<f64>) {
    let schedule = plan(prices, &Faults::default()).unwrap();
    let portfolio = Portfolio { name: "test", schedule: schedule.clone() };
    let returns = simulate(prices, &portfolio, &Faults::default()).unwrap().returns;
    (schedule, returns)
}

/// A different future: all moves after the close of `day` are mirrored and made larger.
fn change_after(day: usize, prices: &mut Prices) {
    for asset in &mut prices.assets {
        let pivot = asset.closes[day];
        for close in &mut asset.closes[day + 1..] {
            *close = pivot * (pivot / *close).powf(1.5);
        }
    }
}

#[test]
fn every_stage_can_be_made_to_fail() {
    for stage in STAGES {
        let error = run(&job(&[(stage, Fault::Error)])).expect_err(stage);
        assert!(matches!(error, PipelineError::Injected { stage: failed } if failed == stage), "{error}");
    }
}

#[test]
fn every_stage_can_be_made_to_panic() {
    for stage in STAGES {
        let job = job(&[(stage, Fault::Panic)]);
        let payload = panic::catch_unwind(AssertUnwindSafe(|| run(&job).is_ok())).expect_err(stage);
        let message = payload.downcast_ref::<String>().expect("a formatted message");
        assert!(message.starts_with(stage), "{message}");
    }
}

#[test]
fn enough_days_are_enough_wherever_the_months_begin() {
    let prices = Prices::random(features::ENOUGH_DAYS + 31);
    for start in 0..31 {
        let mut part = prices.clone();
        part.dates = part.dates[start..][..features::ENOUGH_DAYS].to_vec();
        for asset in &mut part.assets {
            asset.closes = asset.closes[start..][..features::ENOUGH_DAYS].to_vec();
        }
        assert!(plan(&part, &Faults::default()).is_ok(), "from day {start}");
    }
}

#[test]
fn too_few_days_are_an_error_that_says_how_many_are_enough() {
    let error = plan(&Prices::random(200), &Faults::default()).expect_err("no year of prices");
    assert!(error.to_string().starts_with("200 days with a price of every asset are too few, 284 are"), "{error}");
}
