//! Many processes of one job, side by side on one gateway.
#![cfg(feature = "pushgateway")]
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use support::child::{self, Running};
use support::measured::stage;
use support::{MockGateway, exposition, measured};
use tracing_stage_metrics::{MetricsLayer, Pushgateway};
use tracing_subscriber::prelude::*;

const WORKERS: usize = 50;

/// Not a test: one worker. It does as many stages as its number says, and counts its rows.
#[test]
fn scenarios() {
    let Some(number) = child::scenario() else { return };
    let (layer, guard) = MetricsLayer::builder()
        .with_env()
        .unwrap()
        .with_instance_grouping()
        .with_push_interval(Duration::from_millis(20))
        .with_flush_timeout(Duration::from_secs(20))
        .install()
        .unwrap();
    tracing_subscriber::registry().with(layer).init();
    for _ in 0..number.parse().unwrap() {
        stage("simulate");
        metrics::counter!("rows_total").increment(100);
    }
    guard.shutdown().unwrap();
}

#[test]
fn fifty_workers_push_at_once_and_none_overwrites_another() {
    let Some(gateway) = support::pushgateway() else { return };
    let url = gateway.url();
    let workers: Vec<Running> = (1..=WORKERS)
        .map(|number| {
            let mut command = child::command("scenarios", &number.to_string());
            command.env("TV_PROMETHEUS_PUSHGATEWAY", &url).env("TV_PROMETHEUS_JOB", "fleet");
            child::start(command)
        })
        .collect();
    let host = gethostname::gethostname().into_string().unwrap();
    let expected: BTreeMap<String, f64> = workers
        .iter()
        .zip(1..)
        .map(|(worker, number)| (format!("{host}:{}", worker.id()), f64::from(number)))
        .collect();
    for worker in workers {
        let ended = worker.wait();
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    }
    let found = exposition::parse(&gateway.metrics());
    let by_instance = |name: &str, labels: &[(&str, &str)]| -> BTreeMap<String, f64> {
        let samples = found.matching(name, labels);
        samples.iter().map(|sample| (sample.labels["instance"].clone(), sample.value)).collect()
    };
    assert_eq!(by_instance("quant_stage_total", &[("job", "fleet"), ("status", "success")]), expected);
    assert_eq!(by_instance("quant_stage_duration_seconds_count", &[("job", "fleet")]), expected);
    let rows = expected.into_iter().map(|(instance, number)| (instance, 100.0 * number)).collect();
    assert_eq!(by_instance("rows_total", &[("job", "fleet")]), rows);
    assert!(by_instance("quant_run_last_success_timestamp_seconds", &[("job", "fleet")]).len() == WORKERS);
}

#[test]
fn the_instance_is_beside_the_other_grouping_labels() {
    let server = MockGateway::ok();
    let gateway = Pushgateway::new(server.url(), "j").unwrap().with_grouping_label("profile", "p").unwrap();
    let builder = MetricsLayer::builder().with_instance_grouping().with_pushgateway(gateway);
    measured::measured(builder).guard.shutdown().unwrap();
    let host = gethostname::gethostname().into_string().unwrap();
    let path = format!("/metrics/job/j/profile/p/instance/{host}%3A{}", std::process::id());
    assert_eq!(server.requests().last().unwrap().path, path);
}

#[test]
fn an_instance_that_is_grouped_by_already_is_a_configuration_error() {
    let gateway = Pushgateway::new("gateway:9091", "j").unwrap().with_grouping_label("instance", "7").unwrap();
    let error = MetricsLayer::builder().with_pushgateway(gateway).with_instance_grouping().build().unwrap_err();
    assert!(error.is_config());
    assert!(error.to_string().starts_with("grouping label \"instance\" is given twice, as \"7\" and as "), "{error}");
}

/// Stale groups are removed from outside: by the same grouping, when they have been scraped.
#[tokio::test]
async fn a_group_that_is_done_with_is_deleted_by_its_grouping() {
    let Some(gateway) = support::pushgateway() else { return };
    let worker = |instance| {
        let group = Pushgateway::new(gateway.url(), "fleet").unwrap();
        group.with_grouping_label("instance", instance).unwrap()
    };
    for instance in ["worker-7:1", "worker-8:1"] {
        worker(instance).push_add("rows_total 1\n").await.unwrap();
    }
    worker("worker-7:1").delete().await.unwrap();
    let deadline = std::time::Instant::now() + support::PATIENCE;
    // It answers before it is done.
    while gateway.metrics().contains("worker-7:1") {
        assert!(std::time::Instant::now() < deadline, "the group is still there");
        tokio::task::yield_now().await;
    }
    assert!(gateway.metrics().contains("worker-8:1"));
}
