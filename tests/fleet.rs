//! Many processes of one job on one gateway.
#![cfg(feature = "pushgateway")]
#![allow(clippy::unwrap_used)]

mod support;

#[path = "fleet/victoria_metrics.rs"]
mod victoria_metrics;

use std::collections::BTreeMap;
use std::time::Duration;

use support::child::{self, Running};
use support::measured::stage;
use support::{MockGateway, exposition, measured};
use tracing_stage_metrics::{MetricsLayer, Pushgateway};
use tracing_subscriber::prelude::*;

const WORKERS: usize = 50;

/// Not a test: the scenario of a worker process, which runs as many stages as its number.
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
fn concurrent_workers_do_not_overwrite_each_other() {
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
    let metrics = exposition::parse(&gateway.metrics());
    let by_instance = |name: &str, labels: &[(&str, &str)]| -> BTreeMap<String, f64> {
        let samples = metrics.matching(name, labels);
        samples.iter().map(|sample| (sample.labels["instance"].clone(), sample.value)).collect()
    };
    assert_eq!(by_instance("quant_stage_total", &[("job", "fleet"), ("status", "success")]), expected);
    assert_eq!(by_instance("quant_stage_duration_seconds_count", &[("job", "fleet")]), expected);
    let rows = expected.into_iter().map(|(instance, number)| (instance, 100.0 * number)).collect();
    assert_eq!(by_instance("rows_total", &[("job", "fleet")]), rows);
    assert!(by_instance("quant_run_last_success_timestamp_seconds", &[("job", "fleet")]).len() == WORKERS);
}

#[test]
fn instance_follows_the_other_grouping_labels() {
    let server = MockGateway::ok();
    let gateway = Pushgateway::new(server.url(), "j").unwrap().with_grouping_label("profile", "p").unwrap();
    let builder = MetricsLayer::builder().with_instance_grouping().with_pushgateway(gateway);
    measured::measured(builder).guard.shutdown().unwrap();
    let host = gethostname::gethostname().into_string().unwrap();
    let path = format!("/metrics/job/j/profile/p/instance/{host}%3A{}", std::process::id());
    assert_eq!(server.requests().last().unwrap().path, path);
}

#[test]
fn instance_grouping_with_an_instance_label_is_an_error() {
    let gateway = Pushgateway::new("gateway:9091", "j").unwrap().with_grouping_label("instance", "7").unwrap();
    let error = MetricsLayer::builder().with_pushgateway(gateway).with_instance_grouping().build().unwrap_err();
    assert!(error.is_config());
    assert!(error.to_string().starts_with("grouping label \"instance\" is given twice, as \"7\" and as "), "{error}");
    let remedy = ": give it once; the second is of `with_instance_grouping` or …_INSTANCE_GROUPING";
    assert!(error.to_string().ends_with(remedy), "{error}");
}

/// Another process deletes a stale group with the grouping of the worker.
#[tokio::test]
async fn stale_group_is_deleted_by_its_grouping() {
    let Some(gateway) = support::pushgateway() else { return };
    let worker = |instance| {
        let group = Pushgateway::new(gateway.url(), "fleet").unwrap();
        group.with_grouping_label("instance", instance).unwrap()
    };
    for instance in ["worker-7:1", "worker-8:1"] {
        worker(instance).push_add("rows_total 1\n").await.unwrap();
    }
    worker("worker-7:1").delete().await.unwrap();
    let deadline = std::time::Instant::now() + support::WAIT_TIMEOUT;
    // The gateway answers before it has deleted the group.
    while gateway.metrics().contains("worker-7:1") {
        assert!(std::time::Instant::now() < deadline, "the gateway deletes the group in {:?}", support::WAIT_TIMEOUT);
        tokio::task::yield_now().await;
    }
    assert!(gateway.metrics().contains("worker-8:1"));
}
