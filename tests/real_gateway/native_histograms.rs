//! Native histograms, through a real Pushgateway to a Prometheus that stores them and to one that does not.

use std::time::{Duration, Instant};

use tracing_stage_metrics::MetricsLayer;

use super::support::measured::{Measured, failing_stage, measured, stage};
use super::support::servers::{self, Prometheus, Series};
use super::support::{self, child};
use super::{builder, gateway_for};

/// Values of an application's histograms, by name.
fn values(histogram: &str) -> Vec<f64> {
    let powers = |octaves: std::ops::Range<i32>| octaves.map(|octave| f64::from(octave).exp2());
    match histogram {
        "app_rows" => (1..=1_000).map(|n| f64::from(n * n) / 7.0).collect(),
        "app_signed" => (-300..700).map(|n| f64::from(n) / 10.0).collect(),
        // More than 160 buckets at schema 3.
        "app_wide" => powers(-100..100).flat_map(|power| [power, power * 1.3]).collect(),
        "app_infinite" => vec![f64::INFINITY, f64::NEG_INFINITY, 1.0, f64::MAX, f64::MIN, 5e-324],
        "app_nan" => vec![f64::NAN, 1.0, 2.0],
        unknown => panic!("{unknown}"),
    }
}

const HISTOGRAMS: [&str; 5] = ["app_rows", "app_signed", "app_wide", "app_infinite", "app_nan"];

/// Entry point of the child process: an application that records its values.
#[test]
fn scenarios() {
    if child::scenario().is_none() {
        return;
    }
    let (_layer, guard) = MetricsLayer::builder().with_env().unwrap().install().unwrap();
    for name in HISTOGRAMS {
        let histogram = metrics::histogram!(name);
        values(name).into_iter().for_each(|value| histogram.record(value));
    }
    guard.shutdown().unwrap();
}

/// The smallest of the values that is not below this part of them.
fn true_quantile(values: &[f64], quantile: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[(quantile * values.len() as f64).ceil() as usize - 1]
}

#[track_caller]
fn assert_is_near(actual: f64, expected: f64, what: &str) {
    assert!((actual - expected).abs() <= expected.abs() * 0.1, "{what}: {actual} for {expected}");
}

#[track_caller]
fn value(prometheus: &Prometheus, promql: &str) -> f64 {
    prometheus.await_query(promql, |series| !series.is_empty())[0].1
}

fn count(prometheus: &Prometheus, promql: &str) -> f64 {
    prometheus.query(&format!("count({promql}) or vector(0)"))[0].1
}

/// A gateway, a Prometheus with the feature and one without it.
fn servers() -> Option<(support::Pushgateway, Prometheus, Prometheus)> {
    let server = support::pushgateway()?;
    if !servers::installed(servers::PROMETHEUS) {
        return None;
    }
    let scrape = [("pushgateway", server.addr(), true)];
    let native = Prometheus::start_with_features(&scrape, &[], "native-histograms");
    Some((server, native, Prometheus::start(&scrape)))
}

#[test]
fn histograms_of_the_application_are_native_where_prometheus_stores_them() {
    let Some((server, native, classic)) = servers() else { return };
    let mut command = child::command("native_histograms::scenarios", "values");
    command.env("TV_PROMETHEUS_PUSHGATEWAY", server.url()).env("TV_PROMETHEUS_JOB", "j");
    command.env("TV_PROMETHEUS_NATIVE_HISTOGRAMS", "true");
    let ended = child::start(command).wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");

    for name in HISTOGRAMS {
        let samples = values(name).len() as f64;
        assert_eq!(value(&native, &format!("histogram_count({name})")), samples, "{name}");
        assert_eq!(count(&native, &format!("{{__name__=~\"{name}_(bucket|sum|count)\"}}")), 0.0, "{name}");
        // Without the feature everything is as it always was.
        assert_eq!(value(&classic, &format!("{name}_count")), samples, "{name}");
        assert_eq!(count(&classic, &format!("{name}_bucket")), 17.0, "{name}");
    }
    let sum: f64 = values("app_rows").iter().sum();
    assert_is_near(value(&native, "histogram_sum(app_rows)"), sum, "sum");
    assert_is_near(value(&classic, "app_rows_sum"), sum, "sum");
    for (name, quantiles) in [("app_rows", &[0.01, 0.5, 0.9, 0.99][..]), ("app_wide", &[]), ("app_signed", &[0.1, 0.8])]
    {
        for quantile in quantiles {
            let query = format!("histogram_quantile({quantile}, {name})");
            assert_is_near(value(&native, &query), true_quantile(&values(name), *quantile), &query);
        }
    }
    // 200 octaves are within 160 buckets at schema 0, whose bounds are a factor of two apart.
    let query = "histogram_quantile(0.25, app_wide)";
    let (actual, expected) = (value(&native, query), true_quantile(&values("app_wide"), 0.25));
    assert!((0.5..=2.0).contains(&(actual / expected)), "{query}: {actual} for {expected}");
}

#[test]
fn stage_durations_are_native_where_prometheus_stores_them() {
    let Some((server, native, classic)) = servers() else { return };
    let Measured { guard, log, default: _default } =
        measured(builder(gateway_for(&server, "j")).with_native_histograms());
    let durations: Vec<_> = (1..=30)
        .map(|n| {
            let started = Instant::now();
            tracing::info_span!("stage", stage_id = "a").in_scope(|| {
                std::thread::sleep(Duration::from_millis(2 * n));
                // The histogram has the runs of all outcomes.
                if n % 3 == 0 {
                    tracing::error!("it failed");
                }
            });
            started.elapsed().as_secs_f64()
        })
        .collect();
    guard.shutdown().unwrap();
    assert_eq!(log.own(), [""; 0]);
    const NAME: &str = "quant_stage_duration_seconds";
    assert_eq!(value(&native, &format!("histogram_count({NAME}{{stage_id='a'}})")), 30.0);
    assert_eq!(count(&native, &format!("{NAME}_bucket or {NAME}_sum or {NAME}_count")), 0.0);
    assert_eq!(value(&classic, &format!("{NAME}_count")), 30.0);
    assert_eq!(count(&classic, &format!("{NAME}_bucket")), 15.0);
    assert_is_near(value(&native, &format!("histogram_sum({NAME})")), durations.iter().sum(), "sum");
    for quantile in [0.1, 0.25, 0.5, 0.75, 0.9, 1.0] {
        let query = format!("histogram_quantile({quantile}, {NAME})");
        assert_is_near(value(&native, &query), true_quantile(&durations, quantile), &query);
    }
}

/// Prometheus refuses a scrape with a histogram whose count is not that of its buckets.
#[test]
fn histogram_is_native_from_its_first_sample_on() {
    let Some((server, native, _)) = servers() else { return };
    let Measured { guard, log: _, default: _default } =
        measured(builder(gateway_for(&server, "j")).with_native_histograms());
    let counts = |expected: f64| {
        let is = move |series: &[Series]| series.len() == 2 && series.iter().all(|(_, count)| *count == expected);
        native.await_query("histogram_count(quant_stage_duration_seconds)", is);
    };
    for n in 1..=3 {
        stage("a");
        failing_stage("b");
        guard.flush().unwrap();
        counts(f64::from(n));
    }
    guard.shutdown().unwrap();
}
