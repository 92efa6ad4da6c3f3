//! The tables of `docs/configuration.md`, for tests that compare them with the code.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::env::VarError;

/// Returns the variables in the first column of the table under this heading; none if there is no such table.
pub(crate) fn variables(heading: &str) -> BTreeSet<String> {
    let page = include_str!("../../docs/configuration.md");
    let sections = page.split("\n## ").filter_map(|section| section.split_once('\n'));
    let section = sections.filter(|(of, _)| *of == heading).map(|(_, text)| text);
    let cells = section.flat_map(str::lines).filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    // Every second piece, from the first on, is between backticks.
    cells.flat_map(|cell| cell.split('`').step_by(2)).map(str::to_owned).collect()
}

/// Returns the names that `read` looks up in an environment with these variables.
pub(crate) fn looked_up(
    set: &[(&str, &str)],
    read: impl FnOnce(&dyn Fn(&str) -> Result<String, VarError>),
) -> BTreeSet<String> {
    let names = RefCell::new(BTreeSet::new());
    read(&|name| {
        names.borrow_mut().insert(name.to_owned());
        let variable = set.iter().find(|(variable, _)| *variable == name);
        variable.map(|(_, value)| (*value).to_owned()).ok_or(VarError::NotPresent)
    });
    names.into_inner()
}

#[test]
fn every_name_of_a_table_cell_is_read() {
    let names = variables("Environment variables");
    assert!(names.contains("TV_PROMETHEUS_PUSHGATEWAY") && names.contains("OTEL_METRICS_EXPORTER"), "{names:?}");
    let names = variables("Variables of OpenTelemetry");
    assert!(names.contains("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT"), "{names:?}");
    assert!(names.contains("OTEL_EXPORTER_OTLP_TIMEOUT"), "{names:?}");
    assert!(names.iter().all(|name| name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')), "{names:?}");
}
