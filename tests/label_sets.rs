//! The names and labels that the configuration chooses, and the limit on label sets: nothing is lost from any total.
#![cfg(feature = "pushgateway")]
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;

use support::exposition::{self, Exposition};
use support::measured::{Measured, measured, stage};
use tracing::info_span;
use tracing_stage_metrics::{MetricsLayer, MetricsLayerBuilder};

/// Runs `work` under measurement; what is rendered then, and what was said.
#[track_caller]
fn after(builder: MetricsLayerBuilder, work: impl FnOnce()) -> (Exposition, Vec<String>) {
    let Measured { guard, log, default: _default } = measured(builder);
    work();
    (exposition::parse(&guard.render()), log.own())
}

fn run(stage_id: &str, profile: &str, run_id: &str) {
    info_span!("stage", stage_id, profile, run_id).in_scope(|| {});
}

/// The sets of a histogram's count with their values, as `stage_id/profile/run_id`.
fn sets(found: &Exposition) -> BTreeMap<String, f64> {
    let counts = found.matching("quant_stage_duration_seconds_count", &[]);
    let name = |labels: &BTreeMap<String, String>| {
        ["stage_id", "profile", "run_id"].map(|label| labels[label].clone()).join("/")
    };
    counts.iter().map(|sample| (name(&sample.labels), sample.value)).collect()
}

fn counts<const N: usize>(wanted: [(&str, f64); N]) -> BTreeMap<String, f64> {
    wanted.map(|(set, count)| (set.to_owned(), count)).into()
}

#[test]
fn every_metric_has_the_namespace() {
    let (default, _) = after(MetricsLayer::builder(), || stage("a"));
    let (other, _) = after(MetricsLayer::builder().with_namespace("acme_etl"), || stage("a"));
    let suffixes = |found: &Exposition, namespace: &str| -> Vec<String> {
        let names = found.families.iter().map(|family| family.name.strip_prefix(namespace));
        names.map(|name| name.unwrap_or("of another namespace").to_owned()).collect()
    };
    let of_default = suffixes(&default, "quant_");
    assert_eq!(suffixes(&other, "acme_etl_"), of_default);
    assert!(of_default.len() > 7 && !of_default.iter().any(|name| name == "of another namespace"), "{of_default:?}");
}

#[test]
fn without_the_run_id_the_label_is_gone_and_nothing_else() {
    let (found, _) = after(MetricsLayer::builder().without_run_id_label(), || {
        run("a", "p", "1");
        run("a", "p", "2");
    });
    assert_eq!(found.expect("quant_stage_duration_seconds_count", &[("stage_id", "a"), ("profile", "p")]), 2.0);
}

#[test]
fn beyond_the_limit_runs_are_counted_together_and_no_total_is_wrong() {
    let (found, said) = after(MetricsLayer::builder().with_max_series(3), || {
        for run_id in 0..10 {
            run("a", "p", &run_id.to_string());
        }
        // A stage that is known, in a profile that is not; then neither is. Both fit their smaller metrics.
        run("a", "q", "0");
        run("b", "p", "0");
    });
    assert_eq!(
        sets(&found),
        counts([
            ("a/p/0", 1.0),
            ("a/p/1", 1.0),
            ("a/p/2", 1.0),
            ("a/p/_overflow", 7.0),
            ("a/_overflow/_overflow", 1.0),
            ("_overflow/_overflow/_overflow", 1.0),
        ])
    );
    let total = |id| found.expect("quant_stage_total", &[("stage_id", id), ("status", "success")]);
    assert_eq!([total("a"), total("b")], [11.0, 1.0], "two stages are not more than three");
    assert_eq!(found.expect("quant_telemetry_overflow_total", &[]), 9.0);
    let [warning] = &said[..] else { panic!("not one warning: {said:?}") };
    for part in ["more than 3 label sets", "`run_id` has the most values", "without_run_id_label()", "max_series=3"] {
        assert!(warning.contains(part), "{part}: {warning}");
    }
}

#[test]
fn beyond_the_limit_stages_are_counted_together_with_their_status_and_reason() {
    let (found, _) = after(MetricsLayer::builder().with_max_series(2), || {
        for id in ["a", "b", "c", "d"] {
            stage(id);
            support::measured::failing_stage(id);
        }
    });
    for (id, count) in [("a", 1.0), ("b", 1.0), ("_overflow", 2.0)] {
        for status in ["success", "failure"] {
            assert_eq!(found.expect("quant_stage_total", &[("stage_id", id), ("status", status)]), count, "{id}");
        }
        let profile = if id == "_overflow" { "_overflow" } else { "" };
        let labels = [("stage_id", id), ("profile", profile), ("reason", "error")];
        assert_eq!(found.expect("quant_stage_failures_total", &labels), count, "{id}");
    }
    assert_eq!(found.expect("quant_telemetry_overflow_total", &[]), 4.0);
    let sum = |name: &str| found.matching(name, &[]).iter().map(|sample| sample.value).sum::<f64>();
    assert_eq!((sum("quant_stage_total"), sum("quant_stage_duration_seconds_count")), (8.0, 8.0));
}

#[test]
fn a_long_value_is_cut_at_a_character() {
    // 255 bytes, then one of two bytes across the limit.
    let long = format!("{}äb", "x".repeat(255));
    let fits = "y".repeat(256);
    let (found, _) = after(MetricsLayer::builder(), || {
        stage(&long);
        stage(&fits);
    });
    let ids: Vec<&str> = found
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
fn the_buckets_of_the_stage_duration_by_its_name() {
    for bounds in
        [&[1.0, 2.0, 3.0][..], &[1.0; 0], &[0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0, 6.5, 7.0]]
    {
        let builder = MetricsLayer::builder().with_buckets(&[7.0, 8.0]);
        let named =
            |builder: MetricsLayerBuilder| builder.with_histogram_buckets("quant_stage_duration_seconds", bounds);
        let (builder, expected) = if bounds.is_empty() { (builder, &[7.0, 8.0][..]) } else { (named(builder), bounds) };
        let (found, _) = after(builder, || stage("a"));
        let buckets = found.matching("quant_stage_duration_seconds_bucket", &[]);
        let of: Vec<_> = buckets.iter().map(|sample| sample.labels["le"].clone()).collect();
        let mut all: Vec<_> = expected.iter().map(f64::to_string).collect();
        all.push("+Inf".to_owned());
        assert_eq!(of, all);
        assert!(buckets.iter().all(|sample| sample.value == 1.0), "{buckets:?}");
    }
}

/// Values are compared as one text: what is no value is none, however long the others are.
#[test]
fn no_value_and_an_empty_one_are_told_apart() {
    for length in [1, 255, 256, 257, 1_021, 1_022, 1_023, 1_024, 1_025, 3_000] {
        let id = "x".repeat(length);
        let (found, _) = after(MetricsLayer::builder(), || {
            let _root = info_span!("pipeline", profile = "p", run_id = "r").entered();
            info_span!("stage", stage_id = id.as_str(), profile = "").in_scope(|| {});
            info_span!("stage", stage_id = id.as_str()).in_scope(|| {});
            info_span!("stage", stage_id = id.as_str(), run_id = "").in_scope(|| {});
        });
        let sets: Vec<_> = sets(&found).into_keys().map(|set| set.trim_start_matches(['x', '…']).to_owned()).collect();
        assert_eq!(sets, ["//r", "/p/", "/p/r"], "{length}");
    }
}
