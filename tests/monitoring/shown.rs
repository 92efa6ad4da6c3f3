//! Each metric of the schema is on the dashboard or in a rule, and nothing else that looks like one of them.

use std::collections::BTreeSet;

use super::dashboard::{queries, text, variable_queries};
use super::{files, promql, rules};

/// The metrics of the documentation's table, which a test in `src/schema.rs` keeps equal to the schema: name and type.
fn schema() -> Vec<(String, String)> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md")).unwrap();
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        let name = cells.next()?.strip_suffix('`')?;
        name.starts_with("quant_").then(|| (name.to_owned(), cells.next().unwrap_or_default().to_owned()))
    };
    let found: Vec<_> = page.lines().filter_map(row).collect();
    assert!(found.len() >= 18, "{found:?}");
    found
}

/// The names under which the series of the metrics are stored.
fn series(schema: &[(String, String)]) -> BTreeSet<String> {
    let names = |(name, kind): &(String, String)| match kind.as_str() {
        "histogram" => ["_bucket", "_sum", "_count"].map(|suffix| format!("{name}{suffix}")).to_vec(),
        _ => vec![name.clone()],
    };
    schema.iter().flat_map(names).collect()
}

/// The metrics that all the queries ask for.
fn asked_for() -> BTreeSet<String> {
    let dashboard = files::dashboard();
    let rules = files::yaml("quant.rules.yml");
    let panels = queries(&dashboard).into_iter().map(|(_, query)| query);
    let variables = variable_queries(&dashboard).into_iter().map(|(_, selector, _)| selector);
    let rules = rules::rules(&rules).into_iter().map(|rule| text(rule, "expr"));
    let parsed = panels.chain(variables).chain(rules).map(|query| promql::parse(query).unwrap());
    parsed.flat_map(|query| query.selectors).map(|selector| selector.metric).collect()
}

/// Metrics of which nobody asks for any series.
fn missing<'a>(schema: &'a [(String, String)], asked: &BTreeSet<String>) -> Vec<&'a str> {
    let is_missing = |one: &&(String, String)| series(std::slice::from_ref(*one)).is_disjoint(asked);
    schema.iter().filter(is_missing).map(|(name, _)| name.as_str()).collect()
}

#[test]
fn each_metric_is_shown_or_alerted_on() {
    assert_eq!(missing(&schema(), &asked_for()), Vec::<&str>::new());
}

#[test]
fn a_metric_that_appears_nowhere_is_found() {
    let mut schema = schema();
    schema.push(("quant_stage_new_total".to_owned(), "counter".to_owned()));
    schema.push(("quant_stage_new_seconds".to_owned(), "histogram".to_owned()));
    assert_eq!(missing(&schema, &asked_for()), ["quant_stage_new_total", "quant_stage_new_seconds"]);
}

/// A misspelt one would be a panel that is empty for ever, or an alert that never fires.
#[test]
fn nothing_else_is_asked_for() {
    let (known, asked) = (series(&schema()), asked_for());
    let unknown: Vec<_> = asked.iter().filter(|name| name.starts_with("quant_") && !known.contains(*name)).collect();
    assert_eq!(unknown, Vec::<&String>::new());
    let rules = files::yaml("quant.rules.yml");
    let recorded: BTreeSet<_> = rules::rules(&rules).into_iter().map(|rule| text(rule, "record").to_owned()).collect();
    let of_others = ["ALERTS", "job:period_seconds", "push_failure_time_seconds", "push_time_seconds", "up"];
    let others = asked.iter().filter(|name| !name.starts_with("quant_") && !recorded.contains(*name));
    assert_eq!(others.collect::<Vec<_>>(), of_others);
}
