//! Clients that mean no good, and those that are merely slow: the service goes on as if they were not there.
#![cfg(feature = "http")]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use support::child::{self, Running};
use support::{exposition, http, measured};
use tracing_stage_metrics::{HTTP_REQUEST_TIMEOUT, MAX_HTTP_CONNECTIONS, MetricsLayer};

/// Ample for an answer of a service that is well, on a busy machine; far below the time a client has.
const SOON: Duration = Duration::from_secs(2);

/// Not a test: the service, in a process of its own, whose file handles can be counted.
#[test]
fn scenarios() {
    let Some(_) = child::scenario() else { return };
    let builder = MetricsLayer::builder().with_http_listener("127.0.0.1:0".parse().unwrap());
    let measured = measured::measured(builder);
    println!("\nlistens on {}", measured.guard.listen_addr().unwrap());
    // Until it is killed.
    loop {
        measured::stage("a");
        std::thread::sleep(Duration::from_millis(1));
    }
}

struct Service {
    child: Running,
    address: SocketAddr,
}

fn service() -> Service {
    let mut child = child::start(child::command("scenarios", "service"));
    let line = child.await_line("listens on ");
    let address = line.strip_prefix("listens on ").unwrap().parse().unwrap();
    Service { child, address }
}

impl Service {
    fn scrape(&self) -> f64 {
        let begun = Instant::now();
        let answer = http::get(self.address, "/metrics").unwrap();
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
        exposition::parse(&answer.body).expect("quant_stage_total", &[("stage_id", "a"), ("status", "success")])
    }

    fn handles(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    fn connect(&self, says: &[u8]) -> TcpStream {
        connect(self.address, says)
    }
}

fn connect(to: SocketAddr, says: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.write_all(says).unwrap();
    stream
}

#[test]
fn a_thousand_connections_take_no_more_than_their_share() {
    let service = service();
    let before = service.scrape();
    let handles = service.handles();
    let says: [&[u8]; 4] = [b"", b"GET", b"GET /metrics HTTP/1.1\r\nHost: x\r\n", b"\x16\x03\x01 no http at all"];
    let flood: Vec<_> = (0..1_000).map(|n| service.connect(says[n % says.len()])).collect();
    assert!(service.scrape() > before, "the stages go on");
    let taken = service.handles().saturating_sub(handles);
    assert!(taken <= MAX_HTTP_CONNECTIONS, "{taken} of {} file handles", flood.len());
    drop(flood);
    service.scrape();
}

#[test]
fn a_thousand_scrapes_at_once_are_answered() {
    let service = service();
    // Those that have asked are let finish; of the others the newest stay.
    let (ask, address) = (b"GET /metrics HTTP/1.0\r\n\r\n", service.address);
    let answered = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..20)
            .map(|_| {
                scope.spawn(|| {
                    let whole = |mut stream: TcpStream| {
                        let mut answer = Vec::new();
                        stream.read_to_end(&mut answer).is_ok_and(|_| answer.starts_with(b"HTTP/1.0 200"))
                    };
                    (0..50).filter(|_| whole(connect(address, ask))).count()
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).sum::<usize>()
    });
    assert_eq!(answered, 1_000);
}

#[test]
fn a_client_that_does_not_finish_its_request_is_left_after_a_while() {
    let service = service();
    let clients = [b"".as_slice(), b"GET /met"].map(|says| service.connect(says));
    let begun = Instant::now();
    for mut client in clients {
        client.set_read_timeout(Some(HTTP_REQUEST_TIMEOUT + SOON)).unwrap();
        // An answer that says why, or none.
        let mut answer = String::new();
        let ended = client.read_to_string(&mut answer);
        assert!(ended.is_ok(), "{ended:?} after {:?}", begun.elapsed());
        assert!(!answer.contains("200"), "{answer}");
    }
    assert!(begun.elapsed() > HTTP_REQUEST_TIMEOUT / 2, "{:?}", begun.elapsed());
    assert!(begun.elapsed() < HTTP_REQUEST_TIMEOUT + SOON, "{:?}", begun.elapsed());
}

#[test]
fn a_request_without_end_is_refused() {
    let service = service();
    let mut client = service.connect(b"GET /metrics HTTP/1.1\r\n");
    let header = format!("X: {}\r\n", "x".repeat(10_000));
    // Refused, or reset, long before this is through.
    let sent = (0..1_000).take_while(|_| client.write_all(header.as_bytes()).is_ok()).count();
    assert!(sent < 1_000, "ten megabytes of head were taken");
    service.scrape();
}

#[test]
fn what_comes_after_the_request_is_no_second_one() {
    let service = service();
    let mut client =
        service.connect(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    assert!(answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
}
