//! The formats of a scrape, and what Prometheus stores of each.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;
use tracing_stage_metrics::{MetricsLayerBuilder, Pushgateway};

use super::support::measured::{Measured, failing_stage, measured, stage};
use super::support::mock_gateway::MockGateway;
use super::support::servers::{self, Prometheus, is_prometheus_3};
use super::support::{self, exposition, http};
use super::{EXPOSITION, address, answer, protobuf, served};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores";
const PROTOBUF: &str = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";
/// What Prometheus 3 sends by default.
const ACCEPT: &str = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
    application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
    text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
const DURATION: &str = "quant_stage_duration_seconds";

fn native() -> MetricsLayerBuilder {
    served().with_native_histograms()
}

/// The head and the body of a scrape with these headers.
fn scrape(measured: &Measured, headers: &[(&str, &str)]) -> (Vec<(String, String)>, Vec<u8>) {
    let answer = http::exchange(address(measured), "GET", "/metrics", headers, b"").unwrap();
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
    let mut lines = str::from_utf8(&answer[..end]).unwrap().split("\r\n");
    assert_eq!(lines.next(), Some("HTTP/1.0 200 OK"));
    (http::parse_headers(lines).unwrap(), answer[end + 4..].to_vec())
}

#[track_caller]
fn assert_gets(measured: &Measured, headers: &[(&str, &str)], content_type: &str) {
    let (head, _) = scrape(measured, headers);
    assert_eq!(http::header(&head, "content-type"), Some(content_type), "{headers:?}");
}

#[test]
fn format_is_negotiated_where_text_lacks_something() {
    let measured = measured(native());
    stage("a");
    let protobuf = format!("{};q=0.7,{ACCEPT}", protobuf::ACCEPT);
    for (accept, content_type) in
        [("*/*", EXPOSITION), ("text/plain", EXPOSITION), (ACCEPT, OPEN_METRICS), (&protobuf, PROTOBUF)]
    {
        let (head, body) = scrape(&measured, &[("Accept", accept)]);
        assert_eq!(http::header(&head, "content-type"), Some(content_type));
        assert_eq!(http::header(&head, "vary"), Some("Accept, Accept-Encoding"));
        assert_eq!(body.ends_with(b"\n# EOF\n"), content_type == OPEN_METRICS, "{accept}");
    }
    assert_gets(&measured, &[], EXPOSITION);
    let separate = [("Accept", "text/plain;q=0.5"), ("accept", "application/openmetrics-text;version=1.0.0")];
    assert_gets(&measured, &separate, OPEN_METRICS);
    let families = protobuf::scrape(address(&measured));
    let duration = families.iter().find(|family| family.name == DURATION).unwrap();
    assert_eq!(duration.metrics[0].histogram.as_ref().unwrap().count, 1);
}

#[test]
fn invalid_accept_header_gets_text() {
    let measured = measured(native());
    for accept in [
        "",
        ",",
        "application",
        "application/openmetrics-text;q=x",
        "application/openmetrics-text;version=\"1.0.0",
        "application/vnd.google.protobuf",
        ";;;==",
        &"application/openmetrics-text;".repeat(1_000),
    ] {
        assert_gets(&measured, &[("Accept", accept)], EXPOSITION);
    }
    let invalid = answer(address(&measured), "GET /metrics HTTP/1.0\r\nAccept: application/openmetrics-text;é\r\n\r\n");
    assert!(String::from_utf8(invalid).unwrap().contains(EXPOSITION));
}

/// OpenMetrics spells a bound otherwise, so a series would have another name.
#[test]
fn text_is_the_only_format_without_the_settings() {
    let gateway = MockGateway::ok();
    let gateway = Pushgateway::new(gateway.url(), "j").unwrap();
    for builder in [served(), served().with_pushgateway(gateway), native().with_exposition(|| "a 1\n".to_owned())] {
        let measured = measured(builder);
        for accept in [ACCEPT, protobuf::ACCEPT] {
            let (head, _) = scrape(&measured, &[("Accept", accept)]);
            assert_eq!(http::header(&head, "content-type"), Some(EXPOSITION));
            assert_eq!(http::header(&head, "vary"), Some("Accept-Encoding"));
        }
    }
}

