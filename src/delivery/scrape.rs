//! The HTTP listener for scrapes: `/metrics`, and `/health` for liveness checks.
//!
//! It shares the delivery thread with the pushes, so a client must not delay that thread: a connection is for one
//! request and has a time limit. Beyond the limit of connections, the oldest one without a request is closed.

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

use super::http::body::Body;
use super::source::ExpositionSource;
use crate::error::{Error, Kind};

/// Limit of the open connections. Each uses a file handle of the application.
pub const MAX_HTTP_CONNECTIONS: usize = 64;

/// How long a client may take to send its request, and again to read the response: 10 seconds.
pub const HTTP_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the end of the process waits until a client has read its response.
const STOP_TIMEOUT: Duration = Duration::from_millis(500);

/// Pause after a failed accept. Without a free file handle, for instance, another try at once fails too.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a recorder of the application may take to render. Prometheus waits for 10 seconds by default.
const RENDER_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause between two renderings, as a multiple of the time that the last one took.
const PAUSE_FACTOR: u32 = 10;

/// Longest pause between two renderings, so that every client gets a response in time even if a recorder does not return.
const MAX_PAUSE: Duration = Duration::from_secs(4);

/// The content type of the text format.
const EXPOSITION: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// A bound port. Connections wait until it is served.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: StdListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds a port.
    ///
    /// # Errors
    ///
    /// A configuration error if the address cannot be bound.
    pub(crate) fn bind(address: SocketAddr) -> Result<Self, Error> {
        let bound = StdListener::bind(address).and_then(|socket| {
            socket.set_nonblocking(true)?;
            Ok(Self { address: socket.local_addr()?, socket })
        });
        bound.map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::AddrInUse => "the port is taken: choose another one, or 0 for any that is free",
                io::ErrorKind::PermissionDenied => "this process lacks the permission: choose a port above 1023",
                _ => "give an address of this machine, such as 127.0.0.1:9464",
            };
            Error::config(format!("cannot listen on {address}: {hint}")).with_source(error)
        })
    }

    /// Returns the address, with the port that the system chose for port 0.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts to serve on the current runtime.
    pub(super) fn serve(self, source: Arc<dyn ExpositionSource>) -> Result<Server, Error> {
        let failed = |error| Error::new(Kind::Delivery, "cannot serve the HTTP listener").with_source(error);
        let listener = TcpListener::from_std(self.socket).map_err(failed)?;
        let (stop, stopped) = oneshot::channel();
        Ok(Server { stop, task: tokio::spawn(serve(listener, source, stopped)) })
    }
}

/// The text of the metrics. A request during a rendering, or shortly after one, waits for the next text, which all
/// waiting requests share. So rendering takes a small part of the thread's time, whatever the number of requests.
struct MetricsPage {
    source: Arc<dyn ExpositionSource>,
    last: Mutex<Rendered>,
}

/// The last rendering.
struct Rendered {
    /// Start of the rendering. The text serves requests that came before.
    start: Option<Instant>,
    /// Earliest start of the next rendering.
    next: Instant,
    text: Result<Body, String>,
    /// The compressed text, made for the first request that accepts it.
    compressed: Option<Body>,
}

impl MetricsPage {
    fn new(source: Arc<dyn ExpositionSource>) -> Self {
        let text = Ok(Body::plain(Bytes::new()));
        Self { source, last: Mutex::new(Rendered { start: None, next: Instant::now(), text, compressed: None }) }
    }

    /// Returns a text that was rendered after the call.
    async fn get(&self, gzip: bool) -> Result<Body, String> {
        let requested = Instant::now();
        let mut last = self.last.lock().await;
        let mut start = Instant::now();
        if last.start.is_none_or(|start| start < requested) {
            sleep_until(last.next).await;
            start = Instant::now();
            let rendered = Arc::clone(&self.source).exposition(start + RENDER_TIMEOUT).await;
            let text = rendered.map(|families| Body::plain(families.to_text())).map_err(|error| error.to_string());
            *last = Rendered { start: Some(start), next: start, text, compressed: None };
        }
        let text = last.text.clone()?;
        let body = match &last.compressed {
            Some(compressed) if gzip => compressed.clone(),
            None if gzip => last.compressed.insert(Body::compressed(text.bytes)).clone(),
            _ => text,
        };
        last.next = last.next.max(Instant::now() + (start.elapsed() * PAUSE_FACTOR).min(MAX_PAUSE));
        Ok(body)
    }
}

/// A listener that serves.
pub(super) struct Server {
    /// Carries the deadline of the last responses.
    stop: oneshot::Sender<Instant>,
    task: JoinHandle<()>,
}

