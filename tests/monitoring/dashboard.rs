//! Accessors for the parts of a Grafana dashboard.

use serde_json::Value;

/// Returns the member's string, or "" if it is absent or of another type.
pub(crate) fn text<'a>(value: &'a Value, member: &str) -> &'a str {
    value[member].as_str().unwrap_or_default()
}

/// Returns the elements of an array; none for any other value.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// All panels: rows themselves, and panels inside collapsed rows.
pub(crate) fn with_rows<'a>(dashboard: &'a Value) -> Vec<&'a Value> {
    let within = |panel: &'a Value| std::iter::once(panel).chain(list(&panel["panels"]));
    list(&dashboard["panels"]).iter().flat_map(within).collect()
}

/// All panels except rows.
pub(crate) fn panels(dashboard: &Value) -> Vec<&Value> {
    with_rows(dashboard).into_iter().filter(|panel| text(panel, "type") != "row").collect()
}

/// The template variables.
pub(crate) fn variables(dashboard: &Value) -> &[Value] {
    list(&dashboard["templating"]["list"])
}

/// Each query, with the title of its panel.
pub(crate) fn queries<'a>(dashboard: &'a Value) -> Vec<(&'a str, &'a str)> {
    let titled_queries =
        |panel: &'a Value| list(&panel["targets"]).iter().map(|target| (text(panel, "title"), text(target, "expr")));
    panels(dashboard).into_iter().flat_map(titled_queries).collect()
}

/// Selector and label of each `label_values(SELECTOR, LABEL)` query, with the name of its variable.
pub(crate) fn variable_queries<'a>(dashboard: &'a Value) -> Vec<(&'a str, &'a str, &'a str)> {
    let parts = |variable: &'a Value| {
        let query = text(&variable["query"], "query").strip_prefix("label_values(")?.strip_suffix(')')?;
        let (selector, label) = query.rsplit_once(", ")?;
        Some((text(variable, "name"), selector, label))
    };
    variables(dashboard).iter().filter_map(parts).collect()
}

/// Replaces the variables in a query, as Grafana does, and the time range.
#[track_caller]
pub(crate) fn interpolate<'a>(
    query: &str,
    range: &str,
    variables: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> String {
    let query = query.replace("$__range", range);
    let replaced = |query: String, (name, value)| query.replace(&format!("${name}"), value);
    let interpolated = variables.into_iter().fold(query, replaced);
    assert!(!interpolated.contains('$'), "every variable has a value: {interpolated}");
    interpolated
}
