//! Compression of large pushes.

use std::io::Read as _;

use flate2::read::GzDecoder;
use tracing_stage_metrics::{COMPRESSION_THRESHOLD, FlushGuard, MetricsLayer, Pushgateway};

use super::support::mock_gateway::Request;
use super::support::{self, MockGateway, exposition};

/// An exposition with this many series, of at least 17 bytes each.
fn exposition_of(count: usize) -> String {
    let series = (0..count).map(|number| format!("rows{{n=\"{number}\"}} {number}.5\n"));
    std::iter::once("# TYPE rows gauge\n".to_owned()).chain(series).collect()
}

const LARGE: usize = COMPRESSION_THRESHOLD / 10;

fn guard(gateway: Pushgateway, series: usize) -> FlushGuard {
    let text = exposition_of(series);
    let builder =
        MetricsLayer::builder().without_run_id_label().with_exposition(move || text.clone()).with_pushgateway(gateway);
    builder.build().unwrap().1
}

/// The text of every push, and whether it was compressed.
fn pushes(server: &MockGateway) -> Vec<(String, bool)> {
    let decoded = |request: &Request| match request.header("content-encoding") {
        None => (request.text().to_owned(), false),
        Some(encoding) => {
            assert_eq!(encoding, "gzip");
            let mut text = String::new();
            GzDecoder::new(&*request.body).read_to_string(&mut text).unwrap();
            (text, true)
        }
    };
    server.requests().iter().map(decoded).collect()
}

/// The series of a text, in a stable order.
fn lines(text: &str) -> Vec<&str> {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines
}

#[test]
fn large_push_is_compressed_and_small_one_is_not() {
    for (series, is_compressed) in [(LARGE, true), (10, false)] {
        let server = MockGateway::ok();
        let guard = guard(Pushgateway::new(server.url(), "j").unwrap(), series);
        server.await_requests(1);
        guard.shutdown().unwrap();
        let pushes = pushes(&server);
        assert_eq!(pushes.len(), 2, "one push at install, one at the final flush");
        for (text, compressed) in pushes {
            assert_eq!(compressed, is_compressed, "{} bytes", text.len());
            assert_eq!(lines(&text), lines(&exposition_of(series)), "the push has every series");
        }
    }
}

#[test]
fn large_push_without_compression_is_plain() {
    let server = MockGateway::ok();
    guard(Pushgateway::new(server.url(), "j").unwrap().without_compression(), LARGE).shutdown().unwrap();
    for (text, compressed) in pushes(&server) {
        assert!(text.len() > COMPRESSION_THRESHOLD && !compressed, "{} bytes", text.len());
    }
}

#[test]
fn real_gateway_reads_compressed_and_plain_pushes() {
    let Some(server) = support::pushgateway() else { return };
    let gateway = |job| Pushgateway::new(server.url(), job).unwrap();
    guard(gateway("compressed"), LARGE).shutdown().unwrap();
    guard(gateway("plain").without_compression(), LARGE).shutdown().unwrap();
    let metrics = exposition::parse(&server.metrics());
    for job in ["compressed", "plain"] {
        assert_eq!(metrics.matching("rows", &[("job", job)]).len(), LARGE, "{job}");
        assert_eq!(metrics.expect("rows", &[("instance", ""), ("job", job), ("n", "7")]), 7.5, "{job}");
    }
}
