//! The spool: what was not delivered is delivered by a later run, whatever happened to the process, the gateway or the
//! directory in between.
#![cfg(all(feature = "pushgateway", unix))]
#![allow(clippy::print_stderr, clippy::print_stdout, clippy::unwrap_used)]

mod support;

#[path = "spool/bounds.rs"]
mod bounds;
#[path = "spool/crowd.rs"]
mod crowd;
#[path = "spool/damage.rs"]
mod damage;
#[path = "spool/delivered_later.rs"]
mod delivered_later;
#[path = "spool/directory.rs"]
mod directory;
#[path = "spool/file_systems.rs"]
mod file_systems;
#[path = "spool/fixed_files.rs"]
mod fixed_files;
#[path = "spool/in_the_way.rs"]
mod in_the_way;
#[path = "spool/killed.rs"]
mod killed;
#[path = "spool/newer.rs"]
mod newer;
#[path = "spool/on_disk.rs"]
mod on_disk;
#[path = "spool/own_payload_first.rs"]
mod own_payload_first;
#[path = "spool/replayed.rs"]
mod replayed;
#[path = "spool/scenarios.rs"]
mod scenarios;

use std::path::Path;
use std::time::Duration;

use support::measured::{Measured, measured, stage};
use support::mock_gateway::Request;
use support::{MockGateway, Reply};
use tracing_stage_metrics::{MetricsLayer, MetricsLayerBuilder, Pushgateway};

/// What a busy machine may add to a time that is kept.
const SLACK: Duration = Duration::from_millis(1_500);

/// A run that pushes when it begins, when it is told to, and when it ends. What earlier runs left is for its gateway: the
/// stand-ins of a test are one gateway with several addresses.
fn builder(url: &str, job: &str, spool: &Path) -> MetricsLayerBuilder {
    directory::readdress(spool, url);
    MetricsLayer::builder()
        .with_pushgateway(Pushgateway::new(url, job).unwrap())
        .with_push_interval(Duration::from_secs(3_600))
        .with_flush_timeout(Duration::from_secs(20))
        .with_spool_dir(spool)
}

/// A run of one stage that leaves its final payload in the spool: the gateway refuses it, without a second try.
#[track_caller]
fn leave(spool: &Path, job: &str, stage_id: &str) {
    leave_by(spool, stage_id, |url| builder(url, job, spool));
}

#[track_caller]
fn leave_by(spool: &Path, stage_id: &str, builder: impl FnOnce(&str) -> MetricsLayerBuilder) {
    let refusing = MockGateway::start([Reply::status(401)]);
    let before = directory::payloads(spool).len();
    let Measured { guard, log: _, default: _default } = measured(builder(&refusing.url()));
    stage(stage_id);
    assert_eq!(guard.shutdown().unwrap_err().status(), Some(401));
    assert_eq!(directory::payloads(spool).len(), before + 1, "it left its payload");
}

/// "POST job/a", "GET /metrics": what was asked, without the address.
fn asked(request: &Request) -> String {
    let path = request.path.strip_prefix("/metrics/").unwrap_or(&request.path);
    format!("{} {path}", request.method)
}

fn all_asked(server: &MockGateway) -> Vec<String> {
    server.requests().iter().map(asked).collect()
}

/// How many pushes of this job came.
fn pushes_of(server: &MockGateway, job: &str) -> usize {
    all_asked(server).iter().filter(|asked| **asked == format!("POST job/{job}")).count()
}

/// The stage is in this payload as one that succeeded once.
#[track_caller]
fn assert_has_stage(text: &str, stage_id: &str) {
    let found = support::exposition::parse(text);
    assert_eq!(found.expect("quant_stage_total", &[("stage_id", stage_id), ("status", "success")]), 1.0);
}
