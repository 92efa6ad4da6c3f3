//! Pushes in protobuf, beside those in text.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing_stage_metrics::PushFormat;

use super::support::measured::{Measured, failing_stage, measured, stage};
use super::support::servers::{self, Prometheus};
use super::support::{self, http};
use super::{SPECIAL_VALUES, builder, gateway_for, protobuf};

/// What the recorder of this crate does not write: every type, values at the limits, odd bounds, escapes, and timestamps, for
/// which a gateway would refuse the push.
const FOREIGN: &str = "# HELP foreign_summary Help with \\\\ and\\n\"quotes\".\n# TYPE foreign_summary summary\n\
    foreign_summary{quantile=\"0.5\"} NaN\nforeign_summary{quantile=\"0.90\"} 3\nforeign_summary_sum 3 1700000000000\n\
    foreign_summary_count 1\n\
    # TYPE foreign_histogram histogram\nforeign_histogram_bucket{a=\"\",le=\"1e-3\"} 1\n\
    foreign_histogram_bucket{a=\"\",le=\"1.0\"} 2\nforeign_histogram_bucket{a=\"\",le=\"+Inf\"} 3\n\
    foreign_histogram_sum{a=\"\"} -0.1\nforeign_histogram_count{a=\"\"} 3\n\
    # TYPE foreign_gauge gauge\nforeign_gauge{v=\"inf\"} +Inf 1700000000000\nforeign_gauge{v=\"least\"} 5e-324\n\
    foreign_gauge{v=\"minus\"} -Inf\nforeign_gauge{v=\"nan\"} NaN\nforeign_gauge{v=\"zero\"} -0\n\
    # TYPE foreign_total counter\nforeign_total 18446744073709551615\n\
    foreign_untyped{a=\"1\",empty=\"\"} 1.5\n";

/// The state of a run, beyond the size from which a body is compressed in either format.
fn state() -> String {
    let Measured { guard, log: _, default: _default } = measured(tracing_stage_metrics::MetricsLayer::builder());
    for value in SPECIAL_VALUES.into_iter().filter(|value| !value.contains('\r')) {
        tracing::info_span!("stage", stage_id = value, profile = value, run_id = value).in_scope(|| {});
    }
    failing_stage("failed");
    let mut text = guard.render();
    text.push_str(FOREIGN);
    text.push_str("# TYPE many gauge\n");
    for n in 0..3_000 {
        writeln!(text, "many{{number=\"{n}\"}} {n}").unwrap();
    }
    text
}

/// The lines of the pushed families in the text of the gateway.
fn pushed(server: &support::Pushgateway) -> Vec<String> {
    let is_pushed = |line: &&str| {
        let name = line.trim_start_matches("# HELP ").trim_start_matches("# TYPE ");
        name.starts_with("quant_") || name.starts_with("foreign_") || name.starts_with("many")
    };
    let text = server.metrics();
    text.lines().filter(is_pushed).map(str::to_owned).collect()
}

#[test]
fn gateway_shows_the_same_after_a_push_in_either_format() {
    let state = state();
    let [text, protobuf] = [PushFormat::Text, PushFormat::Protobuf].map(|format| {
        let server = support::pushgateway()?;
        let state = state.clone();
        let gateway = gateway_for(&server, "j").with_format(format);
        let Measured { guard, log, default: _default } =
            measured(builder(gateway).with_exposition(move || state.clone()));
        guard.flush().unwrap();
        assert_eq!(log.own(), [""; 0]);
        let lines = pushed(&server);
        guard.shutdown().unwrap();
        assert_eq!(pushed(&server), lines);
        Some(lines)
    });
    let Some((text, protobuf)) = text.zip(protobuf) else { return };
    assert!(text.len() > 3_200, "{}", text.len());
    assert!(text.iter().any(|line| line.starts_with("foreign_histogram_bucket{") && line.contains("le=\"0.001\"")));
    assert_eq!(protobuf, text);
}

