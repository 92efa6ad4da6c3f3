//! `install()` refuses a wrong configuration with an error that says what is wrong, quotes the value, and says what to
//! do.
#![cfg(feature = "pushgateway")]
#![allow(clippy::unwrap_used)]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use tracing_stage_metrics::{Error, MetricsLayer, MetricsLayerBuilder, Pushgateway};

/// Returns the text of the configuration error of `install()`. Panics if there is none.
#[track_caller]
fn install_error(builder: MetricsLayerBuilder) -> String {
    let Err(error) = builder.install() else { panic!("`install()` succeeded") };
    assert_is_config(&error);
    error.to_string()
}

/// Returns the text of the configuration error of a gateway. Panics if there is none.
#[track_caller]
fn gateway_error(gateway: Result<Pushgateway, Error>) -> String {
    let Err(error) = gateway else { panic!("the gateway was accepted") };
    assert_is_config(&error);
    error.to_string()
}

#[track_caller]
fn assert_is_config(error: &Error) {
    assert!(error.is_config() && !error.is_timeout() && !error.is_refused() && error.status().is_none(), "{error:?}");
}

fn builder() -> MetricsLayerBuilder {
    MetricsLayer::builder()
}

fn gateway() -> Pushgateway {
    Pushgateway::new("http://gateway:9091", "quant").unwrap()
}

#[test]
fn invalid_gateway_address_is_an_error() {
    for (url, wrong) in [
        ("", "\"\" has no host: write it as http://host:port"),
        ("http://", "\"http://\" has no host: write it as http://host:port"),
        ("http:/gateway", "\"http:/gateway\" lacks a slash after its scheme: write it as http://host:port"),
        (
            "http://gateway:port",
            "\"http://gateway:***\" cannot be read (invalid port number): write it as http://host:port",
        ),
        ("gateway:99999", "\"gateway:***\" cannot be read (invalid port number): write it as http://host:port"),
        (
            "http://gate way",
            "\"http://gate way\" cannot be read (invalid international domain name): write it as http://host:port",
        ),
        ("ftp://gateway", "\"ftp://gateway\" has the scheme \"ftp\": only http and https can be pushed to"),
        ("unix:///run/gw.sock", "\"unix:///run/gw.sock\" has no host: write it as http://host:port"),
        (
            "http://gateway/?job=x",
            "\"http://gateway/?***\" has a query or a fragment: leave out everything from the `?` or `#` on",
        ),
    ] {
        assert_eq!(gateway_error(Pushgateway::new(url, "quant")), format!("gateway address {wrong}"), "{url}");
    }
}

#[test]
fn empty_job_is_an_error() {
    assert_eq!(
        gateway_error(Pushgateway::new("http://gateway", "")),
        "the job name is \"\": a gateway refuses an empty one, give the job a name"
    );
}

#[test]
fn invalid_grouping_label_is_an_error() {
    let no_name = "is not a label name: it has to match [a-zA-Z_][a-zA-Z0-9_]*";
    let prometheus = "is reserved by Prometheus: choose another name";
    let schema = "is a label of the metrics themselves: choose another name";
    for (name, wrong) in [
        ("", no_name),
        ("1st", no_name),
        ("run-id", no_name),
        ("größe", no_name),
        ("a:b", no_name),
        ("a\n", no_name),
        ("job", "is reserved: the job has a setting of its own, use that or choose another name"),
        ("le", prometheus),
        ("quantile", prometheus),
        ("__name__", prometheus),
        ("__x", prometheus),
        ("stage_id", schema),
        ("status", schema),
        ("reason", schema),
        ("resource_type", schema),
        ("node", schema),
        ("result", schema),
    ] {
        let text = gateway_error(gateway().with_grouping_label(name, "x"));
        assert_eq!(text, format!("grouping label {name:?} {wrong}"));
    }
    assert_eq!(
        gateway_error(gateway().with_grouping_label("team", "a").unwrap().with_grouping_label("team", "b")),
        "grouping label \"team\" is given twice, as \"a\" and as \"b\": give it once"
    );
    // Beside the group without the label, it would break the whole gateway.
    assert_eq!(
        gateway_error(gateway().with_grouping_label("instance", "")),
        "grouping label \"instance\" is empty: beside a group of the job without it, the gateway could not be scraped any \
         more; give it a value or leave it out"
    );
    for allowed in ["profile", "run_id", "instance", "_x", "LE", "job2"] {
        assert!(gateway().with_grouping_label(allowed, "x").is_ok(), "{allowed}");
    }
}

