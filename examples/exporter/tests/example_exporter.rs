//! The example `exporter` as a program: the exporter of the application and this crate deliver the same metrics.
#![allow(clippy::unwrap_used)]

#[path = "../../../tests/support/mod.rs"]
mod support;

use support::child::{Signal, start};
use support::exposition::{self, Exposition};
use support::{free_addr, http};

/// The series have the labels of the stage and these.
fn assert_complete(metrics: &Exposition, labels: &[(&str, &str)]) {
    let value = |name, more: &[_]| metrics.expect(name, &[labels, more].concat());
    assert_eq!(value("rows_total", &[]), 107.0);
    let stage = ("stage_id", "ingest");
    assert_eq!(value("quant_stage_total", &[stage, ("status", "success")]), 1.0);
    assert_eq!(value("quant_stage_duration_seconds_count", &[stage, ("profile", ""), ("run_id", "")]), 1.0);
}

#[test]
fn exporter_and_gateway_have_the_metrics_of_both() {
    let Some(gateway) = support::pushgateway() else { return };
    let address = free_addr();
    let mut command = support::example::isolated(env!("CARGO_BIN_EXE_exporter"));
    command.arg(address.to_string()).env("TV_PROMETHEUS_PUSHGATEWAY", gateway.url());
    let mut child = start(command);
    child.await_line("metrics are at ");
    assert_complete(&exposition::parse(&http::get(address, "/metrics").unwrap().body), &[]);

    child.signal(Signal::INT);
    let ended = child.wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let pushed = exposition::parse(&gateway.metrics());
    assert_complete(&pushed, &[("job", "exporter"), ("instance", "")]);
    assert!(pushed.family("quant_run_last_success_timestamp_seconds").is_some());
}
