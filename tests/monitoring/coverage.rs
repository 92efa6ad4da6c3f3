//! Dashboard and rules use every metric of the schema, and no other metric with the crate's prefix.

use std::collections::BTreeSet;

use super::dashboard::{queries, text, variable_queries, variables};
use super::{files, promql, rules};

/// Name and type of each metric in the table of `docs/metrics.md`; a test in `src/schema.rs` keeps it equal to the
/// schema.
fn schema() -> Vec<(String, String)> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md")).unwrap();
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        let name = cells.next()?.strip_suffix('`')?;
        name.starts_with("quant_").then(|| (name.to_owned(), cells.next().unwrap_or_default().to_owned()))
    };
    let rows: Vec<_> = page.lines().filter_map(row).collect();
    assert!(rows.len() >= 18, "{rows:?}");
    rows
}

/// Series names of the metrics as Prometheus stores them, and patterns of those of a histogram: a native histogram has
/// the name of the metric.
fn series(schema: &[(String, String)]) -> BTreeSet<String> {
    let names = |(name, kind): &(String, String)| match kind.as_str() {
        "histogram" => ["", "_bucket", "_sum", "_count", "(_count)?"].map(|suffix| format!("{name}{suffix}")).to_vec(),
        _ => vec![name.clone()],
    };
    schema.iter().flat_map(names).collect()
}

/// Names of all metrics that the queries select.
fn queried_metrics() -> BTreeSet<String> {
    let dashboard = files::dashboard();
    let rules = files::yaml("quant.rules.yml");
    let panels = queries(&dashboard).into_iter().map(|(_, query)| query);
    let variables = variable_queries(&dashboard).into_iter().map(|(_, selector, _)| selector);
    let rules = rules::rules(&rules).into_iter().map(|rule| text(rule, "expr"));
    let parsed = panels.chain(variables).chain(rules).map(|query| promql::parse(query).unwrap());
    parsed.flat_map(|query| query.selectors).map(|selector| selector.metric).collect()
}

/// Metrics of which no query selects a series.
fn missing<'a>(schema: &'a [(String, String)], queried: &BTreeSet<String>) -> Vec<&'a str> {
    let is_missing = |metric: &&(String, String)| series(std::slice::from_ref(*metric)).is_disjoint(queried);
    schema.iter().filter(is_missing).map(|(name, _)| name.as_str()).collect()
}

#[test]
fn each_metric_is_queried() {
    let schema = schema();
    assert_eq!(missing(&schema, &queried_metrics()), Vec::<&str>::new());
}

#[test]
fn unused_metric_is_reported() {
    let mut schema = schema();
    schema.push(("quant_stage_new_total".to_owned(), "counter".to_owned()));
    schema.push(("quant_stage_new_seconds".to_owned(), "histogram".to_owned()));
    assert_eq!(missing(&schema, &queried_metrics()), ["quant_stage_new_total", "quant_stage_new_seconds"]);
}

/// A Prometheus that stores native histograms has no other series of them.
#[test]
fn each_query_of_a_histogram_asks_for_native_ones_too() {
    let dashboard = files::dashboard();
    let panels = queries(&dashboard).into_iter().map(|(_, query)| query);
    let variables = variable_queries(&dashboard).into_iter().map(|(_, selector, _)| selector);
    let rules = files::yaml("quant.rules.yml");
    let rules = rules::rules(&rules).into_iter().map(|rule| text(rule, "expr"));
    let mut asking = 0;
    for query in panels.chain(variables).chain(rules) {
        let metrics: BTreeSet<_> = promql::parse(query).unwrap().selectors.into_iter().map(|s| s.metric).collect();
        for (name, _) in schema().iter().filter(|(_, kind)| kind == "histogram") {
            let is_classic =
                ["_bucket", "_sum", "_count"].iter().any(|suffix| metrics.contains(&format!("{name}{suffix}")));
            assert_eq!(metrics.contains(name), is_classic, "{query}");
            asking += usize::from(is_classic);
        }
    }
    assert_eq!(asking, 2);
}

/// A misspelt name would make a panel that stays empty or an alert that never fires.
#[test]
fn queries_use_no_unknown_metric() {
    let (existing, queried) = (series(&schema()), queried_metrics());
    let unknown: Vec<_> =
        queried.iter().filter(|name| name.starts_with("quant_") && !existing.contains(*name)).collect();
    assert_eq!(unknown, Vec::<&String>::new());
    let rules = files::yaml("quant.rules.yml");
    let recorded: BTreeSet<_> = rules::rules(&rules).into_iter().map(|rule| text(rule, "record").to_owned()).collect();
    let foreign = [
        // Jobs that are known, in any namespace.
        ".+_run_start_timestamp_seconds|.+:run_(start|last_success)_timestamp_seconds",
        "ALERTS",
        "ALERTS_FOR_STATE",
        "job:period_seconds",
        "process_start_time_seconds",
        "prometheus_rule_group_interval_seconds",
        "prometheus_rule_group_last_duration_seconds",
        "push_failure_time_seconds",
        "push_time_seconds",
        // Those of the variable `job`.
        "quant:last_success_timestamp_seconds|quant_run_start_timestamp_seconds",
        "up",
    ];
    let others = queried.iter().filter(|name| !name.starts_with("quant_") && !recorded.contains(*name));
    assert_eq!(others.collect::<Vec<_>>(), foreign);
}

/// The links of the alerts open this dashboard, and set variables that it has.
#[test]
fn links_of_alerts_set_variables_of_the_dashboard() {
    let dashboard = files::dashboard();
    let names: Vec<_> = variables(&dashboard).iter().map(|variable| text(variable, "name")).collect();
    let rules = files::yaml("quant.rules.yml");
    for link in rules::links(&rules) {
        let (address, query) = link.split_once('?').unwrap_or((link, ""));
        assert_eq!(address.rsplit_once("/d/").map(|(_, uid)| uid), Some(text(&dashboard, "uid")));
        for name in query.split("var-").skip(1).map(|rest| rest.split_once('=').unwrap().0) {
            assert!(names.contains(&name), "{name} in {link}");
        }
    }
}
