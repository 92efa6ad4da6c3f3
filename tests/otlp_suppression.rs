//! OTLP traffic emits no event into the application's log at any level, although the SDK and its HTTP and gRPC
//! clients log a lot.
#![cfg(all(feature = "http", feature = "otlp"))]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::time::Duration;

use support::collector::GrpcCollector;
use support::log::{Log, OWN_TARGET};
use support::measured::stage;
use support::{MockGateway, child, free_addr};
use tracing_stage_metrics::MetricsLayer;
use tracing_subscriber::prelude::*;

/// Entry point of the child process: a job whose log records every level.
#[test]
fn scenarios() {
    let Some(_) = child::scenario() else { return };
    let log = Log::default();
    // The layer is added later, so that the log also covers install.
    let (slot, handle) = tracing_subscriber::reload::Layer::<Option<MetricsLayer>, _>::new(None);
    tracing_subscriber::registry().with(slot).with(log.clone()).init();
    let builder = MetricsLayer::builder().with_env().unwrap().with_push_interval(Duration::from_millis(50));
    let (layer, guard) = builder.install().unwrap();
    handle.reload(Some(layer)).unwrap();
    tracing::trace!(target: "of the application", "application event");
    for n in 0..5 {
        stage(&format!("stage {n}"));
        metrics::histogram!("rows").record(1.0);
        drop(guard.flush());
    }
    drop(guard.shutdown());
    println!();
    for entry in log.entries().into_iter().filter(|entry| !entry.is_start()) {
        println!("log: {}: {} {}", entry.target, entry.level, entry.text);
    }
}

#[track_caller]
fn log_lines(protocol: &str, endpoint: &str) -> Vec<String> {
    let mut command = child::command("scenarios", "job");
    command.env("OTEL_METRICS_EXPORTER", "otlp").env("OTEL_EXPORTER_OTLP_PROTOCOL", protocol);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint).env("TV_PROMETHEUS_FLUSH_TIMEOUT", "500ms");
    let ended = child::start(command).wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let lines = ended.stdout.lines().filter_map(|line| line.strip_prefix("log: "));
    let lines: Vec<_> = lines.map(str::to_owned).collect();
    assert_eq!(lines[0], "of the application: TRACE application event", "the log records TRACE: {lines:#?}");
    lines[1..].to_vec()
}

#[test]
fn successful_exports_log_nothing() {
    let (http, grpc) = (MockGateway::ok(), GrpcCollector::start());
    for (protocol, url) in [("http/protobuf", http.url()), ("grpc", grpc.url())] {
        assert_eq!(log_lines(protocol, &url), [""; 0], "{protocol}");
    }
    assert!(!http.requests().is_empty() && !grpc.exports().is_empty());
}

#[test]
fn failed_exports_log_own_warnings_only() {
    for protocol in ["http/protobuf", "grpc"] {
        let log_lines = log_lines(protocol, &format!("http://{}", free_addr()));
        assert!(
            log_lines.iter().all(|line| line.starts_with(&format!("{OWN_TARGET}: WARN"))),
            "{protocol}: {log_lines:#?}"
        );
        assert!(!log_lines.is_empty(), "{protocol}");
    }
}
