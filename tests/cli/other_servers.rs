//! What `stage-metrics` says of an address that is no Pushgateway's.

use std::time::{Duration, Instant};

use super::support::mock_gateway::Answer;
use super::support::{self, MockGateway, Reply, servers};
use super::{error, output, run_json};

/// The error of `groups list`, which must be that of `check` too.
#[track_caller]
fn refusal(url: &str) -> String {
    let text = error(1, &["groups", "list", "--all"], &[("PUSHGATEWAY", url)]);
    let text = text.trim_end().strip_prefix("stage-metrics: ").unwrap().to_owned();
    let (code, document) = run_json(&["check"], &[("PUSHGATEWAY", url), ("JOB", "j")]);
    let checks = document["checks"].as_array().unwrap();
    let gateway = checks.iter().find(|check| check["subject"] == "gateway").unwrap();
    assert_eq!((code, &gateway["result"], &gateway["text"]), (1, &"error".into(), &text.clone().into()), "{document}");
    text
}

#[test]
fn prometheus_and_exporters_are_named() {
    let Some(prometheus) = support::prometheus(&[]) else { return };
    let url = format!("http://{}", prometheus.addr());
    let expected = format!("there is no Pushgateway at {url}: the metrics there are those of prometheus");
    assert_eq!(refusal(&url), expected);

    let directory = tempfile::tempdir().unwrap();
    let Some(exporter) = support::node_exporter(directory.path()) else { return };
    let url = format!("http://{}", exporter.addr());
    let expected = format!("there is no Pushgateway at {url}: the metrics there are those of node_exporter");
    assert_eq!(refusal(&url), expected);
}

#[test]
fn victoria_metrics_is_named() {
    if !servers::installed(servers::VICTORIA_METRICS) {
        return;
    }
    let server = support::VictoriaMetrics::start();
    let url = format!("http://{}", server.addr());
    let expected = format!("there is no Pushgateway at {url}: the metrics there are those of VictoriaMetrics");
    assert_eq!(refusal(&url), expected);

    let url = server.import_url();
    let text = error(1, &["groups", "list", "--all"], &[("PUSHGATEWAY", &url)]);
    let expected = format!("stage-metrics: gateway {url} is an import path of VictoriaMetrics, which has no groups\n");
    assert_eq!(text, expected);
    let text = output(0, &["check"], &[("PUSHGATEWAY", &url), ("JOB", "j")]);
    let line = format!("\n  ok       gateway: {url} accepts pushes; it is VictoriaMetrics, which has no groups\n");
    assert!(text.contains(&line), "{text}");
}

#[test]
fn web_pages_and_refusals_are_told() {
    let page = "<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n";
    let gateway = MockGateway::start([Reply::Answer(Answer::new(200).with_body(page))]);
    let url = gateway.url();
    let expected =
        format!("there is no Pushgateway at {url}: a web page is there, such as that of a login or of a web server");
    assert_eq!(refusal(&url), expected);
    let is_get = |request: &support::mock_gateway::Request| request.method == "GET";
    assert!(gateway.requests().iter().all(is_get), "nothing is pushed to such a server");

    for (answer, expected) in [
        (
            Answer::new(404).with_body("<html><center>nginx/1.22.1</center></html>"),
            "URL does not show the metrics of a Pushgateway: check the address and its path prefix: \
             GET URL/metrics was refused with 404 Not Found: <html><center>nginx/1.22.1</center></html>",
        ),
        (
            Answer::new(302).with_header("Location", "/login?next=hush"),
            "GET URL/metrics was refused with 302 Found, a redirect to URL/login?***: give the address it leads to, \
             redirects are not followed",
        ),
        (
            Answer::new(403),
            "URL does not show the metrics of a Pushgateway: check the credentials: \
             GET URL/metrics was refused with 403 Forbidden",
        ),
    ] {
        let gateway = MockGateway::start([Reply::Answer(answer)]);
        assert_eq!(refusal(&gateway.url()).replace(&gateway.url(), "URL"), expected);
    }
}

#[test]
fn dead_address_is_told() {
    let url = format!("http://{}", support::free_addr());
    let text = refusal(&url);
    assert!(text.starts_with(&format!("GET {url}/metrics failed: no server answers there")), "{text}");
}

/// The page has no end, and no line of it is one of a Pushgateway.
#[test]
fn endless_page_ends() {
    let gateway = MockGateway::start([Reply::Endless]);
    let start = Instant::now();
    let (code, document) = run_json(&["check"], &[("PUSHGATEWAY", &gateway.url()), ("JOB", "j")]);
    assert_eq!(code, 1, "{document}");
    assert!(start.elapsed() < Duration::from_secs(25), "{:?}", start.elapsed());
}

/// A proxy that lets only pushes through.
#[test]
fn gateway_that_does_not_show_its_metrics_is_a_warning() {
    let gateway = MockGateway::start_with(|request| match &*request.method {
        "GET" => Reply::status(403),
        _ => Reply::status(202),
    });
    let url = gateway.url();
    let text = output(0, &["check"], &[("PUSHGATEWAY", &url), ("JOB", "j")]);
    let warning = format!("\n  warning  gateway: {url} accepts pushes and deletions, but does not show its metrics, ");
    assert!(text.contains(&warning) && text.ends_with("\nall is well, with 1 warning\n"), "{text}");
    let methods: Vec<_> = gateway.requests().into_iter().map(|request| request.method).collect();
    assert_eq!(methods, ["GET", "POST", "DELETE"]);
}
