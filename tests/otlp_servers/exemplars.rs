//! The traces of stages as exemplars of their data points, in Prometheus.

use std::time::Duration;

use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_stage_metrics::MetricsLayer;
use tracing_subscriber::prelude::*;

use super::receivers;
use super::support::child;
use super::support::collector::EXPONENTIAL;

/// Not a test: a job with a stage that fails in a trace, which it prints.
#[test]
fn scenarios() {
    let Some(_) = child::scenario() else { return };
    let builder = MetricsLayer::builder().with_env().unwrap().with_push_interval(Duration::from_secs(3_600));
    let (layer, guard) = builder.install().unwrap();
    let traces = tracing_opentelemetry::layer().with_tracer(SdkTracerProvider::builder().build().tracer("test"));
    tracing_subscriber::registry().with(traces).with(layer).init();
    tracing::info_span!("stage", stage_id = "a").in_scope(|| {
        tracing::error!("it failed");
        println!("\ntrace {}", tracing::Span::current().context().span().span_context().trace_id());
    });
    guard.flush().unwrap();
    guard.shutdown().unwrap();
}

#[test]
fn points_have_the_traces_of_their_stages() {
    for (variables, durations) in
        [(&[][..], "quant_stage_duration_seconds_bucket"), (&[EXPONENTIAL], "quant_stage_duration_seconds")]
    {
        let args = ["--enable-feature=exemplar-storage"];
        let Some((server, endpoint)) = receivers::prometheus(receivers::OWN_NAMES, &args) else { return };
        let mut command = child::command("exemplars::scenarios", "job");
        command.env("OTEL_METRICS_EXPORTER", "otlp").env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
        command.env("TV_PROMETHEUS_EXEMPLARS", "true").envs(variables.iter().copied());
        let ended = child::start(command).wait();
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        let trace = ended.stdout.lines().find_map(|line| line.strip_prefix("trace ")).unwrap();
        let duration = server.query("histogram_sum(quant_stage_duration_seconds) or quant_stage_duration_seconds_sum");
        for (metric, value) in [(durations, duration[0].1), ("quant_stage_failures_total", 1.0)] {
            let series = server.exemplars(metric);
            let [series] = &series[..] else { panic!("one series of {metric}: {series:?}") };
            let exemplars = series["exemplars"].as_array().unwrap();
            // Both exports have it, and Prometheus keeps one.
            assert_eq!(exemplars.len(), 1, "{exemplars:?}");
            assert_eq!(exemplars[0]["labels"], serde_json::json!({ "trace_id": trace }));
            assert_eq!(exemplars[0]["value"].as_str().unwrap().parse::<f64>().unwrap(), value);
        }
    }
}
