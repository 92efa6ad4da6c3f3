//! Conventions of the rules: texts and labels of an alert, and cases that show its behaviour.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::dashboard::{list, text};
use super::lint::MEANINGLESS;
use super::simulator::time::duration;
use super::{files, promql};

/// Reasons of a failed stage; the table of `docs/metrics.md` has them too.
const REASONS: [&str; 5] = ["error", "panic", "cancelled", "interrupted", "unfinished"];

/// Returns the rules of a rule file.
pub(crate) fn rules(file: &Value) -> Vec<&Value> {
    list(&file["groups"]).iter().flat_map(|group| list(&group["rules"])).collect()
}

/// The links of the alerts to the dashboard.
pub(crate) fn links(file: &Value) -> Vec<&str> {
    let alerts = rules(file).into_iter().filter(|rule| !text(rule, "alert").is_empty());
    let links: Vec<_> = alerts.map(|rule| text(&rule["annotations"], "dashboard_url")).collect();
    assert!(links.len() > 10, "{links:?}");
    links
}

/// Every violation of a convention.
pub(crate) fn complaints(file: &Value) -> Vec<String> {
    let mut complaints = Vec::new();
    for rule in rules(file) {
        let name = format!("{}{}", text(rule, "alert"), text(rule, "record"));
        let mut rule_complaints = Vec::new();
        match promql::parse(text(rule, "expr")) {
            Ok(query) => rule_complaints.extend(
                query.functions.iter().filter(|name| MEANINGLESS.contains(name)).map(|name| format!("{name}()")),
            ),
            Err(why) => rule_complaints.push(why),
        }
        if !text(rule, "alert").is_empty() {
            rule_complaints.extend(alert(rule));
        }
        complaints.extend(rule_complaints.into_iter().map(|complaint| format!("{name}: {complaint}")));
    }
    complaints
}

fn alert(rule: &Value) -> Vec<String> {
    let (summary, description) = (text(&rule["annotations"], "summary"), text(&rule["annotations"], "description"));
    let name = text(rule, "alert");
    let mut complaints = Vec::new();
    let mut check = |good: bool, complaint: &str| {
        if !good {
            complaints.push(complaint.to_owned());
        }
    };
    let severities: &[&str] = if name == "BatchWatchdog" { &["none"] } else { &["critical", "warning"] };
    check(severities.contains(&text(&rule["labels"], "severity")), "no severity");
    let is_of_a_job = !["BatchGatewayDown", "BatchWatchdog"].contains(&name);
    let is_of_a_run = is_of_a_job && name != "BatchJobUnlisted";
    for (annotation, text_of_annotation) in [("summary", summary), ("description", description)] {
        check(
            text_of_annotation.contains("{{ $labels.job }}") || name == "BatchWatchdog",
            &format!("the {annotation} names no job"),
        );
        check(
            text_of_annotation.contains("{{ with $labels.profile }}") || !is_of_a_run,
            &format!("the {annotation} names no profile"),
        );
        let names_stage = text_of_annotation.contains("{{ $labels.stage_id }}");
        check(names_stage || !name.starts_with("BatchStage"), &format!("the {annotation} names no stage"));
    }
    check(description.to_lowercase().contains("first "), "the description does not say what to do first");
    let link = text(&rule["annotations"], "dashboard_url");
    for variable in [
        "var-job={{ $labels.job",
        "with $labels.profile }}&var-profile=",
        "with $labels.instance }}&var-instance=",
        "with $labels.stage_id }}&var-stage=",
    ] {
        check(link.contains(variable) || !is_of_a_job, &format!("the dashboard_url sets no {variable}"));
    }
    // A variable with the job of a gateway, or an empty one, would choose nothing.
    check(link.starts_with("http"), "no dashboard_url");
    check(is_of_a_job || !link.contains(['?', '{']), "the dashboard_url sets variables");
    for (annotation, metric) in [("run_id", "run_info{"), ("host", "_engine_resource_usage{")] {
        let text = text(&rule["annotations"], annotation);
        let is_guarded =
            text.contains(metric) && text.contains("{{ with or (printf") && text.contains("{{ else }}unknown");
        check(is_guarded || !is_of_a_run, &format!("no {annotation}"));
    }
    if name == "BatchStageFailed" {
        for reason in REASONS {
            check(description.contains(&format!("{reason} means")), &format!("the description leaves out {reason}"));
        }
    }
    complaints
}

/// Alerts without a case in which they are inactive, then fire, then end.
pub(crate) fn without_cases(file: &Value, cases: &[Value]) -> Vec<String> {
    let alerts = rules(file).into_iter().map(|rule| text(rule, "alert"));
    // The watchdog always fires.
    let alerts = alerts.filter(|name| !name.is_empty() && *name != "BatchWatchdog");
    let has_case =
        |name: &&str| cases.iter().flat_map(|file| list(&file["tests"])).any(|case| fires_and_ends(case, name));
    alerts.filter(|name| !has_case(name)).map(str::to_owned).collect()
}

