//! Credentials and certificates in files, at gateways that ask for them, and what an error says if they do not fit.

use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use tracing_stage_metrics::{Error, MetricsLayer, Pushgateway};

use super::secured::{Authority, CLIENT_CERTIFICATES, PASSWORD, SecuredGateway, USER, USERS, nginx};
use super::support::child::{self, Ended};
use super::support::measured::{Measured, measured, stage};
use super::support::{MockGateway, Reply, pushgateway, servers};
use super::{builder, chain};

fn gateway(url: impl AsRef<str>) -> Pushgateway {
    Pushgateway::new(url, "j").unwrap()
}

fn push(gateway: &Pushgateway) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(gateway.push_add("rows 1\n"))
}

/// Returns what the error of a push says after its URL. It comes long before the connect timeout.
#[track_caller]
fn problem(gateway: &Pushgateway) -> String {
    let start = Instant::now();
    let error = push(gateway).unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}: {error:?}", start.elapsed());
    assert!(!error.is_timeout() && !error.is_refused() && !error.is_config(), "{error:?}");
    assert!(chain(&error).len() > 1, "the error has its cause: {error:?}");
    error.to_string().split_once("/metrics/job/j failed: ").unwrap().1.to_owned()
}

/// Not a test: a job in a process of its own, whose settings are in the environment. The scenario is their prefix.
#[test]
fn push_by_environment() {
    let Some(prefix) = child::scenario() else { return };
    let builder = match MetricsLayer::builder().with_env_prefix(&prefix) {
        Ok(builder) => builder,
        Err(error) => return println!("\nwith_env: {error:?}"),
    };
    let (layer, guard) = match builder.install() {
        Ok(installed) => installed,
        Err(error) => return println!("\ninstall: {} {error:?}", error.is_config()),
    };
    use tracing_subscriber::prelude::*;
    tracing_subscriber::registry().with(layer).init();
    stage("a");
    println!("\nended: {:?}", guard.shutdown());
}

