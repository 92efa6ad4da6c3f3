//! The listener for a Prometheus that scrapes: `/metrics`, and `/health` for whoever asks whether the process is there.
//!
//! It shares the delivery thread with the pushes, so nothing a client does may hold that up: each connection is for one
//! request, has a limited time, and of too many the oldest that has asked nothing yet is closed.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ACCEPT_ENCODING, ALLOW, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, VARY};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, oneshot};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::ExpositionSource;
use crate::delivery::http::body::Body;
use crate::error::{Error, Kind};

/// How many connections are open at once. Each takes a file handle of the application.
pub const MAX_HTTP_CONNECTIONS: usize = 64;

/// How long a client may take to send its request, and to take its answer.
pub const HTTP_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the end of the process waits for a client to take an answer that is on its way.
const STOP_TIME: Duration = Duration::from_millis(500);

/// The pause after a connection could not be accepted, for want of file handles perhaps: trying at once would not help.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a recorder of the application may take to render. Prometheus waits for 10 seconds by default.
const RENDER_TIME: Duration = Duration::from_secs(5);

/// How many times as long as it took to make the metrics' text no other one is made.
const PAUSE: u32 = 10;

/// And no longer than this, so that a recorder which does not return leaves the listener an answer for every client.
const MAX_PAUSE: Duration = Duration::from_secs(4);

/// The text format, in the version that [`crate::exposition`] speaks of.
const EXPOSITION: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// A port that is bound. Clients wait until it is served.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: StdListener,
    address: SocketAddr,
}

impl Listener {
    pub(crate) fn bind(address: SocketAddr) -> Result<Self, Error> {
        let bound = StdListener::bind(address).and_then(|socket| {
            socket.set_nonblocking(true)?;
            Ok(Self { address: socket.local_addr()?, socket })
        });
        bound.map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::AddrInUse => "the port is taken: choose another one, or 0 for any that is free",
                io::ErrorKind::PermissionDenied => "this process may not: choose a port above 1023",
                _ => "give an address of this machine, such as 127.0.0.1:9464",
            };
            Error::config(format!("cannot listen on {address}: {hint}")).with_source(error)
        })
    }

    /// With the port that was chosen where none was asked for.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Begins to serve, on the runtime this is called within.
    pub(crate) fn serve(self, source: Arc<dyn ExpositionSource>) -> Result<Server, Error> {
        let failed = |error| Error::new(Kind::Delivery, "cannot serve the HTTP listener").with_source(error);
        let listener = TcpListener::from_std(self.socket).map_err(failed)?;
        let (stop, stopped) = oneshot::channel();
        Ok(Server { stop, task: tokio::spawn(serve(listener, source, stopped)) })
    }
}

/// What is shown of the metrics. One that is asked for while another is made, or just after, waits: so rendering takes a
/// small part of the thread's time however many ask, and all who wait share one text.
struct Page {
    source: Arc<dyn ExpositionSource>,
    last: Mutex<Last>,
}

/// The text that was made last.
struct Last {
    /// Whoever came before this has what it came for.
    begun: Option<Instant>,
    /// Not before this is another one made.
    next: Instant,
    text: Result<Body, String>,
    /// Made when the first one asks who takes it.
    packed: Option<Body>,
}

impl Page {
    fn new(source: Arc<dyn ExpositionSource>) -> Self {
        let text = Ok(Body::plain(Bytes::new()));
        Self { source, last: Mutex::new(Last { begun: None, next: Instant::now(), text, packed: None }) }
    }

    /// The metrics of a moment that is not before the call.
    async fn show(&self, gzip: bool) -> Result<Body, String> {
        let asked = Instant::now();
        let mut last = self.last.lock().await;
        let mut begun = Instant::now();
        if last.begun.is_none_or(|made| made < asked) {
            sleep_until(last.next).await;
            begun = Instant::now();
            let rendered = Arc::clone(&self.source).exposition(begun + RENDER_TIME).await;
            let text = rendered.map(|families| Body::plain(families.to_text())).map_err(|error| error.to_string());
            *last = Last { begun: Some(begun), next: begun, text, packed: None };
        }
        let text = last.text.clone()?;
        let shown = match &last.packed {
            Some(packed) if gzip => packed.clone(),
            None if gzip => last.packed.insert(Body::compressed(text.bytes)).clone(),
            _ => text,
        };
        last.next = last.next.max(Instant::now() + (begun.elapsed() * PAUSE).min(MAX_PAUSE));
        Ok(shown)
    }
}

/// The listener at work.
pub(crate) struct Server {
    /// By when the last answers must be gone.
    stop: oneshot::Sender<Instant>,
    task: JoinHandle<()>,
}

impl Server {
    /// Frees the port and closes all connections, those that wait for an answer once they have it or the time is over.
    pub(crate) async fn stop(self, deadline: Instant) {
        let deadline = deadline.min(Instant::now() + STOP_TIME);
        if self.stop.send(deadline).is_ok() {
            // Ended by a panic it has freed everything too.
            let _ = self.task.await;
        }
    }
}

