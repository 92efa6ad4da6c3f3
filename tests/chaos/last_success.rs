//! The gateway shows the last success of a group, even if the successful run could not deliver it and later runs
//! failed.

use std::fs;
use std::path::Path;

use tempfile::TempDir;
use tracing_stage_metrics::{MetricsLayer, MetricsLayerBuilder, Pushgateway};

use super::history::State;
use super::job::{self, Ending, Job, Progress};
use super::support::child::{self, Signal};
use super::support::measured::{Measured, failing_stage, measured, stage};
use super::support::{self, exposition};
use super::{directory, drain_spool};

const GROUP: &str = "nightly";

fn builder(gateway: &support::Pushgateway) -> MetricsLayerBuilder {
    MetricsLayer::builder().with_pushgateway(Pushgateway::new(gateway.url(), GROUP).unwrap())
}

/// A successful run whose last state is in the spool, since the gateway was down. The gateway is up again.
struct SpooledSuccess {
    gateway: support::Pushgateway,
    spool: TempDir,
    success: f64,
}

#[track_caller]
fn spool_a_success() -> Option<SpooledSuccess> {
    let mut gateway = support::pushgateway()?;
    gateway.stop();
    let spool = tempfile::tempdir().unwrap();
    let Measured { guard, log: _, default: _default } = measured(builder(&gateway).with_spool_dir(spool.path()));
    stage("work");
    guard.shutdown().unwrap_err();
    let payload = fs::read_to_string(directory::only_payload(spool.path())).unwrap();
    let exposition = exposition::parse(payload.split_once("\n\n").unwrap().1);
    let success = exposition.expect("quant_run_last_success_timestamp_seconds", &[]);
    gateway.restart();
    Some(SpooledSuccess { gateway, spool, success })
}

/// Makes a run that fails, and returns its start time.
#[track_caller]
fn failed_run(builder: MetricsLayerBuilder) -> f64 {
    let Measured { guard, log: _, default: _default } = measured(builder);
    failing_stage("work");
    let start = exposition::parse(&guard.render()).expect("quant_run_start_timestamp_seconds", &[]);
    guard.shutdown().unwrap();
    start
}

#[track_caller]
fn assert_shows(gateway: &support::Pushgateway, start: f64, success: f64) {
    let shown = State::of(GROUP, &exposition::parse(&gateway.metrics()));
    assert_eq!((shown.start, shown.last_success), (Some(start), Some(success)), "{shown:?}");
}

fn deliver_from_another_group(gateway: &support::Pushgateway, spool: &Path) {
    assert_eq!(drain_spool(&gateway.url(), spool), []);
}

#[test]
fn spooled_success_survives_a_failed_run() {
    let Some(SpooledSuccess { gateway, spool, success }) = spool_a_success() else { return };
    let start = failed_run(builder(&gateway).with_spool_dir(spool.path()));
    directory::await_no_payload(spool.path());
    assert_shows(&gateway, start, success);
}

#[test]
fn spooled_success_survives_a_run_killed_after_its_first_push() {
    let Some(SpooledSuccess { gateway, spool, success }) = spool_a_success() else { return };
    let job = Job { number: 2, steps: 0, flush_after: None, ending: Ending::Never };
    let mut running = child::start(job::command(job, &gateway.url(), GROUP, spool.path()));
    let line = running.await_line("started");
    let Progress::Started(start) = Progress::all_of(&line)[0] else { panic!("not a start: {line:?}") };
    directory::await_true("the first push is visible", || {
        State::of(GROUP, &exposition::parse(&gateway.metrics())).start == Some(start)
    });
    running.signal(Signal::KILL);
    running.wait();
    deliver_from_another_group(&gateway, spool.path());
    assert_shows(&gateway, start, success);
}

/// The failed run is on a node without the spool directory.
#[test]
fn spooled_success_survives_delivery_by_another_group() {
    let Some(SpooledSuccess { gateway, spool, success }) = spool_a_success() else { return };
    let start = failed_run(builder(&gateway));
    deliver_from_another_group(&gateway, spool.path());
    assert_shows(&gateway, start, success);
}
