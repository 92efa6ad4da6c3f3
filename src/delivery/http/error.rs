//! What a request that was no success tells: why, and whether trying again can help.

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, LOCATION, RETRY_AFTER};
use reqwest::{Response, StatusCode};

use crate::delivery::http::client::Proxy;
use crate::delivery::http::resolver::LookupError;
use crate::delivery::http::secrets::Secrets;
use crate::delivery::http::url::Address;
use crate::delivery::pushgateway::conflict::SeriesConflict;
use crate::error::{Error, Kind};

/// What is read of the body of a refusal. Error pages of proxies are mostly white space, so more than is shown.
const MAX_BODY_READ: usize = 64 * 1024;
/// What is shown of it.
const MAX_BODY_SHOWN: usize = 1024;
/// How long a refusal's body is waited for: the refusal is known, its body a courtesy.
const BODY_WAIT: Duration = Duration::from_secs(1);

/// A request that was no success.
#[derive(Debug)]
pub(crate) struct RequestError {
    pub(crate) error: Error,
    /// How long the gateway asks to be left alone (`Retry-After` of a 429 or 503).
    pub(crate) retry_after: Option<Duration>,
    /// Whether the server may have acted on the request all the same, or may still do so.
    pub(crate) may_have_arrived: bool,
}

impl From<Error> for RequestError {
    fn from(error: Error) -> Self {
        Self { error, retry_after: None, may_have_arrived: false }
    }
}

impl From<RequestError> for Error {
    fn from(failure: RequestError) -> Self {
        failure.error
    }
}

impl RequestError {
    /// There was no answer to `request`, which is named as in "POST http://gateway/metrics/job/x".
    pub(crate) fn unanswered(
        request: &str,
        timeout: Duration,
        connect_timeout: Duration,
        error: reqwest::Error,
    ) -> Self {
        let proxy = error.url().and_then(|url| Proxy::of(&Address::of(url.clone())));
        let through = through(proxy.as_ref());
        // The host whose name is looked up, and to which connections go.
        let host = proxy.map_or("its host".to_owned(), |proxy| format!("the proxy {}", proxy.url));
        let error = error.without_url();
        let may_have_arrived = !error.is_connect() && !error.is_builder();
        let (kind, what) = if error.is_timeout() && error.is_connect() {
            (Kind::Timeout, format!("no connection{through} within {connect_timeout:?}"))
        } else if error.is_timeout() {
            (Kind::Timeout, format!("no answer{through} within {timeout:?}"))
        } else if has_cause(&error, |cause| cause.is::<LookupError>()) {
            (Kind::Delivery, format!("the name of {host} could not be looked up"))
        } else if error.is_dns() {
            (Kind::Unreachable, format!("the name of {host} is unknown"))
        } else if has_cause(&error, is_unreachable) {
            let there = if through.is_empty() { "there".to_owned() } else { format!("at {host}") };
            (Kind::Unreachable, format!("nobody answers {there}"))
        } else if error.is_connect() {
            (Kind::Delivery, format!("could not connect{through}"))
        } else {
            (Kind::Delivery, format!("the connection{through} broke, or carried no HTTP"))
        };
        let error = Error::new(kind, format!("{request} failed: {what}")).with_source(error);
        Self { error, retry_after: None, may_have_arrived }
    }

    /// The answer to `request` was other than a success. `headers` are those of the request: nothing of their values is
    /// shown.
    pub(crate) async fn refused(request: &str, address: &Address, headers: &HeaderMap, response: Response) -> Self {
        let status = response.status();
        let retry_after = match status {
            // Its other form, a date, needs a clock that agrees with the gateway's.
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => header(&response, &RETRY_AFTER)
                .and_then(|seconds| seconds.trim().parse::<u32>().ok())
                .map(|seconds| Duration::from_secs(seconds.into())),
            _ => None,
        };
        let through = through(Proxy::of(&Address::of(response.url().clone())).as_ref());
        let mut text = format!("{request} was refused with {status}{through}");
        if let Some(location) = header(&response, &LOCATION).filter(|_| status.is_redirection()) {
            let target = foreign_text(headers, address.redirect_target(location).as_bytes());
            text.push_str(&format!(
                ", a redirect to {target}: give the address it leads to, redirects are not followed"
            ));
        }
        let body = read_beginning(response).await;
        let shown = foreign_text(headers, &body);
        if !shown.is_empty() {
            text.push_str(": ");
            text.push_str(&shown);
        }
        let mut error = Error::new(Kind::Refused(status.as_u16()), text);
        if let Some(conflict) = SeriesConflict::find(status, &body) {
            error = error.with_source(conflict);
        }
        // A proxy that gave up on the gateway.
        let may_have_arrived = matches!(status, StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT);
        Self { error, retry_after, may_have_arrived }
    }
}

