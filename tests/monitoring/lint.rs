//! The conventions of the dashboard: what makes it importable anywhere, and readable by somebody new to it.

use std::collections::BTreeSet;

use serde_json::Value;

use super::dashboard::{list, panels, text, variable_queries, variables, with_rows};
use super::promql::{self, Selector};

/// Counters begin at zero with every run: these say nothing about them.
pub(crate) const MEANINGLESS: [&str; 6] = ["rate", "irate", "increase", "delta", "idelta", "resets"];

const VARIABLES: [&str; 5] = ["datasource", "job", "profile", "stage", "run_id"];
/// In regular expressions: the variables may stand for several values. A metric without a profile belongs to all.
const OF_JOB: &str = r#"job=~"$job""#;
const OF_PROFILE: &str = r#"profile=~"$profile|""#;
const OF_STAGE: &str = r#"stage_id=~"$stage""#;

/// What is not as it should be.
pub(crate) fn complaints(dashboard: &Value) -> Vec<String> {
    let mut found = whole(dashboard);
    found.extend(variables(dashboard).iter().flat_map(variable));
    for (name, selector, _) in variable_queries(dashboard) {
        // The jobs themselves are not of a job.
        let parsed = promql::parse(selector);
        found.extend(parsed.err().map(|why| format!("variable {name}: {why}")));
        if name != "job" && !selector.contains(OF_JOB) {
            found.push(format!("variable {name}: not of the job that is chosen"));
        }
    }
    for panel in panels(dashboard) {
        let of_panel =
            self::panel(panel).into_iter().chain(list(&panel["targets"]).iter().flat_map(|one| target(panel, one)));
        found.extend(of_panel.map(|complaint| format!("panel {:?}: {complaint}", text(panel, "title"))));
    }
    found
}

fn whole(dashboard: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut check = |good: bool, complaint: &str| {
        if !good {
            found.push(complaint.to_owned());
        }
    };
    check(dashboard["id"].is_null(), "an id is of one Grafana alone");
    check(!text(dashboard, "uid").is_empty(), "no uid: an import would make another one each time");
    check(!text(dashboard, "title").is_empty(), "no title");
    check(dashboard["__inputs"].is_null(), "__inputs: it cannot be provisioned from a file");
    let all = with_rows(dashboard);
    let ids: BTreeSet<_> = all.iter().map(|panel| panel["id"].as_u64()).collect();
    check(ids.len() == all.len() && !ids.contains(&None), "two panels have the same id, or one has none");
    check(!overlap(&all), "two panels are in the same place, or one is beyond the 24 columns");
    let names: Vec<_> = variables(dashboard).iter().map(|variable| text(variable, "name")).collect();
    for name in VARIABLES {
        check(names.contains(&name), &format!("no variable {name}"));
    }
    found
}

/// Whether two panels cover the same cell of the grid, or one has a place that is not in it.
fn overlap(panels: &[&Value]) -> bool {
    let mut taken = BTreeSet::new();
    panels.iter().any(|panel| {
        let [x, y, width, height] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap_or(1_000));
        let cells = (x..x + width).flat_map(|column| (y..y + height).map(move |line| (column, line)));
        x + width > 24 || width * height == 0 || cells.map(|cell| taken.insert(cell)).any(|is_free| !is_free)
    })
}

fn variable(variable: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let name = text(variable, "name");
    if text(variable, "label").is_empty() {
        found.push(format!("variable {name}: no label"));
    }
    if text(variable, "type") == "query" && !is_the_variable(&variable["datasource"]) {
        found.push(format!("variable {name}: another data source than ${{datasource}}"));
    }
    // Else every run there ever was could be on the screen at once.
    if name == "run_id" && (variable["multi"] != false || variable["includeAll"] != false) {
        found.push("variable run_id: more than one run".to_owned());
    }
    found
}

fn is_the_variable(datasource: &Value) -> bool {
    text(datasource, "type") == "prometheus" && text(datasource, "uid") == "${datasource}"
}

fn panel(panel: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut check = |good: bool, complaint: &str| {
        if !good {
            found.push(complaint.to_owned());
        }
    };
    let description = text(panel, "description");
    check(!text(panel, "title").is_empty(), "no title");
    check(description.len() > 20 && description.ends_with('.'), "no description");
    check(!text(&panel["fieldConfig"]["defaults"], "unit").is_empty(), "no unit");
    check(is_the_variable(&panel["datasource"]), "another data source than ${datasource}");
    let targets = list(&panel["targets"]);
    check(!targets.is_empty(), "no query");
    let ids: BTreeSet<_> = targets.iter().map(|target| text(target, "refId")).collect();
    check(ids.len() == targets.len(), "two queries have the same refId");
    found
}

fn target(panel: &Value, target: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let expression = text(target, "expr");
    if !is_the_variable(&target["datasource"]) {
        found.push("a query with another data source than ${datasource}".to_owned());
    }
    let legend = text(target, "legendFormat");
    let is_table = text(target, "format") == "table";
    if !is_table && !legend.contains("{{") {
        found.push(format!("the legend {legend:?} names no label: {expression}"));
    }
    let query = match promql::parse(expression) {
        Ok(query) => query,
        Err(why) => {
            found.push(format!("{why}: {expression}"));
            return found;
        }
    };
    // A table may have a line for each run; a graph would have a legend of them all.
    let is_graph = text(panel, "type") != "table";
    if legend.contains("run_id") || is_graph && query.kept.contains("run_id") {
        found.push(format!("a legend of all runs: {expression}"));
    }
    found.extend(
        query.functions.iter().filter(|name| MEANINGLESS.contains(name)).map(|name| format!("{name}(): {expression}")),
    );
    found.extend(query.selectors.iter().flat_map(selector).map(|complaint| format!("{complaint}: {expression}")));
    found
}