/// Whether the case evaluates the alert before it fires, while it fires, and afterwards.
fn fires_and_ends(case: &Value, alert: &str) -> bool {
    let evaluations = list(&case["alert_rule_test"]).iter().filter(|evaluation| text(evaluation, "alertname") == alert);
    let by_time: BTreeMap<i64, bool> = evaluations
        .map(|evaluation| (duration(text(evaluation, "eval_time")), !list(&evaluation["exp_alerts"]).is_empty()))
        .collect();
    let mut changes: Vec<bool> = by_time.into_values().collect();
    changes.dedup();
    changes == [false, true, false]
}

/// Returns the promtool test files.
pub(crate) fn cases() -> Vec<Value> {
    files::with_suffix(".test.yml").iter().map(|name| files::yaml(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn committed_rules_keep_conventions() {
        for name in files::with_suffix(".rules.yml") {
            assert_eq!(complaints(&files::yaml(&name)), Vec::<String>::new(), "{name}");
        }
    }

    #[test]
    fn each_alert_has_a_case_that_fires_and_ends() {
        assert_eq!(without_cases(&files::yaml("quant.rules.yml"), &cases()), Vec::<String>::new());
    }

    #[test]
    fn page_lists_each_alert_with_its_severity() {
        let page = files::text("README.md");
        let rows = page.lines().filter_map(|line| line.strip_prefix("| `Batch")?.split_once("` | "));
        let listed: BTreeSet<_> =
            rows.map(|(name, rest)| (format!("Batch{name}"), rest.split(' ').next().unwrap())).collect();
        let file = files::yaml("quant.rules.yml");
        let alerts = rules(&file).into_iter().filter(|rule| !text(rule, "alert").is_empty());
        let alerts = alerts.map(|rule| (text(rule, "alert").to_owned(), text(&rule["labels"], "severity")));
        assert_eq!(listed, alerts.collect());
    }

    #[test]
    fn reasons_of_the_convention_are_those_of_the_metric() {
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md")).unwrap();
        let row = page.lines().find(|line| line.starts_with("| `quant_stage_failures_total`")).unwrap();
        let (_, reasons) = row.split_once("by reason: ").unwrap();
        let named: BTreeSet<_> =
            reasons.split('`').skip(1).step_by(2).filter(|name| *name != "ProvenSuccess").collect();
        assert_eq!(named, REASONS.into());
    }

    #[test]
    fn missing_case_is_reported() {
        let cases = cases();
        let rules = files::yaml("quant.rules.yml");
        let all = without_cases(&rules, &[]);
        assert!(all.len() > 10 && all.iter().any(|name| name == "BatchRunFailed"), "{all:?}");
        // Without its last evaluation no alert ends; without its first none begins.
        for drop_last in [true, false] {
            let mut cut = cases.clone();
            for case in cut.iter_mut().flat_map(|file| file["tests"].as_array_mut().unwrap()) {
                let Some(evaluations) = case["alert_rule_test"].as_array_mut() else { continue };
                let fires = |evaluation: &Value| !list(&evaluation["exp_alerts"]).is_empty();
                let Some(at) = evaluations.iter().position(fires) else { continue };
                if drop_last { evaluations.truncate(at + 1) } else { drop(evaluations.drain(..at)) }
            }
            assert_eq!(without_cases(&rules, &cut), all);
        }
    }

    #[test]
    fn each_broken_rule_convention_is_reported() {
        let file = files::text("quant.rules.yml");
        let complaints_after_replacing = |from: &str, to: &str| {
            let broken = file.replace(from, to);
            assert_ne!(broken, file, "{from}");
            complaints(&serde_saphyr::from_str(&broken).unwrap()).join("\n")
        };
        for (from, to, complaint) in [
            ("changes(quant:run", "increase(quant:run", "BatchTwoWriters: increase()"),
            ("quant_telemetry_overflow_total > 0", "quant_telemetry_overflow_total >", "quant:overflow_stages: "),
            ("severity: critical", "severity: bad", "BatchRunFailed: no severity"),
            ("summary: \"{{ $labels.job }}", "summary: \"", "BatchRunFailed: the summary names no job"),
            ("The run of {{ $labels.job }}", "The run", "BatchRunFailed: the description names no job"),
            (
                "{{ with $labels.profile }}",
                "{{ with $labels.other }}",
                "BatchRunFailed: the description names no profile",
            ),
            ("stage {{ $labels.stage_id }}", "stage", "BatchStageSlow: the summary names no stage"),
            ("First", "Then", "BatchRunFailed: the description does not say what to do first"),
            ("&var-stage", "&stage", "BatchStageSlow: the dashboard_url sets no "),
            ("&var-instance", "&instance", "BatchRunFailed: the dashboard_url sets no "),
            ("var-job=", "job=", "BatchJobUnlisted: the dashboard_url sets no "),
            ("batch-jobs'", "batch-jobs?var-job='", "BatchGatewayDown: the dashboard_url sets variables"),
            ("'http://localhost:3000/d/batch-jobs'", "''", "BatchWatchdog: no dashboard_url"),
            ("run_info{", "info{", "BatchRunFailed: no run_id"),
            ("{{ else }}unknown", "", "BatchRunFailed: no host"),
            ("unfinished means", "or", "BatchStageFailed: the description leaves out unfinished"),
        ] {
            let complaints = complaints_after_replacing(from, to);
            assert!(complaints.contains(complaint), "{from} -> {to}: {complaints}");
        }
    }
}
