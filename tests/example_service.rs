//! The example `service` as a program: scraped by a real Prometheus, stopped by a signal.
#![cfg(feature = "http")]
#![allow(clippy::unwrap_used)]

mod support;

use std::net::SocketAddr;

use support::child::{Running, Signal, start};
use support::{exposition, http};

/// Starts the service with a short pause between two runs, on a free port.
fn service(variables: &[(&str, &str)]) -> (Running, SocketAddr) {
    let mut command = support::example::command("service");
    command.arg("0.05").env("TV_PROMETHEUS_LISTEN", "127.0.0.1:0").envs(variables.iter().copied());
    let mut child = start(command);
    let line = child.await_line("metrics are at ");
    let address = line.strip_prefix("metrics are at http://").and_then(|rest| rest.strip_suffix("/metrics"));
    (child, address.unwrap().parse().unwrap())
}

#[test]
fn prometheus_scrapes_the_runs_of_the_service() {
    let (child, address) = service(&[]);
    let Some(prometheus) = support::prometheus(&[("service", address, false)]) else { return };
    let all = "quant_stage_total{job=\"service\", status=\"success\"} > 3";
    prometheus.await_query(all, |stages| stages.len() == 6);
    let rate = "rate(quant_stage_duration_seconds_count{stage_id=\"risk.optimize\"}[1m]) > 0";
    let series = prometheus.await_query(rate, |series| series.len() == 1);
    assert_eq!(series[0].0["profile"], "multi_asset_daily");
    assert_eq!(series[0].0.get("run_id"), None, "a service has no label `run_id`, since its runs are unbounded");

    child.signal(Signal::TERM);
    let ended = child.wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(ended.stderr.contains("stopping"), "{ended:?}");
    prometheus.await_query("up{job=\"service\"} == 0", |series| series.len() == 1);
}

#[test]
fn last_state_is_pushed_on_a_signal() {
    let gateway = support::MockGateway::ok();
    let url = gateway.url();
    let (child, address) = service(&[("TV_PROMETHEUS_PUSHGATEWAY", &url), ("TV_PROMETHEUS_JOB", "service")]);
    gateway.await_requests(1);
    let scraped = exposition::parse(&http::get(address, "/metrics").unwrap().body);
    let simulations = [("stage_id", "allocation.simulate"), ("status", "success")];
    let before = scraped.expect("quant_stage_total", &simulations);
    child.signal(Signal::INT);
    let ended = child.wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let last = exposition::parse(gateway.requests().last().unwrap().text());
    let after = last.expect("quant_stage_total", &simulations);
    assert!(after >= before && after % 2.0 == 0.0, "the run in progress completes its two simulations: {after}");
    assert_eq!(last.value("quant_stage_failures_total", &[("reason", "interrupted")]), None);
    assert!(last.family("quant_run_last_success_timestamp_seconds").is_some());
}