/// Runs the job with these variables, and returns the line that it printed.
fn job(prefix: &str, variables: &[(&str, &str)]) -> String {
    let mut command = child::command("files::push_by_environment", prefix);
    for name in ["http_proxy", "https_proxy", "all_proxy", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env_remove(name);
    }
    for (name, value) in [("JOB", "j"), ("FLUSH_TIMEOUT", "1500ms")].iter().chain(variables) {
        command.env(format!("{prefix}PROMETHEUS_{name}"), value);
    }
    let Ended { stdout, .. } = child::start(command).wait();
    assert!(!stdout.contains(PASSWORD), "{stdout}");
    let is_result = |line: &&str| ["with_env: ", "install: ", "ended: "].iter().any(|start| line.starts_with(start));
    stdout.lines().find(is_result).unwrap_or_else(|| panic!("{stdout}")).to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn gateway_gets_the_push_with_files_named_by_variables() {
    if ![servers::PUSHGATEWAY, "curl"].into_iter().all(servers::installed) {
        return;
    }
    let authority = Authority::new();
    ["localhost", "pusher"].iter().for_each(|name| authority.issue(name, |_| {}));
    let server = SecuredGateway::start(&authority, CLIENT_CERTIFICATES, USERS);
    let password = authority.file("password");
    // As `echo` and Kubernetes write it.
    std::fs::write(&password, format!("{PASSWORD}\n")).unwrap();
    let (ca, certificate, key) = (authority.ca(), authority.file("pusher.pem"), authority.file("pusher.key"));
    let url = format!("https://{}", server.host());
    let ended = job(
        "ACME_",
        &[
            ("PUSHGATEWAY", &url),
            ("USERNAME", USER),
            ("PASSWORD_FILE", text(&password)),
            ("CA_FILE", text(&ca)),
            ("CERT_FILE", text(&certificate)),
            ("KEY_FILE", text(&key)),
        ],
    );
    assert_eq!(ended, "ended: Ok(())");
    let user = format!("{USER}:{PASSWORD}");
    let client = ["--user", &user, "--cert", text(&certificate), "--key", text(&key)];
    let labels = [("instance", ""), ("job", "j"), ("stage_id", "a"), ("status", "success")];
    assert_eq!(server.scrape(&authority, &client).expect("quant_stage_total", &labels), 1.0);

    // The errors name the variables, with their prefix.
    let push = |variables: &[(&str, &str)]| job("ACME_", &[&[("PUSHGATEWAY", url.as_str())], variables].concat());
    let untrusted = push(&[]);
    let expected = "could not connect: its certificate is not trusted; name the certificate of its authority with \
                    ACME_PROMETHEUS_CA_FILE: ";
    assert!(untrusted.starts_with("ended: Err(") && untrusted.contains(expected), "{untrusted}");
    let anonymous = push(&[("CA_FILE", text(&ca))]);
    let expected = "could not connect: it asks for a client certificate; name one with ACME_PROMETHEUS_CERT_FILE and \
                    ACME_PROMETHEUS_KEY_FILE: ";
    assert!(anonymous.starts_with("ended: Err(") && anonymous.contains(expected), "{anonymous}");
}

#[test]
fn install_names_the_variable_of_a_wrong_file() {
    let authority = Authority::new();
    authority.issue("pusher", |_| {});
    let (ca, certificate, key) = (authority.ca(), authority.file("pusher.pem"), authority.file("pusher.key"));
    let (ca, certificate, key) = (text(&ca), text(&certificate), text(&key));
    let install = |variables: &[(&str, &str)]| {
        let line = job("TV_", &[&[("PUSHGATEWAY", "https://localhost:1")], variables].concat());
        line.strip_prefix("install: true TV_PROMETHEUS_").unwrap_or_else(|| panic!("{line}")).to_owned()
    };
    let missing = "file \"/missing\" cannot be read: No such file or directory (os error 2)";
    for variable in ["BEARER_TOKEN_FILE", "CA_FILE"] {
        assert_eq!(install(&[(variable, "/missing")]), format!("{variable}: {missing}"));
    }
    assert_eq!(install(&[("USERNAME", "hush"), ("PASSWORD_FILE", "/missing")]), format!("PASSWORD_FILE: {missing}"));
    let wrong_key = format!("KEY_FILE: file {certificate:?} holds a certificate and no private key");
    assert_eq!(install(&[("CERT_FILE", certificate), ("KEY_FILE", certificate)]), wrong_key);
    let other_key = format!("KEY_FILE: file {key:?} is not the key of the certificate in {ca:?}");
    assert_eq!(install(&[("CA_FILE", ca), ("CERT_FILE", ca), ("KEY_FILE", key)]), other_key);
    let no_certificate = format!("CA_FILE: file {key:?} holds a private key and no certificate");
    assert_eq!(install(&[("CA_FILE", key)]), no_certificate);
    // Nothing uses them where there is no gateway.
    assert_eq!(job("TV_", &[("CA_FILE", "/missing"), ("BEARER_TOKEN_FILE", "/missing")]), "ended: Ok(())");
    let single = job("TV_", &[("CERT_FILE", certificate)]);
    assert_eq!(single, "with_env: TV_PROMETHEUS_CERT_FILE is set without TV_PROMETHEUS_KEY_FILE: set both");
}

#[test]
fn tls_that_does_not_fit_is_explained() {
    if !servers::installed(servers::PUSHGATEWAY) {
        return;
    }
    // Both authorities have the same name, as after a renewal.
    let (authority, other) = (Authority::new(), Authority::new());
    ["localhost", "pusher"].iter().for_each(|name| authority.issue(name, |_| {}));
    other.issue("pusher", |_| {});
    let server = SecuredGateway::start(&authority, CLIENT_CERTIFICATES, "");
    let of_name = |name: &str| gateway(format!("https://{name}:{}", server.port()));
    let trusting = || of_name("localhost").with_root_certificates(authority.ca());
    let with = |gateway: Pushgateway, of: &Authority| {
        gateway.with_client_certificate(of.file("pusher.pem"), of.file("pusher.key"))
    };
    push(&with(trusting(), &authority)).unwrap();
    assert_eq!(
        problem(&with(of_name("localhost").with_root_certificates(other.ca()), &authority)),
        "could not connect: its certificate is not trusted; name the certificate of its authority with \
         `with_root_certificates`"
    );
    assert_eq!(
        problem(&with(of_name("127.0.0.1").with_root_certificates(authority.ca()), &authority)),
        "could not connect: its certificate is for another name; use a name that the certificate has"
    );
    assert_eq!(
        problem(&trusting()),
        "could not connect: it asks for a client certificate; name one with `with_client_certificate`"
    );
    assert_eq!(
        problem(&with(trusting(), &other)),
        "could not connect: it did not accept the client certificate of `with_client_certificate`"
    );
    assert_eq!(problem(&gateway(format!("http://{}", server.host()))), "it speaks TLS; is it https?");
}

/// `openssl req -x509` makes such certificates by default.
#[test]
fn certificate_of_an_authority_is_explained() {
    if !servers::installed(servers::PUSHGATEWAY) {
        return;
    }
    let authority = Authority::new();
    authority.issue("localhost", |params| params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained));
    let server = SecuredGateway::start(&authority, "", "");
    for trusted in [authority.ca(), authority.file("localhost.pem")] {
        let gateway = gateway(format!("https://{}", server.host())).with_root_certificates(trusted);
        assert_eq!(
            problem(&gateway),
            "could not connect: its certificate is that of an authority; give it one that is not (basicConstraints \
             CA:FALSE), signed by an authority or by itself"
        );
    }
}

