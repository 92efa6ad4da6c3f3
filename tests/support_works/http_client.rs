use super::support::http::{parse, percent_encode};

#[test]
fn well_formed_response_is_parsed() {
    let response = parse(b"HTTP/1.1 202 Accepted\r\nX-A: b: c\r\ncontent-length: 2\r\n\r\nok").unwrap();
    assert_eq!((response.status, response.header("x-a"), response.body.as_str()), (202, Some("b: c"), "ok"));
}

#[test]
fn malformed_response_is_an_error() {
    for bad in [
        "",
        "HTTP/1.1 200 OK\r\n",
        "SMTP 200 OK\r\n\r\n",
        "HTTP/1.1 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nnonsense\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        assert!(parse(bad.as_bytes()).is_err(), "{bad:?} is refused");
    }
}

#[test]
fn queries_are_percent_encoded() {
    assert_eq!(percent_encode("up{job=\"ä\"} + 1"), "up%7Bjob%3D%22%C3%A4%22%7D%20%2B%201");
}