/// Metrics whose kinds OpenMetrics does not have, or whose names would be those of others.
fn record_odd_metrics() {
    for name in
        ["rows_total", "rows_total_total", "requests", "bytes_sum_total", "orders_created_total", "orders_total"]
    {
        metrics::counter!(name, "l" => "a \"b\"\\\n").increment(3);
    }
    for name in ["rows", "queue_total", "rows_created", "depth"] {
        metrics::gauge!(name).set(-1.5);
    }
    for (name, values) in
        [("bytes", &[1.0, 2e9][..]), ("signed", &[-5.0, 1.0]), ("unknown_sum", &[f64::NAN]), ("size", &[3.0])]
    {
        values.iter().for_each(|value| metrics::histogram!(name, "le" => "x").record(*value));
    }
    metrics::gauge!("size_created").set(f64::NAN);
}

/// The samples of a text, by name and labels. Bounds are numbers.
fn samples_of_text(text: &str) -> BTreeMap<(String, BTreeMap<String, String>), String> {
    let families = exposition::parse(text).families;
    let samples = families.into_iter().flat_map(|family| family.samples);
    samples.map(|sample| ((sample.name, with_numbers(sample.labels)), sample.value.to_string())).collect()
}

fn with_numbers(mut labels: BTreeMap<String, String>) -> BTreeMap<String, String> {
    if let Some(bound) = labels.get_mut("le") {
        *bound = bound.parse::<f64>().unwrap().to_string();
    }
    labels
}

fn text<'a>(value: &'a Value, member: &str) -> &'a str {
    value[member].as_str().unwrap()
}

fn labels(sample: &Value) -> BTreeMap<String, String> {
    let labels = sample["labels"].as_object().unwrap().iter();
    labels.map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect()
}

#[test]
fn parser_of_another_client_reads_the_same_from_open_metrics() {
    let (layer, guard) = native().install().unwrap();
    let default = tracing::subscriber::set_default(tracing_subscriber::layer::SubscriberExt::with(
        tracing_subscriber::registry(),
        layer,
    ));
    for value in ["", "a \"b\"", "\\", "a\nb", "é\u{0}\t}", "# EOF", "{a=\"b\"} 1 # {"] {
        tracing::info_span!("x", stage_id = value, profile = value, run_id = value).in_scope(|| {});
    }
    failing_stage("failed");
    record_odd_metrics();
    let address = guard.listen_addr().unwrap();
    let written = http::request(address, "GET", "/metrics", &[("Accept", ACCEPT)], b"").unwrap();
    assert_eq!(written.header("content-type"), Some(OPEN_METRICS));
    drop(default);
    let Some(families) = support::open_metrics(&written.body) else { return };
    let families = families.as_array().unwrap();

    let samples = families.iter().flat_map(|family| family["samples"].as_array().unwrap()).map(|sample| {
        let value: f64 = text(sample, "value").parse().unwrap();
        ((text(sample, "name").to_owned(), with_numbers(labels(sample))), value.to_string())
    });
    let without_resources = |samples: BTreeMap<(String, BTreeMap<String, String>), String>| -> Vec<_> {
        samples.into_iter().filter(|((name, _), _)| name != "quant_engine_resource_usage").collect()
    };
    assert_eq!(without_resources(samples.collect()), without_resources(samples_of_text(&guard.render())));

    let kind = |name: &str| {
        let family = families.iter().find(|family| family["name"] == name)?;
        Some((text(family, "kind"), text(family, "unit")))
    };
    for (name, expected) in [
        (DURATION, Some(("histogram", "seconds"))),
        ("quant_stage", Some(("counter", ""))),
        ("quant_stage_active", Some(("gauge", ""))),
        ("rows_total", Some(("unknown", ""))),
        ("rows", Some(("gauge", ""))),
        ("requests", Some(("unknown", ""))),
        ("bytes", Some(("histogram", ""))),
        ("bytes_sum_total", Some(("unknown", ""))),
        ("orders", Some(("counter", ""))),
        ("orders_created_total", Some(("unknown", ""))),
        ("queue_total", Some(("gauge", ""))),
        ("signed", None),
        ("signed_bucket", Some(("unknown", ""))),
        ("size", None),
        ("size_count", Some(("unknown", ""))),
    ] {
        assert_eq!(kind(name), expected, "{name}");
    }
}

