//! Namespace, labels and buckets follow the configuration; the limit on label sets changes no total.
#![cfg(feature = "pushgateway")]
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;

use support::exposition::{self, Exposition};
use support::measured::{Measured, measured, stage};
use tracing::info_span;
use tracing_stage_metrics::{MetricsLayer, MetricsLayerBuilder};

/// Runs `work` under a pipeline of its own; returns the exposition and the crate's own log lines.
#[track_caller]
fn measure(builder: MetricsLayerBuilder, work: impl FnOnce()) -> (Exposition, Vec<String>) {
    let Measured { guard, log, default: _default } = measured(builder);
    work();
    let exposition = exposition::parse(&guard.render());
    // Waits for the events.
    guard.shutdown().unwrap();
    (exposition, log.own())
}

fn run(stage_id: &str, profile: &str, run_id: &str) {
    info_span!("stage", stage_id, profile, run_id).in_scope(|| {});
}

/// Values of a histogram's `_count` series by label set, written as `stage_id/profile/run_id`.
fn counts_by_label_set(exposition: &Exposition) -> BTreeMap<String, f64> {
    let counts = exposition.matching("quant_stage_duration_seconds_count", &[]);
    let name = |labels: &BTreeMap<String, String>| {
        ["stage_id", "profile", "run_id"].map(|label| labels[label].clone()).join("/")
    };
    counts.iter().map(|sample| (name(&sample.labels), sample.value)).collect()
}

fn expected_counts<const N: usize>(wanted: [(&str, f64); N]) -> BTreeMap<String, f64> {
    wanted.map(|(set, count)| (set.to_owned(), count)).into()
}

#[test]
fn namespace_prefixes_every_metric() {
    let (default, _) = measure(MetricsLayer::builder(), || stage("a"));
    let (other, _) = measure(MetricsLayer::builder().with_namespace("acme_etl"), || stage("a"));
    let suffixes = |exposition: &Exposition, namespace: &str| -> Vec<String> {
        let names = exposition.families.iter().map(|family| family.name.strip_prefix(namespace));
        names.map(|name| name.unwrap_or("of another namespace").to_owned()).collect()
    };
    let default_suffixes = suffixes(&default, "quant_");
    assert_eq!(suffixes(&other, "acme_etl_"), default_suffixes);
    assert!(
        default_suffixes.len() > 7 && !default_suffixes.iter().any(|name| name == "of another namespace"),
        "{default_suffixes:?}"
    );
}

#[test]
fn without_run_id_label_merges_runs_into_one_series() {
    let (exposition, _) = measure(MetricsLayer::builder().without_run_id_label(), || {
        run("a", "p", "1");
        run("a", "p", "2");
    });
    assert_eq!(exposition.expect("quant_stage_duration_seconds_count", &[("stage_id", "a"), ("profile", "p")]), 2.0);
}

#[test]
fn overflowing_run_ids_share_one_series_and_keep_totals() {
    let (exposition, warnings) = measure(MetricsLayer::builder().with_max_series(3), || {
        for run_id in 0..10 {
            run("a", "p", &run_id.to_string());
        }
        // A new profile of a stage that has series, then a new stage. Both fit into the metrics with fewer labels.
        run("a", "q", "0");
        run("b", "p", "0");
    });
    assert_eq!(
        counts_by_label_set(&exposition),
        expected_counts([
            ("a/p/0", 1.0),
            ("a/p/1", 1.0),
            ("a/p/2", 1.0),
            ("a/p/_overflow", 7.0),
            ("a/_overflow/_overflow", 1.0),
            ("_overflow/_overflow/_overflow", 1.0),
        ])
    );
    let total = |id| exposition.expect("quant_stage_total", &[("stage_id", id), ("status", "success")]);
    assert_eq!([total("a"), total("b")], [11.0, 1.0], "two stages are not more than three");
    assert_eq!(exposition.expect("quant_telemetry_overflow_total", &[]), 9.0);
    let [warning] = &warnings[..] else { panic!("not one warning: {warnings:?}") };
    for part in ["more than 3 label sets", "`run_id` has the most values", "without_run_id_label()", "max_series=3"] {
        assert!(warning.contains(part), "{part}: {warning}");
    }
}

