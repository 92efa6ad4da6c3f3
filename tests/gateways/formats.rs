//! The format of a push and its content type.

use tracing_stage_metrics::{MetricsLayer, PushFormat, Pushgateway};

use super::support::MockGateway;
use super::support::measured::{Measured, measured, stage};

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const PROTOBUF: &str = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";

fn gateway(server: &MockGateway) -> Pushgateway {
    Pushgateway::new(server.url(), "j").unwrap()
}

#[test]
fn push_has_the_content_type_of_its_format() {
    for (format, content_type) in [(None, TEXT), (Some(PushFormat::Text), TEXT), (Some(PushFormat::Protobuf), PROTOBUF)]
    {
        let server = MockGateway::ok();
        let builder =
            MetricsLayer::builder().with_pushgateway(gateway(&server)).map_pushgateway(|gateway| match format {
                Some(format) => gateway.with_format(format),
                None => gateway,
            });
        let Measured { guard, log: _, default: _default } = measured(builder);
        stage("a");
        server.await_requests(1);
        guard.shutdown().unwrap();
        let requests = server.requests();
        assert_eq!(requests.len(), 2, "one push at install, one at the final flush");
        for request in requests {
            assert_eq!(request.header("content-type"), Some(content_type));
            // The first family, in text and with its length before it.
            let begins = if content_type == TEXT { &b"# HELP quant_"[..] } else { b"\x0a" };
            let start =
                if content_type == TEXT { 0 } else { request.body.iter().position(|byte| *byte < 0x80).unwrap() + 1 };
            assert!(request.body[start..].starts_with(begins), "{:?}", &request.body[..20]);
        }
    }
}

/// A gateway keeps no unit, so the bytes of the push show it.
#[test]
fn protobuf_has_the_units_of_descriptions() {
    let server = MockGateway::ok();
    let builder = MetricsLayer::builder().with_pushgateway(gateway(&server).with_format(PushFormat::Protobuf));
    let Measured { guard, log: _, default: _default } = measured(builder);
    stage("a");
    guard.shutdown().unwrap();
    let body = server.requests().pop().unwrap().body;
    // Field 5, a text of 7 bytes.
    let unit = [&[5 << 3 | 2, 7][..], b"seconds"].concat();
    assert!(body.windows(unit.len()).any(|bytes| bytes == unit));
}

#[test]
fn map_pushgateway_does_nothing_without_a_gateway() {
    let builder = MetricsLayer::builder().map_pushgateway(|_| panic!("there is none"));
    let Measured { guard, log: _, default: _default } = measured(builder);
    guard.shutdown().unwrap();
}

#[test]
fn protobuf_to_a_server_that_throws_it_away_is_a_configuration_error() {
    let gateway = Pushgateway::new("http://vm:8428/api/v1/import/prometheus", "j").unwrap();
    let build = |gateway| MetricsLayer::builder().with_pushgateway(gateway).build();
    let error = build(gateway.clone().with_format(PushFormat::Protobuf)).unwrap_err();
    assert!(error.is_config(), "{error}");
    assert!(
        error
            .to_string()
            .starts_with("gateway http://vm:8428/api/v1/import/prometheus is an import path of VictoriaMetrics"),
        "{error}"
    );
    assert!(build(gateway.clone()).is_ok(), "text is taken");
    let native = |gateway| MetricsLayer::builder().with_pushgateway(gateway).with_native_histograms().build();
    let error = native(gateway.clone()).unwrap_err();
    assert!(error.is_config() && error.to_string().ends_with(": set the push format to text"), "{error}");
    assert!(native(gateway.with_format(PushFormat::Text)).is_ok(), "which is what the error asks for");
}

/// Whether a body has the schema of a native histogram: field 5, a zigzag 3.
fn has_native_histogram(body: &[u8]) -> bool {
    // After it, the zero threshold of 2^-128: field 6.
    let schema = [&[5 << 3, 6, 6 << 3 | 1][..], &f64::exp2(-128.0).to_le_bytes()].concat();
    body.windows(schema.len()).any(|bytes| bytes == schema)
}

/// The builder as the environment or the code may have set it: the format of the gateway, and whether native histograms
/// can be delivered.
#[test]
fn native_histograms_are_pushed_in_protobuf_unless_text_is_set() {
    const TEXT_WARNING: &str =
        "native histograms are not delivered: pushes are text, which has none: set the push format to protobuf";
    const EXPOSITION_WARNING: &str =
        "native histograms are not delivered: `with_exposition` renders text, which has none";
    let text = Some(PushFormat::Text);
    for (format, exposition, content_type, is_native, warnings) in [
        (None, None, PROTOBUF, true, &[][..]),
        (Some(PushFormat::Protobuf), None, PROTOBUF, true, &[]),
        (text, None, TEXT, false, &[TEXT_WARNING]),
        (text, Some("a 1\n"), TEXT, false, &[EXPOSITION_WARNING]),
        (None, Some("a 1\n"), TEXT, false, &[EXPOSITION_WARNING]),
    ] {
        let server = MockGateway::ok();
        let mut builder = MetricsLayer::builder().with_native_histograms().with_pushgateway(gateway(&server));
        if let Some(format) = format {
            builder = builder.map_pushgateway(|gateway| gateway.with_format(format));
        }
        if let Some(exposition) = exposition {
            builder = builder.with_exposition(|| exposition.to_owned());
        }
        let Measured { guard, log, default: _default } = measured(builder);
        stage("a");
        guard.shutdown().unwrap();
        let last = server.requests().pop().unwrap();
        assert_eq!(last.header("content-type"), Some(content_type), "{format:?} {exposition:?}");
        assert_eq!(has_native_histogram(&last.body), is_native, "{format:?} {exposition:?}");
        assert_eq!(log.own(), warnings, "{format:?} {exposition:?}");
    }
}

/// Each duration then goes to two recorders as it is measured.
#[cfg(feature = "otlp")]
#[test]
fn native_histograms_are_pushed_beside_opentelemetry() {
    let server = MockGateway::ok();
    let provider = opentelemetry_sdk::metrics::SdkMeterProvider::builder().build();
    let builder = MetricsLayer::builder().with_native_histograms().with_pushgateway(gateway(&server));
    let Measured { guard, log: _, default: _default } = measured(builder.with_meter_provider(provider));
    stage("a");
    guard.shutdown().unwrap();
    assert!(has_native_histogram(&server.requests().pop().unwrap().body));
}

/// As `map_pushgateway`: a program sets them in code, and runs without a gateway too.
#[test]
fn native_histograms_have_no_effect_without_a_gateway() {
    let Measured { guard, log, default: _default } = measured(MetricsLayer::builder().with_native_histograms());
    stage("a");
    assert!(guard.render().contains("quant_stage_duration_seconds_count"));
    guard.shutdown().unwrap();
    assert_eq!(log.own(), [""; 0]);
}