#[test]
fn certificate_that_is_signed_by_itself_is_trusted() {
    if !servers::installed(servers::PUSHGATEWAY) {
        return;
    }
    let authority = Authority::new();
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(authority.file("localhost.pem"), own.cert.pem()).unwrap();
    std::fs::write(authority.file("localhost.key"), own.signing_key.serialize_pem()).unwrap();
    let server = SecuredGateway::start(&authority, "", "");
    let gateway = gateway(format!("https://{}", server.host()));
    push(&gateway.with_root_certificates(authority.file("localhost.pem"))).unwrap();
}

#[test]
fn certificate_of_another_time_is_explained() {
    if !servers::installed(servers::PUSHGATEWAY) {
        return;
    }
    for (from, until, expected) in [
        (2000, 2001, "could not connect: its certificate has expired, by the clock of this machine"),
        (3000, 3001, "could not connect: its certificate is not valid yet, by the clock of this machine"),
    ] {
        let authority = Authority::new();
        authority.issue("localhost", |params| {
            params.not_before = rcgen::date_time_ymd(from, 1, 1);
            params.not_after = rcgen::date_time_ymd(until, 1, 1);
        });
        let server = SecuredGateway::start(&authority, "", "");
        let gateway = gateway(format!("https://{}", server.host())).with_root_certificates(authority.ca());
        assert_eq!(problem(&gateway), expected);
    }
}

#[test]
fn port_without_tls_is_explained() {
    let Some(server) = pushgateway() else { return };
    let authority = Authority::new();
    let gateway = gateway(format!("https://{}", server.addr())).with_root_certificates(authority.ca());
    assert_eq!(problem(&gateway), "could not connect: it speaks no TLS; is it http?");
}

#[test]
fn silent_port_takes_the_connect_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let authority = Authority::new();
    let gateway = gateway(format!("https://{}", listener.local_addr().unwrap()))
        .with_root_certificates(authority.ca())
        .with_connect_timeout(Duration::from_millis(300));
    let start = Instant::now();
    let error = push(&gateway).unwrap_err();
    assert!(error.is_timeout() && error.to_string().ends_with("no connection within 300ms"), "{error:?}");
    assert!((300..2_000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
}

/// A 400 of a server that has seen no metric is no refusal of the metrics.
#[test]
fn payload_for_a_port_of_tls_stays_in_the_spool() {
    if ![servers::PUSHGATEWAY, "curl"].into_iter().all(servers::installed) {
        return;
    }
    let authority = Authority::new();
    authority.issue("localhost", |_| {});
    let server = SecuredGateway::start(&authority, "", "");
    let spool = tempfile::tempdir().unwrap();
    let files = || {
        let names =
            std::fs::read_dir(spool.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".spool") || name.ends_with(".refused")).collect::<Vec<_>>()
    };
    for run in 1..=2 {
        let builder = builder(&format!("http://{}", server.host())).with_spool_dir(spool.path());
        let Measured { guard, log: _, default: _default } =
            measured(builder.with_flush_timeout(Duration::from_millis(1_500)));
        stage("a");
        let error = guard.shutdown().unwrap_err();
        assert!(error.to_string().contains("it speaks TLS; is it https?"), "{error:?}");
        let files = files();
        assert!(files.len() == run && files.iter().all(|name| name.ends_with(".spool")), "{files:?}");
    }
}

