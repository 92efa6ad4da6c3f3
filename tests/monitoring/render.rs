//! The rules are what `render-rules` prints, for any namespace, and promtool is content with them and with their cases.

use std::process::{Command, Output};

use super::files;
use super::support::servers::installed;

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
fn the_rules_are_what_the_script_prints() {
    let committed = files::text("quant.rules.yml");
    assert!(rendered(&[]) == committed, "examples/monitoring/render-rules > examples/monitoring/quant.rules.yml");
    assert!(rendered(&["quant", "15d"]) == committed, "the defaults");
}

#[test]
fn namespace_and_history_are_parameters() {
    let committed = files::text("quant.rules.yml");
    let other = rendered(&["acme_jobs", "30d"]);
    let expected = in_namespace(&committed, "acme_jobs").replace("15d", "30d");
    assert_eq!(other, expected);
    assert!(!other.contains("quant_") && !other.contains("quant:") && other.contains("acme_jobs_stage_total"));
}

#[test]
fn what_is_no_namespace_is_refused() {
    for arguments in [&["a-b"][..], &["a b"], &["1a"], &["a/"], &["quant", "15"], &["quant", "0d"], &["a", "1d", "b"]] {
        let output = render(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty() && String::from_utf8_lossy(&output.stderr).starts_with("usage: render-rules"));
    }
}

/// The names of the metrics, of the rules that are recorded and of the groups; not the function `quantile_over_time`.
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
fn promtool_takes_the_configuration_with_its_rules() {
    if !installed("promtool") {
        return;
    }
    promtool(&["check", "config"], &[files::path("prometheus.yml")]);
    promtool(
        &["check", "rules"],
        &files::ending_in(".rules.yml").iter().map(|name| files::path(name)).collect::<Vec<_>>(),
    );
}

#[test]
fn the_cases_hold() {
    if !installed("promtool") {
        return;
    }
    promtool(
        &["test", "rules"],
        &files::ending_in(".test.yml").iter().map(|name| files::path(name)).collect::<Vec<_>>(),
    );
}

#[test]
fn they_hold_in_another_namespace() {
    if !installed("promtool") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("quant.rules.yml"), rendered(&["acme"])).unwrap();
    // The long ones take their time, and say nothing new of names.
    let cases = files::ending_in(".test.yml").into_iter().filter(|name| name != "history.test.yml").map(|name| {
        let to = directory.path().join(&name);
        std::fs::write(&to, in_namespace(&files::text(&name), "acme").replace("acme.rules", "quant.rules")).unwrap();
        to
    });
    promtool(&["test", "rules"], &cases.collect::<Vec<_>>());
}
