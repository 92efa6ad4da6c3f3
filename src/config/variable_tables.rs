//! The tables of variables in `docs/configuration.md`: for the program `stage-metrics`, which describes the variables as
//! the page does, and for the tests that compare the page with the code.

#[cfg(test)]
use std::collections::BTreeSet;

/// The heading of the table of this crate's variables.
const OWN: &str = "Environment variables";

/// A variable in a table, as plain text.
#[derive(Debug, PartialEq)]
pub(crate) struct Variable {
    pub(crate) name: String,
    pub(crate) description: String,
    /// The value or the behaviour without the variable.
    pub(crate) default: String,
}

/// Returns the variables that `with_env()` reads.
pub(crate) fn documented_variables() -> Vec<Variable> {
    table(OWN)
}

/// Returns the variables that are read if the metrics go over OTLP.
#[cfg(all(feature = "cli", feature = "otlp"))]
pub(crate) fn documented_otlp_variables() -> Vec<Variable> {
    table("Variables of OpenTelemetry")
}

/// Returns the rows of the table under this heading, a row for each name in the first column; none if there is no such table.
fn table(heading: &str) -> Vec<Variable> {
    let page = include_str!("../../docs/configuration.md");
    let sections = page.split("\n## ").filter_map(|section| section.split_once('\n'));
    let section = sections.filter(|(of, _)| *of == heading).map(|(_, text)| text);
    let rows = section.flat_map(str::lines).filter_map(|line| line.strip_prefix("| `")?.strip_suffix('|'));
    let variables = |row: &str| {
        let mut cells = row.split(" | ");
        let names = cells.next().unwrap_or_default().to_owned();
        let mut plain = || cells.next().unwrap_or_default().trim().replace('`', "");
        let (description, default) = (plain(), plain());
        // Every second piece, from the first on, is between backticks.
        let names: Vec<_> = names.split('`').step_by(2).filter(|name| !name.is_empty()).map(str::to_owned).collect();
        let variable = move |name| Variable { name, description: description.clone(), default: default.clone() };
        names.into_iter().map(variable)
    };
    rows.flat_map(variables).collect()
}

/// Returns the names in the first column of the table under this heading.
#[cfg(test)]
pub(crate) fn variables(heading: &str) -> BTreeSet<String> {
    table(heading).into_iter().map(|variable| variable.name).collect()
}

#[test]
fn every_name_of_a_table_cell_is_read() {
    let names = variables("Environment variables");
    assert!(names.contains("TV_PROMETHEUS_PUSHGATEWAY") && names.contains("OTEL_METRICS_EXPORTER"), "{names:?}");
    let names = variables("Variables of OpenTelemetry");
    assert!(names.contains("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT"), "{names:?}");
    assert!(names.contains("OTEL_EXPORTER_OTLP_TIMEOUT"), "{names:?}");
    assert!(names.iter().all(|name| name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')), "{names:?}");
    let documented = documented_variables();
    assert!(documented.iter().all(|variable| !variable.description.is_empty() && !variable.default.is_empty()));
    let interval = documented.iter().find(|variable| variable.name == "TV_PROMETHEUS_PUSH_INTERVAL").unwrap();
    assert_eq!(interval.default, "15s");
}