#[test]
fn requests_at_once_read_their_files_one_after_the_other() {
    let server = MockGateway::ok();
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "tok.en").unwrap();
    let gateway = gateway(server.url()).with_bearer_token_file(token.path());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut pushes = tokio::task::JoinSet::new();
        for _ in 0..40 {
            let gateway = gateway.clone();
            pushes.spawn(async move { gateway.push_add("rows 1\n").await });
        }
        while let Some(pushed) = pushes.join_next().await {
            pushed.unwrap().unwrap();
        }
    });
    assert!(server.await_requests(40).iter().all(|request| request.header("Authorization") == Some("Bearer tok.en")));
}

/// The metrics of an application may quote such an answer.
#[test]
fn refusal_with_the_text_of_a_port_of_tls_is_a_refusal() {
    let text = "pushed metrics are invalid or inconsistent with existing metrics: collected metric \"errors_total\" { \
        label:{name:\"message\" value:\"Client sent an HTTP request to an HTTPS server.\"} counter:{value:1}} was collected \
        before with the same name and label values";
    let server = MockGateway::start([Reply::Answer(super::Answer::new(400).with_body(text))]);
    let error = push(&gateway(server.url())).unwrap_err();
    assert_eq!(error.status(), Some(400), "{error:?}");
}

#[test]
fn proxy_with_tls_a_path_and_a_token_passes_the_push_on() {
    if !servers::installed(servers::NGINX) {
        return;
    }
    let Some(server) = pushgateway() else { return };
    let authority = Authority::new();
    authority.issue("localhost", |_| {});
    let proxy = nginx(&authority, &server, "Bearer tok.en", "");
    let token = authority.file("token");
    let gateway = |scheme: &str| {
        gateway(format!("{scheme}://localhost:{}/gateway", proxy.addr().port()))
            .with_root_certificates(authority.ca())
            .with_bearer_token_file(&token)
    };
    std::fs::write(&token, "tok.en\r\n").unwrap();
    push(&gateway("https")).unwrap();
    assert!(server.metrics().contains("rows{instance=\"\",job=\"j\"} 1\n"));
    assert_eq!(problem(&gateway("http")), "it speaks TLS; is it https?");
    std::fs::write(&token, "earlier").unwrap();
    let error = push(&gateway("https")).unwrap_err();
    assert!(error.to_string().contains(" was refused with 401 Unauthorized: check the token: <html>"), "{error:?}");
}

/// nginx ends the handshake, and answers 400: it has seen no metric, so that is no refusal.
#[test]
fn proxy_that_asks_for_a_client_certificate_is_explained() {
    if !servers::installed(servers::NGINX) {
        return;
    }
    let Some(server) = pushgateway() else { return };
    let (authority, other) = (Authority::new(), Authority::new());
    ["localhost", "pusher"].iter().for_each(|name| authority.issue(name, |_| {}));
    other.issue("pusher", |_| {});
    let verify = format!("ssl_client_certificate {}; ssl_verify_client on;", authority.ca().display());
    let proxy = nginx(&authority, &server, "", &verify);
    let gateway =
        || gateway(format!("https://localhost:{}/gateway", proxy.addr().port())).with_root_certificates(authority.ca());
    let with = |of: &Authority| gateway().with_client_certificate(of.file("pusher.pem"), of.file("pusher.key"));
    push(&with(&authority)).unwrap();
    assert_eq!(problem(&gateway()), "it asks for a client certificate; name one with `with_client_certificate`");
    assert_eq!(problem(&with(&other)), "it did not accept the client certificate of `with_client_certificate`");
}

/// Replaces a file at once, as Kubernetes does.
fn replace(path: &Path, contents: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, contents).unwrap();
    std::fs::rename(new, path).unwrap();
}

fn authorization(request: &super::support::mock_gateway::Request) -> &str {
    request.header("authorization").unwrap()
}

