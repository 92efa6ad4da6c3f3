//! The conventions of the rules: what an alert has to say, and which cases show what it does.

use std::collections::BTreeMap;

use serde_json::Value;

use super::dashboard::{list, text};
use super::lint::MEANINGLESS;
use super::{files, promql};

/// The rules of a file of rules.
pub(crate) fn rules(file: &Value) -> Vec<&Value> {
    list(&file["groups"]).iter().flat_map(|group| list(&group["rules"])).collect()
}

/// What is not as it should be.
pub(crate) fn complaints(file: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for rule in rules(file) {
        let name = format!("{}{}", text(rule, "alert"), text(rule, "record"));
        let mut of_rule = Vec::new();
        match promql::parse(text(rule, "expr")) {
            Ok(query) => of_rule.extend(
                query.functions.iter().filter(|name| MEANINGLESS.contains(name)).map(|name| format!("{name}()")),
            ),
            Err(why) => of_rule.push(why),
        }
        if !text(rule, "alert").is_empty() {
            of_rule.extend(alert(rule));
        }
        found.extend(of_rule.into_iter().map(|complaint| format!("{name}: {complaint}")));
    }
    found
}

fn alert(rule: &Value) -> Vec<String> {
    let (summary, description) = (text(&rule["annotations"], "summary"), text(&rule["annotations"], "description"));
    let name = text(rule, "alert");
    let mut found = Vec::new();
    let mut check = |good: bool, complaint: &str| {
        if !good {
            found.push(complaint.to_owned());
        }
    };
    check(matches!(text(&rule["labels"], "severity"), "critical" | "warning"), "no severity");
    for (what, said) in [("summary", summary), ("description", description)] {
        check(said.contains("{{ $labels.job }}"), &format!("the {what} names no job"));
        // The gateway has none.
        let is_of_the_gateway = name == "BatchGatewayDown";
        check(
            said.contains("{{ with $labels.profile }}") || is_of_the_gateway,
            &format!("the {what} names no profile"),
        );
        let names_stage = said.contains("{{ $labels.stage_id }}");
        check(names_stage || !name.starts_with("BatchStage"), &format!("the {what} names no stage"));
    }
    check(description.contains("First"), "the description does not say what to do first");
    found
}

/// The alerts of which the cases do not show that they do not fire, then fire, then end.
pub(crate) fn without_cases(file: &Value, cases: &[Value]) -> Vec<String> {
    let alerts = rules(file).into_iter().map(|rule| text(rule, "alert")).filter(|name| !name.is_empty());
    let shown = |name: &&str| cases.iter().flat_map(|file| list(&file["tests"])).any(|case| fires_and_ends(case, name));
    alerts.filter(|name| !shown(name)).map(str::to_owned).collect()
}

/// Whether in this case the alert is looked at before it fires, when it does, and afterwards.
fn fires_and_ends(case: &Value, alert: &str) -> bool {
    let looks = list(&case["alert_rule_test"]).iter().filter(|look| text(look, "alertname") == alert);
    let by_time: BTreeMap<u64, bool> =
        looks.map(|look| (minutes(text(look, "eval_time")), !list(&look["exp_alerts"]).is_empty())).collect();
    let mut changes: Vec<bool> = by_time.into_values().collect();
    changes.dedup();
    changes == [false, true, false]
}

/// `90m` or `2h`.
fn minutes(time: &str) -> u64 {
    let (number, unit) = time.split_at(time.len() - 1);
    let unit = match unit {
        "m" => 1,
        "h" => 60,
        _ => panic!("no time in minutes or hours: {time}"),
    };
    number.parse::<u64>().unwrap() * unit
}

/// The files of cases for promtool.
pub(crate) fn cases() -> Vec<Value> {
    files::ending_in(".test.yml").iter().map(|name| files::yaml(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_keep_them() {
        for name in files::ending_in(".rules.yml") {
            assert_eq!(complaints(&files::yaml(&name)), Vec::<String>::new(), "{name}");
        }
    }

    #[test]
    fn each_alert_has_cases_in_which_it_does_not_fire_fires_and_ends() {
        assert_eq!(without_cases(&files::yaml("quant.rules.yml"), &cases()), Vec::<String>::new());
    }

    #[test]
    fn a_case_that_is_missing_is_found() {
        let cases = cases();
        let rules = files::yaml("quant.rules.yml");
        let all = without_cases(&rules, &[]);
        assert!(all.len() > 10 && all.iter().any(|name| name == "BatchRunFailed"), "{all:?}");
        // Without the last look at each, none ends; without the first, none begins.
        for drop_last in [true, false] {
            let mut cut = cases.clone();
            for case in cut.iter_mut().flat_map(|file| file["tests"].as_array_mut().unwrap()) {
                let Some(looks) = case["alert_rule_test"].as_array_mut() else { continue };
                let fires = |look: &Value| !list(&look["exp_alerts"]).is_empty();
                let Some(at) = looks.iter().position(fires) else { continue };
                if drop_last { looks.truncate(at + 1) } else { drop(looks.drain(..at)) }
            }
            assert_eq!(without_cases(&rules, &cut), all);
        }
    }

    #[test]
    fn each_of_them_can_be_broken() {
        let file = files::text("quant.rules.yml");
        let of = |from: &str, to: &str| {
            let broken = file.replace(from, to);
            assert_ne!(broken, file, "{from}");
            complaints(&serde_saphyr::from_str(&broken).unwrap()).join("\n")
        };
        for (from, to, complaint) in [
            ("changes(quant_run", "increase(quant_run", "BatchTwoWriters: increase()"),
            ("quant_telemetry_overflow_total > 0", "quant_telemetry_overflow_total >", "BatchSeriesOverflow: "),
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
        ] {
            let found = of(from, to);
            assert!(found.contains(complaint), "{from} -> {to}: {found}");
        }
    }
}
