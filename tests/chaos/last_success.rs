//! The gateway shows the last success of a group, also if the run that succeeded could not deliver it and the runs after
//! it failed.

use std::fs;
use std::path::Path;

use tempfile::TempDir;
use tracing_stage_metrics::{MetricsLayer, MetricsLayerBuilder, Pushgateway};

use super::history::State;
use super::job::{self, Ending, Job, Progress};
use super::support::child::{self, Signal};
use super::support::measured::{Measured, failing_stage, measured, stage};
use super::support::{self, exposition};
use super::{deliver_the_rest, directory};

const GROUP: &str = "nightly";

fn builder(gateway: &support::Pushgateway) -> MetricsLayerBuilder {
    MetricsLayer::builder().with_pushgateway(Pushgateway::new(gateway.url(), GROUP).unwrap())
}

/// A run that succeeded while the gateway was down, its last state in the spool. The gateway is up again.
struct Undelivered {
    gateway: support::Pushgateway,
    spool: TempDir,
    success: f64,
}

#[track_caller]
fn leave_a_success() -> Option<Undelivered> {
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
    Some(Undelivered { gateway, spool, success })
}

/// A run that fails, and its start.
#[track_caller]
fn fail(builder: MetricsLayerBuilder) -> f64 {
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

fn other_group_delivers(gateway: &support::Pushgateway, spool: &Path) {
    assert_eq!(deliver_the_rest(&gateway.url(), spool), []);
}

#[test]
fn success_of_a_spooled_run_survives_a_failed_run() {
    let Some(Undelivered { gateway, spool, success }) = leave_a_success() else { return };
    let start = fail(builder(&gateway).with_spool_dir(spool.path()));
    directory::await_no_payload(spool.path());
    assert_shows(&gateway, start, success);
}

#[test]
fn success_of_a_spooled_run_survives_a_run_killed_after_its_first_push() {
    let Some(Undelivered { gateway, spool, success }) = leave_a_success() else { return };
    let job = Job { number: 2, steps: 0, flush_after: None, ending: Ending::Never };
    let mut running = child::start(job::command(job, &gateway.url(), GROUP, spool.path()));
    let said = running.await_line("started");
    let Progress::Started(start) = Progress::all_of(&said)[0] else { panic!("not a start: {said:?}") };
    directory::await_true("its first push is visible", || {
        State::of(GROUP, &exposition::parse(&gateway.metrics())).start == Some(start)
    });
    running.signal(Signal::KILL);
    running.wait();
    other_group_delivers(&gateway, spool.path());
    assert_shows(&gateway, start, success);
}

/// The failed run was on a node that has not got the spool directory.
#[test]
fn success_of_a_spooled_run_survives_when_another_group_delivers_it() {
    let Some(Undelivered { gateway, spool, success }) = leave_a_success() else { return };
    let start = fail(builder(&gateway));
    other_group_delivers(&gateway, spool.path());
    assert_shows(&gateway, start, success);
}
