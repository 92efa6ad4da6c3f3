//! The commands `rules` and `dashboard`: the files of `examples/monitoring` for any namespace.

use rapidhash::v3::rapidhash_v3;
use serde_json::Value;

use super::report::Report;
use crate::DEFAULT_NAMESPACE;
use crate::config::check_namespace;
use crate::error::Error;

const RULES: &str = include_str!("../../examples/monitoring/batch.rules.yml.in");
const DASHBOARD: &str = include_str!("../../examples/monitoring/grafana/dashboards/quant.json");

/// Where the Grafana of `examples/monitoring/compose.yml` has its dashboards.
const DASHBOARDS: &str = "http://localhost:3000/d/";

/// The uid and the title of the dashboard in the default namespace, and the beginning of those in others.
const UID: &str = "batch-jobs";
const TITLE: &str = "Batch jobs";

/// The most characters of a uid in Grafana: letters, digits, `-` and `_`.
const UID_LIMIT: usize = 40;

/// Labels of the subject of an alert, beside the job. One that is missing is left out.
const SUBJECT_LABELS: [&str; 2] = ["profile", "instance"];

/// Variables of the dashboard, and the labels of an alert that set them.
const DASHBOARD_VARIABLES: [(&str, &str); 3] =
    [("profile", "profile"), ("instance", "instance"), ("stage", "stage_id")];

/// Renders the alert rules. `history` is how far back they look, `dashboard_url` where Grafana has the dashboard, if not
/// where the one of the namespace is by default.
pub(super) fn rules(namespace: &str, history: &str, dashboard_url: Option<&str>) -> Result<Report, Error> {
    check_namespace(namespace)?;
    let history_seconds = history_seconds(history)?;
    let dashboard_url = dashboard_url.map_or_else(|| format!("{DASHBOARDS}{}", uid(namespace)), str::to_owned);
    check_dashboard_url(&dashboard_url)?;
    let with = |label: &str, text: &str| format!("{{{{ with $labels.{label} }}}}{text}{{{{ end }}}}");
    let others = SUBJECT_LABELS.map(|label| with(label, &format!(", {label} {{{{ . }}}}")));
    let subject = format!("{{{{ $labels.job }}}}{}", others.concat());
    let variables =
        DASHBOARD_VARIABLES.map(|(variable, label)| with(label, &format!("&var-{variable}={{{{ . | urlquery }}}}")));
    let link =
        format!("dashboard_url: '{dashboard_url}?var-job={{{{ $labels.job | urlquery }}}}{}'", variables.concat());
    let run = |info: &str| {
        let run_id = format!("run_id: '{}'", label_of(info, "run_id"));
        let host = format!("host: '{}'", label_of("@NS@_engine_resource_usage", "node"));
        [run_id, host, link.clone()].join("\n          ")
    };
    Ok(rendered(
        RULES
            .replace("@RUN@", &run("@NS@_run_info"))
            .replace("@ENDED_RUN@", &run("@NS@:ended_run_info"))
            .replace("@LINK@", &link)
            .replace("@DASHBOARD@", &dashboard_url)
            .replace("@SUBJECT@", &subject)
            .replace("@NS@", namespace)
            .replace("@HISTORY@", history)
            .replace("@HISTORY_SECONDS@", &history_seconds.to_string()),
    ))
}

/// Returns a template that reads a label of a metric of the alert's run, or `unknown`. The metric has the labels of the
/// alert. An alert about all instances, or all profiles, gets that of any. A metric without a profile may belong to a run
/// that has one.
fn label_of(metric: &str, label: &str) -> String {
    const OTHERS: &str = "^(__name__|alertname|severity|profile|stage_id|reason)$";
    format!(
        "{{{{ $run := \"\" }}}}{{{{ range $name, $value := $labels }}}}{{{{ if not (match \"{OTHERS}\" $name) }}}}\
         {{{{ $run = printf \"%s%s=%q,\" $run $name $value }}}}{{{{ end }}}}{{{{ end }}}}\
         {{{{ $other := $run }}}}{{{{ with $labels.profile }}}}{{{{ $other = printf \"%sprofile=%q\" $run \"\" }}}}{{{{ end }}}}\
         {{{{ with or (printf \"{metric}{{%sprofile=%q}}\" $run $labels.profile | query) \
         (printf \"{metric}{{%s}}\" $other | query) }}}}{{{{ . | first | label \"{label}\" }}}}{{{{ else }}}}unknown{{{{ end }}}}"
    )
}

