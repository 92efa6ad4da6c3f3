use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::Duration;

use super::panic_of;
use super::support::child::Signal;
use super::support::process::Process;
#[cfg(target_os = "linux")]
use super::support::sockets::{self, Connection};
use super::support::{self, Pushgateway, exposition, http};

const PAYLOAD: &[u8] = b"# TYPE stages_total counter\nstages_total{stage_id=\"a\"} 3\n";

#[track_caller]
fn push(gateway: &Pushgateway, group: &str) {
    let response = http::request(gateway.addr(), "POST", group, &[], PAYLOAD).unwrap();
    assert_eq!(response.status, 200, "{}", response.body);
}

#[test]
fn push_is_visible_on_the_gateway() {
    let Some(gateway) = support::pushgateway() else { return };
    push(&gateway, "/metrics/job/j/profile/p");
    let scraped = exposition::parse(&gateway.metrics());
    let labels = [("instance", ""), ("job", "j"), ("profile", "p"), ("stage_id", "a")];
    assert_eq!(scraped.expect("stages_total", &labels), 3.0);
    let groups = gateway.api_metrics();
    assert_eq!(groups[0]["labels"]["profile"], "p", "{groups}");
    assert_eq!(groups[0]["stages_total"]["metrics"][0]["value"], "3", "{groups}");
    assert_eq!(gateway.get("/no/such/page").0, 404);
    assert_eq!(gateway.url(), format!("http://{}", gateway.addr()));
}

#[test]
fn get_ok_of_a_missing_page_panics() {
    let Some(gateway) = support::pushgateway() else { return };
    let message = panic_of(|| gateway.get_ok("/no/such/page"));
    assert!(message.contains("/no/such/page"), "{message}");
}

#[test]
fn gateways_share_no_groups() {
    let Some(a) = support::pushgateway() else { return };
    let Some(b) = support::pushgateway() else { return };
    push(&a, "/metrics/job/j");
    assert_eq!(a.api_metrics().as_array().map(Vec::len), Some(1));
    assert_eq!(b.api_metrics().as_array().map(Vec::len), Some(0));
}

#[test]
fn restarted_gateway_has_the_same_port() {
    let Some(mut gateway) = support::pushgateway() else { return };
    let addr = gateway.addr();
    push(&gateway, "/metrics/job/j");
    let status = gateway.stop();
    assert!(status.code() == Some(0) || status.signal() == Some(Signal::TERM.as_raw()), "{status}");
    assert!(http::get(addr, "/-/ready").is_err());
    gateway.restart();
    assert_eq!(gateway.addr(), addr);
    assert_eq!(gateway.get("/-/ready").0, 200);
    assert_eq!(gateway.api_metrics().as_array().map(Vec::len), Some(0), "a gateway without persistence starts empty");
    gateway.restart();
    assert_eq!(gateway.get("/-/ready").0, 200, "`restart` also restarts a running gateway");
}

#[test]
fn arguments_reach_the_gateway() {
    let Some(_) = support::pushgateway() else { return };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("groups");
    let mut gateway = Pushgateway::start_with(&[&format!("--persistence.file={}", file.display())]);
    push(&gateway, "/metrics/job/j");
    gateway.restart();
    assert_eq!(gateway.api_metrics().as_array().map(Vec::len), Some(1));
}

