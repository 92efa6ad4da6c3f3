//! The calculation of the example as a whole, without its program.

use std::thread;

use super::momentum::foundation::{self, Prices};
use super::momentum::{Faults, Job, STAGES, Signal, allocation, alpha, plan, run};

/// The expected numbers come from a second implementation that shares nothing with this one: explicit weights instead
/// of recursions, an optimum found by trying every set of assets, and a simulation that counts shares and cash.
#[test]
fn outcome_matches_an_independent_calculation() {
    let outcome = run(&Job::default()).unwrap();
    assert_eq!((outcome.from.to_string(), outcome.to.to_string()), ("2000-02-01".into(), "2018-12-28".into()));
    let expected = [
        ("momentum", [0.040356431607, 0.096356152068, 0.460852678086, 0.154736211624, 2.696217338544]),
        ("buy and hold", [0.027175796757, 0.243230783807, 0.232627635803, 0.687531527937, 0.052896451846]),
    ];
    assert_eq!(outcome.performances.len(), expected.len());
    for (row, (name, expected)) in outcome.performances.iter().zip(expected) {
        assert_eq!(row.name, name);
        let found = [row.annual_return, row.volatility, row.sharpe, row.max_drawdown(), row.annual_turnover];
        assert!(found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-9), "{row:?}");
    }
}

#[test]
fn every_stage_can_fail_and_panic() {
    for stage in STAGES {
        let (mut failing, mut panicking) = (Job::default(), Job::default());
        failing.faults.fail.insert(stage.to_owned());
        let error = run(&failing).expect_err(stage);
        assert_eq!(error.to_string(), format!("{stage} fails because --fail asked for it"));
        panicking.faults.panic.insert(stage.to_owned());
        let payload = thread::spawn(move || run(&panicking).is_ok()).join().expect_err(stage);
        let message = payload.downcast_ref::<String>().expect("a formatted message");
        assert!(message.starts_with(stage), "{message}");
    }
}

#[test]
fn only_days_with_all_prices_are_kept() {
    let text = "date,symbol,close\n\
        2018-01-03,WTI,60.5\n2018-01-03,SP500,2700\n2018-01-03,NASDAQ,7000\n2018-01-01,WTI,.\n\
        2018-01-02,SP500,2600\n2018-01-02,NASDAQ,6900\n2018-01-02,WTI,.\n\
        2017-12-29,SP500,2500\n2017-12-29,NASDAQ,6800\n2017-12-29,WTI,60\n";
    let prices = foundation::read(text.as_bytes()).unwrap();
    assert_eq!(prices.dates, ["2017-12-29", "2018-01-03"].map(|date| date.parse().unwrap()), "sorted by date");
    assert_eq!(prices.closes, [[2500.0, 6800.0, 60.0], [2700.0, 7000.0, 60.5]]);
    assert!((prices.returns(1)[0] - 0.08).abs() < 1e-15, "the return spans the day that is left out");
}

#[test]
fn invalid_line_is_named_with_its_number_and_value() {
    for (line, expected) in [
        ("2018-01-02,WTI", "record 2 (line: 3, byte: 36): found record with 2 fields"),
        ("2018-02-30,WTI,1", "line 3 is not a price: `2018-02-30` is not a date"),
        ("2018-1-02,WTI,1", "line 3 is not a price: `2018-1-02` is not a date"),
        ("2018-01-02,GOLD,1", "line 3 is not a price: unknown symbol `GOLD`, known: SP500, NASDAQ, WTI"),
        ("2018-01-02,WTI,1x", "line 3 is not a price: close `1x` is not a positive"),
        ("2018-01-02,WTI,", "line 3 is not a price: close `` is not a positive"),
        ("2018-01-02,WTI,NaN", "line 3 is not a price: close `NaN` is not a positive"),
        ("2018-01-02,WTI,-37.63", "line 3 is not a price: close `-37.63` is not a positive"),
        ("2018-01-01,WTI,61", "line 3 is a second price of WTI on 2018-01-01"),
    ] {
        let text = format!("date,symbol,close\n2018-01-01,WTI,60\n{line}\n");
        let error = format!("{:#}", foundation::read(text.as_bytes()).expect_err(line));
        assert!(error.contains(expected), "{error}");
    }
    let error = foundation::read("day,symbol,close\n".as_bytes()).expect_err("a wrong header");
    assert!(error.to_string().contains("\"day\", \"symbol\", \"close\""), "{error}");
    let error = run(&Job { data: "no/such/prices.csv".into(), ..Job::default() }).expect_err("no such file");
    assert!(format!("{error:#}").contains("no/such/prices.csv: "), "{error:#}");
}

