//! With a real gateway that is away when a run ends.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::support::exposition::{self, Exposition};
use super::support::measured::{Measured, measured, stage};
use super::support::{self, child, http};
use super::{assert_has_stage, builder, directory, leave, scenarios};

fn scraped(server: &support::Pushgateway) -> Exposition {
    exposition::parse(&server.metrics())
}

fn of_group(found: &Exposition, job: &str, stage_id: &str) -> Option<f64> {
    let labels = [("instance", ""), ("job", job), ("stage_id", stage_id), ("status", "success")];
    found.value("quant_stage_total", &labels)
}

/// A push of somebody else to the group.
#[track_caller]
fn push(server: &support::Pushgateway, job: &str, text: &str) -> u16 {
    http::request(server.addr(), "POST", &format!("/metrics/job/{job}"), &[], text.as_bytes()).unwrap().status
}

const OTHER_NODE: &str =
    "# TYPE quant_stage_total counter\nquant_stage_total{stage_id=\"other_node\",status=\"success\"} 1\n";

#[test]
fn what_a_dead_gateway_did_not_take_comes_with_a_later_run() {
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
    let left = exposition::parse(&text);
    assert!(left.expect("quant_run_last_success_timestamp_seconds", &[]) > 1.7e9);
    assert!(!log.text().contains("is not in the spool"), "{}", log.text());

    server.restart();
    let Measured { guard, log, default: _default } = measured(builder(&server.url(), "second", &spool));
    stage("two");
    // In the background: this run goes on.
    directory::await_no_payload(&spool);
    let found = scraped(&server);
    assert_eq!(of_group(&found, "first", "one"), Some(1.0), "to its own group");
    assert_eq!(of_group(&found, "second", "one"), None);
    for metric in ["quant_run_last_success_timestamp_seconds", "quant_run_duration_seconds"] {
        let there = found.expect(metric, &[("instance", ""), ("job", "first")]);
        assert_eq!(there, left.expect(metric, &[]), "{metric} as it was at the end of the first run");
    }
    guard.shutdown().unwrap();
    assert_eq!(of_group(&scraped(&server), "second", "two"), Some(1.0));
    assert_eq!(directory::names(&spool), [""; 0]);
    assert_eq!(log.own(), [""; 0]);
}

#[test]
fn a_frozen_gateway_and_a_signal_leave_the_last_state_too() {
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
    let found = scraped(&server);
    assert_eq!(of_group(&found, "first", "a"), Some(1.0));
    assert!(found.value("quant_run_duration_seconds", &[("instance", ""), ("job", "first")]).is_some(), "the last one");
    guard.shutdown().unwrap();
}

/// Another group has the metric with another type. The stages are pushed without it, and that is a delivery.
#[test]
fn a_run_whose_metric_is_refused_leaves_nothing_and_delivers_what_others_left() {
    let Some(server) = support::pushgateway() else { return };
    let directory = tempfile::tempdir().unwrap();
    let [spool, other] = ["spool", "other"].map(|name| directory.path().join(name));
    assert_eq!(push(&server, "other_type", "# TYPE rows counter\nrows 1\n"), 200);
    let mut command = scenarios::command("stay with a metric that is refused", &server.url(), "refused", &spool);
    command.env("TV_PROMETHEUS_PUSH_INTERVAL", "100ms");
    let mut running = child::start(command);
    running.await_line("refused");
    // At once, since the run looks at the directory meanwhile.
    leave(&other, "earlier", "left");
    directory::readdress(&other, &server.url());
    let left = directory::only_payload(&other);
    fs::rename(&left, spool.join(left.file_name().unwrap())).unwrap();
    directory::await_no_payload(&spool);
    assert_eq!(of_group(&scraped(&server), "earlier", "left"), Some(1.0), "in the background");

    running.signal(child::Signal::TERM);
    running.wait();
    let found = scraped(&server);
    assert_eq!(of_group(&found, "refused", "a"), Some(1.0));
    let group = [("instance", ""), ("job", "refused")];
    assert!(found.expect("quant_run_duration_seconds", &group) > 0.0, "the last state");
    assert_eq!(found.value("rows", &group), None);
    assert_eq!(directory::names(&spool), [""; 0]);
}

#[test]
fn what_the_gateway_has_newer_is_not_taken_back() {
    let Some(server) = support::pushgateway() else { return };
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    assert_eq!(push(&server, "pushed_before", OTHER_NODE), 200);
    for job in ["pushed_before", "pushed_since", "refused_since"] {
        leave(spool, job, "left");
    }
    assert_eq!(push(&server, "pushed_since", OTHER_NODE), 200);
    // Which leaves the group with a push time of zero.
    assert_eq!(push(&server, "refused_since", "no exposition"), 400);

    let Measured { guard, log, default: _default } = measured(builder(&server.url(), "later", spool));
    directory::await_no_payload(spool);
    guard.shutdown().unwrap();
    let found = scraped(&server);
    assert_eq!(of_group(&found, "pushed_since", "other_node"), Some(1.0), "that is the newer one");
    assert_eq!(of_group(&found, "pushed_since", "left"), None);
    for job in ["pushed_before", "refused_since"] {
        assert_eq!(of_group(&found, job, "left"), Some(1.0), "{job}");
        assert_eq!(of_group(&found, job, "other_node"), None, "{job}");
    }
    assert_eq!(directory::names(spool), [""; 0]);
    assert_eq!(log.own(), [""; 0]);
}

/// The delivery of the first is a push of the group that is newer than the second was written.
#[test]
fn of_two_that_one_group_left_the_newer_is_what_stays() {
    let Some(server) = support::pushgateway() else { return };
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave(spool, "left_twice", "monday");
    leave(spool, "left_twice", "tuesday");
    let newer = exposition::parse(&directory::content(&directory::payloads(spool)[1]).1);

    let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "later", spool));
    directory::await_no_payload(spool);
    guard.shutdown().unwrap();
    let found = scraped(&server);
    assert_eq!(of_group(&found, "left_twice", "tuesday"), Some(1.0));
    assert_eq!(of_group(&found, "left_twice", "monday"), None);
    let completion = "quant_run_last_completion_timestamp_seconds";
    let there = found.expect(completion, &[("instance", ""), ("job", "left_twice")]);
    assert_eq!(there, newer.expect(completion, &[]));
}
