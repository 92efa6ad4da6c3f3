//! Malicious and slow HTTP clients do not affect the service.
#![cfg(feature = "http")]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use support::child::{self, Running};
use support::{exposition, http, measured};
use tracing_stage_metrics::{HTTP_REQUEST_TIMEOUT, MAX_HTTP_CONNECTIONS, MetricsLayer};

/// Ample time for an answer on a busy machine, and far below the request timeout.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Not a test: the service, in a process of its own, so that its file handles can be counted.
#[test]
fn scenarios() {
    let Some(_) = child::scenario() else { return };
    let builder = MetricsLayer::builder().with_http_listener("127.0.0.1:0".parse().unwrap());
    let measured = measured::measured(builder);
    println!("\nlistens on {}", measured.guard.listen_addr().unwrap());
    // Ends when the parent kills the process.
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
        let start = Instant::now();
        let answer = http::get(self.address, "/metrics").unwrap();
        assert!(start.elapsed() < ANSWER_TIMEOUT, "{:?}", start.elapsed());
        exposition::parse(&answer.body).expect("quant_stage_total", &[("stage_id", "a"), ("status", "success")])
    }

    fn handles(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    fn connect(&self, request: &[u8]) -> TcpStream {
        connect(self.address, request)
    }
}

fn connect(address: SocketAddr, request: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request).unwrap();
    stream
}

#[test]
fn open_connections_are_limited() {
    let service = service();
    let before = service.scrape();
    let handles = service.handles();
    let requests: [&[u8]; 4] = [b"", b"GET", b"GET /metrics HTTP/1.1\r\nHost: x\r\n", b"\x16\x03\x01 no http at all"];
    let connections: Vec<_> = (0..1_000).map(|n| service.connect(requests[n % requests.len()])).collect();
    assert!(service.scrape() > before, "the service keeps measuring stages");
    let used = service.handles().saturating_sub(handles);
    assert!(used <= MAX_HTTP_CONNECTIONS, "{used} file handles for {} connections", connections.len());
    drop(connections);
    service.scrape();
}

#[test]
fn thousand_concurrent_scrapes_are_answered() {
    let service = service();
    // The service completes requests that it has read; of the other connections it keeps the newest.
    let (request, address) = (b"GET /metrics HTTP/1.0\r\n\r\n", service.address);
    let answered = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..20)
            .map(|_| {
                scope.spawn(|| {
                    let is_complete = |mut stream: TcpStream| {
                        let mut answer = Vec::new();
                        stream.read_to_end(&mut answer).is_ok_and(|_| answer.starts_with(b"HTTP/1.0 200"))
                    };
                    (0..50).filter(|_| is_complete(connect(address, request))).count()
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).sum::<usize>()
    });
    assert_eq!(answered, 1_000);
}

#[test]
fn incomplete_request_times_out() {
    let service = service();
    let clients = [b"".as_slice(), b"GET /met"].map(|request| service.connect(request));
    let start = Instant::now();
    for mut client in clients {
        client.set_read_timeout(Some(HTTP_REQUEST_TIMEOUT + ANSWER_TIMEOUT)).unwrap();
        // The answer is an error, or empty.
        let mut answer = String::new();
        let ended = client.read_to_string(&mut answer);
        assert!(ended.is_ok(), "{ended:?} after {:?}", start.elapsed());
        assert!(!answer.contains("200"), "{answer}");
    }
    assert!(start.elapsed() > HTTP_REQUEST_TIMEOUT / 2, "{:?}", start.elapsed());
    assert!(start.elapsed() < HTTP_REQUEST_TIMEOUT + ANSWER_TIMEOUT, "{:?}", start.elapsed());
}

#[test]
fn endless_request_is_refused() {
    let service = service();
    let mut client = service.connect(b"GET /metrics HTTP/1.1\r\n");
    let header = format!("X: {}\r\n", "x".repeat(10_000));
    // The service refuses the request or resets the connection early.
    let sent = (0..1_000).take_while(|_| client.write_all(header.as_bytes()).is_ok()).count();
    assert!(sent < 1_000, "the service does not read ten megabytes of headers");
    service.scrape();
}

#[test]
fn pipelined_request_is_not_answered() {
    let service = service();
    let mut client =
        service.connect(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    assert!(answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
}
