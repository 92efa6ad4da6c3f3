//! The committed rules equal the output of `render-rules`, for any namespace, and promtool accepts them and their
//! cases.

use std::process::{Command, Output};

use super::files;
use super::support::servers::{installed, is_prometheus_3};

#[track_caller]
fn render(arguments: &[&str]) -> Output {
    Command::new(files::path("render-rules")).args(arguments).output().unwrap()
}

#[track_caller]
fn rendered(arguments: &[&str]) -> String {
    let output = render(arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn committed_rules_equal_the_scripts_output() {
    let committed = files::text("quant.rules.yml");
    assert!(rendered(&[]) == committed, "examples/monitoring/render-rules > examples/monitoring/quant.rules.yml");
    assert!(rendered(&["quant", "15d"]) == committed, "the defaults");
}

#[test]
fn namespace_and_history_replace_the_defaults() {
    let committed = files::text("quant.rules.yml");
    let other = rendered(&["acme_jobs", "30d"]);
    let expected = in_namespace(&committed, "acme_jobs").replace("15d", "30d");
    assert_eq!(other, expected);
    assert!(!other.contains("quant_") && !other.contains("quant:") && other.contains("acme_jobs_stage_total"));
}

#[test]
fn invalid_arguments_are_refused_with_usage() {
    for arguments in [&["a-b"][..], &["a b"], &["1a"], &["a/"], &["quant", "15"], &["quant", "0d"], &["a", "1d", "b"]] {
        let output = render(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty() && String::from_utf8_lossy(&output.stderr).starts_with("usage: render-rules"));
    }
}

/// Renames metrics, recorded rules and groups; `quantile_over_time` keeps its name.
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
    std::fs::write(directory.path().join("quant.rules.yml"), rendered(&["acme"])).unwrap();
    // The history cases are slow and add nothing about names.
    let cases = files::with_suffix(".test.yml").into_iter().filter(|name| name != "history.test.yml").map(|name| {
        let to = directory.path().join(&name);
        std::fs::write(&to, in_namespace(&files::text(&name), "acme").replace("acme.rules", "quant.rules")).unwrap();
        to
    });
    promtool(&["test", "rules"], &cases.collect::<Vec<_>>());
}
