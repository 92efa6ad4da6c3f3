//! Runs the rules over a scenario with `promtool test rules`, and compares the alerts with those expected.
//!
//! promtool prints the result of a query only where it is not the expected one. So each query expects a value that it never
//! has. It counts the evaluations in which each alert fired within a window, and the windows cover all evaluations.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::gateway::Labels;
use super::scenario::Scenario;
use super::time::{HOUR, Shown};
use crate::dashboard::{list, text};

/// Firing alerts by their labels, each with the number of evaluations in a window.
type Counts = Vec<(Labels, u64)>;

/// Something that is not as expected.
#[derive(Debug)]
struct Difference {
    what: String,
    /// Ticks: first, and first after.
    window: (usize, usize),
    /// Evaluations with the difference.
    count: u64,
}

/// The rules by namespace.
pub(crate) type Rules = BTreeMap<&'static str, String>;

/// Runs promtool, and returns a description of each difference from the expected alerts, by scenario.
pub(crate) fn differences(batch: &[(String, Scenario)], rules: &Rules) -> Vec<(String, Vec<String>)> {
    let mut members = batch.iter().map(|(name, scenario)| scenario.clone().with_prefix(name));
    let mut merged = members.next().unwrap();
    members.for_each(|member| merged.merge(member));
    let windows = windows(&merged, batch);
    let mut directory = tempfile::tempdir().unwrap();
    // Keeps the files for a look at them.
    directory.disable_cleanup(std::env::var_os("SIMULATOR_KEEP_FILES").is_some());
    write_files(directory.path(), &merged, rules, &windows);
    let output =
        Command::new("promtool").args(["test", "rules", "scenario.test.yml"]).current_dir(directory.path()).output();
    let output = output.unwrap();
    let text = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat();
    let counts = parse(&text).unwrap_or_else(|why| panic!("{why}: {text:.2000}"));
    let printed = counts.len();
    assert_eq!(
        printed,
        windows.len(),
        "promtool did not print the result of each query, {}: {text:.2000}",
        output.status
    );
    let of_scenario = |(index, (name, scenario)): (usize, &(String, Scenario))| {
        let mut differences = Vec::new();
        for (window, counts) in windows.iter().zip(&counts) {
            let counts = counts.iter().filter_map(|(alert, count)| Some((of_member(alert, name, index == 0)?, *count)));
            compare(scenario, *window, &counts.collect(), &mut differences);
        }
        (name.clone(), shown(scenario, differences))
    };
    let all = batch.iter().enumerate().map(of_scenario);
    all.filter(|(_, differences)| !differences.is_empty()).collect()
}

/// Returns an alert of the scenario with the job as the scenario names it. Alerts of no job belong to the first scenario.
fn of_member(alert: &Labels, name: &str, is_first: bool) -> Option<Labels> {
    let mut alert = alert.clone();
    match alert.get("job").and_then(|job| job.split_once('/')) {
        Some((member, job)) if member == name => {
            let job = job.to_owned();
            alert.insert("job".to_owned(), job);
        }
        Some(_) => return None,
        None if !is_first => return None,
        None => {}
    }
    Some(alert)
}

/// Splits the ticks where an expectation changes, and every six hours.
fn windows(merged: &Scenario, batch: &[(String, Scenario)]) -> Vec<(usize, usize)> {
    let ticks = merged.ticks();
    let tick_at = |time: i64| ((time.max(0) + merged.tick - 1) / merged.tick).min(ticks as i64) as usize;
    let mut edges: BTreeSet<usize> = (0..merged.length).step_by(6 * HOUR as usize).map(tick_at).collect();
    edges.insert(ticks);
    for (_, scenario) in batch {
        edges.insert(tick_at(scenario.length));
        for expected in &scenario.expected {
            let (from, until) = (expected.from, expected.until.min(scenario.length));
            edges.extend([from, from + expected.begins_within, until, until + expected.ends_within].map(tick_at));
        }
        edges.extend(scenario.unchecked.iter().flat_map(|(from, until)| [*from, *until]).map(tick_at));
    }
    let edges: Vec<_> = edges.into_iter().collect();
    edges.windows(2).map(|pair| (pair[0], pair[1])).collect()
}

