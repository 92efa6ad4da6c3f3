use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use super::support::servers;

const STAGES: &str = concat!(
    "# HELP quant_stage_duration_seconds Duration.\n",
    "# TYPE quant_stage_duration_seconds histogram\n",
    "quant_stage_duration_seconds_bucket{le=\"+Inf\"} 1\n",
    "quant_stage_duration_seconds_sum 1\n",
    "quant_stage_duration_seconds_count 1\n",
);

fn script(name: &str) -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name))
}

fn check_exposition(text: &str) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("quant.prom");
    fs::write(&file, text).unwrap();
    script("check-exposition").arg(&file).output().unwrap()
}

#[test]
fn an_exposition_without_complaints_passes() {
    if !servers::installed("promtool") {
        return;
    }
    let output = check_exposition(STAGES);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn an_exposition_fails_with_the_complaint() {
    if !servers::installed("promtool") {
        return;
    }
    let cases = [
        ("# HELP x of\n# TYPE x counter\nx 1\n", "x counter metrics should have"),
        ("# TYPE x gauge\nx 1\n", "x no help text"),
        ("x{ 1\n", "promtool ended with 1"),
    ];
    for (text, why) in cases {
        let output = check_exposition(&format!("{STAGES}{text}"));
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(why), "{output:?}");
    }
    let output = check_exposition("");
    assert_eq!(output.status.code(), Some(1), "nothing is no exposition: {output:?}");
}

#[test]
fn without_apt_it_is_said_what_to_install() {
    // A PATH with what the script itself needs, and nothing more.
    let path = tempfile::tempdir().unwrap();
    for program in ["bash", "cat", "id"] {
        let found = servers::find_program(program).unwrap();
        std::os::unix::fs::symlink(found, path.path().join(program)).unwrap();
    }
    let output =
        Command::new("bash").arg(script("install-servers").get_program()).env("PATH", path.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(said.contains("no apt-get") && said.contains("prometheus-pushgateway prometheus-node-exporter"), "{said}");
}
