use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use metrics::{Key, Recorder};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Notify;

use super::super::families::{Limits, OtlpBounds};
use super::super::recorder::OtelRecorder;
use super::*;
use crate::exposition::Labels;

/// Receives one request on a connection of its own, and responds with 200 after a time.
async fn receive(listener: &TcpListener, after: Duration) -> ExportMetricsServiceRequest {
    let (mut connection, _) = listener.accept().await.unwrap();
    let mut received = Vec::new();
    loop {
        assert_ne!(connection.read_buf(&mut received).await.unwrap(), 0);
        let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8(received[..end].to_vec()).unwrap().to_lowercase();
        let (_, length) = head.split_once("content-length: ").unwrap();
        let length: usize = length.lines().next().unwrap().parse().unwrap();
        if received.len() == end + 4 + length {
            tokio::time::sleep(after).await;
            connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await.unwrap();
            return ExportMetricsServiceRequest::decode(&received[end + 4..]).unwrap();
        }
    }
}

fn sum(request: &ExportMetricsServiceRequest) -> i64 {
    let metrics =
        request.resource_metrics.iter().flat_map(|resource| &resource.scope_metrics).flat_map(|scope| &scope.metrics);
    let points = metrics.flat_map(|metric| match &metric.data {
        Some(Data::Sum(sum)) => sum.data_points.iter(),
        other => panic!("{other:?}"),
    });
    points.map(|point| if let Some(Value::AsInt(value)) = point.value { value } else { panic!("{point:?}") }).sum()
}

/// A recorder, and an exporter of its increments to this listener.
fn exporter(listener: &TcpListener, timeout: &str) -> (OtelRecorder, Exporter) {
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let settings = OtlpSettings::from_variables(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &*endpoint),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", timeout),
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta"),
    ]);
    let bounds = OtlpBounds { by_name: Default::default(), default: vec![1.0] };
    let families =
        Arc::new(OtlpFamilies::new(bounds, Limits { others: 10, ..Limits::default() }, Labels::default(), None));
    let recorder = OtelRecorder::new(Arc::clone(&families));
    (recorder, ExporterConfig::new(settings, "test".to_owned(), families).start().unwrap())
}

fn counter(recorder: &OtelRecorder, name: &'static str) -> metrics::Counter {
    static METADATA: metrics::Metadata<'static> = metrics::Metadata::new("test", metrics::Level::INFO, None);
    recorder.register_counter(&Key::from_name(name), &METADATA)
}

fn budget(time: Duration) -> RetryBudget {
    RetryBudget { deadline: Instant::now() + time, is_final: false, superseded: Arc::new(Notify::new()) }
}

#[tokio::test]
async fn each_request_on_the_interval_has_its_timeout() {
    const ANSWER_AFTER: Duration = Duration::from_millis(700);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (recorder, mut exporter) = exporter(&listener, "1000");
    for name in ["one_total", "two_total", "three_total"] {
        counter(&recorder, name).increment(1);
    }
    let Exporter::Owned(owned) = &mut exporter else { panic!() };
    owned.max_request = 1; // a request for each of them
    let budget = budget(Duration::from_millis(100));
    let receive = async {
        let mut received = 0;
        loop {
            received += sum(&receive(&listener, ANSWER_AFTER).await);
            if received == 3 {
                return;
            }
        }
    };
    let export = async { exporter.export(&budget, false, Vec::new).await.unwrap() };
    tokio::join!(export, receive);
}

/// What comes next waits for one request, not for all of them, and cuts none off: it may have arrived.
#[tokio::test]
async fn superseded_export_ends_between_two_requests() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (recorder, mut exporter) = exporter(&listener, "30000");
    for name in ["one_total", "two_total", "three_total"] {
        counter(&recorder, name).increment(1);
    }
    let Exporter::Owned(owned) = &mut exporter else { panic!() };
    owned.max_request = 1; // a request for each of them
    let received = AtomicI64::new(0);
    let receive_all = async {
        loop {
            received.fetch_add(sum(&receive(&listener, Duration::ZERO).await), Ordering::Relaxed);
        }
    };
    let export_all = async {
        for (is_requested, expected) in [(false, 1), (true, 2)] {
            let budget = budget(Duration::from_secs(30));
            budget.superseded.notify_one();
            let error = exporter.export(&budget, is_requested, Vec::new).await.err().map(|error| error.to_string());
            let replaced = "the final flush replaced this export before all of its requests were sent";
            assert_eq!(error.as_deref(), is_requested.then_some(replaced));
            assert_eq!(received.load(Ordering::Relaxed), expected);
        }
        counter(&recorder, "one_total").increment(4);
        exporter.export(&budget(Duration::from_secs(30)), true, Vec::new).await.unwrap();
        assert_eq!(received.load(Ordering::Relaxed), 7);
    };
    tokio::select! {
        () = receive_all => {}
        () = export_all => {}
    }
}

#[tokio::test]
async fn export_after_a_panic_has_all_records() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (recorder, mut exporter) = exporter(&listener, "10000");
    let counter = counter(&recorder, "rows_total");
    let budget = budget(Duration::from_secs(30));

    counter.increment(1);
    let error = exporter.export(&budget, true, || panic!("of a dependency")).await.unwrap_err();
    assert!(error.to_string().contains("panicked"), "{error}");
    let published = AtomicUsize::new(0);
    for (more, expected) in [(2, 3), (4, 4)] {
        counter.increment(more);
        let publish = || {
            published.fetch_add(1, Ordering::Relaxed);
            Vec::new()
        };
        let (exported, request) =
            tokio::join!(exporter.export(&budget, true, publish), receive(&listener, Duration::ZERO));
        exported.unwrap();
        assert_eq!(sum(&request), expected);
    }
    assert_eq!(published.into_inner(), 2);
}
