use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::panic_of;
use super::support::mock_gateway::Answer;
use super::support::{MockGateway, Reply, http};

/// Long enough to show that no event comes.
const SHORT: Duration = Duration::from_millis(100);

fn connect(gateway: &MockGateway) -> TcpStream {
    let stream = TcpStream::connect(gateway.addr()).unwrap();
    stream.set_read_timeout(Some(SHORT)).unwrap();
    stream
}

fn push(stream: &mut TcpStream) {
    stream.write_all(b"PUT /metrics/job/j HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\na 1\n").unwrap();
}

/// Reads until the end of the answer, or until a read times out.
fn read_all(stream: &mut TcpStream) -> (String, Option<ErrorKind>) {
    let mut bytes = Vec::new();
    let end = stream.read_to_end(&mut bytes).err().map(|err| err.kind());
    (String::from_utf8(bytes).unwrap(), end)
}

#[test]
fn requests_are_recorded_and_answered() {
    let gateway = MockGateway::ok();
    let response =
        http::request(gateway.addr(), "POST", "/metrics/job/j%20k?q=1", &[("X-Of", "a: b")], b"a 1\n").unwrap();
    assert_eq!((response.status, response.body.as_str()), (200, ""));
    let request = gateway.await_request(|request| request.method == "POST");
    assert_eq!((request.path.as_str(), request.text()), ("/metrics/job/j%20k?q=1", "a 1\n"));
    assert_eq!((request.header("x-of"), request.header("x-no")), (Some("a: b"), None));
    assert_eq!(gateway.requests(), [request]);
}

#[test]
fn replies_are_used_in_turn_and_the_last_one_repeats() {
    let refusal = Answer::new(400).with_header("X-Why", "because").with_body("duplicate series");
    let gateway = MockGateway::start([Reply::Answer(refusal), Reply::status(503), Reply::status(202)]);
    let ask = || http::get(gateway.addr(), "/").unwrap();
    let first = ask();
    assert_eq!((first.status, first.header("x-why"), first.body.as_str()), (400, Some("because"), "duplicate series"));
    assert_eq!([ask().status, ask().status, ask().status], [503, 202, 202]);
    gateway.set_replies([]);
    assert_eq!(ask().status, 200);
    assert_eq!(gateway.await_requests(5).len(), 5);
}

#[test]
fn reply_can_depend_on_the_request() {
    let gateway = MockGateway::start_with(|request| Reply::status(if request.path == "/a" { 404 } else { 202 }));
    let ask = |path| http::get(gateway.addr(), path).unwrap().status;
    assert_eq!([ask("/a"), ask("/b"), ask("/a")], [404, 202, 404]);
}

#[test]
fn raw_reply_sends_its_bytes_and_closes() {
    let gateway = MockGateway::start([Reply::Raw("SSH-2.0-x\r\n")]);
    let mut stream = connect(&gateway);
    push(&mut stream);
    assert_eq!(read_all(&mut stream), ("SSH-2.0-x\r\n".to_owned(), None), "the connection ends after the bytes");
}

#[test]
fn connection_serves_several_requests_and_chunks() {
    let gateway = MockGateway::ok();
    let mut stream = connect(&gateway);
    push(&mut stream);
    stream.write_all(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n").unwrap();
    let requests = gateway.await_requests(2);
    assert_eq!([requests[0].text(), requests[1].text()], ["a 1\n", "abcde"]);
}

#[test]
fn silent_reply_keeps_the_connection_open() {
    let gateway = MockGateway::start([Reply::Silent]);
    let mut stream = connect(&gateway);
    push(&mut stream);
    gateway.await_requests(1);
    assert_eq!(read_all(&mut stream), (String::new(), Some(ErrorKind::WouldBlock)));
}

#[test]
fn reset_reply_resets_the_connection() {
    let gateway = MockGateway::start([Reply::Reset, Reply::ok()]);
    let mut stream = connect(&gateway);
    push(&mut stream);
    assert_eq!(read_all(&mut stream), (String::new(), Some(ErrorKind::ConnectionReset)));
    assert_eq!(gateway.requests().len(), 1);
    assert_eq!(http::get(gateway.addr(), "/").unwrap().status, 200, "the next connection gets the next reply");
}

#[test]
fn held_answer_waits_for_the_release() {
    let gateway = MockGateway::start([Reply::Held(Answer::new(200))]);
    let mut stream = connect(&gateway);
    push(&mut stream);
    gateway.await_requests(1);
    assert_eq!(read_all(&mut stream), (String::new(), Some(ErrorKind::WouldBlock)));
    gateway.release();
    stream.set_read_timeout(Some(super::support::WAIT_TIMEOUT)).unwrap();
    let mut start = [0; 12];
    stream.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.1 200");
}

#[test]
fn trickled_answer_arrives_in_pieces() {
    let gateway = MockGateway::start([Reply::Trickled(Answer::new(200), Duration::from_millis(2))]);
    let mut stream = connect(&gateway);
    push(&mut stream);
    let mut buffer = [0; 64];
    let first = stream.read(&mut buffer).unwrap();
    assert!(first < 10, "{first} bytes came at once");
    let (rest, _) = read_all(&mut stream);
    assert!(rest.ends_with("\r\n\r\n"), "{rest:?}");
}

#[test]
fn endless_body_does_not_end() {
    const ENOUGH: u64 = 1 << 20;
    let gateway = MockGateway::start([Reply::Endless]);
    let mut stream = connect(&gateway);
    stream.set_read_timeout(Some(super::support::WAIT_TIMEOUT)).unwrap();
    push(&mut stream);
    assert_eq!(io::copy(&mut (&mut stream).take(ENOUGH), &mut io::sink()).unwrap(), ENOUGH);
    // The test includes the drop of the gateway while its writer is blocked.
}

#[test]
fn incomplete_request_is_no_failure_and_no_request() {
    let gateway = MockGateway::ok();
    let mut stream = connect(&gateway);
    stream.write_all(b"PUT / HTTP/1.1\r\nContent-Length: 10\r\n\r\nhalf").unwrap();
    drop(stream);
    drop(connect(&gateway));
    assert_eq!(http::get(gateway.addr(), "/after").unwrap().status, 200);
    assert_eq!(gateway.requests().len(), 1);
}

#[test]
fn request_that_is_not_http_fails_the_test() {
    for garbage in ["hello\r\n", "GET /\r\n\r\n", "GET / HTTP/1.1\n\n", "GET / HTTP/1.1\r\nnonsense\r\n\r\n"] {
        let gateway = MockGateway::ok();
        let mut stream = connect(&gateway);
        stream.set_read_timeout(Some(super::support::WAIT_TIMEOUT)).unwrap();
        stream.write_all(garbage.as_bytes()).unwrap();
        // The thread of the gateway has panicked once it closes the connection.
        assert_eq!(read_all(&mut stream).0, "");
        let message = panic_of(|| drop(gateway));
        assert!(message.contains("threads panicked"), "{garbage:?}: {message}");
    }
}

#[test]
fn await_request_for_returns_none_on_a_timeout() {
    let gateway = MockGateway::ok();
    http::get(gateway.addr(), "/").unwrap();
    assert!(gateway.await_request_for(SHORT, |request| request.method == "DELETE").is_none());
    assert!(gateway.await_request_for(SHORT, |request| request.method == "GET").is_some());
}
