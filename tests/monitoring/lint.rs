//! Conventions that keep the dashboard importable anywhere and readable for newcomers.

use std::collections::BTreeSet;

use serde_json::Value;

use super::dashboard::{list, panels, text, variable_queries, variables, with_rows};
use super::promql::{self, Selector};

/// PromQL functions without meaning here: pushed counters restart at zero with every run.
pub(crate) const MEANINGLESS: [&str; 5] = ["rate", "irate", "increase", "delta", "idelta"];

/// The series that have exemplars.
const WITH_EXEMPLARS: [&str; 3] =
    ["quant_stage_duration_seconds", "quant_stage_duration_seconds_bucket", "quant_stage_failures_total"];

const VARIABLES: [&str; 6] = ["datasource", "job", "profile", "instance", "stage", "objective"];
/// Regular expressions, because a variable may hold several values. Metrics without a profile belong to every
/// profile, and those without an instance to every instance.
const JOB_MATCHER: &str = r#"job=~"$job""#;
const PROFILE_MATCHER: &str = r#"profile=~"$profile|""#;
const INSTANCE_MATCHER: &str = r#"instance=~"$instance|""#;
const STAGE_MATCHER: &str = r#"stage_id=~"$stage""#;

/// Every violation of a convention.
pub(crate) fn complaints(dashboard: &Value) -> Vec<String> {
    let mut complaints = dashboard_complaints(dashboard);
    complaints.extend(variables(dashboard).iter().flat_map(variable));
    for (name, selector, _) in variable_queries(dashboard) {
        // The job variable itself lists the jobs.
        let parsed = promql::parse(selector);
        complaints.extend(parsed.err().map(|why| format!("variable {name}: {why}")));
        if name != "job" && !selector.contains(JOB_MATCHER) {
            complaints.push(format!("variable {name}: does not select the chosen job"));
        }
    }
    for panel in panels(dashboard) {
        let of_panel =
            self::panel(panel).into_iter().chain(list(&panel["targets"]).iter().flat_map(|query| target(panel, query)));
        complaints.extend(of_panel.map(|complaint| format!("panel {:?}: {complaint}", text(panel, "title"))));
    }
    complaints
}

fn dashboard_complaints(dashboard: &Value) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut check = |good: bool, complaint: &str| {
        if !good {
            complaints.push(complaint.to_owned());
        }
    };
    check(dashboard["id"].is_null(), "the id is valid in one Grafana only");
    check(!text(dashboard, "uid").is_empty(), "no uid: every import would create another dashboard");
    check(!text(dashboard, "title").is_empty(), "no title");
    check(dashboard["__inputs"].is_null(), "__inputs: provisioning from a file fails");
    let all = with_rows(dashboard);
    let ids: BTreeSet<_> = all.iter().map(|panel| panel["id"].as_u64()).collect();
    check(ids.len() == all.len() && !ids.contains(&None), "a panel id is missing or used twice");
    check(!overlap(&all), "panels overlap or exceed the 24 columns");
    let names: Vec<_> = variables(dashboard).iter().map(|variable| text(variable, "name")).collect();
    for name in VARIABLES {
        check(names.contains(&name), &format!("no variable {name}"));
    }
    complaints
}

/// Whether two panels share a grid cell, or a panel lies outside the grid.
fn overlap(panels: &[&Value]) -> bool {
    let mut taken = BTreeSet::new();
    panels.iter().any(|panel| {
        let [x, y, width, height] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap_or(1_000));
        let cells = (x..x + width).flat_map(|column| (y..y + height).map(move |line| (column, line)));
        x + width > 24 || width * height == 0 || cells.map(|cell| taken.insert(cell)).any(|is_free| !is_free)
    })
}

fn variable(variable: &Value) -> Vec<String> {
    let mut complaints = Vec::new();
    let name = text(variable, "name");
    if text(variable, "label").is_empty() {
        complaints.push(format!("variable {name}: no label"));
    }
    if text(variable, "type") == "query" && !is_datasource_variable(&variable["datasource"]) {
        complaints.push(format!("variable {name}: the data source is not ${{datasource}}"));
    }
    // With several values, the arithmetic on it would be no PromQL.
    if name == "objective" && (variable["multi"] == true || variable["includeAll"] == true) {
        complaints.push("variable objective: allows more than one value".to_owned());
    }
    complaints
}

fn is_datasource_variable(datasource: &Value) -> bool {
    text(datasource, "type") == "prometheus" && text(datasource, "uid") == "${datasource}"
}