fn header<'a>(response: &'a Response, name: &HeaderName) -> Option<&'a str> {
    std::str::from_utf8(response.headers().get(name)?.as_bytes()).ok()
}

/// Names the proxy that a request goes through, after what happened to the request.
fn through(proxy: Option<&Proxy>) -> String {
    proxy.map_or_else(String::new, |proxy| format!(" through the proxy {}", proxy.url))
}

fn has_cause(error: &reqwest::Error, is_wanted: impl Fn(&(dyn StdError + 'static)) -> bool) -> bool {
    std::iter::successors(error.source(), |&cause| cause.source()).any(is_wanted)
}

/// Whether nobody listens at the other end, or there is no way there. A certificate that is not trusted breaks a
/// connection just as early, but then somebody does.
fn is_unreachable(cause: &(dyn StdError + 'static)) -> bool {
    use io::ErrorKind::{AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable};
    cause.downcast_ref::<io::Error>().is_some_and(|error| {
        matches!(
            error.kind(),
            ConnectionRefused | HostUnreachable | NetworkUnreachable | NetworkDown | AddrNotAvailable
        )
    })
}

/// The beginning of a body: at most [`MAX_BODY_READ`] bytes, and what came within [`BODY_WAIT`].
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
    // Too late or broken off, what there is still says why.
    let _ = tokio::time::timeout(BODY_WAIT, read).await;
    body
}

/// Text from outside, fit for a message: without what is secret in the headers of the request, on one line, without control
/// characters, cut to [`MAX_BODY_SHOWN`] bytes.
pub(crate) fn foreign_text(headers: &HeaderMap, text: &[u8]) -> String {
    one_line(&Secrets::of(headers).redact(text))
}

fn one_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
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
    use crate::delivery::http::error::*;

    #[test]
    fn foreign_text_is_made_fit_for_a_message() {
        assert_eq!(one_line(b""), "");
        assert_eq!(one_line(b" a\r\n\n  b\x1b[31m\0c\t"), "a b [31m c");
        assert_eq!(one_line(b"\xff!"), "\u{fffd}!");
        let long = one_line("ä".repeat(2000).as_bytes());
        assert_eq!(long, format!("{}…", "ä".repeat(512)));
        let exact = "x".repeat(MAX_BODY_SHOWN);
        assert_eq!(one_line(exact.as_bytes()), exact);
    }

    /// The failure of a push that is answered with `head`, over a real connection.
    async fn failure(head: &str) -> RequestError {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gateway = crate::Pushgateway::new(listener.local_addr().unwrap().to_string(), "job").unwrap();
        let answer = async {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            assert_ne!(connection.read(&mut request).await.unwrap(), 0);
            connection.write_all(format!("HTTP/1.1 {head}\r\nContent-Length: 0\r\n\r\n").as_bytes()).await.unwrap();
        };
        let (result, ()) =
            tokio::join!(gateway.send(reqwest::Method::DELETE, crate::delivery::http::body::Body::plain("")), answer);
        result.unwrap_err()
    }

    #[tokio::test]
    async fn a_gateway_that_asks_for_time_gets_it() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(failure("429 Too Many Requests\r\nRetry-After: 7").await.retry_after, seconds(7));
        assert_eq!(failure("503 Service Unavailable\r\nretry-after:  120 ").await.retry_after, seconds(120));
        assert_eq!(failure("503 Service Unavailable").await.retry_after, None);
        assert_eq!(failure("503 X\r\nRetry-After: Wed, 21 Oct 2015 07:28:00 GMT").await.retry_after, None);
        assert_eq!(failure("503 X\r\nRetry-After: -1").await.retry_after, None);
        assert_eq!(failure("400 Bad Request\r\nRetry-After: 7").await.retry_after, None);
        let failure = failure("503 Service Unavailable").await;
        assert_eq!(failure.error.kind(), Kind::Refused(503));
    }

    #[tokio::test]
    async fn nobody_there_is_a_kind_of_its_own() {
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let gateway = crate::Pushgateway::new(address.to_string(), "job").unwrap();
        let error = gateway.push_add("x 1\n").await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unreachable);
    }
}
