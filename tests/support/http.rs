//! A small blocking HTTP client: one request per connection, with HTTP/1.0, so that no response is chunked. The tests
//! do not depend on the client library of the crate.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// The timeout of a connect, of a read and of a write.
const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Response {
    /// The first header with this name, which is case-insensitive.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }
}

pub fn get(addr: SocketAddr, path: &str) -> io::Result<Response> {
    request(addr, "GET", path, &[], b"")
}

pub fn request(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Response> {
    let answer = exchange(addr, method, path, headers, body)?;
    parse(&answer).map_err(|err| io::Error::new(io::ErrorKind::InvalidData, err))
}

/// Sends a request and returns the whole response as it is.
pub fn exchange(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&addr, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;

    let mut head = format!("{method} {path} HTTP/1.0\r\nHost: {addr}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;

    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// Percent-encodes a text for a query: every byte but the unreserved characters.
pub fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// The first header with this name, which is case-insensitive.
pub fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// Parses the header lines of a message.
pub fn parse_headers<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Vec<(String, String)>, String> {
    lines
        .map(|line| {
            let (name, value) = line.split_once(':').ok_or_else(|| format!("not a header: {line:?}"))?;
            if name.is_empty() || name.contains(char::is_whitespace) {
                return Err(format!("not a header name: {name:?}"));
            }
            Ok((name.to_owned(), value.trim().to_owned()))
        })
        .collect()
}

/// Parses a complete response.
pub fn parse(answer: &[u8]) -> Result<Response, String> {
    let answer = str::from_utf8(answer).map_err(|err| format!("the answer is not UTF-8: {err}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("the head has no end: {answer:?}"))?;
    let mut lines = head.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let mut words = status_line.split(' ');
    if !words.next().is_some_and(|version| version.starts_with("HTTP/1.")) {
        return Err(format!("not a status line: {status_line:?}"));
    }
    let status =
        words.next().and_then(|code| code.parse().ok()).ok_or_else(|| format!("not a status: {status_line:?}"))?;
    let headers = parse_headers(lines)?;

    if let Some(encoding) = header(&headers, "transfer-encoding") {
        return Err(format!("an answer to HTTP/1.0 with Transfer-Encoding: {encoding}"));
    }
    if let Some(length) = header(&headers, "content-length") {
        let length: usize = length.parse().map_err(|_| format!("bad Content-Length: {length:?}"))?;
        if length != body.len() {
            return Err(format!("Content-Length is {length}, the body has {} bytes", body.len()));
        }
    }
    Ok(Response { status, headers, body: body.to_owned() })
}
