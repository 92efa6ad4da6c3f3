//! A mock gateway that records every request, and answers, hangs, resets or trickles on demand.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{WAIT_TIMEOUT, http};

#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    pub method: String,
    /// The undecoded path, with the query if there is one.
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    /// The first header with this name, which is case-insensitive.
    pub fn header(&self, name: &str) -> Option<&str> {
        http::header(&self.headers, name)
    }

    /// The body as text. Panics if it is not UTF-8.
    #[track_caller]
    pub fn text(&self) -> &str {
        str::from_utf8(&self.body).expect("a body of text")
    }
}

/// The reaction to one request, after the gateway has read it completely and recorded it.
#[derive(Clone, Debug)]
pub enum Reply {
    Answer(Answer),
    /// The answer after [`MockGateway::release`]: the push stays in flight for as long as the test needs.
    Held(Answer),
    /// The answer byte by byte, with this pause after each.
    Trickled(Answer, Duration),
    /// No answer; the connection stays open.
    Silent,
    /// The connection ends in a reset.
    Reset,
    /// Status 200 and a body that never ends.
    Endless,
    /// These raw bytes, then the end of the connection.
    Raw(&'static str),
    /// These raw bytes and no more; the connection stays open.
    Stalled(&'static str),
}

/// Chooses the reply to a request.
type Choose = Box<dyn FnMut(&Request) -> Reply + Send>;

#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Reply {
    pub fn ok() -> Self {
        Self::status(200)
    }

    pub fn status(status: u16) -> Self {
        Self::Answer(Answer::new(status))
    }
}

impl Answer {
    pub fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: String::new() }
    }

    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    #[must_use]
    pub fn with_body(mut self, body: &str) -> Self {
        self.body = body.to_owned();
        self
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut text = format!("HTTP/1.1 {} Mock\r\nContent-Length: {}\r\n", self.status, self.body.len());
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        text.push_str(&self.body);
        text.into_bytes()
    }
}

/// A gateway on a free port. The drop ends its threads and panics if one of them has panicked, unless the test is
/// failing already. A thread panics on a request that is not HTTP.
pub struct MockGateway {
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<Vec<JoinHandle<()>>>>,
}

struct Shared {
    addr: SocketAddr,
    state: Mutex<State>,
    /// Notified of a new request, of the release of held answers, and of the end.
    changed: Condvar,
    stopping: AtomicBool,
}

struct State {
    choose: Choose,
    requests: Vec<Request>,
    released: bool,
    /// Shut down at the end, to unblock the threads that read or write.
    connections: Vec<TcpStream>,
}

impl MockGateway {
    /// Answers 200 to every request.
    pub fn ok() -> Self {
        Self::start([])
    }

    /// Answers the requests in turn with these replies, and all later ones with the last reply. Without replies it
    /// answers 200.
    pub fn start(replies: impl IntoIterator<Item = Reply>) -> Self {
        Self::start_with(in_turn(replies))
    }

    /// Answers each request with the reply that `choose` returns.
    pub fn start_with(choose: impl FnMut(&Request) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let shared = Arc::new(Shared {
            addr: listener.local_addr().expect("the address of the listener"),
            state: Mutex::new(State {
                choose: Box::new(choose),
                requests: Vec::new(),
                released: false,
                connections: Vec::new(),
            }),
            changed: Condvar::new(),
            stopping: AtomicBool::new(false),
        });
        let acceptor = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Self { shared, acceptor: Some(acceptor) }
    }

    pub fn addr(&self) -> SocketAddr {
        self.shared.addr
    }