#[test]
fn frozen_gateway_answers_after_the_thaw() {
    use std::io::{Read, Write};
    let Some(gateway) = support::pushgateway() else { return };
    gateway.freeze();
    gateway.thaw();
    gateway.freeze();
    gateway.freeze();
    let mut stream = std::net::TcpStream::connect(gateway.addr()).unwrap();
    stream.write_all(b"GET /-/ready HTTP/1.0\r\n\r\n").unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut start = [0; 8];
    assert_eq!(stream.read(&mut start).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    gateway.thaw();
    stream.set_read_timeout(Some(support::WAIT_TIMEOUT)).unwrap();
    stream.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.0");
}

#[cfg(target_os = "linux")]
#[test]
fn backlog_of_a_frozen_gateway_is_visible() {
    use std::io::Write;
    let Some(gateway) = support::pushgateway() else { return };
    let addr = gateway.addr();
    sockets::await_idle(addr);
    gateway.freeze();
    let mut stream = std::net::TcpStream::connect(addr).unwrap();
    let client_port = stream.local_addr().unwrap().port();
    sockets::await_connections(addr, &[Connection { client_port, unread: 0, closed_by_client: false }]);
    stream.write_all(b"GET /-/ready HTTP/1.0\r\n\r\n").unwrap();
    sockets::await_connections(addr, &[Connection { client_port, unread: 25, closed_by_client: false }]);
    let pending = sockets::await_pending(addr, Duration::from_millis(20));
    assert_eq!(pending, Connection { client_port, unread: 25, closed_by_client: false });
    drop(stream);
    // The end of the stream counts as one byte.
    sockets::await_connections(addr, &[Connection { client_port, unread: 26, closed_by_client: true }]);
    gateway.thaw();
    sockets::await_idle(addr);
}

#[test]
fn frozen_gateway_can_be_stopped_and_dropped() {
    let Some(mut gateway) = support::pushgateway() else { return };
    gateway.freeze();
    gateway.stop();
    gateway.restart();
    gateway.freeze();
    let addr = gateway.addr();
    drop(gateway);
    assert!(std::net::TcpStream::connect(addr).is_err());
}

#[test]
fn failed_start_panics_with_its_cause() {
    let Some(_) = support::pushgateway() else { return };
    let message = panic_of(|| Pushgateway::start_with(&["--no-such-flag"]));
    assert!(message.contains("no-such-flag"), "{message}");
    let message = panic_of(|| Process::start("absent", "/", |_| Command::new("/no/such/program")));
    assert!(message.contains("/no/such/program"), "{message}");
}

#[test]
fn start_on_a_taken_port_is_retried() {
    let Some(first) = support::pushgateway() else { return };
    let taken = first.addr();
    let attempts = std::sync::atomic::AtomicUsize::new(0);
    let second = Process::start("second", "/-/ready", move |addr| {
        // The first attempt uses the port of the running server.
        let first_try = attempts.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
        let addr = if first_try { taken } else { addr };
        let mut command = Command::new(support::servers::PUSHGATEWAY);
        command.arg(format!("--web.listen-address={addr}")).arg("--persistence.file=");
        command
    });
    assert_ne!(second.addr(), taken);
    assert_eq!(second.get("/-/ready").0, 200);
    assert_eq!(first.get("/-/ready").0, 200);
}

#[test]
fn prometheus_scrape_honors_labels_on_request() {
    let Some(gateway) = support::pushgateway() else { return };
    let scrape = [("honored", gateway.addr(), true), ("own", gateway.addr(), false)];
    let Some(prometheus) = support::prometheus(&scrape) else { return };
    push(&gateway, "/metrics/job/j");
    let series = prometheus.await_query("stages_total", |result| result.len() == 2);
    let jobs: Vec<&str> = series.iter().map(|(labels, _)| labels["job"].as_str()).collect();
    assert!(jobs.contains(&"j") && jobs.contains(&"own"), "{series:?}");
    assert!(series.iter().all(|(labels, value)| *value == 3.0 && labels["__name__"] == "stages_total"), "{series:?}");
    assert_eq!(prometheus.query("1 + 1"), [(Default::default(), 2.0)]);
    assert_eq!(prometheus.query("stages_total{stage_id=\"ä + b\"}"), []);
}

#[test]
fn failing_query_panics_and_unmatched_query_returns_its_result() {
    let Some(prometheus) = support::prometheus(&[]) else { return };
    let message = panic_of(|| prometheus.query("sum("));
    assert!(message.contains("sum(") && message.contains("parse error"), "{message}");
    let message = panic_of(|| prometheus.query("up[1m]"));
    assert!(message.contains("matrix"), "{message}");
    let last = prometheus.await_query_for(Duration::from_millis(100), "vector(1)", |result| result[0].1 == 2.0);
    assert_eq!(last, Err(vec![(Default::default(), 1.0)]));
}

#[test]
fn node_exporter_reads_the_text_files() {
    let dir = tempfile::tempdir().unwrap();
    let Some(exporter) = support::node_exporter(dir.path()) else { return };
    fs::write(dir.path().join("quant.prom"), PAYLOAD).unwrap();
    let metrics = exposition::parse(&exporter.metrics());
    assert_eq!(metrics.expect("stages_total", &[("stage_id", "a")]), 3.0);
    assert_eq!(metrics.expect("node_textfile_scrape_error", &[]), 0.0);
    fs::write(dir.path().join("quant.prom"), "stages_total{ 3\n").unwrap();
    let metrics = exposition::parse(&exporter.metrics());
    assert_eq!(metrics.value("stages_total", &[("stage_id", "a")]), None);
    assert_eq!(metrics.expect("node_textfile_scrape_error", &[]), 1.0);
}

#[test]
fn parser_of_open_metrics_refuses_what_breaks_a_rule() {
    let Some(families) = support::open_metrics("# TYPE a counter\na_total 1\n# EOF\n") else { return };
    assert_eq!((&families[0]["name"], &families[0]["kind"]), (&"a".into(), &"counter".into()));
    let message = panic_of(|| support::open_metrics("# TYPE a counter\na_total 1\n"));
    assert!(message.contains("Missing # EOF at end"), "{message}");
}

#[test]
fn free_addr_refuses_connections() {
    let addr = support::free_addr();
    assert!(std::net::TcpStream::connect(addr).is_err());
}