#[test]
fn invalid_header_is_an_error() {
    for (gateway, text) in [
        (
            gateway().with_header("X Tenant", "hush"),
            "\"X Tenant\" is not the name of a header: letters, digits and hyphens make one, without the colon",
        ),
        (
            gateway().with_header("X-Tenant", "hush\n"),
            "the value of header \"X-Tenant\" has a character that a header cannot carry: leave out a line break at its end",
        ),
        (
            gateway().with_header("content-type", "hush"),
            "header \"content-type\" belongs to the client, which knows what it sends: leave it out",
        ),
        (
            gateway().with_bearer_token("hush\n"),
            "the bearer token is empty or has a character that a header cannot carry: leave out the line break at the \
             end of a file",
        ),
        (
            gateway().with_basic_auth("hu:sh", "hush"),
            "the user name has a colon in it, which basic authentication cannot carry: give user and password apart \
             from each other",
        ),
    ] {
        assert_eq!(install_error(builder().with_pushgateway(gateway)), text);
    }
}

#[test]
fn invalid_constant_label_is_an_error() {
    for (name, wrong) in [
        ("1st", "is not a label name: it has to match [a-zA-Z_][a-zA-Z0-9_]*"),
        ("le", "is reserved by Prometheus: choose another name"),
        ("__name__", "is reserved by Prometheus: choose another name"),
        ("job", "is reserved: the job has a setting of its own, use that or choose another name"),
        ("stage_id", "is a label of the metrics themselves: choose another name"),
        ("run_id", "is a label of the stages: set it on the span that encloses them, or in the grouping"),
    ] {
        assert_eq!(install_error(builder().with_label(name, "x")), format!("constant label {name:?} {wrong}"));
    }
    assert_eq!(
        install_error(builder().with_job("")),
        "the job name is \"\": a gateway refuses an empty one, give the job a name"
    );
}

#[test]
fn constant_label_that_is_a_grouping_label_is_an_error() {
    let grouped = gateway().with_grouping_label("team", "x").unwrap();
    assert_eq!(
        install_error(builder().with_pushgateway(grouped).with_label("team", "y")),
        "label \"team\" is a constant label, \"y\", and a grouping label, \"x\": leave one of them out"
    );
    assert_eq!(
        install_error(builder().with_pushgateway(gateway()).with_instance_grouping().with_label("instance", "y")),
        "label \"instance\" is a constant label, \"y\", and a grouping label, \"of each process\": leave one of them out"
    );
}

#[test]
fn zero_duration_is_an_error() {
    let zero = Duration::ZERO;
    assert_eq!(
        install_error(builder().with_pushgateway(gateway().with_timeout(zero))),
        "the timeouts of gateway http://gateway:9091 are 0ns for a request and 5s for a connection: both have to be \
         above zero"
    );
    assert_eq!(
        install_error(builder().with_pushgateway(gateway().with_connect_timeout(zero))),
        "the timeouts of gateway http://gateway:9091 are 10s for a request and 0ns for a connection: both have to be \
         above zero"
    );
    for (built, setting) in [
        (builder().with_push_interval(zero), "push interval"),
        (builder().with_flush_timeout(zero), "flush timeout"),
        #[cfg(feature = "resource-usage")]
        (builder().with_resource_usage(zero), "interval of the resource usage"),
    ] {
        assert_eq!(install_error(built), format!("the {setting} is 0ns: it must be above zero and at most a year"));
    }
}

