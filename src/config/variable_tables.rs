//! The tables of `docs/configuration.md`, for the tests that compare them with the code.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::env::VarError;

/// The variables in the first column of the table under this heading. None where there is no such table.
pub(crate) fn variables(heading: &str) -> BTreeSet<String> {
    let page = include_str!("../../docs/configuration.md");
    let sections = page.split("\n## ").filter_map(|section| section.split_once('\n'));
    let section = sections.filter(|(of, _)| *of == heading).map(|(_, text)| text);
    let cells = section.flat_map(str::lines).filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    // What stands between backticks: every second piece, from the first on.
    cells.flat_map(|cell| cell.split('`').step_by(2)).map(str::to_owned).collect()
}

/// The names that are asked for while `read` runs in an environment in which these are set.
pub(crate) fn asked_for(
    set: &[(&str, &str)],
    read: impl FnOnce(&dyn Fn(&str) -> Result<String, VarError>),
) -> BTreeSet<String> {
    let asked = RefCell::new(BTreeSet::new());
    read(&|name| {
        asked.borrow_mut().insert(name.to_owned());
        let found = set.iter().find(|(variable, _)| *variable == name);
        found.map(|(_, value)| (*value).to_owned()).ok_or(VarError::NotPresent)
    });
    asked.into_inner()
}

#[test]
fn the_tables_are_read_cell_by_cell() {
    let found = variables("Environment variables");
    assert!(found.contains("TV_PROMETHEUS_PUSHGATEWAY") && found.contains("OTEL_METRICS_EXPORTER"), "{found:?}");
    let found = variables("Variables of OpenTelemetry");
    assert!(found.contains("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT"), "{found:?}");
    assert!(found.contains("OTEL_EXPORTER_OTLP_TIMEOUT"), "{found:?}");
    assert!(found.iter().all(|name| name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')), "{found:?}");
}
