//! The HTTP listener for a Prometheus that scrapes: its paths, its answers and its shutdown.
#![cfg(feature = "http")]
#![allow(clippy::unwrap_used)]

mod support;

#[path = "http_listener/formats.rs"]
mod formats;
#[path = "real_gateway/protobuf.rs"]
#[allow(dead_code)]
mod protobuf;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use support::exposition;
use support::http::{self, Response};
use support::measured::{Measured, measured, stage};
use support::mock_gateway::{MockGateway, Reply};
use tracing_stage_metrics::{COMPRESSION_THRESHOLD, MetricsLayer, MetricsLayerBuilder, Pushgateway};

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";

fn served() -> MetricsLayerBuilder {
    MetricsLayer::builder().with_http_listener(LOOPBACK)
}

/// A listener with an exposition of this size. A large one does not fit into a socket buffer.
fn serving_bytes(size: usize) -> MetricsLayerBuilder {
    served().without_run_id_label().with_exposition(move || format!("{} 1\n", "x".repeat(size - 3)))
}

fn address(measured: &Measured) -> SocketAddr {
    measured.guard.listen_addr().unwrap()
}

/// The answer to a raw request.
fn answer(address: SocketAddr, request: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}

#[test]
fn metrics_are_served_as_rendered() {
    let measured = measured(served());
    stage("a");
    let Response { status, headers, body } = http::get(address(&measured), "/metrics").unwrap();
    assert_eq!((status, http::header(&headers, "content-type")), (200, Some(EXPOSITION)));
    let metrics = exposition::parse(&body);
    assert_eq!(metrics.value("quant_stage_total", &[("stage_id", "a"), ("status", "success")]), Some(1.0));
    let labels = [("stage_id", "a"), ("profile", ""), ("run_id", "")];
    assert_eq!(metrics.value("quant_stage_duration_seconds_count", &labels), Some(1.0));

    stage("a");
    let metrics = exposition::parse(&http::get(address(&measured), "/metrics?of=now").unwrap().body);
    assert_eq!(metrics.value("quant_stage_total", &[("stage_id", "a"), ("status", "success")]), Some(2.0));
    assert_eq!(measured.log.own(), [""; 0]);
}

#[test]
fn other_paths_are_not_found() {
    let measured = measured(served());
    let status = |path| http::get(address(&measured), path).unwrap().status;
    assert_eq!(http::get(address(&measured), "/health").unwrap().body, "OK\n");
    for path in ["/", "/metrics/", "/metric", "/metrics/job/x", "/health/x", "//metrics", "/%6Detrics"] {
        assert_eq!(status(path), 404, "{path}");
    }
    assert_eq!(http::get(address(&measured), "/").unwrap().body, "the metrics are at /metrics\n");
}

#[test]
fn metrics_are_read_only() {
    let measured = measured(served());
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let answer = http::request(address(&measured), method, "/metrics", &[], b"").unwrap();
        assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")), "{method}");
    }
    let head = String::from_utf8(answer(address(&measured), "HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n")).unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    assert!(head.contains(&format!("content-type: {EXPOSITION}\r\n")), "{head}");
    assert_eq!(head.matches("\r\n\r\n").count(), 1, "no body: {head}");
}

#[test]
fn large_exposition_is_compressed_on_request() {
    let measured = measured(serving_bytes(COMPRESSION_THRESHOLD));
    let get = |headers: &str| {
        let answer = answer(address(&measured), &format!("GET /metrics HTTP/1.0\r\n{headers}\r\n"));
        let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
        (String::from_utf8(answer[..end].to_vec()).unwrap(), answer[end + 4..].to_vec())
    };
    let (head, plain) = get("");
    assert!(!head.contains("content-encoding"), "{head}");
    assert_eq!(plain.len(), COMPRESSION_THRESHOLD);
    let (head, compressed) = get("Accept-Encoding: gzip\r\n");
    assert!(head.contains("content-encoding: gzip"), "{head}");
    let mut decompressed = Vec::new();
    flate2::read::GzDecoder::new(&compressed[..]).read_to_end(&mut decompressed).unwrap();
    assert_eq!(decompressed, plain);
}

