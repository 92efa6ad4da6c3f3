//! Dashboard and rules use every metric of the schema, and no other metric with the crate's prefix.

use std::collections::BTreeSet;

use super::dashboard::{queries, text, variable_queries};
use super::{files, promql, rules};

/// Metrics that neither the dashboard nor the rules use yet.
const NOT_YET: [&str; 6] = [
    "quant_run_info",
    "quant_runs_total",
    "quant_stage_cpu_seconds_total",
    "quant_stage_last_failed",
    "quant_stage_run_seconds_total",
    "quant_stage_runs_total",
];

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
    let mut missing = missing(&schema, &queried_metrics());
    missing.sort_unstable();
    assert_eq!(missing, NOT_YET);
}

#[test]
fn unused_metric_is_reported() {
    let mut schema = schema();
    schema.push(("quant_stage_new_total".to_owned(), "counter".to_owned()));
    schema.push(("quant_stage_new_seconds".to_owned(), "histogram".to_owned()));
    let mut missing = missing(&schema, &queried_metrics());
    missing.retain(|name| !NOT_YET.contains(name));
    assert_eq!(missing, ["quant_stage_new_total", "quant_stage_new_seconds"]);
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
    assert_eq!(asking, 3);
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
    let foreign = ["ALERTS", "job:period_seconds", "push_failure_time_seconds", "push_time_seconds", "up"];
    let others = queried.iter().filter(|name| !name.starts_with("quant_") && !recorded.contains(*name));
    assert_eq!(others.collect::<Vec<_>>(), foreign);
}
