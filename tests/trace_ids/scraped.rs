//! Exemplars that Prometheus scrapes from the listener.

use std::time::Duration;

use opentelemetry_sdk::trace::Sampler;
use tracing_stage_metrics::{MetricsLayerBuilder, PushFormat, Pushgateway};

use super::exemplars::{BUCKETS, DURATION, FAILURES, assert_buckets_have, run_stages, trace};
use super::support::servers::{self, Prometheus};
use super::support::{self, MockGateway};
use super::{ORDERS, pipeline_with_traces, tracer};

fn scraped(builder: MetricsLayerBuilder) -> MetricsLayerBuilder {
    builder.with_http_listener("127.0.0.1:0".parse().unwrap()).with_buckets(&BUCKETS).with_exemplars()
}

/// Both formats that have exemplars: OpenMetrics by default, protobuf together with native histograms.
#[test]
fn scraped_exemplars_are_the_exported_spans() {
    for (first, features) in ORDERS.into_iter().zip(["exemplar-storage", "exemplar-storage,native-histograms"]) {
        let (tracer, spans) = tracer(Sampler::AlwaysOn);
        let pipeline = pipeline_with_traces(tracer, first, scraped);
        let [_, second, failed] = run_stages(&spans);
        if !servers::installed(servers::PROMETHEUS) {
            return;
        }
        let address = pipeline.guard().listen_addr().unwrap();
        let prometheus = Prometheus::start_with_features(&[("service", address, false)], &[], features);
        support::await_true("Prometheus has the exemplars", || !prometheus.exemplars(FAILURES).is_empty());
        assert_buckets_have(&prometheus, &second, &failed);
        let failures = prometheus.exemplars(FAILURES);
        assert_eq!(failures[0]["exemplars"][0]["labels"]["trace_id"], trace(&failed), "{features}");
    }
}

/// Pushes are text, and scrapes have the exemplars all the same.
#[test]
fn exemplars_of_text_pushes_are_scraped() {
    let server = MockGateway::ok();
    let (tracer, spans) = tracer(Sampler::AlwaysOn);
    let pipeline = pipeline_with_traces(tracer, ORDERS[0], |builder| {
        let gateway = Pushgateway::new(server.url(), "j").unwrap().with_format(PushFormat::Text);
        scraped(builder).with_pushgateway(gateway).with_push_interval(Duration::from_secs(3_600))
    });
    let [_, second, failed] = run_stages(&spans);
    let heard = pipeline.heard();
    assert!(
        heard[0].starts_with("WARN exemplars are not pushed, but scraped from `/metrics`: pushes are text"),
        "{heard:?}"
    );
    let address = pipeline.guard().listen_addr().unwrap();
    let accept = [("Accept", "application/openmetrics-text;version=1.0.0")];
    let written = support::http::request(address, "GET", "/metrics", &accept, b"").unwrap().body;
    for (span, line) in [(&second, "le=\"0.2\"} 2"), (&failed, "le=\"60.0\"} 3"), (&failed, "reason=\"error\"} 1")] {
        let with_exemplar = format!("{line} # {{trace_id=\"{}\"}} ", trace(span));
        assert_eq!(written.matches(&with_exemplar).count(), 1, "{with_exemplar}\n{written}");
    }
    let Some(families) = support::open_metrics(&written) else { return };
    let samples: Vec<_> =
        families.as_array().unwrap().iter().flat_map(|family| family["samples"].as_array().unwrap()).collect();
    let of = |name: &str| {
        let with_exemplar = |sample: &&&serde_json::Value| sample["name"] == name && !sample["exemplar"].is_null();
        samples
            .iter()
            .filter(with_exemplar)
            .map(|sample| sample["exemplar"]["labels"]["trace_id"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(of(&format!("{DURATION}_bucket")), [trace(&second), trace(&failed)]);
    assert_eq!(of(FAILURES), [trace(&failed)]);
}
