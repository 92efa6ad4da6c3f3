//! The HTTP listener for scrapes: `/metrics`, and `/health` for liveness checks.
//!
//! It shares the delivery thread with the pushes, so a client must not delay that thread: a connection is for one
//! request and has a time limit. Beyond the limit of connections, the oldest one without a request is closed.

mod accept;
mod page;

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
use hyper::header::{ALLOW, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, VARY};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use self::accept::{Format, accepts_gzip, negotiate};
use self::page::MetricsPage;
use super::source::ExpositionSource;
use super::totals::CumulativeTotals;
use crate::error::{Error, Kind};

/// Limit of the open connections. Each uses a file handle of the application.
pub const MAX_HTTP_CONNECTIONS: usize = 64;

/// How long a client may take to send its request, and again to read the response: 10 seconds.
pub const HTTP_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the end of the process waits until a client has read its response.
const STOP_TIMEOUT: Duration = Duration::from_millis(500);

/// Pause after a failed accept. Without a free file handle, for instance, another try at once fails too.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// A bound port. Connections wait until it is served.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: StdListener,
    address: SocketAddr,
    /// Whether a client may ask for a format other than text.
    has_formats: bool,
}

impl Listener {
    /// Binds a port. `has_formats`: OpenMetrics and protobuf are served to clients that ask for them.
    ///
    /// # Errors
    ///
    /// A configuration error if the address cannot be bound.
    pub(crate) fn bind(address: SocketAddr, has_formats: bool) -> Result<Self, Error> {
        let bound = StdListener::bind(address).and_then(|socket| {
            socket.set_nonblocking(true)?;
            Ok(Self { address: socket.local_addr()?, socket, has_formats })
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
    pub(super) fn serve(
        self,
        source: Arc<dyn ExpositionSource>,
        totals: Option<Arc<CumulativeTotals>>,
    ) -> Result<Server, Error> {
        let failed = |error| Error::new(Kind::Delivery, "cannot serve the HTTP listener").with_source(error);
        let listener = TcpListener::from_std(self.socket).map_err(failed)?;
        let (stop, stopped) = oneshot::channel();
        let page = MetricsPage::new(source, totals, self.has_formats);
        Ok(Server { stop, task: tokio::spawn(serve(listener, page, stopped)) })
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

async fn serve(listener: TcpListener, page: MetricsPage, stopped: oneshot::Receiver<Instant>) {
    let page = Arc::new(page);
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
        "/metrics" => metrics(request.headers(), page).await,
        "/health" => text(StatusCode::OK, "OK\n"),
        _ => text(StatusCode::NOT_FOUND, "the metrics are at /metrics\n"),
    }
}

async fn metrics(headers: &HeaderMap, page: &MetricsPage) -> Response<Full<Bytes>> {
    let (format, vary) = match page.has_formats {
        true => (negotiate(headers), "Accept, Accept-Encoding"),
        false => (Format::Text, "Accept-Encoding"),
    };
    let body = match page.get(format, accepts_gzip(headers)).await {
        Ok(body) => body,
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    };
    let mut response = response(StatusCode::OK, format.content_type(), body.bytes);
    response.headers_mut().insert(VARY, HeaderValue::from_static(vary));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_in_use_is_a_configuration_error() {
        let first = Listener::bind("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let error = Listener::bind(first.address(), false).unwrap_err();
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
        let error = Listener::bind("192.0.2.1:0".parse().unwrap(), false).unwrap_err();
        assert!(error.is_config());
        assert!(error.to_string().contains("192.0.2.1:0: give an address of this machine"), "{error}");
    }
}
