//! Servers that are no gateway, and a gateway that stops reading.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use tracing_stage_metrics::{MetricsLayer, Pushgateway};

use super::builder;
use super::support::measured::{Measured, measured, stage};
use super::support::mock_gateway::Answer;
use super::support::{MockGateway, Reply};

const TIMEOUT: Duration = Duration::from_millis(700);
/// Allowance for a busy machine.
const SLACK: Duration = Duration::from_millis(1_000);

/// Starts a server that passes every connection to `serve`. Ends with the process.
fn serving(serve: impl Fn(TcpStream) + Send + Sync + Copy + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for connection in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || serve(connection));
        }
    });
    url
}

#[test]
fn server_without_http_is_an_error_within_the_timeout() {
    let closes_at_once: fn(TcpStream) = drop;
    let closes_after_the_request = |mut connection: TcpStream| {
        let _ = connection.read(&mut [0; 64 * 1024]);
    };
    let answers_without_http = |mut connection: TcpStream| {
        let _ = connection.read(&mut [0; 64 * 1024]);
        let _ = connection.write_all(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n");
    };
    let closes_within_the_head = |mut connection: TcpStream| {
        let _ = connection.read(&mut [0; 64 * 1024]);
        let _ = connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Le");
    };
    let urls = [
        serving(closes_at_once),
        serving(closes_after_the_request),
        serving(answers_without_http),
        serving(closes_within_the_head),
    ];
    for url in urls {
        let Measured { guard, log: _, default: _default } = measured(builder(&url).with_flush_timeout(TIMEOUT));
        stage("a");
        let start = Instant::now();
        let error = guard.shutdown().unwrap_err();
        assert!(start.elapsed() < TIMEOUT + SLACK, "{:?}", start.elapsed());
        assert!(!error.is_refused() && !error.is_config(), "{error:?}");
        // The error is that of the last complete attempt.
        assert!(format!("{error:?}").contains("the connection broke, or carried no HTTP"), "{error:?}");
    }
}

/// The push is larger than the socket buffers of both ends, so that the write blocks.
#[test]
fn gateway_that_reads_nothing_is_a_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = listener.local_addr().unwrap().to_string();
    let gateway = Pushgateway::new(&url, "j").unwrap().without_compression();
    let line = format!("rows{{text=\"{}\"}} 1\n", "x".repeat(1_000_000));
    let large: String = (0..16).map(|number| line.replacen("rows", &format!("rows{number}"), 1)).collect();
    let (_layer, guard) = MetricsLayer::builder()
        .with_pushgateway(gateway)
        .with_push_interval(Duration::from_secs(3_600))
        .with_flush_timeout(TIMEOUT)
        .with_exposition(move || large.clone())
        .build()
        .unwrap();
    let start = Instant::now();
    let error = guard.shutdown().unwrap_err();
    assert!(start.elapsed() < TIMEOUT + SLACK, "{:?}", start.elapsed());
    assert!(error.is_timeout(), "{error:?}");
}

#[test]
fn slow_answer_within_the_timeout_is_a_success() {
    let answer = Answer::new(202).with_body("ok");
    let server = MockGateway::start([Reply::Trickled(answer, Duration::from_millis(5))]);
    let Measured { guard, log, default: _default } = measured(builder(&server.url()));
    guard.flush().unwrap();
    guard.shutdown().unwrap();
    assert_eq!(server.requests().len(), 3, "no push is retried");
    assert_eq!(log.own(), [""; 0]);
}
