//! Many processes of one job on one gateway.
#![cfg(feature = "pushgateway")]
#![allow(clippy::unwrap_used)]

mod support;

#[path = "fleet/victoria_metrics.rs"]
mod victoria_metrics;

use std::collections::{BTreeMap, BTreeSet};
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

/// Runs the shell commands of the page with the address replaced and, if given, the age.
#[track_caller]
fn clean_up(url: &str, age: Option<&str>) {
    let page = include_str!("../docs/fleets.md");
    let (_, script) = page.split_once("```sh\n").unwrap();
    let (script, _) = script.split_once("```").unwrap();
    assert_eq!(script.matches("http://pushgateway:9091").count(), 2);
    let mut script = script.replace("http://pushgateway:9091", url);
    if let Some(age) = age {
        assert_eq!(script.matches("now - 86400").count(), 1);
        script = script.replace("now - 86400", age);
    }
    let output = std::process::Command::new("sh").args(["-euc", &script]).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

fn labels(gateway: &support::Pushgateway) -> BTreeSet<BTreeMap<String, String>> {
    let groups = gateway.api_metrics();
    let groups = groups.as_array().into_iter().flatten();
    groups.map(|group| serde_json::from_value(group["labels"].clone()).unwrap()).collect()
}

/// The label values have the special characters of URLs, shells, jq and base64.
#[tokio::test]
async fn script_of_the_page_deletes_stale_instance_groups_alone() {
    let Some(gateway) = support::pushgateway() else { return };
    if !["curl", "jq"].into_iter().all(support::servers::installed) {
        return;
    }
    let push = async |job: &str, grouping: &[(&str, &str)]| {
        let mut group = Pushgateway::new(gateway.url(), job).unwrap();
        for (name, value) in grouping {
            group = group.with_grouping_label(*name, *value).unwrap();
        }
        group.push_add("rows_total 1\n").await.unwrap();
        let labels = grouping.iter().copied().chain([("job", job)]);
        labels.map(|(name, value)| (name.to_owned(), value.to_owned())).collect::<BTreeMap<_, _>>()
    };
    let unusual =
        ["a/b", "/", "..", "ü ?#%+&=", "\"'\\ $(false) `false`", "line\nfeed", "\u{3fb}\u{ff}>>>???", "{a,b}[1-2]"];
    let mut kept = BTreeSet::new();
    for value in unusual {
        push(value, &[("instance", value)]).await;
        push("fleet", &[("instance", value), ("_x9", value), ("team", "")]).await;
        // A group without an instance is not stale: every run of the job overwrites it.
        kept.insert(push(value, &[("team", value)]).await);
    }
    kept.insert(push("fleet", &[("instance", "")]).await);
    push("fleet", &[("instance", "worker-7:4711")]).await;
    let groups = gateway.api_metrics();
    let push_times = groups.as_array().unwrap().iter().map(|group| {
        let time = &group["push_time_seconds"]["metrics"][0]["value"];
        time.as_str().unwrap().parse::<f64>().unwrap()
    });
    let (count, cutoff) = (push_times.len(), push_times.fold(0.0, f64::max));
    assert_eq!(count, 3 * unusual.len() + 2);
    for value in unusual {
        kept.insert(push("recent", &[("instance", value)]).await);
    }
    let before = labels(&gateway);
    assert_eq!(before.len(), count + unusual.len());

    // Deletes nothing: every group is less than a day old.
    clean_up(&gateway.url(), None);
    clean_up(&gateway.url(), Some(&format!("{:?}", cutoff + 1e-6)));
    let deadline = std::time::Instant::now() + support::WAIT_TIMEOUT;
    while labels(&gateway) != kept {
        assert!(std::time::Instant::now() < deadline, "the groups are {:?}, not {kept:?}", labels(&gateway));
        tokio::task::yield_now().await;
    }
}