#[test]
fn maximum_duration_is_an_error() {
    for built in [
        builder().with_push_interval(Duration::MAX),
        builder().with_flush_timeout(Duration::MAX),
        #[cfg(feature = "resource-usage")]
        builder().with_resource_usage(Duration::MAX),
    ] {
        let text = install_error(built);
        let end = format!(" is {:?}: it must be above zero and at most a year", Duration::MAX);
        assert!(text.ends_with(&end), "{text}");
    }
}

#[test]
fn invalid_buckets_are_an_error() {
    for (bounds, wrong) in [
        (&[][..], "are empty: give at least one upper bound"),
        (&[2.0, 1.0], "are not in ascending order: 2 stands before 1"),
        (&[1.0, 1.0], "are not in ascending order: 1 stands before 1"),
        (&[f64::NAN], "contain NaN: every upper bound must be finite, the last bucket (+Inf) is added"),
        (&[1.0, f64::INFINITY], "contain inf: every upper bound must be finite, the last bucket (+Inf) is added"),
        (&[f64::NEG_INFINITY, 1.0], "contain -inf: every upper bound must be finite, the last bucket (+Inf) is added"),
    ] {
        assert_eq!(install_error(builder().with_buckets(bounds)), format!("the buckets of the stage duration {wrong}"));
        assert_eq!(
            install_error(builder().with_histogram_buckets("rows", bounds)),
            format!("the buckets of histogram `rows` {wrong}")
        );
    }
}

#[test]
fn invalid_namespace_is_an_error() {
    for namespace in ["", "1quant", "my-quant", "quant.x", "größe", "a b", "a:b"] {
        assert_eq!(
            install_error(builder().with_namespace(namespace)),
            format!(
                "the namespace {namespace:?} cannot begin a metric name: use letters, digits and underscores, and no \
                 digit first"
            )
        );
    }
}

#[test]
fn invalid_series_limit_is_an_error() {
    let text = |limit: usize, stages: usize| {
        format!(
            "the limit on label sets is {limit}: it must be at least 1, at least the number of expected stages \
             ({stages}), and at most 100000"
        )
    };
    assert_eq!(install_error(builder().with_max_series(0)), text(0, 0));
    assert_eq!(install_error(builder().with_max_series(100_001)), text(100_001, 0));
    assert_eq!(install_error(builder().with_max_series(1).with_expected_stages(["a", "b", "a"])), text(1, 2));
}

#[test]
fn unwritable_text_file_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("no/such/job.prom");
    let Err(error) = builder().with_textfile(&path).install() else { panic!("`install()` succeeded") };
    assert_is_config(&error);
    let text = format!("cannot write text file {path:?}: check that its directory exists, and its permissions");
    assert_eq!(error.to_string(), text);
    assert_eq!(format!("{error:?}"), format!("{text}: No such file or directory (os error 2)"));

    let path = directory.path();
    assert_eq!(
        install_error(builder().with_textfile(path)),
        format!(
            "text file {path:?} is a directory: give the path of a regular file, such as /var/lib/node_exporter/job.prom"
        )
    );
    assert_eq!(std::fs::read_dir(path).unwrap().count(), 0, "no file is left behind");
}

/// A refused `install()` sends no request, whichever check fails.
#[test]
fn refused_configuration_pushes_nothing() {
    let server = support::MockGateway::ok();
    let gateway = Pushgateway::new(server.url(), "quant").unwrap();
    install_error(builder().with_pushgateway(gateway.clone()).with_buckets(&[]));
    install_error(builder().with_pushgateway(gateway.clone()).with_textfile("/no/such/directory/x.prom"));
    // A valid configuration pushes at once. A push of a refused one would have arrived before.
    let (_layer, guard) = builder().with_pushgateway(gateway).build().unwrap();
    guard.shutdown().unwrap();
    let requests = server.requests();
    assert!((1..=2).contains(&requests.len()), "the first push and the final flush alone: {}", requests.len());
}

const SECRETS: [&str; 4] = ["me-hush", "pass-hush", "token-hush", "header-hush"];

#[track_caller]
fn assert_no_secret(text: &str) {
    // The last one is user and password in base64, as the header has them.
    for secret in SECRETS.into_iter().chain(["bWUtaHVzaDpwYXNzLWh1c2g"]) {
        assert!(!text.contains(secret), "{secret} is in: {text}");
    }
}

