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
    assert!(build(gateway).is_ok(), "text is taken");
}
