//! The Pushgateway client on its own: against misbehaving servers, over TLS, through a proxy, and against a real
//! gateway.
#![cfg(feature = "pushgateway")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "the lints are meant for the library")]

use std::future::Future;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tracing_stage_metrics::{Error, Pushgateway};

const METRIC: &str = "rows 42\n";

// ---- A server with scripted responses that keeps its requests.

struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    /// Reads each request completely, then hands the connection to `respond`.
    async fn start<F, R>(respond: F) -> Self
    where
        F: Fn(TcpStream) -> R + Send + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let request_log = Arc::clone(&requests);
        let task = tokio::spawn(async move {
            loop {
                let (mut connection, _) = listener.accept().await.unwrap();
                let request = read_request(&mut connection).await;
                request_log.lock().unwrap().push(request);
                tokio::spawn(respond(connection));
            }
        });
        Self { address, requests, task }
    }

    async fn responding(response: &'static str) -> Self {
        Self::start(move |mut connection| async move {
            connection.write_all(response.as_bytes()).await.unwrap();
        })
        .await
    }

    fn gateway(&self) -> Pushgateway {
        Pushgateway::new(self.address.to_string(), "job").unwrap().with_timeout(Duration::from_secs(20))
    }

    /// The only request so far.
    fn request(&self) -> String {
        let requests = self.requests.lock().unwrap();
        assert_eq!(requests.len(), 1, "{requests:?}");
        requests[0].clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn read_request(connection: &mut (impl AsyncRead + Unpin)) -> String {
    let mut request = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&request);
        let done = text.split_once("\r\n\r\n").is_some_and(|(head, body)| {
            let length = header(head, "content-length").map_or(0, |length| length.parse().unwrap());
            body.len() >= length
        });
        if done {
            return text.into_owned();
        }
        let mut chunk = vec![0; 64 * 1024];
        let length = connection.read(&mut chunk).await.unwrap();
        assert_ne!(length, 0, "the connection closed within the request: {text}");
        request.extend_from_slice(&chunk[..length]);
    }
}

fn header<'a>(request: &'a str, name: &str) -> Option<&'a str> {
    request
        .lines()
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": "))
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
}