    /// The base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr())
    }

    /// The requests so far, in the order in which they were complete.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.lock().requests.clone()
    }

    /// Releases the held answers and all later ones.
    pub fn release(&self) {
        self.shared.lock().released = true;
        self.shared.changed.notify_all();
    }

    /// Replaces the replies from the next request on.
    pub fn set_replies(&self, replies: impl IntoIterator<Item = Reply>) {
        self.shared.lock().choose = Box::new(in_turn(replies));
    }

    /// Waits for a request that matches, earlier requests included, and returns the first one. Panics with a list of
    /// the requests on a timeout.
    #[track_caller]
    pub fn await_request(&self, matches: impl Fn(&Request) -> bool) -> Request {
        match self.await_request_for(WAIT_TIMEOUT, matches) {
            Some(request) => request,
            None => panic!("no such request in {WAIT_TIMEOUT:?}; there were: {:#?}", self.summaries()),
        }
    }

    /// Waits for a request that matches, with a timeout of the caller's. A test that expects no request passes a short
    /// one.
    pub fn await_request_for(&self, timeout: Duration, matches: impl Fn(&Request) -> bool) -> Option<Request> {
        let state = self.shared.await_state(timeout, |state| state.requests.iter().any(&matches));
        state.requests.iter().find(|request| matches(request)).cloned()
    }

    /// Waits for this number of requests and returns all of them. Panics with a list of the requests on a timeout.
    #[track_caller]
    pub fn await_requests(&self, count: usize) -> Vec<Request> {
        let requests = self.shared.await_state(WAIT_TIMEOUT, |state| state.requests.len() >= count).requests.clone();
        assert!(requests.len() >= count, "not {count} requests in {WAIT_TIMEOUT:?}: {:#?}", self.summaries());
        requests
    }

    fn summaries(&self) -> Vec<String> {
        self.requests().iter().map(|r| format!("{} {} ({} bytes)", r.method, r.path, r.body.len())).collect()
    }
}

impl Drop for MockGateway {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Wakes the acceptor, which then accepts no more connections: after its end their list is complete.
        let _ = TcpStream::connect(self.addr());
        let Some(Ok(threads)) = self.acceptor.take().map(JoinHandle::join) else {
            assert!(std::thread::panicking(), "the mock gateway's acceptor panicked");
            return;
        };
        for connection in &self.shared.lock().connections {
            let _ = connection.shutdown(Shutdown::Both);
        }
        self.shared.changed.notify_all();
        let panicked = threads.into_iter().map(JoinHandle::join).filter(Result::is_err).count();
        assert!(panicked == 0 || std::thread::panicking(), "{panicked} of the mock gateway's threads panicked");
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    fn await_state(&self, timeout: Duration, reached: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let pending = |state: &mut State| !reached(state) && !self.stopping();
        self.changed.wait_timeout_while(self.lock(), timeout, pending).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Records the request and returns its reply.
    fn record(&self, request: Request) -> Reply {
        let mut state = self.lock();
        let reply = (state.choose)(&request);
        state.requests.push(request);
        drop(state);
        self.changed.notify_all();
        reply
    }
}

fn in_turn(replies: impl IntoIterator<Item = Reply>) -> impl FnMut(&Request) -> Reply + Send + 'static {
    let mut replies: VecDeque<Reply> = replies.into_iter().collect();
    move |_| match replies.len() {
        0 => Reply::ok(),
        1 => replies[0].clone(),
        _ => replies.pop_front().unwrap_or_else(Reply::ok),
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) -> Vec<JoinHandle<()>> {
    let mut threads = Vec::new();
    while let Ok((stream, _)) = listener.accept() {
        if shared.stopping() {
            break;
        }
        shared.lock().connections.push(stream.try_clone().expect("a second handle of the connection"));
        let shared = Arc::clone(shared);
        threads.push(std::thread::spawn(move || serve(&stream, &shared)));
    }
    threads
}

/// Serves the requests of one connection. I/O errors are no failure, since a client may close the connection at any
/// time.
fn serve(stream: &TcpStream, shared: &Shared) {
    let _closes = ClosesOnDrop(stream);
    let mut reader = BufReader::new(stream);
    while let Ok(Some(request)) = read_request(&mut reader) {
        let last = request.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let reply = shared.record(request);
        if matches!(reply, Reply::Reset) {
            reset(stream, shared);
            break;
        }
        match send(stream, shared, reply) {
            Ok(()) if !last && !shared.stopping() => {}
            _ => break,
        }
    }
}

/// Closes the connection when the thread ends. Dropping the thread's handle would not close it, since the list of
/// connections has another one.
struct ClosesOnDrop<'a>(&'a TcpStream);

impl Drop for ClosesOnDrop<'_> {
    fn drop(&mut self) {
        // A shutdown would send an orderly end before the reset that a linger time of zero requests.
        if !matches!(rustix::net::sockopt::socket_linger(self.0), Ok(Some(Duration::ZERO))) {
            let _ = self.0.shutdown(Shutdown::Both);
        }
    }
}

