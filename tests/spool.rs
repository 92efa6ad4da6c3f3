//! The spool: a later run delivers what an earlier one could not, whatever happened to the process, the gateway or
//! the directory in between.
#![cfg(all(feature = "pushgateway", unix))]
#![allow(clippy::print_stderr, clippy::print_stdout, clippy::unwrap_used)]

mod support;

#[path = "spool/bounds.rs"]
mod bounds;
#[path = "spool/concurrent_processes.rs"]
mod concurrent_processes;
#[path = "spool/damaged_files.rs"]
mod damaged_files;
#[path = "spool/delivered_later.rs"]
mod delivered_later;
#[path = "spool/directory.rs"]
mod directory;
#[path = "spool/failing_replay.rs"]
mod failing_replay;
#[path = "spool/file_systems.rs"]
mod file_systems;
#[path = "spool/killed.rs"]
mod killed;
#[path = "spool/newer_state.rs"]
mod newer_state;
#[path = "spool/push_formats.rs"]
mod push_formats;
#[path = "spool/replay_order.rs"]
mod replay_order;
#[path = "spool/replay_priority.rs"]
mod replay_priority;
#[path = "spool/scenarios.rs"]
mod scenarios;
#[path = "spool/system_calls.rs"]
mod system_calls;
#[path = "spool/undeletable_files.rs"]
mod undeletable_files;
#[path = "spool/victoria_metrics.rs"]
mod victoria_metrics;

use std::path::Path;
use std::time::Duration;

use support::measured::{Measured, measured, stage};
use support::mock_gateway::Request;
use support::{MockGateway, Reply};
use tracing_stage_metrics::{MetricsLayer, MetricsLayerBuilder, Pushgateway};

/// Margin for a busy machine on top of a deadline.
const SLACK: Duration = Duration::from_millis(1_500);

/// A run that pushes at install, on request and at the end. Waiting payloads are readdressed to its gateway: the mock
/// servers of a test stand for one gateway.
fn builder(url: &str, job: &str, spool: &Path) -> MetricsLayerBuilder {
    directory::readdress(spool, url);
    MetricsLayer::builder()
        .with_pushgateway(Pushgateway::new(url, job).unwrap())
        .with_push_interval(Duration::from_secs(3_600))
        .with_flush_timeout(Duration::from_secs(20))
        .with_spool_dir(spool)
}

/// A run of one stage that leaves its final payload in the spool: the gateway refuses it without a retry.
#[track_caller]
fn leave_payload(spool: &Path, job: &str, stage_id: &str) {
    leave_payload_with(spool, stage_id, |url| builder(url, job, spool));
}

#[track_caller]
fn leave_payload_with(spool: &Path, stage_id: &str, builder: impl FnOnce(&str) -> MetricsLayerBuilder) {
    let refusing = MockGateway::start([Reply::status(401)]);
    let before = directory::payloads(spool).len();
    let Measured { guard, log: _, default: _default } = measured(builder(&refusing.url()));
    stage(stage_id);
    assert_eq!(guard.shutdown().unwrap_err().status(), Some(401));
    assert_eq!(directory::payloads(spool).len(), before + 1, "the run leaves its payload");
}

/// A run that delivers every waiting payload. Asserts that it warns of nothing.
#[track_caller]
fn deliver(builder: MetricsLayerBuilder, spool: &Path) {
    let Measured { guard, log, default: _default } = measured(builder);
    directory::await_no_payload(spool);
    guard.shutdown().unwrap();
    assert_eq!(log.own(), [""; 0]);
}

/// Method and path of a request, without the address: `POST job/a`, `GET /metrics`.
fn request_line(request: &Request) -> String {
    let path = request.path.strip_prefix("/metrics/").unwrap_or(&request.path);
    format!("{} {path}", request.method)
}

fn request_lines(server: &MockGateway) -> Vec<String> {
    server.requests().iter().map(request_line).collect()
}

/// Number of pushes of this job.
fn push_count(server: &MockGateway, job: &str) -> usize {
    request_lines(server).iter().filter(|line| **line == format!("POST job/{job}")).count()
}

/// Asserts that the stage succeeded once in this payload.
#[track_caller]
fn assert_has_stage(text: &str, stage_id: &str) {
    let exposition = support::exposition::parse(text);
    assert_eq!(exposition.expect("quant_stage_total", &[("stage_id", stage_id), ("status", "success")]), 1.0);
}
