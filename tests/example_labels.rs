//! The example `labels` as a program: the counters of the application carry the labels of their stage.
#![cfg(feature = "pushgateway")]
#![allow(clippy::unwrap_used)]

mod support;

use support::exposition;

#[test]
fn counters_inside_a_stage_carry_its_labels() {
    let ended = support::child::start(support::example::command("labels")).wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let metrics = exposition::parse(&ended.stdout);
    let rows = |labels: &[(&str, &str)]| metrics.expect("rows_total", labels);
    assert_eq!(rows(&[("profile", "crypto_production"), ("stage_id", "foundation.ingest")]), 303.0);
    assert_eq!(rows(&[("profile", "crypto_production"), ("stage_id", "alpha.inference"), ("model", "momentum")]), 7.0);
    assert_eq!(rows(&[]), 1.0, "a counter outside every stage has no labels");
    assert_eq!(metrics.family("rows_total").unwrap().samples.len(), 3);

    let stage = ("stage_id", "foundation.ingest");
    assert_eq!(metrics.expect("quant_stage_total", &[stage, ("status", "success")]), 1.0);
    let full = [stage, ("profile", "crypto_production"), ("run_id", "20260105-191332")];
    assert_eq!(metrics.expect("quant_stage_duration_seconds_count", &full), 1.0);
    assert_eq!(metrics.expect("quant_stage_active", &[stage, ("profile", "crypto_production")]), 0.0);
}