/// Makes the connection end in a reset, which the drop of its last handle sends: the thread's, after that of the list.
fn reset(stream: &TcpStream, shared: &Shared) {
    rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO)).expect("a connection that can be reset");
    let peer = stream.peer_addr().ok();
    shared.lock().connections.retain(|connection| connection.peer_addr().ok() != peer);
}

fn send(mut stream: &TcpStream, shared: &Shared, reply: Reply) -> io::Result<()> {
    match reply {
        Reply::Answer(answer) => stream.write_all(&answer.to_bytes()),
        Reply::Held(answer) => {
            drop(shared.await_state(Duration::MAX, |state| state.released));
            stream.write_all(&answer.to_bytes())
        }
        Reply::Trickled(answer, pause) => {
            stream.set_nodelay(true)?;
            for byte in answer.to_bytes() {
                stream.write_all(&[byte])?;
                // Only the end of the gateway shortens the pause.
                drop(shared.await_state(pause, |_| false));
                if shared.stopping() {
                    break;
                }
            }
            Ok(())
        }
        Reply::Silent => {
            // Reads until the client closes its end, or this gateway is dropped.
            while stream.read(&mut [0; 1024])? > 0 {}
            Err(io::ErrorKind::ConnectionAborted.into())
        }
        Reply::Reset => unreachable!("`serve` resets the connection"),
        Reply::Endless => {
            stream.write_all(b"HTTP/1.1 200 Mock\r\nConnection: close\r\n\r\n")?;
            loop {
                stream.write_all(&[b'x'; 4096])?;
            }
        }
        Reply::Stalled(bytes) => {
            stream.write_all(bytes.as_bytes())?;
            send(stream, shared, Reply::Silent)
        }
        Reply::Raw(bytes) => {
            stream.write_all(bytes.as_bytes())?;
            Err(io::ErrorKind::ConnectionAborted.into())
        }
    }
}

/// Reads the next request; `None` if the client closes the connection, between two requests or within one. Panics on
/// bytes that are not HTTP.
fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let Some(line) = read_line(reader)? else { return Ok(None) };
    let words: Vec<&str> = line.split(' ').collect();
    let [method, path, version] = words[..] else { panic!("not a request line: {line:?}") };
    assert!(matches!(version, "HTTP/1.1" | "HTTP/1.0"), "not an HTTP version: {line:?}");
    let (method, path) = (method.to_owned(), path.to_owned());

    let mut lines = Vec::new();
    loop {
        match read_line(reader)? {
            None => return Ok(None),
            Some(line) if line.is_empty() => break,
            Some(line) => lines.push(line),
        }
    }
    let headers = http::parse_headers(lines.iter().map(String::as_str)).unwrap_or_else(|err| panic!("{err}"));
    let mut body = Vec::new();
    if http::header(&headers, "transfer-encoding").is_some() {
        while let Some(size) = read_line(reader)? {
            let size = usize::from_str_radix(&size, 16).unwrap_or_else(|_| panic!("not the size of a chunk: {size:?}"));
            read_exactly(reader, size, &mut body)?;
            assert_eq!(read_line(reader)?.as_deref(), Some(""), "the end of a chunk");
            if size == 0 {
                break;
            }
        }
    } else if let Some(length) = http::header(&headers, "content-length") {
        let length = length.parse().unwrap_or_else(|_| panic!("bad Content-Length: {length:?}"));
        read_exactly(reader, length, &mut body)?;
    }
    Ok(Some(Request { method, path, headers, body }))
}

/// Reads a line without its CRLF; `None` at the end of the stream.
fn read_line(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    if reader.read_until(b'\n', &mut line)? == 0 || !line.ends_with(b"\n") {
        return Ok(None);
    }
    let line = String::from_utf8(line).expect("a head of text");
    let line = line.strip_suffix("\r\n").unwrap_or_else(|| panic!("a line without CRLF: {line:?}"));
    Ok(Some(line.to_owned()))
}

fn read_exactly(reader: &mut impl BufRead, count: usize, into: &mut Vec<u8>) -> io::Result<()> {
    let start = into.len();
    into.resize(start + count, 0);
    reader.read_exact(&mut into[start..])
}