fn selector(selector: &Selector) -> Vec<String> {
    let Selector { metric, .. } = selector;
    let mut found = Vec::new();
    if metric == "ALERTS" {
        // The alert about the gateway is of no job.
        if !selector.has(r#"job=~"$job|pushgateway""#) {
            found.push("ALERTS not of the job that is chosen".to_owned());
        }
        return found;
    }
    if !selector.has(OF_JOB) {
        found.push(format!("{metric} not of the job that is chosen"));
    }
    if !selector.has(OF_PROFILE) && selector.fixed("profile") != Some("") {
        found.push(format!("{metric} not of the profile that is chosen"));
    }
    if metric.starts_with("quant_stage_") && !selector.has(OF_STAGE) {
        found.push(format!("{metric} not of the stage that is chosen"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::files;
    use super::*;

    #[test]
    fn the_dashboard_keeps_them() {
        assert_eq!(complaints(&files::dashboard()), Vec::<String>::new());
    }

    /// Where each convention is broken, and what is said of it.
    const BROKEN: [(&str, &str, &str); 29] = [
        ("/id", "7", "an id is of one Grafana"),
        ("/uid", r#""""#, "no uid"),
        ("/title", r#""""#, "no title"),
        ("/__inputs", "[]", "__inputs"),
        ("/panels/1/id", "1", "the same id"),
        ("/panels/1/id", "null", "one has none"),
        ("/panels/1/gridPos/h", "100", "in the same place"),
        ("/panels/3/gridPos/x", "13", "beyond the 24 columns"),
        ("/panels/1/gridPos/w", "0", "in the same place"),
        ("/panels/1/gridPos", "{}", "in the same place"),
        ("/templating/list/4/name", r#""run""#, "no variable run_id"),
        ("/templating/list/0/name", r#""ds""#, "no variable datasource"),
        ("/templating/list/1/label", r#""""#, "variable job: no label"),
        ("/templating/list/1/datasource/uid", r#""prometheus""#, "variable job: another data source"),
        ("/templating/list/4/multi", "true", "more than one run"),
        ("/templating/list/4/includeAll", "true", "more than one run"),
        (
            "/templating/list/3/query/query",
            r#""label_values(quant_stage_total, stage_id)""#,
            "variable stage: not of the job",
        ),
        ("/templating/list/3/query/query", r#""label_values(quant_stage_total{, stage_id)""#, "variable stage: "),
        ("/panels/1/title", r#""""#, "no title"),
        ("/panels/1/description", r#""A table""#, "no description"),
        ("/panels/1/fieldConfig/defaults/unit", r#""""#, "no unit"),
        ("/panels/1/datasource/uid", r#""prometheus""#, "another data source"),
        ("/panels/1/targets", "[]", "no query"),
        ("/panels/1/targets/1/refId", r#""A""#, "the same refId"),
        ("/panels/1/targets/0/datasource/uid", r#""prometheus""#, "a query with another data source"),
        ("/panels/2/targets/0/legendFormat", r#""all""#, "names no label"),
        ("/panels/2/targets/0/legendFormat", r#""{{run_id}}""#, "a legend of all runs"),
        ("/panels/2/targets/0/expr", r#""sum(""#, "panel \"Outcomes over time\": "),
        ("/panels/4/targets/0/expr", r#""ALERTS{job=\"a\"}""#, "ALERTS not of the job"),
    ];

    #[test]
    fn each_of_them_can_be_broken() {
        for (pointer, value, complaint) in BROKEN {
            let mut dashboard = files::dashboard();
            let (parent, member) = pointer.rsplit_once('/').unwrap();
            let parent = dashboard.pointer_mut(parent).unwrap();
            match parent {
                Value::Array(items) => items[member.parse::<usize>().unwrap()] = serde_json::from_str(value).unwrap(),
                parent => parent[member] = serde_json::from_str(value).unwrap(),
            }
            let found = complaints(&dashboard);
            assert!(found.iter().any(|found| found.contains(complaint)), "{pointer} = {value}: {found:?}");
        }
    }

    #[test]
    fn queries_that_break_them() {
        let of = |query: &str| {
            let mut dashboard = files::dashboard();
            dashboard["panels"][2]["targets"][0]["expr"] = query.into();
            complaints(&dashboard).join("\n")
        };
        let good = r#"max by (job) (quant_stage_active{job=~"$job", profile=~"$profile|", stage_id=~"$stage"})"#;
        assert_eq!(of(good), "");
        for (from, to, complaint) in [
            (r#"job=~"$job""#, r#"job="quant_pipeline""#, "quant_stage_active not of the job"),
            (r#"profile=~"$profile|""#, r#"profile=~"$profile""#, "quant_stage_active not of the profile"),
            (r#", stage_id=~"$stage""#, "", "quant_stage_active not of the stage"),
            ("(job)", "(job, run_id)", "a legend of all runs"),
            (r#""$stage"})"#, r#""$stage"}) + rate(quant_stage_total{job=~"$job"}[5m])"#, "rate(): "),
        ] {
            let broken = good.replace(from, to);
            assert!(broken != good && of(&broken).contains(complaint), "{broken}: {}", of(&broken));
        }
    }
}