/// Prices that rise and fall over months, and differently from day to day.
pub(crate) fn prices(days: usize) -> Prices {
    let close = |trend: f64, noise: f64, day: f64| (0.3 * (trend * day).sin() + 0.03 * (noise * day * day).sin()).exp();
    let closes = |day| [close(0.011, 1.0, day), close(0.013, 1.1, day), close(0.017, 1.2, day)];
    Prices {
        dates: jiff::civil::date(1999, 1, 1).series(jiff::Span::new().days(1)).take(days).collect(),
        closes: (0..days).map(|day| closes(day as f64)).collect(),
    }
}

fn plan_and_returns(prices: &Prices) -> (Vec<Signal>, Vec<f64>) {
    let weights = plan(prices, &Faults::default()).unwrap();
    let performance = allocation::simulate(prices, &("test", weights.clone()), &Faults::default()).unwrap();
    (weights, performance.returns)
}

/// All moves after the close of `day` are mirrored and made larger.
fn change_after(day: usize, mut prices: Prices) -> Prices {
    let pivots = prices.closes[day];
    for closes in &mut prices.closes[day + 1..] {
        closes.iter_mut().zip(pivots).for_each(|(close, pivot)| *close = pivot * (pivot / *close).powf(1.5));
    }
    prices
}

#[test]
fn weights_and_returns_do_not_depend_on_later_prices() {
    let prices = prices(700);
    let (weights, returns) = plan_and_returns(&prices);
    for cut in [300, weights[5].day, weights[9].day, 698] {
        let (other_weights, other_returns) = plan_and_returns(&change_after(cut, prices.clone()));
        let known = weights.iter().filter(|weights| weights.day <= cut).count();
        assert!(known > 0);
        assert_eq!(other_weights[..known], weights[..known], "cut at {cut}");
        // The first return is that of the day after the first decision.
        let earned = cut - weights[0].day;
        assert_eq!(other_returns[..earned], returns[..earned], "cut at {cut}");
        assert_ne!(other_returns[earned], returns[earned], "the change has no effect");
    }
    let (other_weights, _) = plan_and_returns(&change_after(weights[5].day - 1, prices));
    assert_eq!(other_weights[..5], weights[..5]);
    assert_ne!(other_weights[5], weights[5], "the price of the day of decision is used");
}

#[test]
fn unusable_prices_are_errors_that_say_why() {
    // Wherever the month begins.
    for start in 0..31 {
        let Prices { dates, closes } = prices(start + alpha::ENOUGH_DAYS);
        let last = Prices { dates: dates[start..].to_vec(), closes: closes[start..].to_vec() };
        assert!(plan(&last, &Faults::default()).is_ok(), "from {}", last.dates[0]);
    }
    let error = plan(&prices(200), &Faults::default()).expect_err("no year of prices");
    assert!(error.to_string().starts_with("200 days with a price of every asset are too few, 284 are"), "{error}");
    let mut flat = prices(300);
    flat.closes.iter_mut().for_each(|closes| closes[2] = 1.0);
    let error = plan(&flat, &Faults::default()).expect_err("no volatility");
    assert!(error.to_string().contains("WTI has a volatility of zero on 1999-09-10"), "{error}");
    let ruin = Prices { closes: vec![[100.0, 1.0, 1.0], [300.0, 1.0, 1.0]], ..prices(2) };
    let short = ("test", vec![Signal { day: 0, values: [-0.5, 0.0, 0.0] }]);
    let error = allocation::simulate(&ruin, &short, &Faults::default()).expect_err("ruin");
    assert!(error.to_string().contains("`test` lost everything on 1999-01-02"), "{error}");
}
