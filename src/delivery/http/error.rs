//! Errors of requests: the cause, and whether another try can help.

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, LOCATION, RETRY_AFTER};
use reqwest::{Response, StatusCode};

use super::client::Proxy;
use super::resolver::LookupError;
use super::secrets::Secrets;
use super::tls::TlsSettings;
#[cfg(feature = "tls")]
use super::tls_error;
use super::url::Address;
use crate::error::{Error, Kind};
use crate::terminal::is_deceptive;

/// Bytes of a refusal's body that are read. More than an error shows: error pages of proxies are mostly white space.
const MAX_BODY_READ: usize = 64 * 1024;
/// Bytes of a refusal's body that an error shows.
const MAX_BODY_SHOWN: usize = 1024;
/// How long reading a refusal's body may take. The status is known by then; the body only explains it.
const BODY_TIMEOUT: Duration = Duration::from_secs(1);

/// The 400 that servers of TLS in Go answer to a request of plain HTTP.
const TLS_SERVER_TEXT: &str = "Client sent an HTTP request to an HTTPS server";
/// Parts of the pages that nginx and Apache answer.
const TLS_SERVER_PAGES: [&str; 2] = ["HTTP request was sent to HTTPS port", "speaking plain HTTP to an SSL-enabled"];

/// Parts of the page with 400 that nginx answers, over TLS, to a request without a client certificate or with one that it does
/// not accept.
const CLIENT_CERTIFICATE_TEXTS: [&str; 2] =
    ["400 No required SSL certificate was sent", "400 The SSL certificate error"];

/// The failure of a request.
#[derive(Debug)]
pub(in crate::delivery) struct RequestError {
    pub(in crate::delivery) error: Error,
    /// How long the server asks clients to wait (`Retry-After` of a 429 or 503).
    pub(in crate::delivery) retry_after: Option<Duration>,
    /// Whether the server may have acted on the request, or may still do so.
    pub(in crate::delivery) may_have_arrived: bool,
    /// The beginning of the body of a refusal, as the server sent it: it may contain secrets. Empty for other errors.
    pub(in crate::delivery) body: Vec<u8>,
}

impl From<Error> for RequestError {
    fn from(error: Error) -> Self {
        Self { error, retry_after: None, may_have_arrived: false, body: Vec::new() }
    }
}

impl From<RequestError> for Error {
    fn from(err: RequestError) -> Self {
        err.error
    }
}

impl RequestError {
    /// Returns the error of a request without a response. `request` names it, as in "POST http://gateway/metrics/job/x".
    pub(in crate::delivery) fn unanswered(
        request: &str,
        timeout: Duration,
        connect_timeout: Duration,
        tls: TlsSettings<'_>,
        error: reqwest::Error,
    ) -> Self {
        let proxy = error.url().and_then(|url| Proxy::from_env(&Address::from_url(url.clone())));
        let through = through(proxy.as_ref());
        // The host whose name is looked up and that connections go to.
        let host = proxy.map_or("its host".to_owned(), |proxy| format!("the proxy {}", proxy.url));
        let error = error.without_url();
        let tls_problem = tls_problem(&error, tls);
        // A server may refuse a client certificate only after the request is sent. It has not read the request then.
        let may_have_arrived = !error.is_connect() && !error.is_builder() && tls_problem.is_none();
        let (kind, cause) = if error.is_timeout() && error.is_connect() {
            (Kind::Timeout, format!("no connection{through} within {connect_timeout:?}"))
        } else if error.is_timeout() {
            (Kind::Timeout, format!("no answer{through} within {timeout:?}"))
        } else if has_cause(&error, |cause| cause.is::<LookupError>()) {
            (Kind::Delivery, format!("the name of {host} could not be looked up"))
        } else if error.is_dns() {
            (Kind::Unreachable, format!("the name of {host} is unknown"))
        } else if has_cause(&error, is_unreachable) {
            let there = if through.is_empty() { "there".to_owned() } else { format!("at {host}") };
            (Kind::Unreachable, format!("no server answers {there}"))
        } else if let Some(problem) = tls_problem {
            (Kind::Delivery, format!("could not connect{through}: {problem}"))
        } else if error.is_connect() {
            (Kind::Delivery, format!("could not connect{through}"))
        } else {
            (Kind::Delivery, format!("the connection{through} broke, or carried no HTTP"))
        };
        let error = Error::new(kind, format!("{request} failed: {cause}")).with_source(error);
        Self { error, retry_after: None, may_have_arrived, body: Vec::new() }
    }