/// Renders the dashboard.
pub(super) fn dashboard(namespace: &str) -> Result<Report, Error> {
    check_namespace(namespace)?;
    // Names of metrics, of recorded rules and of groups of rules; `quantile` is neither.
    let names = ["_", ":", "-"].map(|end| (format!("quant{end}"), format!("{namespace}{end}")));
    let identity = [("uid", UID, uid(namespace)), ("title", TITLE, title(namespace))]
        .map(|(key, from, to)| (format!("\"{key}\": \"{from}\""), format!("\"{key}\": \"{to}\"")));
    let texts = names.iter().chain(&identity);
    Ok(rendered(texts.fold(DASHBOARD.to_owned(), |text, (from, to)| text.replace(from, to))))
}

/// Returns the uid of a namespace's dashboard: Grafana has one dashboard of each uid. A hash tells long names apart,
/// behind a `-`, which is in no namespace.
fn uid(namespace: &str) -> String {
    if namespace == DEFAULT_NAMESPACE {
        return UID.to_owned();
    }
    let uid = format!("{UID}-{namespace}");
    if uid.len() <= UID_LIMIT {
        return uid;
    }
    let hash = format!("-{:016x}", rapidhash_v3(namespace.as_bytes()));
    format!("{}{hash}", &uid[..UID_LIMIT - hash.len()])
}

/// Returns the title of a namespace's dashboard. Older Grafana has one dashboard of each title in a folder.
fn title(namespace: &str) -> String {
    if namespace == DEFAULT_NAMESPACE { TITLE.to_owned() } else { format!("{TITLE} of {namespace}") }
}

fn rendered(text: String) -> Report {
    Report { text, json: Value::Null, is_ok: true }
}

/// Returns the seconds of a Prometheus duration that has one unit, hours or longer.
fn history_seconds(history: &str) -> Result<u64, Error> {
    let units = [('h', 3_600), ('d', 86_400), ('w', 604_800), ('y', 31_536_000)];
    let seconds = units.into_iter().find_map(|(unit, seconds)| {
        let number = history.strip_suffix(unit)?;
        let is_number = !number.starts_with('0') && number.bytes().all(|byte| byte.is_ascii_digit());
        let seconds = number.parse::<u64>().ok().filter(|_| is_number)?.checked_mul(seconds)?;
        // Prometheus counts nanoseconds in 64 bits.
        (seconds <= i64::MAX as u64 / 1_000_000_000).then_some(seconds)
    });
    seconds.ok_or_else(|| {
        Error::config(format!(
            "the history {history:?} is no duration: give a whole number and h, d, w or y, such as 60d"
        ))
    })
}

/// Checks an address that stands in single quotes in YAML, and in a template.
fn check_dashboard_url(url: &str) -> Result<(), Error> {
    let is_address =
        ["http://", "https://"].iter().any(|scheme| url.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty()));
    if is_address && !url.contains(|c: char| c.is_whitespace() || c.is_control() || "'{}?#".contains(c)) {
        return Ok(());
    }
    Err(Error::config(format!(
        "the dashboard URL {url:?} is no address of a dashboard: give one without a query, such as {DASHBOARDS}{UID}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_is_a_number_with_a_unit() {
        for (history, seconds) in [("1h", 3_600), ("15d", 1_296_000), ("120w", 72_576_000), ("1y", 31_536_000)] {
            assert_eq!(history_seconds(history).unwrap(), seconds);
        }
        for history in [
            "",
            "d",
            "15",
            "0d",
            "015d",
            "1.5d",
            "15m",
            "15 d",
            "-1d",
            "1d1h",
            "15ä",
            "+1d",
            "99999999999999999999d",
            "1000y",
        ] {
            let text = history_seconds(history).unwrap_err().to_string();
            assert!(text.starts_with(&format!("the history {history:?} is no duration: ")), "{text}");
        }
    }

    #[test]
    fn dashboard_url_is_an_address_without_a_query() {
        for url in ["http://localhost:3000/d/batch-jobs", "https://grafana.example/g/d/abc/batch"] {
            check_dashboard_url(url).unwrap();
        }
        for url in
            ["", "http://", "grafana", "ftp://a/d", "http://a/d?x=1", "http://a/d/'", "http://a/{{ . }}", "http://a b"]
        {
            let text = check_dashboard_url(url).unwrap_err().to_string();
            assert!(text.starts_with(&format!("the dashboard URL {url:?} is no address")), "{text}");
        }
    }
}
