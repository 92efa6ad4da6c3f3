//! A small blocking HTTP client: one request per connection, HTTP/1.0, so that no answer comes in chunks. The tests do
//! not look at the world through the client library that the crate itself uses.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long one connection may take to open, and one read to bring something.
const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Response {
    /// The first header of that name, in any case.
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
    parse(&answer).map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))
}

/// A text as part of a query: everything but unreserved characters percent-encoded.
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

/// The first header of that name, in any case.
pub fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// The lines after the first one of a message's head.
pub fn parse_headers<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Vec<(String, String)>, String> {
    lines
        .map(|line| {
            let (name, value) = line.split_once(':').ok_or_else(|| format!("no header: {line:?}"))?;
            if name.is_empty() || name.contains(char::is_whitespace) {
                return Err(format!("no header name: {name:?}"));
            }
            Ok((name.to_owned(), value.trim().to_owned()))
        })
        .collect()
}

/// One whole answer.
pub fn parse(answer: &[u8]) -> Result<Response, String> {
    let answer = str::from_utf8(answer).map_err(|why| format!("the answer is not UTF-8: {why}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("the head has no end: {answer:?}"))?;
    let mut lines = head.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let mut words = status_line.split(' ');
    if !words.next().is_some_and(|version| version.starts_with("HTTP/1.")) {
        return Err(format!("no status line: {status_line:?}"));
    }
    let status =
        words.next().and_then(|code| code.parse().ok()).ok_or_else(|| format!("no status: {status_line:?}"))?;
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