#[test]
fn metrics_pushed_in_protobuf_reach_prometheus() {
    let Some(server) = support::pushgateway() else { return };
    let Some(prometheus) = support::prometheus(&[("pushgateway", server.addr(), true)]) else { return };
    let gateway = gateway_for(&server, "j").with_format(PushFormat::Protobuf);
    let Measured { guard, log: _, default: _default } = measured(builder(gateway));
    for _ in 0..3 {
        stage("a");
    }
    failing_stage("a");
    guard.shutdown().unwrap();
    let query = |promql: &str| prometheus.await_query(promql, |series| !series.is_empty())[0].1;
    assert_eq!(query("quant_stage_total{job='j',stage_id='a',status='success'}"), 3.0);
    assert_eq!(query("quant_stage_failures_total{stage_id='a',reason='error'}"), 1.0);
    assert_eq!(query("quant_stage_duration_seconds_count{stage_id='a'}"), 4.0);
    assert_eq!(query("quant_stage_duration_seconds_bucket{stage_id='a',le='+Inf'}"), 4.0);
    assert_eq!(query("count(quant_stage_duration_seconds_bucket{stage_id='a'})"), 15.0);
}

/// A Prometheus with created-timestamp ingestion sees the first increment by them. The gateway keeps them, and text has no
/// place for them.
#[test]
fn counters_and_histograms_have_a_created_time_in_protobuf() {
    let Some(server) = support::pushgateway() else { return };
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let before = now();
    let gateway = gateway_for(&server, "j").with_format(PushFormat::Protobuf);
    let Measured { guard, log: _, default: _default } = measured(builder(gateway));
    stage("a");
    guard.flush().unwrap();
    let created = || -> (Vec<Duration>, Vec<Duration>) {
        let families = protobuf::scrape(server.addr());
        let family = |name: &str| families.iter().find(|family| family.name == name).unwrap();
        let (totals, durations) = (family("quant_stage_total"), family("quant_stage_duration_seconds"));
        let counters = totals.metrics.iter().map(|metric| metric.counter.as_ref().unwrap());
        let histograms = durations.metrics.iter().map(|metric| metric.histogram.as_ref().unwrap());
        assert_eq!((counters.len(), histograms.len()), (2, 1));
        let counters = counters.map(|counter| counter.created.as_ref().unwrap().unix());
        (counters.collect(), histograms.map(|histogram| histogram.created.as_ref().unwrap().unix()).collect())
    };
    let first = created();
    for time in first.0.iter().chain(&first.1) {
        assert!((before..=now()).contains(time), "{before:?} {time:?}");
    }
    stage("a");
    guard.shutdown().unwrap();
    assert_eq!(created(), first, "the series are those that were there");
}

/// It stores a zero at the created time, so that the first value that it sees is an increase.
#[test]
fn prometheus_with_created_times_sees_the_first_increment() {
    let Some(server) = support::pushgateway() else { return };
    if !servers::installed(servers::PROMETHEUS) || !servers::is_prometheus_3_or_left_out() {
        return;
    }
    let gateway = gateway_for(&server, "j").with_format(PushFormat::Protobuf);
    let Measured { guard, log: _, default: _default } = measured(builder(gateway));
    for _ in 0..3 {
        stage("a");
    }
    guard.shutdown().unwrap();
    let scrape = [("pushgateway", server.addr(), true)];
    let prometheus = Prometheus::start_with_features(&scrape, &[], "created-timestamp-zero-ingestion");
    let rise = |series: &str| format!("max_over_time({series}[5m]) - min_over_time({series}[5m])");
    let rises = |series: &str, by: f64| {
        prometheus.await_query(&rise(series), |found| found.len() == 1 && found[0].1 == by);
    };
    rises("quant_stage_total{stage_id='a',status='success'}", 3.0);
    rises("quant_stage_duration_seconds_count{stage_id='a'}", 3.0);
    // A gauge has no created time.
    rises("quant_stage_active{stage_id='a'}", 0.0);
}

/// The text of a caller is sent as text, whatever format the layer pushes in.
#[test]
fn texts_of_callers_stay_texts() {
    let Some(server) = support::pushgateway() else { return };
    let gateway = gateway_for(&server, "j").with_format(PushFormat::Protobuf);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        gateway.push_add("a 1\n").await.unwrap();
        gateway.push_replace("b 2\n").await.unwrap();
    });
    let metrics = http::get(server.addr(), "/metrics").unwrap().body;
    assert!(metrics.contains("\nb{instance=\"\",job=\"j\"} 2\n") && !metrics.contains("\na{"), "{metrics}");
}