fn write_files(directory: &Path, scenario: &Scenario, rules: &Rules, windows: &[(usize, usize)]) {
    std::fs::write(directory.join("periods.rules.yml"), scenario.periods()).unwrap();
    let mut files = vec!["periods.rules.yml".to_owned()];
    for (namespace, rules) in rules {
        let file = format!("{namespace}.rules.yml");
        let rules = if scenario.prometheus_is_down() { paused(rules) } else { rules.clone() };
        std::fs::write(directory.join(&file), rules).unwrap();
        files.push(file);
    }
    let groups = files.iter().flat_map(|file| {
        let file: Value = serde_saphyr::from_str(&std::fs::read_to_string(directory.join(file)).unwrap()).unwrap();
        list(&file["groups"]).iter().map(|group| text(group, "name").to_owned()).collect::<Vec<_>>()
    });
    let seconds = scenario.tick;
    let mut test = format!(
        "rule_files: {files:?}\nevaluation_interval: {seconds}s\ngroup_eval_order: {:?}\ntests:\n  - interval: {seconds}s\n    input_series:\n",
        groups.collect::<Vec<_>>()
    );
    for (series, values) in scenario.series().notation(scenario.ticks()) {
        writeln!(test, "      - {{series: '{series}', values: '{values}'}}").unwrap();
    }
    test.push_str("    promql_expr_test:\n");
    let grouping: BTreeSet<&str> =
        scenario.jobs.iter().flat_map(|job| job.grouping.keys()).map(String::as_str).collect();
    let by = ["alertname", "severity", "job", "instance", "stage_id"].into_iter().chain(["profile"]).chain(grouping);
    let by: BTreeSet<_> = by.collect();
    let by = by.into_iter().collect::<Vec<_>>().join(", ");
    for (first, end) in windows {
        // Half a tick less than the ticks: whether the start of a range belongs to it depends on the version.
        let range = (end - first) as i64 * seconds - seconds / 2;
        let at = (*end as i64 - 1) * seconds;
        writeln!(
            test,
            "      - expr: 'sum by ({by}) (count_over_time(ALERTS{{alertstate=\"firing\"}}[{range}s]))'\n        \
             eval_time: {at}s\n        exp_samples: [{{labels: '{{}}', value: -1}}]"
        )
        .unwrap();
    }
    std::fs::write(directory.join("scenario.test.yml"), test).unwrap();
}

/// Returns rules that have no results while Prometheus is down, so that they lose their own last ones as in reality.
fn paused(rules: &str) -> String {
    let mut file: Value = serde_saphyr::from_str(rules).unwrap();
    let groups = file["groups"].as_array_mut().unwrap().iter_mut();
    for rule in groups.flat_map(|group| group["rules"].as_array_mut().unwrap()) {
        rule["expr"] = format!("({}\n) and on () prometheus_is_up", text(rule, "expr")).into();
    }
    file.to_string()
}

/// Reads the results of all queries from the output of promtool.
fn parse(output: &str) -> Result<Vec<Counts>, String> {
    let results = output.lines().filter_map(|line| line.trim_start().strip_prefix("got: "));
    results.map(|result| if result == "nil" { Ok(Vec::new()) } else { samples(result) }).collect()
}

/// Reads `{a="b", c="d"} 1E+00, {} 2E+00`.
fn samples(mut text: &str) -> Result<Counts, String> {
    let mut samples = Vec::new();
    while let Some((labels, rest)) = text.strip_prefix('{').and_then(|rest| rest.split_once("} ")) {
        let pair = |pair: &str| {
            let (name, value) = pair.split_once('=')?;
            Some((name.to_owned(), value.trim_matches('"').to_owned()))
        };
        let labels = labels.split(", ").filter(|pair| !pair.is_empty()).map(pair).collect::<Option<Labels>>();
        let (value, rest) = rest.split_once(", ").unwrap_or((rest, ""));
        let value: f64 = value.parse().map_err(|why| format!("{why}: {value:?}"))?;
        samples.push((labels.ok_or_else(|| format!("no labels: {text:?}"))?, value as u64));
        text = rest;
    }
    if text.is_empty() { Ok(samples) } else { Err(format!("no result of a query: {text:?}")) }
}