    /// Returns the error of a request whose response was no success. `headers` are those of the request: the error
    /// shows none of their values.
    pub(in crate::delivery) async fn refused(
        request: &str,
        address: &Address,
        headers: &HeaderMap,
        tls: TlsSettings<'_>,
        response: Response,
    ) -> Self {
        let status = response.status();
        let retry_after = match status {
            // The other form of the header, a date, needs a clock that agrees with the server's.
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => header(&response, &RETRY_AFTER)
                .and_then(|seconds| seconds.trim().parse::<u32>().ok())
                .map(|seconds| Duration::from_secs(seconds.into())),
            _ => None,
        };
        let through = through(Proxy::from_env(&Address::from_url(response.url().clone())).as_ref());
        let mut text = format!("{request} was refused with {status}{through}");
        if let Some(location) = header(&response, &LOCATION).filter(|_| status.is_redirection()) {
            let target = sanitize(headers, address.redirect_target(location).as_bytes());
            text.push_str(&format!(
                ", a redirect to {target}: give the address it leads to, redirects are not followed"
            ));
        }
        if status == StatusCode::UNAUTHORIZED {
            text.push_str(&format!(": {}", what_to_check(headers)));
        }
        let is_http = response.url().scheme() == "http";
        let body = read_beginning(response).await;
        let shown = sanitize(headers, &body);
        if status == StatusCode::BAD_REQUEST
            && let Some(problem) = connection_problem(is_http, &shown, &through, tls)
        {
            // No refusal: the server has seen no metric.
            let error = Error::new(Kind::Delivery, format!("{request} failed: {problem}"));
            return error.with_source(io::Error::other(shown)).into();
        }
        if !shown.is_empty() {
            text.push_str(": ");
            text.push_str(&shown);
        }
        let error = Error::new(Kind::Refused(status.as_u16()), text);
        // A proxy that stopped waiting for the server.
        let may_have_arrived = matches!(status, StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT);
        Self { error, retry_after, may_have_arrived, body }
    }
}

/// Returns what the user can do about a 401 to a request with these headers.
fn what_to_check(headers: &HeaderMap) -> &'static str {
    match headers.get(AUTHORIZATION).map(|value| value.as_bytes()) {
        Some(value) if value.starts_with(b"Basic ") => "check the user and the password",
        Some(_) => "check the token",
        // A header of another name may have them.
        None => "it asks for credentials",
    }
}

fn header<'a>(response: &'a Response, name: &HeaderName) -> Option<&'a str> {
    std::str::from_utf8(response.headers().get(name)?.as_bytes()).ok()
}

/// Returns the part of an error text that names the proxy; empty without a proxy.
fn through(proxy: Option<&Proxy>) -> String {
    proxy.map_or_else(String::new, |proxy| format!(" through the proxy {}", proxy.url))
}

/// Returns what a 400 says of the connection: that of a server of TLS at an `http` address, or of nginx that asks for a client
/// certificate. A gateway may quote the same words from a refused metric.
#[cfg_attr(not(feature = "tls"), allow(unused_variables))]
fn connection_problem(is_http: bool, body: &str, through: &str, tls: TlsSettings<'_>) -> Option<String> {
    if is_http {
        let is_of_tls_server = body.starts_with(TLS_SERVER_TEXT) || is_page_with(body, &TLS_SERVER_PAGES);
        is_of_tls_server.then(|| format!("it speaks TLS{through}; is it https?"))
    } else {
        is_page_with(body, &CLIENT_CERTIFICATE_TEXTS).then(|| tls.about_the_client_certificate())
    }
}

/// Returns whether a body is a page, of a server in front of the gateway, that has one of these parts.
fn is_page_with(body: &str, parts: &[&str]) -> bool {
    body.starts_with('<') && parts.iter().any(|part| body.contains(part))
}

/// Returns what the user can do about a connection that TLS did not establish.
#[cfg_attr(not(feature = "tls"), allow(unused_variables))]
fn tls_problem(error: &reqwest::Error, settings: TlsSettings<'_>) -> Option<String> {
    #[cfg(feature = "tls")]
    return tls_error::find(error)
        // After the handshake, a server may still refuse the client certificate. Anything else broke the connection.
        .filter(|cause| error.is_connect() || matches!(cause, rustls::Error::AlertReceived(_)))
        .and_then(|cause| tls_error::explain(cause, settings));
    #[cfg(not(feature = "tls"))]
    None
}

