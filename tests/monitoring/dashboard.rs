//! The parts of a Grafana dashboard that the tests look at.

use serde_json::Value;

/// The member as text, empty where it is none.
pub(crate) fn text<'a>(value: &'a Value, member: &str) -> &'a str {
    value[member].as_str().unwrap_or_default()
}

/// The members of an array, none where it is none.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// All panels, those of folded rows and the rows themselves included.
pub(crate) fn with_rows<'a>(dashboard: &'a Value) -> Vec<&'a Value> {
    let within = |panel: &'a Value| std::iter::once(panel).chain(list(&panel["panels"]));
    list(&dashboard["panels"]).iter().flat_map(within).collect()
}

/// The panels that show something.
pub(crate) fn panels(dashboard: &Value) -> Vec<&Value> {
    with_rows(dashboard).into_iter().filter(|panel| text(panel, "type") != "row").collect()
}

/// The variables at the top.
pub(crate) fn variables(dashboard: &Value) -> &[Value] {
    list(&dashboard["templating"]["list"])
}

/// Each query of a panel, after the title of the panel.
pub(crate) fn queries<'a>(dashboard: &'a Value) -> Vec<(&'a str, &'a str)> {
    let of =
        |panel: &'a Value| list(&panel["targets"]).iter().map(|target| (text(panel, "title"), text(target, "expr")));
    panels(dashboard).into_iter().flat_map(of).collect()
}

/// What `label_values(SELECTOR, LABEL)` of each variable that has it asks for, after the name of the variable.
pub(crate) fn variable_queries<'a>(dashboard: &'a Value) -> Vec<(&'a str, &'a str, &'a str)> {
    let parts = |variable: &'a Value| {
        let query = text(&variable["query"], "query").strip_prefix("label_values(")?.strip_suffix(')')?;
        let (selector, label) = query.rsplit_once(", ")?;
        Some((text(variable, "name"), selector, label))
    };
    variables(dashboard).iter().filter_map(parts).collect()
}