#[test]
fn credentials_are_redacted_everywhere() {
    let server = support::MockGateway::start([support::Reply::status(401)]);
    let addr: SocketAddr = server.addr();
    for gateway in [
        Pushgateway::new(format!("http://me-hush:pass-hush@{addr}"), "quant").unwrap(),
        Pushgateway::new(server.url(), "quant").unwrap().with_basic_auth("me-hush", "pass-hush"),
        Pushgateway::new(server.url(), "quant").unwrap().with_bearer_token("token-hush"),
        Pushgateway::new(server.url(), "quant").unwrap().with_header("X-Key", "header-hush"),
    ] {
        let builder = builder().with_pushgateway(gateway.clone());
        assert_no_secret(&format!("{gateway:?} {gateway:#?} {builder:?} {builder:#?}"));
        let measured = support::measured::measured(builder);
        assert_no_secret(&format!("{:?}", measured.guard));
        let error = measured.guard.flush().unwrap_err();
        assert_eq!(error.status(), Some(401));
        assert_no_secret(&format!("{error} {error:?} {error:#?}"));
        drop(measured.guard);
        assert!(measured.log.text().contains("401"), "a warning has the status: {}", measured.log.text());
        assert_no_secret(&measured.log.text());
    }
    let authorized = server.requests().iter().filter(|request| request.header("authorization").is_some()).count();
    assert!(authorized >= 3 * 2, "three of four gateways sent credentials with each push: {authorized}");
    for wrong in ["ftp://me-hush:pass-hush@gateway", "http://me-hush:pass-hush@", "http://me-hush:pass-hush@gw:x"] {
        let error = Pushgateway::new(wrong, "quant").unwrap_err();
        assert_no_secret(&format!("{error} {error:?}"));
    }
}

/// Debugging servers and error pages of proxies send the request back.
#[test]
fn credentials_in_a_response_are_redacted() {
    let echo_request = |request: &support::mock_gateway::Request| {
        let headers: String = request.headers.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
        let answer = support::mock_gateway::Answer::new(if request.method == "PUT" { 302 } else { 403 });
        let encoded = support::http::percent_encode(&headers);
        let answer = answer.with_header("Location", &format!("/login/{encoded}"));
        support::Reply::Answer(answer.with_body(&format!("You sent:\n{headers}\n{encoded}")))
    };
    let server = support::MockGateway::start_with(echo_request);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for gateway in [
        Pushgateway::new(format!("http://me-hush:pass-hush@{}", server.addr()), "quant").unwrap(),
        Pushgateway::new(server.url(), "quant").unwrap().with_basic_auth("me-hush", "pass-hush"),
        Pushgateway::new(server.url(), "quant").unwrap().with_bearer_token("token-hush"),
        Pushgateway::new(server.url(), "quant").unwrap().with_header("X-Key", "header-hush"),
    ] {
        let builder = builder().with_pushgateway(gateway.clone()).with_push_interval(Duration::from_secs(3_600));
        let measured = support::measured::measured(builder);
        let flushed = measured.guard.flush().unwrap_err();
        drop(measured.guard);
        let replaced = runtime.block_on(gateway.push_replace("rows 1\n")).unwrap_err();
        assert_eq!((flushed.status(), replaced.status()), (Some(403), Some(302)));
        for text in [format!("{flushed:?}"), format!("{replaced:?}"), measured.log.text()] {
            assert_no_secret(&text);
            assert!(text.contains("tracing-stage-metrics/"), "the rest of the response is shown: {text}");
        }
    }
}

/// The password is in the position of the port and is not a number.
#[test]
fn password_of_a_url_without_host_is_redacted() {
    for url in
        ["http://me:pass-hush", "me:pass-hush", "http://:pass-hush", "http://me:pass/hush", "http://me%3Apass-hush"]
    {
        let text = gateway_error(Pushgateway::new(url, "quant"));
        assert!(!text.contains("hush") && text.ends_with("write it as http://host:port"), "{text}");
    }
}