fn compare(scenario: &Scenario, window: (usize, usize), counts: &Counts, into: &mut Vec<Difference>) {
    let (from, until) = (window.0 as i64 * scenario.tick, window.1 as i64 * scenario.tick);
    let is_within =
        |first: i64, end: i64| first <= from && until <= (end + scenario.tick - 1) / scenario.tick * scenario.tick;
    if from >= scenario.length || scenario.unchecked.iter().any(|(first, end)| is_within(*first, *end)) {
        return;
    }
    let ticks = (window.1 - window.0) as u64;
    let mut add = |what: String, count: u64| into.push(Difference { what, window, count });
    for expected in scenario.expected.iter().filter(|expected| expected.is_required) {
        if is_within(expected.from + expected.begins_within, expected.until) {
            let counts = counts.iter().filter(|(alert, _)| expected.is(alert)).map(|(_, count)| *count);
            let count: u64 = counts.sum();
            if count < ticks {
                add(format!("missing: {}", expected.shown()), ticks - count);
            } else if count > ticks && expected.alerts.len() == 1 {
                add(format!("more than one at a time: {}", expected.shown()), count - ticks);
            }
        }
    }
    for (alert, count) in counts {
        let is_allowed = |expected: &super::scenario::Expected| {
            expected.is(alert) && is_within(expected.from, expected.until.saturating_add(expected.ends_within))
        };
        if !is_watchdog(alert) && !scenario.expected.iter().any(is_allowed) {
            let labels: Vec<_> = alert
                .iter()
                .filter(|(name, _)| *name != "alertname" && *name != "severity")
                .map(|(name, value)| format!("{name}={value:?}"))
                .collect();
            add(format!("unexpected: {}{{{}}}", name(alert), labels.join(", ")), *count);
        }
        if let Some(severity) = wrong_severity(alert) {
            add(severity, *count);
        }
    }
    let watchdogs = counts.iter().filter(|(alert, _)| is_watchdog(alert));
    if scenario.checks_watchdog && watchdogs.map(|(_, count)| count).sum::<u64>() != ticks {
        add("missing: BatchWatchdog".to_owned(), ticks);
    }
}

fn name(alert: &Labels) -> &str {
    alert.get("alertname").map_or("", String::as_str)
}

fn is_watchdog(alert: &Labels) -> bool {
    name(alert) == "BatchWatchdog"
}

/// Alerts that wake somebody; all others but the watchdog warn.
const CRITICAL: [&str; 6] = [
    "BatchRunFailed",
    "BatchNoSuccess",
    "BatchRunNeverEnded",
    "BatchRunTooLong",
    "BatchJobMissing",
    "BatchGatewayDown",
];

fn wrong_severity(alert: &Labels) -> Option<String> {
    let name = name(alert);
    let expected = match name {
        _ if is_watchdog(alert) => "none",
        name if CRITICAL.contains(&name) => "critical",
        _ => "warning",
    };
    let severity = alert.get("severity").map_or("", String::as_str);
    (severity != expected).then(|| format!("severity {severity:?} of {name}, which is {expected}"))
}

/// Merges the same difference in adjacent windows.
fn shown(scenario: &Scenario, differences: Vec<Difference>) -> Vec<String> {
    let mut merged: Vec<Difference> = Vec::new();
    for difference in differences {
        match merged.iter_mut().find(|m| m.what == difference.what && m.window.1 == difference.window.0) {
            Some(earlier) => {
                earlier.window.1 = difference.window.1;
                earlier.count += difference.count;
            }
            None => merged.push(difference),
        }
    }
    let time = |tick: usize| Shown(tick as i64 * scenario.tick);
    let show = |Difference { what, window: (first, end), count }: Difference| {
        let of = end - first;
        format!("{what} between {} and {}, in {count} of {of} evaluations", time(first), time(end))
    };
    merged.into_iter().map(show).collect()
}

#[test]
fn results_of_both_versions_are_read() {
    let label = |pairs: &[(&str, &str)]| -> Labels {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let output = "  FAILED:\n    expr: \"x\", time: 6m,\n        exp: {} -1E+00\n        got: nil\n\n    expr: \"x\", time: 9m,\n        \
        exp: {} -1E+00\n        got: {alertname=\"A\", job=\"j\"} 1E+00, {alertname=\"B\"} 1.2E+01\n";
    let expected = [vec![], vec![(label(&[("alertname", "A"), ("job", "j")]), 1), (label(&[("alertname", "B")]), 12)]];
    assert_eq!(parse(output).unwrap(), expected);
    assert!(parse("got: error").is_err());
}