async fn serve(listener: TcpListener, source: Arc<dyn ExpositionSource>, stopped: oneshot::Receiver<Instant>) {
    let page = Arc::new(Page::new(source));
    let mut connections = Connections::default();
    let mut stopped = pin!(stopped);
    let deadline = loop {
        let accepted = poll_fn(|context| {
            if let Poll::Ready(stopped) = stopped.as_mut().poll(context) {
                return Poll::Ready(Err(stopped));
            }
            listener.poll_accept(context).map(Ok)
        });
        match accepted.await {
            Ok(Ok((stream, _))) => connections.add(stream, &page),
            Ok(Err(_)) => sleep(ACCEPT_PAUSE).await,
            Err(Ok(deadline)) => break deadline,
            // The thread has gone without a word: nobody waits.
            Err(Err(_)) => return,
        }
    };
    drop(listener);
    connections.end(deadline).await;
}

#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    /// The oldest first.
    open: VecDeque<Connection>,
}

struct Connection {
    task: AbortHandle,
    /// Its request is read.
    asked: Arc<AtomicBool>,
}

impl Connections {
    fn add(&mut self, stream: TcpStream, page: &Arc<Page>) {
        while self.tasks.try_join_next().is_some() {}
        self.open.retain(|connection| !connection.task.is_finished());
        if self.open.len() >= MAX_HTTP_CONNECTIONS {
            let silent = self.open.iter().position(|connection| !connection.asked.load(Ordering::Relaxed));
            // Where all of them wait for their answer the oldest is the slowest to take it.
            if let Some(oldest) = self.open.remove(silent.unwrap_or(0)) {
                oldest.task.abort();
            }
        }
        let asked = Arc::new(AtomicBool::new(false));
        let task = self.tasks.spawn(answer_one(stream, Arc::clone(page), Arc::clone(&asked)));
        self.open.push_back(Connection { task, asked });
    }

    async fn end(mut self, deadline: Instant) {
        for connection in self.open.iter().filter(|connection| !connection.asked.load(Ordering::Relaxed)) {
            connection.task.abort();
        }
        let all = async { while self.tasks.join_next().await.is_some() {} };
        // What is left is aborted when the tasks are dropped.
        let _ = timeout_at(deadline, all).await;
    }
}

/// A connection: one request, one answer.
async fn answer_one(stream: TcpStream, page: Arc<Page>, asked: Arc<AtomicBool>) {
    let service = service_fn(move |request: Request<Incoming>| {
        asked.store(true, Ordering::Relaxed);
        let page = Arc::clone(&page);
        async move { Ok::<_, Infallible>(answer(&request, &page).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HTTP_REQUEST_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // What goes wrong is the client's affair, which sees it.
    let _ = timeout(2 * HTTP_REQUEST_TIMEOUT, connection).await;
}

async fn answer(request: &Request<Incoming>, page: &Page) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "the metrics are read with GET\n");
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return answer;
    }
    match request.uri().path() {
        "/metrics" => match page.show(takes_gzip(request.headers())).await {
            Ok(body) => metrics(body),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        "/health" => text(StatusCode::OK, "OK\n"),
        _ => text(StatusCode::NOT_FOUND, "the metrics are at /metrics\n"),
    }
}

fn metrics(body: Body) -> Response<Full<Bytes>> {
    let mut answer = response(StatusCode::OK, EXPOSITION, body.bytes);
    answer.headers_mut().insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    if body.is_gzip {
        answer.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    answer
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    response(status, TEXT, text)
}

fn response(status: StatusCode, content_type: HeaderValue, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// Whether the client says that it takes gzip, by the rules of RFC 9110 as far as a scraper needs them.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let listed = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    listed.flat_map(|value| value.split(',')).any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let is_gzip = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        let weight = parts.find_map(|part| part.strip_prefix("q=")).and_then(|weight| weight.parse().ok());
        is_gzip && weight.unwrap_or(1.0_f32) > 0.0
    })
}

#[cfg(test)]
mod tests {
    use crate::delivery::scrape::*;

    #[test]
    fn gzip_is_taken_where_the_client_lists_it() {
        let takes = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(ACCEPT_ENCODING, HeaderValue::from_static(value));
            }
            takes_gzip(&headers)
        };
        for yes in [&["gzip"][..], &["deflate, GZIP;q=0.5"], &["br", "gzip"], &["gzip; q=1"]] {
            assert!(takes(yes), "{yes:?}");
        }
        for no in [&[][..], &["identity"], &["gzip;q=0"], &["gzip ; q=0.000"], &["x-gzip"], &["*"]] {
            assert!(!takes(no), "{no:?}");
        }
    }

    #[test]
    fn a_port_that_is_taken_is_a_configuration_error() {
        let first = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let error = Listener::bind(first.address()).unwrap_err();
        assert!(error.is_config());
        assert_eq!(
            error.to_string(),
            format!(
                "cannot listen on {}: the port is taken: choose another one, or 0 for any that is free",
                first.address()
            )
        );
    }

    #[test]
    fn an_address_of_another_machine_is_a_configuration_error() {
        let error = Listener::bind("192.0.2.1:0".parse().unwrap()).unwrap_err();
        assert!(error.is_config());
        assert!(error.to_string().contains("192.0.2.1:0: give an address of this machine"), "{error}");
    }
}