#[test]
fn overflowing_stages_share_one_series_per_status_and_reason() {
    let (exposition, _) = measure(MetricsLayer::builder().with_max_series(2), || {
        for id in ["a", "b", "c", "d"] {
            stage(id);
            support::measured::failing_stage(id);
        }
    });
    for (id, count) in [("a", 1.0), ("b", 1.0), ("_overflow", 2.0)] {
        for status in ["success", "failure"] {
            assert_eq!(exposition.expect("quant_stage_total", &[("stage_id", id), ("status", status)]), count, "{id}");
        }
        let profile = if id == "_overflow" { "_overflow" } else { "" };
        let labels = [("stage_id", id), ("profile", profile), ("reason", "error")];
        assert_eq!(exposition.expect("quant_stage_failures_total", &labels), count, "{id}");
    }
    assert_eq!(exposition.expect("quant_telemetry_overflow_total", &[]), 4.0);
    let sum = |name: &str| exposition.matching(name, &[]).iter().map(|sample| sample.value).sum::<f64>();
    assert_eq!((sum("quant_stage_total"), sum("quant_stage_duration_seconds_count")), (8.0, 8.0));
}

#[test]
fn long_value_is_cut_at_a_character_boundary() {
    // 255 bytes, then one of two bytes across the limit.
    let long = format!("{}äb", "x".repeat(255));
    let fits = "y".repeat(256);
    let (exposition, _) = measure(MetricsLayer::builder(), || {
        stage(&long);
        stage(&fits);
    });
    let ids: Vec<&str> = exposition
        .matching("quant_stage_total", &[("status", "success")])
        .iter()
        .map(|sample| sample.labels["stage_id"].as_str())
        .collect();
    assert_eq!(ids.len(), 2);
    assert!(ids.contains(&fits.as_str()), "256 bytes are not too long: {ids:?}");
    let cut = ids.iter().find(|id| id.starts_with('x')).unwrap();
    assert!(cut.ends_with('…') && cut.trim_end_matches('…').chars().all(|c| c == 'x'), "{cut}");
    assert!((250..=256 + '…'.len_utf8()).contains(&cut.len()), "{}", cut.len());
}

#[test]
fn histogram_buckets_by_name_override_stage_duration_buckets() {
    const NAME: &str = "quant_stage_duration_seconds";
    for (name, bounds) in [
        (NAME, &[1.0, 2.0, 3.0][..]),
        (NAME, &[1.0; 0]),
        (NAME, &[0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0, 6.5, 7.0]),
        // A name is cleaned before it is compared.
        ("quant.stage-duration_seconds", &[1.0, 2.0, 3.0]),
    ] {
        let builder = MetricsLayer::builder().with_buckets(&[7.0, 8.0]);
        let named = |builder: MetricsLayerBuilder| builder.with_histogram_buckets(name, bounds);
        let (builder, expected) = if bounds.is_empty() { (builder, &[7.0, 8.0][..]) } else { (named(builder), bounds) };
        let (exposition, _) = measure(builder, || stage("a"));
        let buckets = exposition.matching("quant_stage_duration_seconds_bucket", &[]);
        let bounds_found: Vec<_> = buckets.iter().map(|sample| sample.labels["le"].clone()).collect();
        let mut all: Vec<_> = expected.iter().map(f64::to_string).collect();
        all.push("+Inf".to_owned());
        assert_eq!(bounds_found, all);
        assert!(buckets.iter().all(|sample| sample.value == 1.0), "{buckets:?}");
    }
}

/// Label sets are compared as one concatenated key; a missing value stays distinct from an empty one at every key
/// length.
#[test]
fn missing_value_is_distinct_from_empty_value() {
    for length in [1, 255, 256, 257, 1_021, 1_022, 1_023, 1_024, 1_025, 3_000] {
        let id = "x".repeat(length);
        let (exposition, _) = measure(MetricsLayer::builder(), || {
            let _root = info_span!("pipeline", profile = "p", run_id = "r").entered();
            info_span!("stage", stage_id = id.as_str(), profile = "").in_scope(|| {});
            info_span!("stage", stage_id = id.as_str()).in_scope(|| {});
            info_span!("stage", stage_id = id.as_str(), run_id = "").in_scope(|| {});
        });
        let label_sets: Vec<_> = counts_by_label_set(&exposition)
            .into_keys()
            .map(|set| set.trim_start_matches(['x', '…']).to_owned())
            .collect();
        assert_eq!(label_sets, ["//r", "/p/", "/p/r"], "{length}");
    }
}