fn panel(panel: &Value) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut check = |good: bool, complaint: &str| {
        if !good {
            complaints.push(complaint.to_owned());
        }
    };
    let description = text(panel, "description");
    check(!text(panel, "title").is_empty(), "no title");
    check(description.len() > 20 && description.ends_with('.'), "no description");
    check(!text(&panel["fieldConfig"]["defaults"], "unit").is_empty(), "no unit");
    check(is_datasource_variable(&panel["datasource"]), "the data source is not ${datasource}");
    let targets = list(&panel["targets"]);
    check(!targets.is_empty(), "no query");
    let ids: BTreeSet<_> = targets.iter().map(|target| text(target, "refId")).collect();
    check(ids.len() == targets.len(), "two queries have the same refId");
    if text(panel, "type") == "table" {
        // Otherwise a run id of digits is a number in the unit of the table, a duration say.
        check(has_override(panel, "byType", "string", "unit", "string"), "a label is no string");
        // Otherwise the text of an empty table stands in each empty cell of a full one.
        check(has_override(panel, "byRegexp", "/.*/", "noValue", ""), "an empty cell has the text of an empty table");
        check(!text(&panel["fieldConfig"]["defaults"], "noValue").is_empty(), "no text of an empty table");
    }
    complaints
}

/// Whether the columns that match have the property.
fn has_override(panel: &Value, matcher: &str, columns: &str, property: &str, value: &str) -> bool {
    list(&panel["fieldConfig"]["overrides"]).iter().any(|over| {
        text(&over["matcher"], "id") == matcher
            && text(&over["matcher"], "options") == columns
            && list(&over["properties"]).iter().any(|set| text(set, "id") == property && set["value"] == value)
    })
}

fn target(panel: &Value, target: &Value) -> Vec<String> {
    let mut complaints = Vec::new();
    let expression = text(target, "expr");
    if !target["datasource"].is_null() {
        complaints.push("a query has a data source of its own".to_owned());
    }
    let legend = text(target, "legendFormat");
    let is_table = text(target, "format") == "table";
    if !is_table && !legend.contains("{{") {
        complaints.push(format!("the legend {legend:?} names no label: {expression}"));
    }
    let query = match promql::parse(expression) {
        Ok(query) => query,
        Err(why) => {
            complaints.push(format!("{why}: {expression}"));
            return complaints;
        }
    };
    // A table may have one line per run; a graph would list every run in its legend.
    let is_graph = text(panel, "type") != "table";
    if legend.contains("run_id") || is_graph && query.kept.contains("run_id") {
        complaints.push(format!("the legend lists all runs: {expression}"));
    }
    complaints.extend(
        query.functions.iter().filter(|name| MEANINGLESS.contains(name)).map(|name| format!("{name}(): {expression}")),
    );
    let has_exemplars = query.selectors.iter().any(|selector| WITH_EXEMPLARS.contains(&selector.metric.as_str()));
    // Grafana asks for exemplars beside a range alone.
    let wants_exemplars = has_exemplars && target["range"] == true;
    if wants_exemplars != (target["exemplar"] == true) {
        complaints.push(format!("`exemplar` is {}, not {wants_exemplars}: {expression}", target["exemplar"]));
    }
    complaints.extend(query.selectors.iter().flat_map(selector).map(|complaint| format!("{complaint}: {expression}")));
    complaints
}