/// Clients that ask before the next rendering is due share it.
#[test]
fn clients_sharing_a_text_get_their_encoding() {
    let measured = measured(serving_bytes(1 << 20));
    let address = address(&measured);
    std::thread::scope(|scope| {
        for number in 0..8 {
            scope.spawn(move || {
                let takes_gzip = number % 2 == 0;
                let header = if takes_gzip { "Accept-Encoding: gzip\r\n" } else { "" };
                for _ in 0..5 {
                    let mut connection = TcpStream::connect(address).unwrap();
                    write!(connection, "GET /metrics HTTP/1.0\r\n{header}\r\n").unwrap();
                    let mut answer = Vec::new();
                    connection.read_to_end(&mut answer).unwrap();
                    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
                    let head = str::from_utf8(&answer[..end]).unwrap();
                    assert!(head.contains(" 200 ") && head.contains("content-encoding: gzip") == takes_gzip, "{head}");
                }
            });
        }
    });
}

#[test]
fn panicking_exposition_is_a_server_error() {
    let measured = measured(served().with_exposition(|| panic!("of the application")));
    let answer = http::get(address(&measured), "/metrics").unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (500, "the function given to `with_exposition` panicked\n"));
    assert_eq!(http::get(address(&measured), "/health").unwrap().status, 200, "the listener keeps answering");
}

#[test]
fn listen_addr_without_a_listener_is_none() {
    assert_eq!(measured(MetricsLayer::builder()).guard.listen_addr(), None);
}

#[test]
fn taken_port_is_a_configuration_error() {
    let listener = TcpListener::bind(LOOPBACK).unwrap();
    let taken = listener.local_addr().unwrap();
    let error = MetricsLayer::builder().with_http_listener(taken).build().unwrap_err();
    assert!(error.is_config());
    assert_eq!(
        format!("{error:?}"),
        format!(
            "cannot listen on {taken}: the port is taken: choose another one, or 0 for any that is free: Address already \
             in use (os error 98)"
        )
    );
}

#[test]
fn scrapes_and_pushes_have_the_same_metrics() {
    let gateway = MockGateway::ok();
    let measured = measured(served().with_pushgateway(Pushgateway::new(gateway.url(), "j").unwrap()));
    stage("a");
    measured.guard.flush().unwrap();
    let scraped = http::get(address(&measured), "/metrics").unwrap().body;
    for text in [scraped.as_str(), gateway.requests().last().unwrap().text()] {
        let metrics = exposition::parse(text);
        assert_eq!(metrics.expect("quant_stage_total", &[("stage_id", "a"), ("status", "success")]), 1.0);
    }
}

#[test]
fn silent_gateway_does_not_delay_a_scrape() {
    let gateway = MockGateway::start([Reply::Silent]);
    let builder = served()
        .with_pushgateway(Pushgateway::new(gateway.url(), "j").unwrap())
        .with_flush_timeout(Duration::from_secs(2));
    let Measured { guard, log: _log, default: _default } = measured(builder);
    let address = guard.listen_addr().unwrap();
    gateway.await_requests(1);
    assert_eq!(http::get(address, "/metrics").unwrap().status, 200);
    // A scrape during the final flush shows the last state.
    let ending = std::thread::spawn(move || guard.shutdown());
    gateway.await_requests(2);
    let metrics = exposition::parse(&http::get(address, "/metrics").unwrap().body);
    assert!(metrics.family("quant_run_last_completion_timestamp_seconds").is_some());
    assert!(ending.join().unwrap().unwrap_err().is_timeout());
}

/// Renders for scrapes use a limited share of the delivery thread's time.
#[test]
fn frequent_scrapes_do_not_delay_a_flush() {
    const RENDER: Duration = Duration::from_millis(50);
    let gateway = MockGateway::ok();
    let exposition = || {
        std::thread::sleep(RENDER);
        "rows_total 1\n".to_owned()
    };
    let builder = served()
        .with_exposition(exposition)
        .without_run_id_label()
        .with_pushgateway(Pushgateway::new(gateway.url(), "j").unwrap())
        .with_push_interval(Duration::from_secs(3_600));
    let measured = measured(builder);
    let address = address(&measured);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    assert_eq!(http::get(address, "/metrics").unwrap().body, "rows_total 1\n");
                }
            });
        }
        // Waits until the clients have started.
        http::get(address, "/metrics").unwrap();
        let start = Instant::now();
        let flushed = (0..3).map(|_| measured.guard.flush()).collect::<Result<Vec<_>, _>>();
        let elapsed = start.elapsed();
        done.store(true, Ordering::Relaxed);
        assert!(flushed.is_ok() && elapsed < 3 * 6 * RENDER, "{flushed:?} in {elapsed:?}");
    });
}

