//! What an evaluation of the rules costs: 1 000 jobs with ten stages each, and a history, on a real Prometheus.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::files;
use super::support::Prometheus;
use super::support::servers::{NODE_EXPORTER, NodeExporter, PROMETHEUS, Series, installed};

const JOBS: usize = 1_000;
const STAGES: usize = 10;
/// The groups of the rules, and that of the periods.
const GROUPS: usize = 6;
/// Samples of each recorded series, four minutes apart: the rules look back a day, and `--history` for runs.
const SAMPLES: u64 = 24;
/// The rules of the history are evaluated this often here, so that the test need not wait for minutes.
const HISTORY_INTERVAL: Duration = Duration::from_secs(20);

const DEADLINE: Duration = Duration::from_secs(180);

/// Adds a family with one series for each job, or for each stage of it.
fn family(text: &mut String, name: &str, labels: &[&str], value: impl std::fmt::Display) {
    writeln!(text, "# TYPE {name} gauge").unwrap();
    for job in 0..JOBS {
        for labels in labels {
            writeln!(text, "{name}{{job=\"job-{job}\",instance=\"\"{labels}}} {value}").unwrap();
        }
    }
}

/// What a gateway shows of runs that ended ten minutes ago, its own metrics included.
fn gateway(now: u64) -> String {
    let mut text = String::new();
    let (start, end) = (now - 1_200, now - 600);
    for (name, value) in [
        ("push_time_seconds", end),
        ("push_failure_time_seconds", 0),
        ("quant_run_start_timestamp_seconds", start),
        ("quant_run_last_completion_timestamp_seconds", end),
        ("quant_run_last_success_timestamp_seconds", end),
        ("quant_run_duration_seconds", 600),
        ("quant_telemetry_overflow_total", 0),
    ] {
        family(&mut text, name, &[""], value);
    }
    family(&mut text, "quant_run_info", &[",run_id=\"a\",profile=\"p\""], 1);
    let stages: Vec<String> = (0..STAGES).map(|stage| format!(",stage_id=\"stage-{stage}\"")).collect();
    let with = |more: &[&str]| -> Vec<String> {
        stages.iter().flat_map(|stage| more.iter().map(move |more| format!("{stage}{more}"))).collect()
    };
    for (name, more, value) in [
        ("quant_stage_active", &[",profile=\"p\""][..], 0),
        ("quant_stage_last_failed", &[",profile=\"p\""], 0),
        ("quant_stage_last_duration_seconds", &[",profile=\"p\""], 60),
        ("quant_stage_last_success_timestamp_seconds", &[",profile=\"p\""], end),
        ("quant_stage_failures_total", &[",profile=\"p\",reason=\"error\""], 0),
        ("quant_stage_total", &[",status=\"success\"", ",status=\"failure\""], 1),
    ] {
        let labels = with(more);
        family(&mut text, name, &labels.iter().map(String::as_str).collect::<Vec<_>>(), value);
    }
    text
}

/// The recorded series of the past, in OpenMetrics.
fn history(now: u64) -> String {
    let mut text = String::new();
    let stages: Vec<String> = (0..STAGES).map(|stage| format!(",stage_id=\"stage-{stage}\"")).collect();
    let mut add = |name: &str, labels: &[String], value: u64| {
        writeln!(text, "# TYPE {name} gauge").unwrap();
        for job in 0..JOBS {
            for labels in labels {
                for sample in (1..=SAMPLES).rev() {
                    let at = now - 300 - sample * 240;
                    writeln!(text, "{name}{{job=\"job-{job}\",profile=\"p\"{labels}}} {value} {at}").unwrap();
                }
            }
        }
    };
    let of_run = [String::new()];
    add("quant:run_last_success_timestamp_seconds:history", &of_run, now - 86_400);
    add("quant:run_duration_seconds", &of_run, 600);
    add("quant:stage_runs", &stages, 9);
    add("quant:stage_usual_duration_seconds", &stages, 60);
    add("quant:stage_last_duration_seconds", &stages, 60);
    add("quant:stage_last_success_timestamp_seconds", &stages, now - 86_400);
    text + "# EOF\n"
}

/// Writes the rules, and returns the configuration of a Prometheus that reads them and scrapes the exporter and itself.
fn configuration(directory: &Path, exporter: &NodeExporter) -> String {
    let text = files::text("quant.rules.yml");
    let rules = text.replace("interval: 4m", &format!("interval: {}s", HISTORY_INTERVAL.as_secs()));
    assert_ne!(rules, text, "the history has an interval of its own");
    std::fs::write(directory.join("quant.rules.yml"), rules).unwrap();
    let mut periods = "groups:\n  - name: periods\n    rules:\n".to_owned();
    for job in 0..JOBS {
        writeln!(periods, "      - {{record: job:period_seconds, expr: vector(86400), labels: {{job: job-{job}}}}}")
            .unwrap();
    }
    std::fs::write(directory.join("periods.rules.yml"), periods).unwrap();
    format!(
        "global: {{scrape_interval: 15s, evaluation_interval: 15s}}\nrule_files: [\"{}/*.rules.yml\"]\n\
         scrape_configs:\n  - {{job_name: pushgateway, honor_labels: true, static_configs: [{{targets: [\"{}\"]}}]}}\n  \
         - {{job_name: prometheus, static_configs: [{{targets: [\"127.0.0.1:0\"]}}]}}\n",
        directory.display(),
        exporter.addr()
    )
}

#[test]
fn evaluation_of_ten_thousand_stages_takes_less_than_a_third_of_its_interval() {
    if !installed(PROMETHEUS) || !installed("promtool") || !installed(NODE_EXPORTER) {
        return;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let (scraped, rules) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(scraped.path().join("gateway.prom"), gateway(now)).unwrap();
    let exporter = NodeExporter::start(scraped.path());
    let prometheus = Prometheus::start_with_history(&history(now), &configuration(rules.path(), &exporter), &[]);
    let await_query = |query: &str, matches: &dyn Fn(&[Series]) -> bool| {
        let last = prometheus.await_query_for(DEADLINE, query, matches);
        last.unwrap_or_else(|last| panic!("the query {query} has no such result in {DEADLINE:?}, last: {last:?}"))
    };
    // The second evaluation of the history is the first that has all of it.
    let of_all = |series: &[Series]| series.iter().any(|(_, count)| *count == (JOBS * STAGES) as f64);
    await_query("count(count_over_time(quant:stage_success_age_seconds[10m]) >= 2)", &of_all);
    assert_eq!(prometheus.query("quant:run_late_seconds"), [], "the runs are recent");
    let is_cheap = |(labels, seconds): &Series| {
        // The history has its own interval in the file.
        let interval = if labels["rule_group"].ends_with(";quant-history") { 240.0 } else { 15.0 };
        *seconds < interval / 3.0
    };
    // Another program may delay an evaluation, so a later one counts too.
    let groups = await_query("prometheus_rule_group_last_duration_seconds", &|groups: &[Series]| {
        groups.len() == GROUPS && groups.iter().all(is_cheap)
    });
    for (labels, seconds) in groups {
        println!("{}: {seconds:.2} s", labels["rule_group"]);
    }
}