fn selector(selector: &Selector) -> Vec<String> {
    let Selector { metric, .. } = selector;
    let mut complaints = Vec::new();
    if metric.starts_with("ALERTS") {
        // The gateway alert has no job of a run.
        if !selector.has(r#"job=~"$job|pushgateway""#) {
            complaints.push(format!("{metric} does not select the chosen job"));
        }
        return complaints;
    }
    // Metrics of the servers themselves.
    if metric == "up" || metric.starts_with("prometheus_") {
        return complaints;
    }
    if !selector.has(JOB_MATCHER) {
        complaints.push(format!("{metric} does not select the chosen job"));
    }
    // The number of all series of a job.
    if metric.is_empty() {
        return complaints;
    }
    if !selector.has(INSTANCE_MATCHER) {
        complaints.push(format!("{metric} does not select the chosen instance"));
    }
    if !selector.has(PROFILE_MATCHER) && selector.exact_value("profile") != Some("") {
        complaints.push(format!("{metric} does not select the chosen profile"));
    }
    let is_of_stages = metric.starts_with("quant_stage_") || metric.starts_with("quant:stage_");
    if is_of_stages && !selector.has(STAGE_MATCHER) {
        complaints.push(format!("{metric} does not select the chosen stage"));
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::super::files;
    use super::*;

    #[test]
    fn committed_dashboard_keeps_conventions() {
        assert_eq!(complaints(&files::dashboard()), Vec::<String>::new());
    }

    /// JSON pointer, broken value, and part of the expected complaint.
    const BROKEN: [(&str, &str, &str); 34] = [
        ("/id", "7", "the id is valid in one Grafana only"),
        ("/uid", r#""""#, "no uid"),
        ("/title", r#""""#, "no title"),
        ("/__inputs", "[]", "__inputs"),
        ("/panels/1/id", "1", "missing or used twice"),
        ("/panels/1/id", "null", "missing or used twice"),
        ("/panels/1/gridPos/h", "100", "panels overlap"),
        ("/panels/3/gridPos/x", "16", "exceed the 24 columns"),
        ("/panels/1/gridPos/w", "0", "panels overlap"),
        ("/panels/1/gridPos", "{}", "panels overlap"),
        ("/templating/list/5/name", r#""goal""#, "no variable objective"),
        ("/templating/list/0/name", r#""ds""#, "no variable datasource"),
        ("/templating/list/1/label", r#""""#, "variable job: no label"),
        ("/templating/list/1/datasource/uid", r#""prometheus""#, "variable job: the data source is not"),
        ("/templating/list/5/multi", "true", "allows more than one value"),
        ("/templating/list/5/includeAll", "true", "allows more than one value"),
        (
            "/templating/list/4/query/query",
            r#""label_values(quant_stage_total, stage_id)""#,
            "variable stage: does not select the chosen job",
        ),
        ("/templating/list/4/query/query", r#""label_values(quant_stage_total{, stage_id)""#, "variable stage: "),
        ("/panels/1/title", r#""""#, "no title"),
        ("/panels/1/description", r#""A table""#, "no description"),
        ("/panels/1/fieldConfig/defaults/unit", r#""""#, "no unit"),
        ("/panels/1/datasource/uid", r#""prometheus""#, ": the data source is not"),
        ("/panels/1/targets", "[]", "no query"),
        ("/panels/1/targets/1/refId", r#""A""#, "the same refId"),
        ("/panels/1/targets/0/datasource", "{}", "a query has a data source of its own"),
        ("/panels/1/fieldConfig/overrides/0/properties", "[]", "an empty cell has the text of an empty table"),
        ("/panels/1/fieldConfig/overrides/1/matcher/options", r#""number""#, "a label is no string"),
        ("/panels/1/fieldConfig/defaults/noValue", r#""""#, "no text of an empty table"),
        ("/panels/10/targets/0/legendFormat", r#""all""#, "names no label"),
        ("/panels/10/targets/0/legendFormat", r#""{{run_id}}""#, "the legend lists all runs"),
        ("/panels/10/targets/0/expr", r#""sum(""#, "panel \"Outcomes over time\": "),
        ("/panels/10/targets/0/exemplar", "true", "`exemplar` is true"),
        ("/panels/16/targets/1/exemplar", "false", "`exemplar` is false"),
        ("/panels/2/targets/0/expr", r#""ALERTS{job=\"a\"}""#, "ALERTS does not select the chosen job"),
    ];

    #[test]
    fn each_broken_dashboard_convention_is_reported() {
        for (pointer, value, complaint) in BROKEN {
            let mut dashboard = files::dashboard();
            let (parent, member) = pointer.rsplit_once('/').unwrap();
            let parent = dashboard.pointer_mut(parent).unwrap();
            match parent {
                Value::Array(items) => items[member.parse::<usize>().unwrap()] = serde_json::from_str(value).unwrap(),
                parent => parent[member] = serde_json::from_str(value).unwrap(),
            }
            let complaints = complaints(&dashboard);
            assert!(complaints.iter().any(|found| found.contains(complaint)), "{pointer} = {value}: {complaints:?}");
        }
    }

    #[test]
    fn each_broken_query_convention_is_reported() {
        let complaints_about = |query: &str| {
            let mut dashboard = files::dashboard();
            dashboard["panels"][10]["targets"][0]["expr"] = query.into();
            complaints(&dashboard).join("\n")
        };
        let good = r#"max by (job) (quant_stage_active{job=~"$job", profile=~"$profile|", instance=~"$instance|", stage_id=~"$stage"})"#;
        assert_eq!(complaints_about(good), "");
        for (from, to, complaint) in [
            (r#"job=~"$job""#, r#"job="quant_pipeline""#, "quant_stage_active does not select the chosen job"),
            (
                r#"profile=~"$profile|""#,
                r#"profile=~"$profile""#,
                "quant_stage_active does not select the chosen profile",
            ),
            (
                r#"instance=~"$instance|""#,
                r#"instance=~"$instance""#,
                "quant_stage_active does not select the chosen instance",
            ),
            (r#", stage_id=~"$stage""#, "", "quant_stage_active does not select the chosen stage"),
            ("(job)", "(job, run_id)", "the legend lists all runs"),
            (r#""$stage"})"#, r#""$stage"}) + rate(quant_stage_total{job=~"$job"}[5m])"#, "rate(): "),
        ] {
            let broken = good.replace(from, to);
            assert!(
                broken != good && complaints_about(&broken).contains(complaint),
                "{broken}: {}",
                complaints_about(&broken)
            );
        }
    }
}
