//! What an evaluation of the rules costs: 1 000 jobs with ten stages each, and a history, on a real Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::support::process::Process;
use super::support::servers::{NODE_EXPORTER, NodeExporter, PROMETHEUS, installed};
use super::{dashboard, files};

const JOBS: usize = 1_000;
const STAGES: usize = 10;
/// Samples of each recorded series, four minutes apart: the rules look back a day, and `--history` for runs.
const SAMPLES: u64 = 24;
/// The rules of the history are evaluated this often here, so that the test need not wait for minutes.
const HISTORY_INTERVAL: Duration = Duration::from_secs(20);

const DEADLINE: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(500);

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

fn write_configuration(directory: &Path, exporter: &NodeExporter) {
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
    let configuration = format!(
        "global: {{scrape_interval: 15s, evaluation_interval: 15s}}\nrule_files: [quant.rules.yml, periods.rules.yml]\n\
         scrape_configs:\n  - {{job_name: pushgateway, honor_labels: true, static_configs: [{{targets: [\"{}\"]}}]}}\n",
        exporter.addr()
    );
    std::fs::write(directory.join("prometheus.yml"), configuration).unwrap();
}

#[test]
fn evaluation_of_ten_thousand_stages_takes_less_than_a_third_of_its_interval() {
    if !installed(PROMETHEUS) || !installed("promtool") || !installed(NODE_EXPORTER) {
        return;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let (scraped, server) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(scraped.path().join("gateway.prom"), gateway(now)).unwrap();
    let exporter = NodeExporter::start(scraped.path());
    write_configuration(server.path(), &exporter);
    let (past, data) = (server.path().join("history.om"), server.path().join("data"));
    std::fs::write(&past, history(now)).unwrap();
    let blocks =
        Command::new("promtool").args(["tsdb", "create-blocks-from", "openmetrics"]).args([&past, &data]).output();
    assert!(blocks.as_ref().unwrap().status.success(), "{blocks:?}");
    let config = server.path().join("prometheus.yml");
    let prometheus = Process::start(PROMETHEUS, "/-/ready", move |addr| {
        let mut command = Command::new(PROMETHEUS);
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", data.display())).arg(format!("--web.listen-address={addr}"));
        command
    });
    let groups = || -> Vec<(String, f64, f64)> {
        let rules: Value = serde_json::from_str(&prometheus.get_ok("/api/v1/rules")).unwrap();
        let number = |group: &Value, name: &str| group[name].as_f64().unwrap();
        let measured = |group: &Value| {
            let name = dashboard::text(group, "name").to_owned();
            (name, number(group, "evaluationTime"), number(group, "interval"))
        };
        dashboard::list(&rules["data"]["groups"]).iter().map(measured).collect()
    };
    let count = |query: &str| -> f64 {
        let path = format!("/api/v1/query?query={}", super::support::http::percent_encode(query));
        let answer: Value = serde_json::from_str(&prometheus.get_ok(&path)).unwrap();
        answer["data"]["result"][0]["value"][1].as_str().map_or(0.0, |value| value.parse().unwrap())
    };
    // The second evaluation of the history is the first that has all of it.
    let stages = (JOBS * STAGES) as f64;
    let deadline = Instant::now() + DEADLINE;
    while count("count(count_over_time(quant:stage_success_age_seconds[10m]) >= 2)") < stages {
        assert!(Instant::now() < deadline, "no two evaluations of the history in {DEADLINE:?}");
        std::thread::sleep(POLL);
    }
    assert_eq!(count("count(quant:run_late_seconds) or vector(0)"), 0.0, "the runs are recent");
    // Another program may delay an evaluation, so the fastest one counts.
    let mut fastest: BTreeMap<String, f64> = BTreeMap::new();
    loop {
        let mut is_fast = true;
        for (name, seconds, interval) in groups() {
            // The history has its own interval in the file.
            let interval = if name == "quant-history" { 240.0 } else { interval };
            let least = fastest.entry(name).or_insert(seconds);
            *least = least.min(seconds);
            is_fast &= *least < interval / 3.0;
        }
        if is_fast {
            break;
        }
        assert!(Instant::now() < deadline, "an evaluation takes more than a third of its interval: {fastest:?}");
        std::thread::sleep(POLL);
    }
    println!("seconds of an evaluation: {fastest:?}");
}
