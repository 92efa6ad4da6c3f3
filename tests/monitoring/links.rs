//! The link of each alert opens the dashboard where the alert stands, and what it is about: promtool evaluates the queries of
//! panels in a case in which the alert fires, with the variables of its link.

use serde_json::{Value, json};

use super::dashboard::{interpolate, list, text, with_rows};
use super::panel_values::expression;
use super::render::promtool;
use super::simulator::time::duration;
use super::support::servers::installed;
use super::{files, rules};

/// What somebody who gets an alert looks for: alert, panel, query of the panel and the value that tells.
const SHOWN: [(&str, &str, &str, &str); 17] = [
    ("BatchRunFailed", "Jobs", "A", "== 2"),
    ("BatchNoSuccess", "Next success due", "B", "< 0"),
    ("BatchRunNeverEnded", "Jobs", "A", "== 3"),
    ("BatchRunNeverEnded", "Jobs", "I", "> 300"),
    ("BatchRunTooLong", "Jobs", "F", "> 2"),
    ("BatchJobMissing", "Next success due", "B", "< 0"),
    ("BatchJobUnlisted", "Jobs", "A", ">= 0"),
    ("BatchStageFailed", "Firing alerts", "A", ">= 0"),
    ("BatchStageNoSuccess", "Stages of the last run", "H", "> 0"),
    ("BatchStageNeverRan", "Stages of the last run", "A", "== 0"),
    ("BatchStageSlow", "Stages of the last run", "F", "> 2"),
    ("BatchGatewayDown", "Gateway", "A", "== 0"),
    ("BatchPushRefused", "Push health", "B", "== 1"),
    ("BatchTwoWriters", "Jobs", "A", ">= 0"),
    ("BatchSeriesOverflow", "Push health", "F", "> 0"),
    ("BatchSpoolNotDraining", "Push health", "G", "> 0"),
    ("BatchClockSkew", "Push health", "I", "< -120"),
];

/// An alert that fires in a case.
struct Firing {
    /// The file of the case, with this case alone and without its expectations.
    file: Value,
    time: String,
    alert: Value,
}

/// The case in which an alert fires first.
fn firing(name: &str) -> Firing {
    let files = rules::cases();
    let evaluations = files.iter().flat_map(|file| list(&file["tests"]).iter().map(move |case| (file, case)));
    let evaluations = evaluations
        .flat_map(|(file, case)| list(&case["alert_rule_test"]).iter().map(move |evaluation| (file, case, evaluation)));
    let fires = evaluations.filter(|(.., evaluation)| {
        text(evaluation, "alertname") == name && !list(&evaluation["exp_alerts"]).is_empty()
    });
    let (file, case, evaluation) =
        fires.min_by_key(|(.., evaluation)| duration(text(evaluation, "eval_time"))).unwrap();
    let mut file = file.clone();
    let mut series = case["input_series"].clone();
    for series in series.as_array_mut().unwrap() {
        // `0x120` is promtool's notation of zeros, and a number of YAML.
        if let Some(number) = series["values"].as_u64() {
            series["values"] = format!("0x{number:x}").into();
        }
    }
    file["tests"] = json!([{"interval": case["interval"], "input_series": series}]);
    let paths = list(&file["rule_files"]).iter().map(|name| files::path(name.as_str().unwrap()));
    file["rule_files"] = paths.map(|path| path.canonicalize().unwrap().to_str().unwrap().to_owned()).collect();
    Firing { file, time: text(evaluation, "eval_time").to_owned(), alert: evaluation["exp_alerts"][0].clone() }
}

/// The query of a panel with the variables of a link. A job that is not in the link is one of those with metrics.
fn query(title: &str, reference: &str, link: &str) -> String {
    let (_, variables) = link.split_once('?').unwrap_or_default();
    assert!(!variables.contains(['%', '+']), "the values need no decoding: {link}");
    let chosen = variables.split('&').filter_map(|set| set.strip_prefix("var-")?.split_once('='));
    let others = [("job", "another"), ("profile", ".*"), ("instance", ".*"), ("stage", ".*")];
    interpolate(&expression(title, reference), "7d", chosen.chain(others))
}

/// A selector of an alert by all labels that its line in "Firing alerts" has.
fn selector(name: &str, labels: &Value) -> String {
    let others = ["job", "profile", "instance", "stage_id", "reason"];
    let others = others.map(|label| format!(", {label}={:?}", text(labels, label)));
    format!("ALERTS{{alertname={name:?}, alertstate=\"firing\"{}}}", others.concat())
}

#[test]
fn link_of_each_alert_shows_the_alert_and_its_subject() {
    if !installed("promtool") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let cases = SHOWN.iter().enumerate().map(|(index, (name, panel, reference, value))| {
        let Firing { mut file, time, alert } = firing(name);
        let link = text(&alert["exp_annotations"], "dashboard_url");
        let firing = query("Firing alerts", "A", link);
        let expressions = [
            format!(
                "count(({firing}) and on (alertname, job, profile, instance, stage_id, reason) {})",
                selector(name, &alert["exp_labels"])
            ),
            format!("count(group(({}) {value}))", query(panel, reference, link)),
        ];
        let tests = expressions.map(|expression| {
            json!({
                "expr": expression, "eval_time": time, "exp_samples": [{"labels": "{}", "value": 1}],
            })
        });
        file["tests"][0]["promql_expr_test"] = tests.into_iter().collect();
        let path = directory.path().join(format!("{index}.test.yml"));
        std::fs::write(&path, file.to_string()).unwrap();
        path
    });
    promtool(&["test", "rules"], &cases.collect::<Vec<_>>());
}

/// The page has the subject of each alert but those about delivery in its first row.
#[test]
fn subject_of_each_alert_stands_in_the_first_row() {
    let rules = files::yaml("quant.rules.yml");
    let alerts = list(&rules["groups"]).iter().flat_map(|group| {
        list(&group["rules"]).iter().map(move |rule| (text(group, "name") == "quant-delivery", rule))
    });
    let dashboard = files::dashboard();
    let first_row: Vec<_> =
        with_rows(&dashboard).into_iter().skip(1).take_while(|panel| text(panel, "type") != "row").collect();
    for (is_of_delivery, rule) in alerts.filter(|(_, rule)| !text(rule, "alert").is_empty()) {
        let name = text(rule, "alert");
        // Its subject is that it comes.
        if name == "BatchWatchdog" {
            continue;
        }
        let of_alert: Vec<_> = SHOWN.iter().filter(|shown| shown.0 == name).collect();
        assert!(!of_alert.is_empty(), "{name}");
        let is_urgent = text(&rule["labels"], "severity") == "critical" || !is_of_delivery;
        for (_, title, ..) in of_alert {
            assert!(!is_urgent || first_row.iter().any(|panel| text(panel, "title") == *title), "{name}: {title}");
        }
    }
}
