//! Gateways that are none, and one that reads no further.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use tracing_stage_metrics::{MetricsLayer, Pushgateway};

use super::builder;
use super::support::measured::{Measured, measured, stage};
use super::support::mock_gateway::Answer;
use super::support::{MockGateway, Reply};

const TIMEOUT: Duration = Duration::from_millis(700);
/// What a busy machine may add to a time that is kept.
const SLACK: Duration = Duration::from_millis(1_000);

/// Does the same to every connection. Ends with the process.
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
fn what_is_no_gateway_is_told_as_that_in_time() {
    let closes_at_once: fn(TcpStream) = drop;
    let closes_without_an_answer = |mut connection: TcpStream| {
        let _ = connection.read(&mut [0; 64 * 1024]);
    };
    let speaks_no_http = |mut connection: TcpStream| {
        let _ = connection.read(&mut [0; 64 * 1024]);
        let _ = connection.write_all(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n");
    };
    let breaks_off_in_the_head = |mut connection: TcpStream| {
        let _ = connection.read(&mut [0; 64 * 1024]);
        let _ = connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Le");
    };
    let urls = [
        serving(closes_at_once),
        serving(closes_without_an_answer),
        serving(speaks_no_http),
        serving(breaks_off_in_the_head),
    ];
    for url in urls {
        let Measured { guard, log: _, default: _default } = measured(builder(&url).with_flush_timeout(TIMEOUT));
        stage("a");
        let begun = Instant::now();
        let error = guard.shutdown().unwrap_err();
        assert!(begun.elapsed() < TIMEOUT + SLACK, "{:?}", begun.elapsed());
        assert!(!error.is_refused() && !error.is_config(), "{error:?}");
        // Of the last try, or of the one before where the time was over in the middle of it.
        assert!(format!("{error:?}").contains("the connection broke, or carried no HTTP"), "{error:?}");
    }
}

/// More than the buffers of the two ends take, so that sending it stands still.
#[test]
fn a_gateway_that_takes_connections_and_reads_nothing() {
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
    let begun = Instant::now();
    let error = guard.shutdown().unwrap_err();
    assert!(begun.elapsed() < TIMEOUT + SLACK, "{:?}", begun.elapsed());
    assert!(error.is_timeout(), "{error:?}");
}

#[test]
fn a_slow_answer_that_comes_in_time_is_an_answer() {
    let answer = Answer::new(202).with_body("ok");
    let server = MockGateway::start([Reply::Trickled(answer, Duration::from_millis(5))]);
    let Measured { guard, log, default: _default } = measured(builder(&server.url()));
    guard.flush().unwrap();
    guard.shutdown().unwrap();
    assert_eq!(server.requests().len(), 3, "none of them twice");
    assert_eq!(log.own(), [""; 0]);
}
