//! A real gateway that is down or frozen when a run ends.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::support::exposition::{self, Exposition};
use super::support::measured::{Measured, measured, stage};
use super::support::{self, child, http};
use super::{assert_has_stage, builder, directory, leave_payload, scenarios};

fn scrape(server: &support::Pushgateway) -> Exposition {
    exposition::parse(&server.metrics())
}

fn successes(exposition: &Exposition, job: &str, stage_id: &str) -> Option<f64> {
    let labels = [("instance", ""), ("job", job), ("stage_id", stage_id), ("status", "success")];
    exposition.value("quant_stage_total", &labels)
}

/// A push to the group by another client.
#[track_caller]
fn push(server: &support::Pushgateway, job: &str, text: &str) -> u16 {
    http::request(server.addr(), "POST", &format!("/metrics/job/{job}"), &[], text.as_bytes()).unwrap().status
}

const OTHER_NODE: &str =
    "# TYPE quant_stage_total counter\nquant_stage_total{stage_id=\"other_node\",status=\"success\"} 1\n";

#[test]
fn later_run_delivers_after_a_gateway_outage() {
    let Some(mut server) = support::pushgateway() else { return };
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path().join("made/by/the/run");
    server.stop();
    let Measured { guard, log, default: _default } = measured(builder(&server.url(), "first", &spool));
    stage("one");
    guard.shutdown().unwrap_err();
    let payload = directory::only_payload(&spool);
    assert_eq!(fs::metadata(&payload).unwrap().permissions().mode() & 0o777, 0o600);
    let (group, text) = directory::content(&payload);
    assert_eq!(group, "/metrics/job/first");
    assert_has_stage(&text, "one");
    let spooled = exposition::parse(&text);
    assert!(spooled.expect("quant_run_last_success_timestamp_seconds", &[]) > 1.7e9);
    assert!(!log.text().contains("is not in the spool"), "{}", log.text());

    server.restart();
    let Measured { guard, log, default: _default } = measured(builder(&server.url(), "second", &spool));
    stage("two");
    // The delivery happens in the background, while this run goes on.
    directory::await_no_payload(&spool);
    let exposition = scrape(&server);
    assert_eq!(successes(&exposition, "first", "one"), Some(1.0), "delivered to its own group");
    assert_eq!(successes(&exposition, "second", "one"), None);
    for metric in ["quant_run_last_success_timestamp_seconds", "quant_run_duration_seconds"] {
        let delivered = exposition.expect(metric, &[("instance", ""), ("job", "first")]);
        assert_eq!(delivered, spooled.expect(metric, &[]), "{metric} keeps the value from the end of the first run");
    }
    guard.shutdown().unwrap();
    assert_eq!(successes(&scrape(&server), "second", "two"), Some(1.0));
    assert_eq!(directory::names(&spool), [""; 0]);
    assert_eq!(log.own(), [""; 0]);
}

#[test]
fn signal_with_a_frozen_gateway_leaves_the_final_state() {
    let Some(server) = support::pushgateway() else { return };
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    let mut command = scenarios::command("stay", &server.url(), "first", spool);
    command.env("TV_PROMETHEUS_FLUSH_TIMEOUT", "700ms");
    let mut running = child::start(command);
    running.await_line("go");
    server.freeze();
    running.signal(child::Signal::TERM);
    running.wait();
    let (group, text) = directory::content(&directory::only_payload(spool));
    assert_eq!(group, "/metrics/job/first");
    assert_has_stage(&text, "a");

    server.thaw();
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "second", spool));
    directory::await_no_payload(spool);
    let exposition = scrape(&server);
    assert_eq!(successes(&exposition, "first", "a"), Some(1.0));
    assert!(
        exposition.value("quant_run_duration_seconds", &[("instance", ""), ("job", "first")]).is_some(),
        "the final state"
    );
    guard.shutdown().unwrap();
}

/// Another group has the metric with another type. The stage metrics are pushed without it, and that counts as
/// delivered.
#[test]
fn run_with_a_refused_metric_counts_as_delivered_and_replays_others() {
    let Some(server) = support::pushgateway() else { return };
    let directory = tempfile::tempdir().unwrap();
    let [spool, other] = ["spool", "other"].map(|name| directory.path().join(name));
    assert_eq!(push(&server, "other_type", "# TYPE rows counter\nrows 1\n"), 200);
    let mut command = scenarios::command("stay with a metric that is refused", &server.url(), "refused", &spool);
    command.env("TV_PROMETHEUS_PUSH_INTERVAL", "100ms");
    let mut running = child::start(command);
    running.await_line("refused");
    // The rename adds the payload atomically: the run watches the directory meanwhile.
    leave_payload(&other, "earlier", "left");
    directory::readdress(&other, &server.url());
    let spooled = directory::only_payload(&other);
    fs::rename(&spooled, spool.join(spooled.file_name().unwrap())).unwrap();
    directory::await_no_payload(&spool);
    assert_eq!(successes(&scrape(&server), "earlier", "left"), Some(1.0), "delivered in the background");

    running.signal(child::Signal::TERM);
    running.wait();
    let exposition = scrape(&server);
    assert_eq!(successes(&exposition, "refused", "a"), Some(1.0));
    let group = [("instance", ""), ("job", "refused")];
    assert!(exposition.expect("quant_run_duration_seconds", &group) > 0.0, "the final state");
    assert_eq!(exposition.value("rows", &group), None);
    assert_eq!(directory::names(&spool), [""; 0]);
}

#[test]
fn newer_state_on_the_gateway_is_not_overwritten() {
    let Some(server) = support::pushgateway() else { return };
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    assert_eq!(push(&server, "pushed_before", OTHER_NODE), 200);
    for job in ["pushed_before", "pushed_since", "refused_since"] {
        leave_payload(spool, job, "left");
    }
    assert_eq!(push(&server, "pushed_since", OTHER_NODE), 200);
    // A refused push leaves the group with a push time of zero.
    assert_eq!(push(&server, "refused_since", "no exposition"), 400);

    let Measured { guard, log, default: _default } = measured(builder(&server.url(), "later", spool));
    directory::await_no_payload(spool);
    guard.shutdown().unwrap();
    let exposition = scrape(&server);
    assert_eq!(successes(&exposition, "pushed_since", "other_node"), Some(1.0), "the newer state stays");
    assert_eq!(successes(&exposition, "pushed_since", "left"), None);
    for job in ["pushed_before", "refused_since"] {
        assert_eq!(successes(&exposition, job, "left"), Some(1.0), "{job}");
        assert_eq!(successes(&exposition, job, "other_node"), None, "{job}");
    }
    assert_eq!(directory::names(spool), [""; 0]);
    assert_eq!(log.own(), [""; 0]);
}

/// The replay of the first payload pushes to the group after the second payload was written.
#[test]
fn newer_of_two_payloads_of_a_group_stays() {
    let Some(server) = support::pushgateway() else { return };
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave_payload(spool, "left_twice", "monday");
    leave_payload(spool, "left_twice", "tuesday");
    let newer = exposition::parse(&directory::content(&directory::payloads(spool)[1]).1);

    let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "later", spool));
    directory::await_no_payload(spool);
    guard.shutdown().unwrap();
    let exposition = scrape(&server);
    assert_eq!(successes(&exposition, "left_twice", "tuesday"), Some(1.0));
    assert_eq!(successes(&exposition, "left_twice", "monday"), None);
    let completion = "quant_run_last_completion_timestamp_seconds";
    let delivered = exposition.expect(completion, &[("instance", ""), ("job", "left_twice")]);
    assert_eq!(delivered, newer.expect(completion, &[]));
}