#[test]
fn every_push_reads_the_token_again() {
    let server = MockGateway::ok();
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    replace(&token, "first");
    let gateway = gateway(server.url()).with_bearer_token_file(&token);
    let Measured { guard, log, default: _default } = measured(builder("unused").with_pushgateway(gateway));
    server.await_requests(1);
    replace(&token, "second");
    guard.flush().unwrap();
    // A moment without the file costs a try, not the push.
    std::fs::remove_file(&token).unwrap();
    let back = std::thread::spawn({
        let token = token.clone();
        move || {
            std::thread::sleep(Duration::from_millis(300));
            replace(&token, "third");
        }
    });
    guard.flush().unwrap();
    back.join().unwrap();
    let sent = server.requests();
    assert_eq!(sent.iter().map(authorization).collect::<Vec<_>>(), ["Bearer first", "Bearer second", "Bearer third"]);

    // A server that sends the request back.
    let answer = super::Answer::new(401).with_body("no: Bearer rotated");
    server.set_replies([Reply::Answer(answer)]);
    replace(&token, "rotated");
    let error = guard.flush().unwrap_err();
    assert!(error.to_string().ends_with("refused with 401 Unauthorized: check the token: no: ***"), "{error:?}");
    drop(guard);
    assert!(!format!("{:?}", log.own()).contains("rotated"), "{:?}", log.own());
}

#[test]
fn missing_token_fails_the_push_and_the_next_run_delivers_the_payload() {
    let server = MockGateway::ok();
    let directory = tempfile::tempdir().unwrap();
    let (token, spool) = (directory.path().join("token"), directory.path().join("spool"));
    let job = || {
        let gateway = gateway(server.url()).with_bearer_token_file(&token);
        let builder = builder("unused").with_pushgateway(gateway).with_spool_dir(&spool);
        measured(builder.with_flush_timeout(Duration::from_millis(1_000)))
    };
    replace(&token, "token-1");
    let Measured { guard, log, default } = job();
    server.await_requests(1);
    stage("a");
    std::fs::remove_file(&token).unwrap();
    let expected = format!("with_bearer_token_file: file {token:?} cannot be read: No such file or directory");
    for result in [guard.flush(), guard.shutdown()] {
        let error = format!("{:?}", result.unwrap_err());
        assert!(error.contains(&expected), "{error}");
    }
    assert!(log.own()[0].contains(&expected), "{:?}", log.own());
    drop(default);
    let payloads: Vec<_> =
        std::fs::read_dir(&spool).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect();
    assert!(
        payloads.iter().any(|payload| String::from_utf8_lossy(payload).contains("stage_id=\"a\"")),
        "it is spooled"
    );
    assert!(payloads.iter().all(|payload| !String::from_utf8_lossy(payload).contains("token-1")));

    replace(&token, "token-2");
    let before = server.requests().len();
    job().guard.shutdown().unwrap();
    let requests = server.requests();
    let replayed = requests[before..].iter().find(|request| request.text().contains("stage_id=\"a\"")).unwrap();
    assert_eq!(authorization(replayed), "Bearer token-2");
}

#[test]
fn changed_certificates_need_no_restart() {
    if !servers::installed(servers::PUSHGATEWAY) {
        return;
    }
    let authority = Authority::new();
    ["localhost", "pusher"].iter().for_each(|name| authority.issue(name, |_| {}));
    let mut server = SecuredGateway::start(&authority, CLIENT_CERTIFICATES, "");
    let gateway = gateway(format!("https://{}", server.host()))
        .with_root_certificates(authority.ca())
        .with_client_certificate(authority.file("pusher.pem"), authority.file("pusher.key"));
    push(&gateway).unwrap();
    let renewed = Authority::new();
    ["localhost", "pusher"].iter().for_each(|name| renewed.issue(name, |_| {}));
    for name in ["ca.pem", "localhost.pem", "localhost.key", "pusher.pem", "pusher.key"] {
        replace(&authority.file(name), &std::fs::read_to_string(renewed.file(name)).unwrap());
    }
    server.restart();
    push(&gateway).unwrap();
    // Half of a renewal: the next try may find the other half.
    renewed.issue("pusher", |_| {});
    replace(&authority.file("pusher.pem"), &std::fs::read_to_string(renewed.file("pusher.pem")).unwrap());
    let error = push(&gateway).unwrap_err();
    assert!(!error.is_config() && error.to_string().contains("is not the key of the certificate"), "{error:?}");
}