/// Both printed forms of an error.
fn display_and_debug(error: &Error) -> String {
    format!("{error} | {error:?}")
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

// ---- Requests.

#[tokio::test]
async fn push_add_posts_the_text_to_the_group() {
    let server = Server::responding(OK).await;
    let gateway = Pushgateway::new(format!("http://{}/prefix/", server.address), "a/b").unwrap();
    gateway.with_grouping_label("team", "x y").unwrap().push_add(METRIC).await.unwrap();
    let request = server.request();
    assert!(request.starts_with("POST /prefix/metrics/job@base64/YS9i/team/x%20y HTTP/1.1\r\n"), "{request}");
    assert_eq!(header(&request, "content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert_eq!(header(&request, "host"), Some(server.address.to_string().as_str()));
    let agent = concat!("tracing-stage-metrics/", env!("CARGO_PKG_VERSION"));
    assert_eq!(header(&request, "user-agent"), Some(agent));
    assert_eq!(header(&request, "authorization"), None);
    assert!(request.ends_with("\r\n\r\nrows 42\n"), "{request}");
}

#[tokio::test]
async fn push_replace_is_a_put_and_delete_a_delete() {
    let server = Server::responding(OK).await;
    server.gateway().push_replace(METRIC).await.unwrap();
    server.gateway().delete().await.unwrap();
    let requests = server.requests.lock().unwrap();
    assert!(requests[0].starts_with("PUT /metrics/job/job HTTP/1.1\r\n"));
    assert!(requests[0].ends_with("\r\n\r\nrows 42\n"));
    assert!(requests[1].starts_with("DELETE /metrics/job/job HTTP/1.1\r\n"));
    assert!(requests[1].ends_with("\r\n\r\n"));
    assert_eq!(header(&requests[1], "content-type"), None);
}

#[tokio::test]
async fn credentials_and_headers_are_sent() {
    let server = Server::responding(OK).await;
    let from_url = Pushgateway::new(format!("http://us%40er:p%2Fss@{}", server.address), "job").unwrap();
    from_url.push_add(METRIC).await.unwrap();
    from_url.clone().with_basic_auth("Aladdin", "open sesame").push_add(METRIC).await.unwrap();
    from_url.clone().with_bearer_token("abc").with_header("X-Tenant", "ä").push_add(METRIC).await.unwrap();
    from_url.with_header("Authorization", "Custom x").push_add(METRIC).await.unwrap();
    let requests = server.requests.lock().unwrap();
    let sent: Vec<_> = requests.iter().map(|request| header(request, "authorization")).collect();
    let expected = ["Basic dXNAZXI6cC9zcw==", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==", "Bearer abc", "Custom x"];
    assert_eq!(sent, expected.map(Some));
    assert_eq!(header(&requests[2], "x-tenant"), Some("ä"));
    assert_eq!(header(&requests[0], "host"), Some(server.address.to_string().as_str()));
}

#[tokio::test]
async fn invalid_header_fails_the_push() {
    let server = Server::responding(OK).await;
    let error = server.gateway().with_header("X-Key", "hush\n").push_add(METRIC).await.unwrap_err();
    assert!(error.is_config());
    assert!(!display_and_debug(&error).contains("hush"));
    assert!(server.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn large_text_arrives_complete() {
    let server = Server::responding(OK).await;
    let text = METRIC.repeat(500_000);
    server.gateway().without_compression().push_add(&text).await.unwrap();
    assert!(server.request().ends_with(&text));
    assert_eq!(header(&server.request(), "content-encoding"), None);
}

#[tokio::test]
async fn only_large_texts_are_compressed() {
    let server = Server::responding(OK).await;
    server.gateway().push_add(METRIC).await.unwrap();
    server.gateway().push_add(&METRIC.repeat(10_000)).await.unwrap();
    let requests = server.requests.lock().unwrap();
    assert_eq!(header(&requests[0], "content-encoding"), None);
    assert_eq!(header(&requests[1], "content-encoding"), Some("gzip"));
    let length: usize = header(&requests[1], "content-length").unwrap().parse().unwrap();
    assert!(length < METRIC.len() * 10_000 / 20, "{length}");
}

#[test]
fn client_works_on_several_runtimes() {
    let serving = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let server = serving.block_on(Server::responding("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"));
    let gateway = server.gateway();
    for _ in 0..3 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(gateway.push_add(METRIC)).unwrap();
    }
    assert_eq!(server.requests.lock().unwrap().len(), 3);
}

// ---- Responses.

#[tokio::test]
async fn only_200_and_202_are_success() {
    Server::responding("HTTP/1.1 202 Accepted\r\n\r\n").await.gateway().push_add(METRIC).await.unwrap();
    for (response, status) in [("HTTP/1.1 201 Created\r\n\r\n", 201), ("HTTP/1.1 204 No Content\r\n\r\n", 204)] {
        let error = Server::responding(response).await.gateway().push_add(METRIC).await.unwrap_err();
        assert!(error.is_refused());
        assert_eq!(error.status(), Some(status));
    }
}

#[tokio::test]
async fn redirect_is_a_refusal_with_its_target() {
    let response = "HTTP/1.1 301 Moved Permanently\r\nLocation: /metrics/job/x\r\nContent-Length: 0\r\n\r\n";
    let server = Server::responding(response).await;
    let error = server.gateway().push_add(METRIC).await.unwrap_err();
    assert_eq!(error.status(), Some(301));
    let base = format!("http://{}", server.address);
    assert_eq!(
        error.to_string(),
        format!(
            "POST {base}/metrics/job/job was refused with 301 Moved Permanently, a redirect to \
             {base}/metrics/job/x: give the address it leads to, redirects are not followed"
        )
    );
    assert!(server.request().starts_with("POST "));

    let response = "HTTP/1.1 307 Temporary Redirect\r\nLocation: http://hush:hush@127.0.0.1:1/x?hush\r\n\r\n";
    let error = Server::responding(response).await.gateway().push_add(METRIC).await.unwrap_err();
    assert_eq!(error.status(), Some(307));
    assert!(error.to_string().contains(" a redirect to http://127.0.0.1:1/x?***: "), "{error}");
    assert!(!display_and_debug(&error).contains("hush"));
}

#[tokio::test]
async fn refusal_contains_the_gateways_message() {
    let response =
        "HTTP/1.1 400 Bad Request\r\nContent-Length: 44\r\n\r\npushed metrics are invalid:\r\n  type conflict";
    let server = Server::responding(response).await;
    let error = server.gateway().push_replace(METRIC).await.unwrap_err();
    assert!(error.is_refused() && !error.is_timeout() && !error.is_config());
    assert_eq!(error.status(), Some(400));
    assert_eq!(
        error.to_string(),
        format!(
            "PUT http://{}/metrics/job/job was refused with 400 Bad Request: pushed metrics are invalid: type conflict",
            server.address
        )
    );

    let server = Server::responding("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n").await;
    let error = server.gateway().delete().await.unwrap_err();
    assert_eq!(error.status(), Some(500));
    let expected =
        format!("DELETE http://{}/metrics/job/job was refused with 500 Internal Server Error", server.address);
    assert_eq!(error.to_string(), expected);
}

#[tokio::test]
async fn invalid_utf8_in_the_body_is_replaced() {
    let server = Server::start(|mut connection| async move {
        connection.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\nbad \xff\xfe\x1b value").await.unwrap();
    })
    .await;
    let error = server.gateway().push_add(METRIC).await.unwrap_err();
    assert!(error.to_string().ends_with("400 Bad Request: bad \u{fffd}\u{fffd} value"), "{error}");
}

#[tokio::test]
async fn endless_body_is_cut_off() {
    let server = Server::start(|mut connection| async move {
        connection.write_all(b"HTTP/1.1 500 Internal Server Error\r\n\r\n").await.unwrap();
        while connection.write_all(&[b'x'; 8192]).await.is_ok() {}
    })
    .await;
    let start = Instant::now();
    let error = server.gateway().push_add(METRIC).await.unwrap_err();
    assert_eq!(error.status(), Some(500));
    assert!(error.to_string().ends_with("xxx…"));
    assert!(error.to_string().len() < 1200, "{}", error.to_string().len());
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());

    let server = Server::start(|mut connection| async move {
        connection.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        while connection.write_all(&[b'x'; 8192]).await.is_ok() {}
    })
    .await;
    server.gateway().push_add(METRIC).await.unwrap();
}

#[tokio::test]
async fn slow_body_does_not_delay_the_push() {
    let server = Server::start(|mut connection| async move {
        connection.write_all(b"HTTP/1.1 503 Service Unavailable\r\n\r\nbusy").await.unwrap();
        while connection.write_all(b".").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let start = Instant::now();
    let error = server.gateway().push_add(METRIC).await.unwrap_err();
    assert_eq!(error.status(), Some(503));
    assert!(error.to_string().contains("503 Service Unavailable: busy."), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test]
async fn slow_response_head_times_out() {
    let server = Server::start(|mut connection| async move {
        for byte in b"HTTP/1.1 200 OK\r\n".iter().chain(std::iter::repeat(&b'x')) {
            if connection.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let start = Instant::now();
    let error = server.gateway().with_timeout(Duration::from_millis(400)).push_add(METRIC).await.unwrap_err();
    assert!(error.is_timeout(), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test]
async fn silent_gateway_times_out() {
    let server = Server::start(|connection| async move {
        let _open = connection;
        std::future::pending::<()>().await;
    })
    .await;
    let start = Instant::now();
    let error = server.gateway().with_timeout(Duration::from_millis(250)).push_add(METRIC).await.unwrap_err();
    let elapsed = start.elapsed();
    assert!(error.is_timeout() && !error.is_refused());
    assert_eq!(error.status(), None);
    let expected = format!("POST http://{}/metrics/job/job failed: no answer within 250ms", server.address);
    assert_eq!(error.to_string(), expected);
    assert!(elapsed >= Duration::from_millis(250) && elapsed < Duration::from_secs(5), "{elapsed:?}");
}

#[tokio::test]
async fn refused_connection_is_named_in_the_error() {
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let gateway = Pushgateway::new(format!("http://hush:hush@{address}"), "job").unwrap();
    let error = gateway.push_add(METRIC).await.unwrap_err();
    assert!(!error.is_timeout() && !error.is_refused() && !error.is_config());
    assert_eq!(error.to_string(), format!("POST http://{address}/metrics/job/job failed: no server answers there"));
    assert!(format!("{error:?}").to_lowercase().contains("connection refused"), "{error:?}");
    assert!(!display_and_debug(&error).contains("hush"));
}

#[tokio::test]
async fn invalid_http_is_a_broken_connection() {
    for response in ["SSH-2.0-OpenSSH_9.2\r\n", "", "HTTP/1.1 2"] {
        let server = Server::responding(response).await;
        let error = server.gateway().push_add(METRIC).await.unwrap_err();
        assert!(!error.is_timeout() && !error.is_refused() && !error.is_config());
        assert!(
            error.to_string().ends_with("failed: the connection broke, or carried no HTTP"),
            "{response:?}: {error:?}"
        );
    }
}

#[tokio::test]
async fn errors_and_debug_output_redact_credentials() {
    let silent = Server::start(|connection| async move {
        let _open = connection;
        std::future::pending::<()>().await;
    })
    .await;
    let refusing = Server::responding("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n").await;
    let garbled = Server::responding("hello\r\n").await;
    for server in [&silent, &refusing, &garbled] {
        let gateway = Pushgateway::new(format!("http://hush:hu%73h@{}", server.address), "job")
            .unwrap()
            .with_header("X-Key", "hush")
            .with_timeout(Duration::from_millis(200));
        for gateway in
            [gateway.clone(), gateway.clone().with_basic_auth("hush", "hush"), gateway.with_bearer_token("hush")]
        {
            let error = gateway.push_add(METRIC).await.unwrap_err();
            let text = format!("{} {gateway:?} {gateway:#?}", display_and_debug(&error));
            // base64 of "hush:hush"
            assert!(!text.contains("hush") && !text.contains("aHVzaDpodXNo"), "{text}");
        }
    }
}

// ---- Tests that need environment variables, and so a child process.

/// Pushes to `PUSH_URL` and prints the result. [`push_in_child`] runs it.
#[test]
#[ignore = "other tests run it in a child process"]
fn child() {
    let Ok(url) = std::env::var("PUSH_URL") else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let gateway = Pushgateway::new(url, "job").unwrap().with_timeout(Duration::from_secs(10));
    println!("result: {:?}", runtime.block_on(gateway.push_add(METRIC)));
}

async fn push_in_child(url: &str, variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--ignored", "--nocapture"]).env("PUSH_URL", url);
    for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    command.env_remove("SSL_CERT_FILE").env_remove("SSL_CERT_DIR").env_remove("REQUEST_METHOD");
    command.envs(variables.iter().copied());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    let result = stdout.split_once("result: ").unwrap_or_else(|| panic!("no result: {stdout}")).1;
    result.lines().next().unwrap().to_owned()
}

#[tokio::test]
async fn unknown_host_is_named_in_the_error() {
    let result = push_in_child("http://gateway.invalid:9091", &[]).await;
    let expected = "Err(POST http://gateway.invalid:9091/metrics/job/job failed: the name of its host is unknown: ";
    assert!(result.starts_with(expected), "{result}");
}

#[tokio::test]
async fn proxy_is_used_except_for_loopback() {
    let proxy = Server::responding(OK).await;
    let proxy_url = format!("http://{}", proxy.address);
    let result = push_in_child("http://gateway.invalid:9091", &[("HTTP_PROXY", &proxy_url)]).await;
    assert_eq!(result, "Ok(())");
    let request = proxy.request();
    assert!(request.starts_with("POST http://gateway.invalid:9091/metrics/job/job HTTP/1.1\r\n"), "{request}");

    let gateway = Server::responding(OK).await;
    for host in ["127.0.0.1", "localhost"] {
        let url = format!("http://{host}:{}", gateway.address.port());
        assert_eq!(push_in_child(&url, &[("HTTP_PROXY", &proxy_url), ("ALL_PROXY", &proxy_url)]).await, "Ok(())");
    }
    assert_eq!(gateway.requests.lock().unwrap().len(), 2);
    assert_eq!(proxy.requests.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn proxy_error_names_the_proxy_without_its_password() {
    let url = "http://gateway.invalid:9091";
    let closed_port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let with_password = format!("http://user:hush@hush@{closed_port}");
    let result = push_in_child(url, &[("HTTP_PROXY", &with_password)]).await;
    let expected =
        format!("Err(POST {url}/metrics/job/job failed: no server answers at the proxy http://{closed_port}: ");
    assert!(result.starts_with(&expected) && !result.contains("hush"), "{result}");

    let result = push_in_child(url, &[("ALL_PROXY", "proxy.invalid")]).await;
    let expected =
        format!("Err(POST {url}/metrics/job/job failed: the name of the proxy http://proxy.invalid:80 is unknown: ");
    assert!(result.starts_with(&expected), "{result}");

    // A response of the proxy must not look like one of the gateway.
    let proxy = Server::responding("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n").await;
    let proxy_url = format!("http://{}", proxy.address);
    let result = push_in_child(url, &[("HTTP_PROXY", &proxy_url)]).await;
    let expected =
        format!("Err(POST {url}/metrics/job/job was refused with 502 Bad Gateway through the proxy {proxy_url})");
    assert_eq!(result, expected);

    // A proxy that does not apply is not named.
    let variables = [("HTTP_PROXY", proxy_url.as_str()), ("NO_PROXY", "gateway.invalid")];
    let result = push_in_child(url, &variables).await;
    let expected = "Err(POST http://gateway.invalid:9091/metrics/job/job failed: the name of its host is unknown: ";
    assert!(result.starts_with(expected), "{result}");
}

/// A proxy that forwards every request to one server, whatever its host.
struct ForwardingProxy {
    url: String,
    requested_hosts: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl ForwardingProxy {
    async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requested_hosts = Arc::<Mutex<Vec<String>>>::default();
        let request_log = Arc::clone(&requested_hosts);
        let task = tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let request = read_request(&mut client).await;
                let (line, rest) = request.split_once("\r\n").unwrap();
                let [method, url, version] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
                let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
                request_log.lock().unwrap().push(host.to_owned());
                let mut upstream = TcpStream::connect(server).await.unwrap();
                upstream.write_all(format!("{method} /{path} {version}\r\n{rest}").as_bytes()).await.unwrap();
                let mut response = vec![0; 1024];
                let length = upstream.read(&mut response).await.unwrap();
                client.write_all(&response[..length]).await.unwrap();
            }
        });
        Self { url, requested_hosts, task }
    }

    /// Hosts of the requests since the last call.
    fn take_requested_hosts(&self) -> Vec<String> {
        std::mem::take(&mut self.requested_hosts.lock().unwrap())
    }
}

impl Drop for ForwardingProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A non-loopback address of this machine; without one, prints that and returns `None`.
fn own_address() -> Option<std::net::IpAddr> {
    // Sends nothing: `connect` on a UDP socket only selects the source address.
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let address = socket.connect("192.0.2.1:9").and_then(|()| socket.local_addr());
    let ip = address.ok().map(|address| address.ip()).filter(|address| !address.is_loopback());
    if ip.is_none() {
        eprintln!("LEFT OUT: this machine has no network address to test with");
    }
    ip
}

#[tokio::test]
async fn proxy_is_bypassed_for_loopback_and_no_proxy_only() {
    let server = Server::responding(OK).await;
    let proxy = ForwardingProxy::start(server.address).await;
    let port = server.address.port();
    let push = async |host: &str, no_proxy: &str| {
        let variables = [("HTTP_PROXY", proxy.url.as_str()), ("NO_PROXY", no_proxy)];
        push_in_child(&format!("http://{host}:{port}"), &variables).await
    };
    for host in ["127.0.0.1", "localhost", "LOCALHOST", "0.0.0.0", "[::ffff:127.0.0.1]"] {
        assert_eq!(push(host, "").await, "Ok(())", "{host}");
        assert_eq!(proxy.take_requested_hosts(), [""; 0], "{host} is a loopback address");
    }
    // The server does not listen on these addresses.
    for host in ["127.8.8.8", "[::1]", "gateway.localhost"] {
        let result = push(host, "").await;
        assert!(result.contains(" failed: "), "{host}: {result}");
        assert_eq!(proxy.take_requested_hosts(), [""; 0], "{host} is a loopback address");
    }
    let own = gethostname::gethostname().into_string().unwrap();
    let own_address = own_address().map(|address| address.to_string());
    let hosts = ["gateway.example", own.as_str(), "192.0.2.7"].into_iter().chain(own_address.as_deref());
    for host in hosts {
        assert_eq!(push(host, "").await, "Ok(())", "{host}");
        assert_eq!(proxy.take_requested_hosts(), [format!("{host}:{port}")]);
    }
    assert!(
        server.requests.lock().unwrap().iter().all(|request| request.starts_with("POST /metrics/job/job HTTP/1.1"))
    );

    let unknown = "failed: the name of its host is unknown: ";
    for no_proxy in ["gateway.invalid", "invalid", ".invalid", "other.example, gateway.invalid", "*"] {
        let result = push("gateway.invalid", no_proxy).await;
        assert!(result.contains(unknown), "NO_PROXY={no_proxy}: {result}");
        assert_eq!(proxy.take_requested_hosts(), [""; 0], "NO_PROXY={no_proxy}");
    }
    for no_proxy in ["way.invalid", "other.example"] {
        let result = push("gateway.invalid", no_proxy).await;
        assert_eq!(result, "Ok(())", "NO_PROXY={no_proxy}");
        assert_eq!(proxy.take_requested_hosts(), [format!("gateway.invalid:{port}")]);
    }
    if let Some(address) = own_address {
        // The server listens on loopback only, so a request without the proxy fails.
        for no_proxy in [address.clone(), format!("{address}/16")] {
            let result = push(&address, &no_proxy).await;
            assert!(result.contains("failed: no server answers there: "), "NO_PROXY={no_proxy}: {result}");
            assert_eq!(proxy.take_requested_hosts(), [""; 0], "NO_PROXY={no_proxy}");
        }
    }
}

// ---- TLS.

#[cfg(feature = "tls")]
mod tls {
    use std::io::Write as _;

    use tokio::io::AsyncWrite;
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

    use super::*;

    struct Certificate {
        pem: tempfile::NamedTempFile,
        config: Arc<ServerConfig>,
    }

    impl Certificate {
        fn for_host(host: &str) -> Self {
            let generated = rcgen::generate_simple_self_signed([host.to_owned()]).unwrap();
            let mut pem = tempfile::NamedTempFile::new().unwrap();
            pem.write_all(generated.cert.pem().as_bytes()).unwrap();
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(generated.signing_key.serialize_der()));
            let config = ServerConfig::builder()
                .with_no_client_auth()
                .with_single_cert(vec![generated.cert.der().clone()], key)
                .unwrap();
            Self { pem, config: Arc::new(config) }
        }

        fn path(&self) -> &str {
            self.pem.path().to_str().unwrap()
        }
    }

    /// Responds with 200 to clients that trust the certificate; other handshakes fail.
    async fn start(certificate: &Certificate) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(Arc::clone(&certificate.config));
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let request_log = Arc::clone(&requests);
        tokio::spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                let Ok(mut connection) = acceptor.accept(connection).await else { continue };
                respond(&mut connection, &request_log).await;
            }
        });
        (address, requests)
    }

    async fn respond(connection: &mut (impl AsyncRead + AsyncWrite + Unpin), request_log: &Mutex<Vec<String>>) {
        let request = read_request(connection).await;
        request_log.lock().unwrap().push(request);
        connection.write_all(OK.as_bytes()).await.unwrap();
        connection.shutdown().await.unwrap();
    }

    #[tokio::test]
    async fn system_trusted_certificate_is_accepted() {
        let certificate = Certificate::for_host("localhost");
        let (address, requests) = start(&certificate).await;
        let url = format!("https://user:password@localhost:{}/gw", address.port());
        let result = push_in_child(&url, &[("SSL_CERT_FILE", certificate.path())]).await;
        assert_eq!(result, "Ok(())");
        let requests = requests.lock().unwrap();
        assert_eq!(requests.len(), 1);
        assert!(requests[0].starts_with("POST /gw/metrics/job/job HTTP/1.1\r\n"), "{}", requests[0]);
        assert_eq!(header(&requests[0], "authorization"), Some("Basic dXNlcjpwYXNzd29yZA=="));
    }

    #[tokio::test]
    async fn untrusted_or_mismatched_certificate_is_an_error() {
        let certificate = Certificate::for_host("localhost");
        let (address, requests) = start(&certificate).await;
        let url = format!("https://hush:hush@localhost:{}", address.port());
        let other = Certificate::for_host("localhost");
        // An untrusted certificate, and one for another host.
        let untrusted = push_in_child(&url, &[("SSL_CERT_FILE", other.path())]).await;
        let by_address = format!("https://hush:hush@{address}");
        let wrong_host = push_in_child(&by_address, &[("SSL_CERT_FILE", certificate.path())]).await;
        for (result, host) in [(untrusted, "localhost"), (wrong_host, "127.0.0.1")] {
            let start =
                format!("Err(POST https://{host}:{}/metrics/job/job failed: could not connect: ", address.port());
            assert!(result.starts_with(&start), "{result}");
            assert!(result.contains("invalid peer certificate"), "{result}");
            assert!(!result.contains("hush"), "{result}");
        }
        assert!(requests.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn missing_certificates_are_an_error_for_https_only() {
        let empty = tempfile::NamedTempFile::new().unwrap();
        let result = push_in_child("https://localhost:1", &[("SSL_CERT_FILE", empty.path().to_str().unwrap())]).await;
        assert!(result.starts_with("Err(cannot set up a client for gateway https://localhost:1: "), "{result}");
        // Plain HTTP needs no certificates.
        let server = Server::responding(OK).await;
        let url = format!("http://{}", server.address);
        assert_eq!(push_in_child(&url, &[("SSL_CERT_FILE", empty.path().to_str().unwrap())]).await, "Ok(())");
    }

    #[tokio::test]
    async fn plain_text_gateway_is_an_error_for_https() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let plain = tokio::spawn(async move {
            let (mut connection, _) = listener.accept().await.unwrap();
            connection.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\nthis is plain http").await.unwrap();
        });
        let certificate = Certificate::for_host("localhost");
        let result = push_in_child(&url, &[("SSL_CERT_FILE", certificate.path())]).await;
        let start = format!("Err(POST {url}/metrics/job/job failed: could not connect: ");
        assert!(result.starts_with(&start), "{result}");
        plain.await.unwrap();
    }
}

// ---- A real gateway.

struct RealGateway {
    process: Child,
    base: String,
    http: reqwest::Client,
}

impl Drop for RealGateway {
    fn drop(&mut self) {
        // Both fail if the process has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts a gateway under `prefix` and waits until it is ready; without the program, prints that and returns `None`.
async fn real_gateway(prefix: &str) -> Option<RealGateway> {
    const BINARY: &str = "prometheus-pushgateway";
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    // Another process may take the port before the gateway does.
    for _ in 0..5 {
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let started = Command::new(BINARY)
            .arg(format!("--web.listen-address={address}"))
            .arg(format!("--web.route-prefix={prefix}"))
            .args(["--persistence.file=", "--web.enable-admin-api"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let process = match started {
            Ok(process) => process,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                assert_ne!(
                    std::env::var("TSM_REQUIRE_SERVERS").as_deref(),
                    Ok("1"),
                    "{BINARY} is not installed, but TSM_REQUIRE_SERVERS=1 requires it"
                );
                eprintln!("LEFT OUT: {BINARY} is not installed, skipping this test");
                return None;
            }
            Err(error) => panic!("cannot start {BINARY}: {error}"),
        };
        let base = format!("http://{address}{}", prefix.trim_end_matches('/'));
        let mut gateway = RealGateway { process, base, http: http.clone() };
        let give_up = Instant::now() + Duration::from_secs(20);
        while Instant::now() < give_up && gateway.process.try_wait().unwrap().is_none() {
            let response = gateway.get("/-/ready").await;
            if response.is_ok_and(|response| response.status().is_success()) {
                return Some(gateway);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    panic!("{BINARY} does not become ready");
}

impl RealGateway {
    fn client(&self, job: &str) -> Pushgateway {
        Pushgateway::new(&self.base, job).unwrap()
    }

    async fn get(&self, path: &str) -> reqwest::Result<reqwest::Response> {
        self.http.get(format!("{}{path}", self.base)).send().await
    }

    /// Groups as listed by the gateway's API.
    async fn groups(&self) -> Vec<serde_json::Value> {
        let text = self.get("/api/v1/metrics").await.unwrap().text().await.unwrap();
        let response: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(response["status"], "success", "{text}");
        response["data"].as_array().cloned().unwrap_or_default()
    }

    async fn exposition(&self) -> String {
        self.get("/metrics").await.unwrap().text().await.unwrap()
    }
}

async fn post_put_and_delete(gateway: &RealGateway) {
    let client = gateway.client("batch").with_grouping_label("profile", "a/b").unwrap();
    let other = gateway.client("batch").with_grouping_label("profile", "c").unwrap();
    let series = |name: &str, value: &str| format!("{name}{{instance=\"\",job=\"batch\",profile=\"a/b\"}} {value}\n");
    other.push_add("rows 7\n").await.unwrap();

    client.push_add("rows 1\nfiles 2\n").await.unwrap();
    client.push_add("rows 3\n").await.unwrap();
    let text = gateway.exposition().await;
    assert!(text.contains(&series("rows", "3")), "{text}");
    assert!(text.contains(&series("files", "2")), "POST keeps other families: {text}");

    client.push_replace("rows 4\n").await.unwrap();
    let text = gateway.exposition().await;
    assert!(text.contains(&series("rows", "4")), "{text}");
    assert!(!text.contains("files{"), "PUT replaces the group: {text}");

    client.delete().await.unwrap();
    client.delete().await.unwrap();
    // The gateway answers 202 and removes the group shortly afterwards.
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    let mut text = gateway.exposition().await;
    while text.contains("profile=\"a/b\"") {
        assert!(std::time::Instant::now() < deadline, "DELETE removes the group: {text}");
        text = gateway.exposition().await;
    }
    assert!(text.contains("rows{instance=\"\",job=\"batch\",profile=\"c\"} 7\n"), "DELETE keeps other groups: {text}");
}

#[tokio::test]
async fn real_gateway_adds_replaces_and_deletes() {
    let Some(gateway) = real_gateway("/").await else { return };
    post_put_and_delete(&gateway).await;
}

#[tokio::test]
async fn real_gateway_is_reached_under_a_path_prefix() {
    let Some(gateway) = real_gateway("/gw").await else { return };
    post_put_and_delete(&gateway).await;
    let root = gateway.base.strip_suffix("/gw").unwrap();
    let error = Pushgateway::new(root, "batch").unwrap().push_add(METRIC).await.unwrap_err();
    assert!(error.is_refused());
}

#[tokio::test]
async fn real_gateway_refusal_gives_the_reason() {
    let Some(gateway) = real_gateway("/").await else { return };
    let error = gateway.client("batch").push_add("rows one\n").await.unwrap_err();
    assert_eq!(error.status(), Some(400));
    let expected = format!(
        "POST {}/metrics/job/batch was refused with 400 Bad Request: text format parsing error in line 1: \
         expected float as value, got \"one\"",
        gateway.base
    );
    assert_eq!(error.to_string(), expected);
}

/// Arbitrary text, biased towards characters that are special in paths and URLs.
fn value() -> impl Strategy<Value = String> {
    let special = [
        "", ".", "..", "/", "//", "%2F", "%2e", "%", "+", " ", "\\", "\"", "\n", "\0", "?", "#", ";", "=", "ä", "日本",
    ];
    let special = prop::sample::select(special.to_vec());
    prop_oneof![
        prop::collection::vec(special, 0..4).prop_map(|parts| parts.concat()),
        any::<String>(),
        "[a-z./%+=@-]{0,6}"
    ]
}

#[test]
fn any_job_and_grouping_value_round_trips_through_a_real_gateway() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let Some(gateway) = runtime.block_on(real_gateway("/")) else { return };
    let persistence = FileFailurePersistence::SourceParallel("proptest-regressions");
    let config = Config {
        source_file: Some(file!()),
        failure_persistence: Some(Box::new(persistence)),
        ..Config::with_cases(200)
    };
    let strategy = (value().prop_filter("a job has a name", |job| !job.is_empty()), value(), value());
    let result = TestRunner::new(config).run(&strategy, |(job, first, second)| {
        runtime.block_on(async {
            let client = gateway.client(&job).with_grouping_label("first", &first).unwrap();
            let client = client.with_grouping_label("second", &second).unwrap();
            client.push_add(METRIC).await.map_err(|error| TestCaseError::fail(format!("{error:?}")))?;
            let groups = gateway.groups().await;
            client.delete().await.map_err(|error| TestCaseError::fail(format!("{error:?}")))?;
            // The gateway answers 202 and removes the group shortly afterwards.
            let deadline = std::time::Instant::now() + Duration::from_secs(10);
            while !gateway.groups().await.is_empty() {
                prop_assert!(std::time::Instant::now() < deadline, "the group is not removed");
            }
            prop_assert_eq!(groups.len(), 1);
            let expected = serde_json::json!({ "job": job, "first": first, "second": second });
            prop_assert_eq!(&groups[0]["labels"], &expected);
            Ok(())
        })
    });
    result.unwrap();
}