impl Server {
    /// Frees the port and closes all connections. A connection with a request gets its response first, within the
    /// deadline.
    pub(super) async fn stop(self, deadline: Instant) {
        let deadline = deadline.min(Instant::now() + STOP_TIMEOUT);
        if self.stop.send(deadline).is_ok() {
            // A task that panicked has freed everything too.
            let _ = self.task.await;
        }
    }
}

async fn serve(listener: TcpListener, source: Arc<dyn ExpositionSource>, stopped: oneshot::Receiver<Instant>) {
    let page = Arc::new(MetricsPage::new(source));
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
            // The thread has ended without a stop: no process waits for the responses.
            Err(Err(_)) => return,
        }
    };
    drop(listener);
    connections.end(deadline).await;
}

#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    /// Oldest first.
    open: VecDeque<Connection>,
}

struct Connection {
    task: AbortHandle,
    /// Whether its request has been read.
    has_request: Arc<AtomicBool>,
}

impl Connections {
    /// Serves a connection. At the limit it closes another one.
    fn add(&mut self, stream: TcpStream, page: &Arc<MetricsPage>) {
        while self.tasks.try_join_next().is_some() {}
        self.open.retain(|connection| !connection.task.is_finished());
        if self.open.len() >= MAX_HTTP_CONNECTIONS {
            let idle = self.open.iter().position(|connection| !connection.has_request.load(Ordering::Relaxed));
            // If all connections have a request, the oldest client reads most slowly.
            if let Some(oldest) = self.open.remove(idle.unwrap_or(0)) {
                oldest.task.abort();
            }
        }
        let has_request = Arc::new(AtomicBool::new(false));
        let task = self.tasks.spawn(serve_connection(stream, Arc::clone(page), Arc::clone(&has_request)));
        self.open.push_back(Connection { task, has_request });
    }

    /// Closes the connections without a request, and waits for the others until the deadline.
    async fn end(mut self, deadline: Instant) {
        for connection in self.open.iter().filter(|connection| !connection.has_request.load(Ordering::Relaxed)) {
            connection.task.abort();
        }
        let all = async { while self.tasks.join_next().await.is_some() {} };
        // Dropping the set aborts the remaining tasks.
        let _ = timeout_at(deadline, all).await;
    }
}

/// Serves the one request of a connection.
async fn serve_connection(stream: TcpStream, page: Arc<MetricsPage>, has_request: Arc<AtomicBool>) {
    let service = service_fn(move |request: Request<Incoming>| {
        has_request.store(true, Ordering::Relaxed);
        let page = Arc::clone(&page);
        async move { Ok::<_, Infallible>(respond(&request, &page).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HTTP_REQUEST_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // The client sees an error of its connection.
    let _ = timeout(2 * HTTP_REQUEST_TIMEOUT, connection).await;
}

async fn respond(request: &Request<Incoming>, page: &MetricsPage) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "the metrics are read with GET\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/metrics" => match page.get(accepts_gzip(request.headers())).await {
            Ok(body) => metrics(body),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        "/health" => text(StatusCode::OK, "OK\n"),
        _ => text(StatusCode::NOT_FOUND, "the metrics are at /metrics\n"),
    }
}

fn metrics(body: Body) -> Response<Full<Bytes>> {
    let mut response = response(StatusCode::OK, EXPOSITION, body.bytes);
    response.headers_mut().insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    if body.is_gzip {
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
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

/// Returns whether the client accepts gzip, by the rules of RFC 9110 that scrapers use.
fn accepts_gzip(headers: &HeaderMap) -> bool {
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
    use super::*;

    #[test]
    fn gzip_is_used_if_the_client_accepts_it() {
        let accepts = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(ACCEPT_ENCODING, HeaderValue::from_static(value));
            }
            accepts_gzip(&headers)
        };
        for yes in [&["gzip"][..], &["deflate, GZIP;q=0.5"], &["br", "gzip"], &["gzip; q=1"]] {
            assert!(accepts(yes), "{yes:?}");
        }
        for no in [&[][..], &["identity"], &["gzip;q=0"], &["gzip ; q=0.000"], &["x-gzip"], &["*"]] {
            assert!(!accepts(no), "{no:?}");
        }
    }

    #[test]
    fn port_in_use_is_a_configuration_error() {
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
    fn address_of_another_machine_is_a_configuration_error() {
        let error = Listener::bind("192.0.2.1:0".parse().unwrap()).unwrap_err();
        assert!(error.is_config());
        assert!(error.to_string().contains("192.0.2.1:0: give an address of this machine"), "{error}");
    }
}
