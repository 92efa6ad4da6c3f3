//! OTLP collectors behind TLS, over HTTP and gRPC, with and without a trusted certificate.
#![cfg(all(feature = "http", feature = "otlp", feature = "tls"))]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use support::child::{self, Ended};
use support::collector::GrpcCollector;
use support::{MockGateway, measured};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tracing_stage_metrics::MetricsLayer;

/// Entry point of the child processes: a job that prints the result of its delivery.
#[test]
fn scenarios() {
    let Some(scenario) = child::scenario() else { return };
    let builder = MetricsLayer::builder().with_env().unwrap().with_push_interval(Duration::from_secs(3_600));
    if scenario == "install in asynchronous code" {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let error = runtime.block_on(async { builder.build().map(drop).unwrap_err() });
        return println!("\ninstall: {error}");
    }
    let measured = measured::measured(builder);
    measured::stage("a");
    println!("\nended: {:?}", measured.guard.shutdown());
}

/// A TLS terminator in front of a plain-text server.
struct Terminator {
    addr: SocketAddr,
    certificate: tempfile::NamedTempFile,
}

impl Terminator {
    fn in_front_of(server: SocketAddr) -> Self {
        let generated = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let mut certificate = tempfile::NamedTempFile::new().unwrap();
        certificate.write_all(generated.cert.pem().as_bytes()).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(generated.signing_key.serialize_der()));
        let builder = ServerConfig::builder().with_no_client_auth();
        let mut config = builder.with_single_cert(vec![generated.cert.der().clone()], key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let (addr_sender, addr) = mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                addr_sender.send(listener.local_addr().unwrap()).unwrap();
                loop {
                    let (connection, _) = listener.accept().await.unwrap();
                    // A client without trust in the certificate disconnects.
                    let Ok(mut outside) = acceptor.accept(connection).await else { continue };
                    tokio::spawn(async move {
                        let mut inside = TcpStream::connect(server).await.unwrap();
                        // Either end may disconnect.
                        let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
                    });
                }
            });
        });
        Self { addr: addr.recv().unwrap(), certificate }
    }

    fn run(&self, protocol: &str, trusted: bool) -> Ended {
        let mut command = child::command("scenarios", "job");
        command.env("OTEL_METRICS_EXPORTER", "otlp").env("OTEL_EXPORTER_OTLP_PROTOCOL", protocol);
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("https://localhost:{}", self.addr.port()));
        command.env_remove("SSL_CERT_DIR").env_remove("SSL_CERT_FILE");
        if trusted {
            command.env("SSL_CERT_FILE", self.certificate.path());
        }
        child::start(command).wait()
    }
}

#[test]
fn system_trusted_certificate_is_accepted() {
    let (http, grpc) = (MockGateway::ok(), GrpcCollector::start());
    for (protocol, server) in [("http/protobuf", http.addr()), ("grpc", grpc.addr)] {
        let ended = Terminator::in_front_of(server).run(protocol, true);
        assert!(ended.stdout.contains("ended: Ok(())"), "{protocol}: {ended:?}");
    }
    assert!(!http.requests().is_empty() && !grpc.exports().is_empty());
}

#[test]
fn untrusted_certificate_is_named_in_the_error() {
    let (http, grpc) = (MockGateway::ok(), GrpcCollector::start());
    for (protocol, server) in [("http/protobuf", http.addr()), ("grpc", grpc.addr)] {
        let ended = Terminator::in_front_of(server).run(protocol, false);
        let line =
            ended.stdout.lines().find(|line| line.starts_with("ended: Err(")).unwrap_or_else(|| panic!("{ended:?}"));
        assert!(line.to_lowercase().contains("certificate"), "{protocol}: {line}");
    }
    assert!(http.requests().is_empty() && grpc.exports().is_empty());
}

#[test]
fn missing_certificates_fail_install_in_async_code() {
    let empty = tempfile::NamedTempFile::new().unwrap();
    let mut command = child::command("scenarios", "install in asynchronous code");
    command.env("OTEL_METRICS_EXPORTER", "otlp").env("OTEL_EXPORTER_OTLP_ENDPOINT", "https://localhost:4318");
    command.env_remove("SSL_CERT_DIR").env("SSL_CERT_FILE", empty.path());
    let ended = child::start(command).wait();
    assert!(
        ended.stdout.contains("\ninstall: cannot set up a client for collector https://localhost:4318/"),
        "{ended:?}"
    );
}