fn has_cause(error: &reqwest::Error, is_wanted: impl Fn(&(dyn StdError + 'static)) -> bool) -> bool {
    std::iter::successors(error.source(), |&cause| cause.source()).any(is_wanted)
}

/// Returns whether no server listens at the other end, or no route leads there. An untrusted certificate ends a
/// connection as early, but a server is there.
fn is_unreachable(cause: &(dyn StdError + 'static)) -> bool {
    use io::ErrorKind::{AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable};
    cause.downcast_ref::<io::Error>().is_some_and(|error| {
        matches!(
            error.kind(),
            ConnectionRefused | HostUnreachable | NetworkUnreachable | NetworkDown | AddrNotAvailable
        )
    })
}

/// Reads the beginning of a body: at most [`MAX_BODY_READ`] bytes, as far as they arrive within [`BODY_TIMEOUT`].
async fn read_beginning(mut response: Response) -> Vec<u8> {
    let mut body = Vec::new();
    let read = async {
        while body.len() < MAX_BODY_READ {
            match response.chunk().await {
                Ok(Some(chunk)) => body.extend_from_slice(&chunk[..chunk.len().min(MAX_BODY_READ - body.len())]),
                Ok(None) | Err(_) => break,
            }
        }
    };
    // The part that arrived is of use, too.
    let _ = tokio::time::timeout(BODY_TIMEOUT, read).await;
    body
}

/// Returns a server's text in a form that an error can show: without the secrets in the headers of the request, on one
/// line, without control characters, cut to [`MAX_BODY_SHOWN`] bytes.
pub(in crate::delivery) fn sanitize(headers: &HeaderMap, text: &[u8]) -> String {
    one_line(&Secrets::from_headers(headers).redact(text))
}

fn one_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let words = text.split(|c: char| c.is_whitespace() || is_deceptive(c)).filter(|word| !word.is_empty());
    let mut line = String::new();
    for word in words {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        if line.len() > MAX_BODY_SHOWN {
            let end = (0..=MAX_BODY_SHOWN).rev().find(|&end| line.is_char_boundary(end));
            line.truncate(end.unwrap_or_default());
            line.push('…');
            break;
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_server_becomes_one_line() {
        assert_eq!(one_line(b""), "");
        assert_eq!(one_line(b" a\r\n\n  b\x1b[31m\0c\t"), "a b [31m c");
        assert_eq!(one_line("a\u{202e}b".as_bytes()), "a b");
        assert_eq!(one_line(b"\xff!"), "\u{fffd}!");
        let long = one_line("ä".repeat(2000).as_bytes());
        assert_eq!(long, format!("{}…", "ä".repeat(512)));
        let exact = "x".repeat(MAX_BODY_SHOWN);
        assert_eq!(one_line(exact.as_bytes()), exact);
    }

    /// Returns the error of a push whose response begins with `head`, over a real connection.
    async fn refusal(head: &str) -> RequestError {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gateway = crate::Pushgateway::new(listener.local_addr().unwrap().to_string(), "job").unwrap();
        let respond = async {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            assert_ne!(connection.read(&mut request).await.unwrap(), 0);
            connection.write_all(format!("HTTP/1.1 {head}\r\nContent-Length: 0\r\n\r\n").as_bytes()).await.unwrap();
        };
        let (result, ()) =
            tokio::join!(gateway.send(reqwest::Method::DELETE, crate::delivery::http::body::Body::plain("")), respond);
        result.unwrap_err()
    }

    #[tokio::test]
    async fn retry_after_of_429_and_503_is_kept() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(refusal("429 Too Many Requests\r\nRetry-After: 7").await.retry_after, seconds(7));
        assert_eq!(refusal("503 Service Unavailable\r\nretry-after:  120 ").await.retry_after, seconds(120));
        assert_eq!(refusal("503 Service Unavailable").await.retry_after, None);
        assert_eq!(refusal("503 X\r\nRetry-After: Wed, 21 Oct 2015 07:28:00 GMT").await.retry_after, None);
        assert_eq!(refusal("503 X\r\nRetry-After: -1").await.retry_after, None);
        assert_eq!(refusal("400 Bad Request\r\nRetry-After: 7").await.retry_after, None);
        let err = refusal("503 Service Unavailable").await;
        assert_eq!(err.error.kind(), Kind::Refused(503));
    }

    #[tokio::test]
    async fn request_without_an_authorization_is_asked_for_one() {
        let error = refusal("401 Unauthorized").await.error.to_string();
        assert!(error.ends_with(" was refused with 401 Unauthorized: it asks for credentials"), "{error}");
    }

    #[tokio::test]
    async fn refused_connection_is_unreachable() {
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let gateway = crate::Pushgateway::new(address.to_string(), "job").unwrap();
        let error = gateway.push_add("x 1\n").await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unreachable);
    }

    #[tokio::test]
    async fn request_may_have_arrived_once_connected() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gateway = crate::Pushgateway::new(listener.local_addr().unwrap().to_string(), "job").unwrap();
        let send = || gateway.send(reqwest::Method::DELETE, crate::delivery::http::body::Body::plain(""));
        let (result, connection) = tokio::join!(send(), async { listener.accept().await.map(drop) });
        connection.unwrap();
        assert!(result.unwrap_err().may_have_arrived);
        drop(listener);
        assert!(!send().await.unwrap_err().may_have_arrived);
    }
}
