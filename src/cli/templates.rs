//! The commands `rules` and `dashboard`: the files of `examples/monitoring` for any namespace.

use serde_json::Value;

use super::report::Report;
use crate::config::check_namespace;
use crate::error::Error;

const RULES: &str = include_str!("../../examples/monitoring/batch.rules.yml.in");
const DASHBOARD: &str = include_str!("../../examples/monitoring/grafana/dashboards/quant.json");

/// Labels of the subject of an alert, beside the job. One that is missing is left out.
const SUBJECT_LABELS: [&str; 2] = ["profile", "instance"];

/// Renders the alert rules. `history` is how far back they look.
pub(super) fn rules(namespace: &str, history: &str) -> Result<Report, Error> {
    check_namespace(namespace)?;
    check_history(history)?;
    let others =
        SUBJECT_LABELS.map(|label| format!("{{{{ with $labels.{label} }}}}, {label} {{{{ . }}}}{{{{ end }}}}"));
    let subject = format!("{{{{ $labels.job }}}}{}", others.concat());
    Ok(rendered(RULES.replace("@NS@", namespace).replace("@HISTORY@", history).replace("@SUBJECT@", &subject)))
}

/// Renders the dashboard.
pub(super) fn dashboard(namespace: &str) -> Result<Report, Error> {
    check_namespace(namespace)?;
    // Names of metrics and of recorded rules; `quantile` is neither.
    let names = ["_", ":"].map(|end| (format!("quant{end}"), format!("{namespace}{end}")));
    Ok(rendered(names.iter().fold(DASHBOARD.to_owned(), |text, (from, to)| text.replace(from, to))))
}

fn rendered(text: String) -> Report {
    Report { text, json: Value::Null, is_ok: true }
}

/// Checks a duration of Prometheus with one unit, from an hour on.
fn check_history(history: &str) -> Result<(), Error> {
    let number = history.strip_suffix(['h', 'd', 'w', 'y']);
    let is_number = |text: &str| !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
    match number.filter(|number| !number.is_empty()) {
        Some(number) if is_number(number) => Ok(()),
        _ => Err(Error::config(format!(
            "the history {history:?} is no duration: give a whole number and h, d, w or y, such as 60d"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_is_a_number_with_a_unit() {
        assert!(["1h", "15d", "120w", "1y"].into_iter().all(|history| check_history(history).is_ok()));
        for history in ["", "d", "15", "0d", "015d", "1.5d", "15m", "15 d", "-1d", "1d1h", "15ä"] {
            let text = check_history(history).unwrap_err().to_string();
            assert!(text.starts_with(&format!("the history {history:?} is no duration: ")), "{text}");
        }
    }
}
