//! The rules on text files, which Prometheus scrapes from a node_exporter.

use std::collections::BTreeSet;
use std::path::Path;

use tracing_stage_metrics::MetricsLayer;

use super::support::measured::{Measured, failing_stage, measured, stage};
use super::support::servers::{self, NodeExporter};
use super::{Prometheus, files};

/// Two jobs are expected on the node.
const PERIODS: &str = "groups:
  - name: periods
    rules:
      - {record: job:period_seconds, expr: vector(3600), labels: {job: nightly}}
      - {record: job:period_seconds, expr: vector(7200), labels: {job: backup}}
";

/// Writes the text file of one run.
fn run(directory: &Path, job: &str, work: impl FnOnce(&str)) {
    let path = directory.join(format!("{job}.prom"));
    let Measured { guard, log: _, default: _default } =
        measured(MetricsLayer::builder().with_job(job).with_textfile(path));
    work("a");
    guard.shutdown().unwrap();
}

/// The scrape setting that the README recommends where `honor_labels` cannot be set.
fn relabelling() -> Vec<String> {
    let page = files::text("README.md");
    let (_, block) = page.split_once("```yaml\nmetric_relabel_configs:\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    std::iter::once("metric_relabel_configs:").chain(block.lines()).map(str::to_owned).collect()
}

#[test]
fn jobs_of_a_node_are_told_apart_by_their_labels_restored_or_not_renamed() {
    if !servers::installed(servers::NODE_EXPORTER) || !servers::installed(servers::PROMETHEUS) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    run(directory.path(), "nightly", stage);
    run(directory.path(), "backup", failing_stage);
    let periods = directory.path().join("periods.yml");
    std::fs::write(&periods, PERIODS).unwrap();
    let exporter = NodeExporter::start(directory.path());
    for (honor_labels, settings) in [(true, Vec::new()), (false, relabelling()), (true, relabelling())] {
        let rules = [files::path("quant.rules.yml"), periods.clone()];
        let prometheus = Prometheus::start_with_scrape_settings(
            &[("node", exporter.addr(), honor_labels)],
            &[&rules[0], &rules[1]],
            &settings,
        );
        for (alert, jobs) in [("BatchRunFailed", ["backup"]), ("BatchStageFailed", ["backup"])] {
            // The first alert is pending, since a retry may follow.
            let query = format!("ALERTS{{alertname={alert:?}}}");
            prometheus.await_query(&query, |series| {
                let alerted: BTreeSet<_> = series.iter().map(|(labels, _)| labels["job"].as_str()).collect();
                alerted == jobs.into()
            });
        }
        // The one that succeeded has a limit, and each has a history of its host.
        let periods = prometheus.await_query("quant:period_seconds", |series| series.len() == 1);
        assert_eq!((periods[0].0["job"].as_str(), periods[0].1), ("nightly", 3_600.0), "{honor_labels} {settings:?}");
        let runs = prometheus.await_query("quant:run_start_timestamp_seconds", |series| series.len() == 2);
        let jobs: BTreeSet<_> = runs.iter().map(|(labels, _)| labels["job"].as_str()).collect();
        assert_eq!(jobs, ["backup", "nightly"].into(), "{honor_labels} {settings:?}");
        for (labels, _) in periods.iter().chain(&runs) {
            assert!(labels.contains_key("instance"), "{labels:?} {honor_labels} {settings:?}");
        }
        assert_eq!(prometheus.query("{exported_job!=\"\"}"), []);
    }
}
