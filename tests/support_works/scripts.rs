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
fn check_exposition_accepts_a_valid_exposition() {
    if !servers::installed("promtool") {
        return;
    }
    let output = check_exposition(STAGES);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn check_exposition_fails_with_the_complaint() {
    if !servers::installed("promtool") {
        return;
    }
    let cases = [
        ("# HELP x of\n# TYPE x counter\nx 1\n", "x counter metrics should have"),
        ("# TYPE x gauge\nx 1\n", "x no help text"),
        ("x{ 1\n", "promtool ended with 1"),
    ];
    for (text, complaint) in cases {
        let output = check_exposition(&format!("{STAGES}{text}"));
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(complaint), "{output:?}");
    }
    let output = check_exposition("");
    assert_eq!(output.status.code(), Some(1), "an empty text is no exposition: {output:?}");
}

#[test]
fn install_servers_without_apt_names_the_packages() {
    // A PATH with the programs that the script needs, and no others.
    let path = tempfile::tempdir().unwrap();
    for program in ["bash", "cat", "id"] {
        let target = servers::find_program(program).unwrap();
        std::os::unix::fs::symlink(target, path.path().join(program)).unwrap();
    }
    let output =
        Command::new("bash").arg(script("install-servers").get_program()).env("PATH", path.path()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let packages = "prometheus-pushgateway prometheus-node-exporter";
    assert!(stderr.contains("no apt-get") && stderr.contains(packages), "{stderr}");
}