#[test]
fn scrape_shows_stages_closed_before_the_request() {
    let measured = measured(served());
    for round in 1..=50 {
        stage("a");
        let metrics = exposition::parse(&http::get(address(&measured), "/metrics").unwrap().body);
        let stages = metrics.expect("quant_stage_total", &[("stage_id", "a"), ("status", "success")]);
        assert_eq!(stages, f64::from(round));
    }
}

#[test]
fn slow_request_is_not_closed_for_others() {
    let measured = measured(served());
    let address = address(&measured);
    let mut slow = TcpStream::connect(address).unwrap();
    slow.write_all(b"GET /health HTT").unwrap();
    for _ in 0..3 {
        assert_eq!(http::get(address, "/health").unwrap().status, 200);
    }
    slow.write_all(b"P/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200 "), "{answer}");
}

#[test]
fn shutdown_closes_the_connections_and_frees_the_port() {
    let measured = measured(served());
    let address = address(&measured);
    let mut silent = TcpStream::connect(address).unwrap();
    let mut incomplete = TcpStream::connect(address).unwrap();
    incomplete.write_all(b"GET /metrics HTT").unwrap();
    assert_eq!(http::get(address, "/health").unwrap().status, 200, "both connections are accepted");

    let start = Instant::now();
    measured.guard.shutdown().unwrap();
    assert!(start.elapsed() < Duration::from_millis(400), "{:?}", start.elapsed());
    assert_eq!(TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    for connection in [&mut silent, &mut incomplete] {
        let read = connection.read(&mut [0; 16]);
        assert!(matches!(&read, Ok(0)) || read.is_err(), "{read:?}");
    }
    TcpListener::bind(address).unwrap();
}

#[test]
fn shutdown_completes_an_answer_in_progress() {
    // More than the buffers of both sockets hold, and little to read within the limit on a busy machine.
    const SIZE: usize = 6 * 1024 * 1024;
    let measured = measured(serving_bytes(SIZE));
    let mut client = TcpStream::connect(address(&measured)).unwrap();
    client.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut first = [0; 1];
    client.read_exact(&mut first).unwrap();
    let reading = std::thread::spawn(move || {
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).map(|read| read > SIZE)
    });
    measured.guard.shutdown().unwrap();
    assert!(reading.join().unwrap().unwrap(), "the whole answer arrives");
}

#[test]
fn client_that_reads_nothing_does_not_delay_the_shutdown() {
    let measured = measured(serving_bytes(16 * 1024 * 1024));
    let mut client = TcpStream::connect(address(&measured)).unwrap();
    client.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut first = [0; 1];
    client.read_exact(&mut first).unwrap();
    let start = Instant::now();
    measured.guard.shutdown().unwrap();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn prometheus_scrapes_the_listener() {
    let measured = measured(served());
    stage("a");
    let Some(prometheus) = support::prometheus(&[("service", address(&measured), false)]) else { return };
    let value = |promql: &str| prometheus.await_query(promql, |series| series.len() == 1)[0].1;
    assert_eq!(value("up{job=\"service\"} == 1"), 1.0);
    assert_eq!(value("quant_stage_total{job=\"service\", stage_id=\"a\", status=\"success\"} == 1"), 1.0);
    // The counters keep increasing, so that `increase()` is above zero.
    for _ in 0..3 {
        stage("a");
    }
    value("quant_stage_total{stage_id=\"a\", status=\"success\"} == 4");
    assert!(value("increase(quant_stage_total{stage_id=\"a\", status=\"success\"}[1m]) > 0") >= 3.0);
    assert_eq!(value("quant_stage_duration_seconds_count{stage_id=\"a\"} == 4"), 4.0);
    measured.guard.shutdown().unwrap();
    prometheus.await_query("up{job=\"service\"} == 0", |series| series.len() == 1);
}