/// Renders are shared whatever the formats of the clients, and each gets its own.
#[test]
fn clients_sharing_a_rendering_get_their_format() {
    let measured = measured(native());
    for n in 0..300 {
        stage(&format!("a stage with a name of some length, number {n}"));
    }
    let address = address(&measured);
    let formats = [("*/*", EXPOSITION), (ACCEPT, OPEN_METRICS), (protobuf::ACCEPT, PROTOBUF)];
    std::thread::scope(|scope| {
        for (number, (accept, content_type)) in formats.into_iter().cycle().take(12).enumerate() {
            scope.spawn(move || {
                let takes_gzip = number % 2 == 0;
                let encoding = if takes_gzip { "gzip" } else { "identity" };
                for _ in 0..5 {
                    let headers = [("Accept", accept), ("Accept-Encoding", encoding)];
                    let answer = http::exchange(address, "GET", "/metrics", &headers, b"").unwrap();
                    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
                    let head = str::from_utf8(&answer[..end]).unwrap();
                    assert!(head.contains(&format!("content-type: {content_type}\r\n")), "{head}");
                    assert_eq!(head.contains("content-encoding: gzip"), takes_gzip, "{head}");
                }
            });
        }
    });
}

fn prometheus(measured: &Measured, features: &str) -> Option<Prometheus> {
    let scrape = [("service", address(measured), false)];
    servers::installed(servers::PROMETHEUS).then(|| Prometheus::start_with_features(&scrape, &[], features))
}

#[track_caller]
fn value(prometheus: &Prometheus, promql: &str) -> f64 {
    prometheus.await_query(promql, |series| series.len() == 1)[0].1
}

fn count(prometheus: &Prometheus, promql: &str) -> f64 {
    prometheus.query(&format!("count({promql}) or vector(0)"))[0].1
}

#[test]
fn native_histograms_are_scraped_by_a_prometheus_that_stores_them() {
    let measured = measured(native());
    let mut durations: Vec<_> = (1..=20)
        .map(|n| {
            let started = Instant::now();
            tracing::info_span!("x", stage_id = "a").in_scope(|| std::thread::sleep(Duration::from_millis(3 * n)));
            started.elapsed().as_secs_f64()
        })
        .collect();
    durations.sort_by(f64::total_cmp);
    let Some(native) = prometheus(&measured, "native-histograms") else { return };
    assert_eq!(value(&native, &format!("histogram_count({DURATION})")), 20.0);
    assert_eq!(count(&native, &format!("{DURATION}_bucket or {DURATION}_sum or {DURATION}_count")), 0.0);
    for quantile in [0.1, 0.25, 0.5, 0.75, 0.9, 1.0] {
        let query = format!("histogram_quantile({quantile}, {DURATION})");
        let (actual, expected) = (value(&native, &query), durations[(quantile * 20.0_f64).ceil() as usize - 1]);
        assert!((actual - expected).abs() <= expected * 0.1, "{query}: {actual} for {expected}");
    }
    // One without the feature asks for OpenMetrics and reads the buckets.
    let Some(classic) = prometheus(&measured, "") else { return };
    assert_eq!(value(&classic, &format!("{DURATION}_count == 20")), 20.0);
    assert_eq!(value(&classic, &format!("{DURATION}_bucket{{le='60.0'}} == 20")), 20.0);
    assert_eq!(value(&classic, "quant_stage_total{status='success'} == 20"), 20.0);
    assert_eq!(count(&classic, "{__name__=~'.+_created'}"), 0.0);
}

#[test]
fn series_keep_their_names_without_the_settings() {
    let measured = measured(served());
    stage("a");
    for features in ["", "native-histograms,exemplar-storage"] {
        let Some(prometheus) = prometheus(&measured, features) else { return };
        let bound = if is_prometheus_3() { "60.0" } else { "60" };
        assert_eq!(value(&prometheus, &format!("{DURATION}_bucket{{le='{bound}'}} == 1")), 1.0);
        assert_eq!(count(&prometheus, &format!("{DURATION}_bucket")), 15.0);
        assert_eq!(value(&prometheus, &format!("{DURATION}_count == 1")), 1.0);
    }
}
