//! A gateway with TLS. The trusted certificates are in the environment of a process, so that child processes make the
//! pushes.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use tempfile::TempDir;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};
use tracing_stage_metrics::MetricsLayer;

use super::secured::{Authority, PASSWORD, SecuredGateway, USER, USERS};
use super::support::child::{self, Ended};
use super::support::measured::{Measured, measured, stage};
use super::support::{WAIT_TIMEOUT, exposition, servers};

type Stream = StreamOwned<ServerConnection, TcpStream>;

struct Gateway {
    /// With the host name of the certificate.
    url: String,
    certificate: PathBuf,
    _directory: TempDir,
    /// The bodies of the pushes.
    bodies: Receiver<String>,
}

/// A gateway that answers 200 to every client that trusts its certificate. Ends with the process.
fn start() -> Gateway {
    start_with(|stream| stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
}

/// A gateway that answers so.
fn start_with(answer: impl Fn(&mut Stream) -> std::io::Result<()> + Send + 'static) -> Gateway {
    let generated = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let certificate = directory.path().join("certificate.pem");
    std::fs::write(&certificate, generated.cert.pem()).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(generated.signing_key.serialize_der()));
    let config =
        ServerConfig::builder().with_no_client_auth().with_single_cert(vec![generated.cert.der().clone()], key);
    let config = Arc::new(config.unwrap());

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let (sender, bodies) = channel();
    std::thread::spawn(move || {
        for connection in listener.incoming().map_while(Result::ok) {
            let session = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = StreamOwned::new(session, connection);
            if let Some(body) = read_body(&mut stream) {
                let _ = answer(&mut stream);
                let _ = sender.send(body);
            }
        }
    });
    Gateway { url, certificate, _directory: directory, bodies }
}

/// The body of a request; `None` if the client closes the connection.
fn read_body(stream: &mut impl std::io::Read) -> Option<String> {
    let mut text = String::new();
    let mut chunk = [0; 4096];
    loop {
        let read = stream.read(&mut chunk).ok().filter(|read| *read > 0)?;
        text.push_str(str::from_utf8(&chunk[..read]).ok()?);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length =
                head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return Some(body.to_owned());
            }
        }
    }
}

/// Not a test: the scenario of the child processes.
#[test]
fn push_and_print_the_result() {
    let Some(_) = child::scenario() else { return };
    let Measured { guard, log, default: _default } = measured(MetricsLayer::builder().with_env().unwrap());
    stage("a");
    match guard.shutdown() {
        Ok(()) => println!("delivered, events: {:?}", log.own()),
        Err(error) => {
            println!("refused {}, timeout {}, config {}", error.is_refused(), error.is_timeout(), error.is_config());
            println!("{error:?}");
        }
    }
}

fn push(gateway: &Gateway, trusted: &Gateway) -> Ended {
    push_to(&gateway.url, &trusted.certificate)
}

fn push_to(url: &str, trusted_certificate: &Path) -> Ended {
    let mut command = child::command("certificates::push_and_print_the_result", "push");
    command
        .env("TV_PROMETHEUS_PUSHGATEWAY", url)
        .env("TV_PROMETHEUS_JOB", "j")
        .env("TV_PROMETHEUS_FLUSH_TIMEOUT", "1500ms")
        .env("SSL_CERT_FILE", trusted_certificate);
    for name in ["http_proxy", "https_proxy", "all_proxy", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env_remove(name);
    }
    child::start(command).wait()
}

#[test]
fn trusted_certificate_is_accepted() {
    let gateway = start();
    let ended = push(&gateway, &gateway);
    assert!(ended.stdout.contains("delivered, events: []"), "{ended:?}");
    let last = std::iter::from_fn(|| gateway.bodies.try_recv().ok()).last();
    let last = exposition::parse(&last.unwrap_or_else(|| panic!("a push arrives: {ended:?}")));
    assert_eq!(last.expect("quant_stage_total", &[("stage_id", "a"), ("status", "success")]), 1.0);
    assert!(last.expect("quant_run_duration_seconds", &[]) > 0.0);
}

#[test]
fn untrusted_certificate_is_an_error() {
    let (gateway, other) = (start(), start());
    let ended = push(&gateway, &other);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(ended.elapsed < Duration::from_millis(4_500), "{:?}", ended.elapsed);
    assert!(ended.stdout.contains("refused false, timeout false, config false"), "{ended:?}");
    let expected = format!("POST {}/metrics/job/j failed: could not connect", gateway.url);
    assert!(ended.stdout.contains(&expected), "{ended:?}");
    assert!(ended.stdout.contains("invalid peer certificate"), "the error has its cause: {ended:?}");
    assert!(
        gateway.bodies.recv_timeout(WAIT_TIMEOUT.min(Duration::from_millis(50))).is_err(),
        "the client sends no request"
    );
}

/// As a proxy does whose server is gone: the gateway may have the metrics.
#[test]
fn broken_tls_after_the_request_is_no_failed_connection() {
    let gateway = start_with(|stream| stream.sock.write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n"));
    let ended = push(&gateway, &gateway);
    assert!(ended.stdout.contains("failed: the connection broke, or carried no HTTP"), "{ended:?}");
    assert!(gateway.bodies.try_recv().unwrap().contains("quant_run_start_timestamp_seconds"));
}

/// The gateway's `web.config.file`, with HTTP/2 as by default.
#[test]
fn real_gateway_with_tls_and_basic_auth_gets_the_push() {
    if ![servers::PUSHGATEWAY, "curl"].into_iter().all(servers::installed) {
        return;
    }
    let authority = Authority::new();
    authority.issue("localhost", |_| {});
    let gateway = SecuredGateway::start(&authority, "", USERS);
    let host = gateway.host();
    let ended = push_to(&format!("https://pusher:p%25%2Fword@{host}"), &authority.ca());
    assert!(ended.stdout.contains("delivered, events: []"), "{ended:?}");
    let refused = push_to(&format!("https://pusher:word@{host}"), &authority.ca());
    assert!(refused.stdout.contains("refused true, timeout false, config false"), "{refused:?}");

    let metrics = gateway.scrape(&authority, &["--user", &format!("{USER}:{PASSWORD}")]);
    let labels = [("instance", ""), ("job", "j"), ("stage_id", "a"), ("status", "success")];
    assert_eq!(metrics.expect("quant_stage_total", &labels), 1.0);
}
