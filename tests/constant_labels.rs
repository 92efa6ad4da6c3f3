//! `with_label` and `with_job`: labels of every series, wherever they are delivered.
#![cfg(feature = "pushgateway")]
#![allow(clippy::unwrap_used)]

mod support;

use metrics::{counter, with_local_recorder};
use metrics_exporter_prometheus::PrometheusBuilder;
use support::exposition::{self, Exposition};
use support::measured::{Measured, measured, stage};
use tracing_stage_metrics::{MetricsLayer, MetricsLayerBuilder, PushFormat, Pushgateway};

const LABELS: [(&str, &str); 2] = [("env", "prod"), ("team", "a \"b\"\\\n")];

fn builder() -> MetricsLayerBuilder {
    LABELS.iter().fold(MetricsLayer::builder(), |builder, (name, value)| builder.with_label(*name, *value))
}

/// Checks that every series has the labels, and these more.
#[track_caller]
fn assert_labelled(metrics: Exposition, more: &[(&str, &str)]) {
    assert!(metrics.family("quant_run_start_timestamp_seconds").is_some());
    assert!(metrics.family("quant_stage_duration_seconds").is_some());
    metrics.without(&[&LABELS, more].concat());
}

#[test]
fn rendering_file_and_scrape_have_the_labels() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("quant.prom");
    let builder = builder().with_job("nightly").with_textfile(&path);
    #[cfg(feature = "http")]
    let builder = builder.with_http_listener("127.0.0.1:0".parse().unwrap());
    let Measured { guard, log: _, default: _default } = measured(builder);
    stage("a");
    assert_labelled(exposition::parse(&guard.render()), &[]);
    #[cfg(feature = "http")]
    assert_labelled(
        exposition::parse(&support::http::get(guard.listen_addr().unwrap(), "/metrics").unwrap().body),
        &[],
    );
    guard.shutdown().unwrap();
    assert_labelled(exposition::parse(&std::fs::read_to_string(path).unwrap()), &[("job", "nightly")]);
}

#[test]
fn gateway_has_the_labels_in_both_formats() {
    for format in [PushFormat::Text, PushFormat::Protobuf] {
        let Some(server) = support::pushgateway() else { return };
        let gateway = Pushgateway::new(server.url(), "j").unwrap().with_format(format);
        let Measured { guard, log: _, default: _default } = measured(builder().with_pushgateway(gateway));
        stage("a");
        guard.shutdown().unwrap();
        let mut pushed = exposition::parse(&server.metrics());
        pushed.families.retain(|family| family.name.starts_with("quant_"));
        assert_labelled(pushed, &[("job", "j"), ("instance", "")]);
    }
}

/// The application's own value of a label stays, as do its series.
#[test]
fn metrics_of_a_foreign_recorder_have_the_labels() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let exposition = recorder.handle();
    with_local_recorder(&recorder, || {
        counter!("rows").increment(1);
        counter!("rows", "env" => "test").increment(2);
        let Measured { guard, log, default: _default } =
            measured(builder().with_exposition(move || exposition.render()));
        stage("a");
        let metrics = exposition::parse(&guard.render());
        assert_eq!(metrics.expect("rows", &LABELS), 1.0);
        assert_eq!(metrics.expect("rows", &[("env", "test"), LABELS[1]]), 2.0);
        let success = [("stage_id", "a"), ("status", "success")];
        assert_eq!(metrics.expect("quant_stage_total", &[&success[..], &LABELS].concat()), 1.0);
        guard.shutdown().unwrap();
        assert_eq!(log.own(), [""; 0]);
    });
}

#[test]
fn later_value_of_a_label_wins() {
    let Measured { guard, log: _, default: _default } = measured(builder().with_label("env", "test"));
    let metrics = exposition::parse(&guard.render());
    metrics.expect("quant_run_start_timestamp_seconds", &[("env", "test"), LABELS[1]]);
}
