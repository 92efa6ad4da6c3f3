//! The committed rules and dashboard equal the output of `stage-metrics`, for any namespace, and promtool accepts the rules
//! and their cases.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

use super::dashboard::text;
use super::support::servers::{installed, is_prometheus_3};
use super::{files, rules};

/// Runs the program. Returns its exit code, its output and its errors.
fn render(arguments: &[&str]) -> (u8, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let arguments = ["stage-metrics"].iter().chain(arguments).map(Into::into);
    let code = tracing_stage_metrics::cli::run(arguments, &mut out, &mut err, None);
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

#[track_caller]
pub(crate) fn rendered(arguments: &[&str]) -> String {
    let (code, out, err) = render(arguments);
    assert_eq!((code, &*err), (0, ""), "{arguments:?}");
    out
}

#[test]
fn committed_files_equal_the_programs_output() {
    for (command, file, defaults) in [
        ("rules", "quant.rules.yml", &["--namespace", "quant", "--history", "15d"][..]),
        ("dashboard", "grafana/dashboards/quant.json", &["--namespace", "quant"]),
    ] {
        let committed = files::text(file);
        assert!(rendered(&[command]) == committed, "stage-metrics {command} > examples/monitoring/{file}");
        assert!(rendered(&[&[command], defaults].concat()) == committed, "the defaults of {command}");
    }
}

#[test]
fn namespace_and_history_replace_the_defaults() {
    let committed = files::text("quant.rules.yml");
    let other = rendered(&["rules", "--namespace", "acme_jobs", "--history", "30d"]);
    let expected = in_namespace(&committed, "acme_jobs")
        .replace("15d", "30d")
        .replace("1296000", "2592000")
        .replace("quant ", "acme_jobs ")
        .replace("/d/batch-jobs", "/d/batch-jobs-acme_jobs");
    assert_eq!(other, expected);
    assert!(!other.contains("quant_") && !other.contains("quant:") && other.contains("acme_jobs_stage_total"));
    let linked = rendered(&["rules", "--dashboard-url", "https://grafana.example/d/abc"]);
    assert_eq!(linked, committed.replace("http://localhost:3000/d/batch-jobs", "https://grafana.example/d/abc"));
    assert_ne!(linked, committed);
    let dashboard = rendered(&["dashboard", "--namespace", "acme_jobs"]);
    let expected = in_namespace(&files::text("grafana/dashboards/quant.json"), "acme_jobs")
        .replace("\"uid\": \"batch-jobs\"", "\"uid\": \"batch-jobs-acme_jobs\"")
        .replace("\"title\": \"Batch jobs\"", "\"title\": \"Batch jobs of acme_jobs\"");
    assert_eq!(dashboard, expected);
    assert!(!dashboard.contains("quant_") && dashboard.contains("acme_jobs_stage_total"));
    assert!(dashboard.contains("histogram_quantile("), "the name of a function stays");
}

/// Grafana keeps one dashboard of each uid, and the older one of each title in a folder. A uid has at most 40 characters.
#[test]
fn links_open_the_dashboard_of_their_namespace() {
    // The longest name whose uid is whole, and longer ones that differ at their ends.
    let [longest, long, longer] = [29, 30, 300].map(|length| "a".repeat(length));
    let (other_long, other_longer) = (format!("{}b", &long[1..]), format!("{}b", &longer[1..]));
    let namespaces = ["quant", "acme", "Acme_2", "_", &longest, &long, &longer, &other_long, &other_longer];
    let mut identities = BTreeSet::new();
    for namespace in namespaces {
        let dashboard: Value = serde_json::from_str(&rendered(&["dashboard", "--namespace", namespace])).unwrap();
        let (uid, title) = (text(&dashboard, "uid"), text(&dashboard, "title"));
        assert!((1..=40).contains(&uid.len()), "{uid}");
        assert!(uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{uid}");
        let rules: Value = serde_saphyr::from_str(&rendered(&["rules", "--namespace", namespace])).unwrap();
        for link in rules::links(&rules) {
            assert_eq!(link.split('?').next(), Some(&*format!("http://localhost:3000/d/{uid}")));
        }
        identities.extend([uid.to_owned(), title.to_owned()]);
    }
    assert_eq!(identities.len(), 2 * namespaces.len(), "{identities:?}");
    // Links stay valid with later versions of the program.
    let of_long: Value = serde_json::from_str(&rendered(&["dashboard", "--namespace", &long])).unwrap();
    assert_eq!(of_long["uid"], "batch-jobs-aaaaaaaaaaaa-3809827081560112");
}

#[test]
fn invalid_arguments_are_refused() {
    for (argument, reason) in [
        (["--namespace", "a-b"], "the namespace \"a-b\" cannot begin a metric name"),
        (["--namespace", "1a"], "the namespace \"1a\" cannot begin a metric name"),
        (["--namespace", "a/"], "the namespace \"a/\" cannot begin a metric name"),
        (["--namespace", ""], "the namespace \"\" cannot begin a metric name"),
        (["--history", "15"], "the history \"15\" is no duration"),
        (["--history", "0d"], "the history \"0d\" is no duration"),
        (["--dashboard-url", "grafana"], "the dashboard URL \"grafana\" is no address"),
    ] {
        let (code, out, err) = render(&[&["rules"], &argument[..]].concat());
        assert_eq!((code, &*out), (2, ""), "{argument:?}");
        assert!(err.starts_with(&format!("stage-metrics: {reason}")), "{err}");
    }
    assert_eq!(render(&["dashboard", "--namespace", "a-b"]).0, 2);
    assert_eq!(render(&["rules", "acme"]).0, 2);
}

/// Renames metrics, recorded rules and groups; `histogram_quantile` keeps its name.
fn in_namespace(text: &str, namespace: &str) -> String {
    ["_", ":", "-"]
        .iter()
        .fold(text.to_owned(), |text, after| text.replace(&format!("quant{after}"), &format!("{namespace}{after}")))
}

#[track_caller]
pub(crate) fn promtool(arguments: &[&str], files: &[std::path::PathBuf]) {
    let output = Command::new("promtool").args(arguments).args(files).output().unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn promtool_accepts_configuration_and_rules() {
    if !installed("promtool") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    for name in files::with_suffix(".rules.yml") {
        std::fs::copy(files::path(&name), directory.path().join(name)).unwrap();
    }
    let config = directory.path().join("prometheus.yml");
    // The README says to delete the line for Prometheus 2.42.
    let is_known = |line: &&str| !line.contains("scrape_protocols") || is_prometheus_3();
    let lines: Vec<_> =
        files::text("prometheus.yml").lines().filter(is_known).map(|line| format!("{line}\n")).collect();
    std::fs::write(&config, lines.concat()).unwrap();
    promtool(&["check", "config"], &[config]);
    promtool(
        &["check", "rules"],
        &files::with_suffix(".rules.yml").iter().map(|name| files::path(name)).collect::<Vec<_>>(),
    );
}

#[test]
fn rule_cases_pass() {
    if !installed("promtool") {
        return;
    }
    promtool(
        &["test", "rules"],
        &files::with_suffix(".test.yml").iter().map(|name| files::path(name)).collect::<Vec<_>>(),
    );
}

#[test]
fn rule_cases_pass_in_another_namespace() {
    if !installed("promtool") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("quant.rules.yml"), rendered(&["rules", "--namespace", "acme"])).unwrap();
    // The history cases are slow and add nothing about names.
    let cases = files::with_suffix(".test.yml").into_iter().filter(|name| name != "history.test.yml").map(|name| {
        let to = directory.path().join(&name);
        let cases = in_namespace(&files::text(&name), "acme").replace("/d/batch-jobs", "/d/batch-jobs-acme");
        std::fs::write(&to, cases.replace("acme.rules", "quant.rules")).unwrap();
        to
    });
    promtool(&["test", "rules"], &cases.collect::<Vec<_>>());
}
