//! `examples/deploy`: the manifests parse, their variables exist, what they name is mounted, and systemd accepts the units.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use super::dashboard::{list, text};
use super::support::servers::{find_program, left_out};

fn path(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../../examples/deploy", name].iter().collect()
}

#[track_caller]
fn read(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap_or_else(|why| panic!("{name}: {why}"))
}

/// The first document of a manifest.
#[track_caller]
fn manifest(name: &str) -> Value {
    let documents: Vec<Value> = serde_saphyr::from_multiple(&read(name)).unwrap_or_else(|why| panic!("{name}: {why}"));
    documents.into_iter().next().unwrap()
}

#[track_caller]
fn pods() -> [(&'static str, Value); 2] {
    [
        ("cronjob.yaml", manifest("cronjob.yaml")["spec"]["jobTemplate"]["spec"]["template"]["spec"].take()),
        ("deployment.yaml", manifest("deployment.yaml")["spec"]["template"]["spec"].take()),
    ]
}

/// Name and value of each variable of the pod's only container; an empty value where the cluster has it.
#[track_caller]
fn variables(pod: &Value) -> Vec<(String, String)> {
    assert_eq!(list(&pod["containers"]).len(), 1, "{pod}");
    let variables = list(&pod["containers"][0]["env"]).iter();
    variables.map(|variable| (text(variable, "name").to_owned(), text(variable, "value").to_owned())).collect()
}

/// Name and value of each assignment in a unit or an environment file.
fn assignments(lines: &str) -> Vec<(String, String)> {
    let assignments = lines.lines().map(|line| line.strip_prefix("Environment=").unwrap_or(line));
    let pairs = assignments.filter(|line| line.starts_with("TV_")).filter_map(|line| line.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The value of a variable, or an empty one.
fn value<'a>(variables: &'a [(String, String)], name: &str) -> &'a str {
    let name = format!("TV_PROMETHEUS_{name}");
    variables.iter().find(|variable| variable.0 == name).map_or("", |variable| &variable.1)
}

#[test]
fn each_variable_exists() {
    let page = std::fs::read_to_string(path("../../docs/configuration.md")).unwrap();
    let documented = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |")).map(|(name, _)| name);
    let documented: BTreeSet<_> = documented.flat_map(|names| names.split("`, `").map(str::to_owned)).collect();
    let mut used = pods().iter().flat_map(|(_, pod)| variables(pod)).collect::<Vec<_>>();
    used.extend(assignments(&read("quant-pipeline.service")));
    used.extend(assignments(&read("quant-pipeline.environment")));
    assert!(used.len() > 15, "{used:?}");
    for (name, _) in &used {
        assert!(documented.contains(name), "{name} is no variable of this crate");
    }
}

/// Kubernetes and systemd kill a process that takes longer to end.
#[test]
fn grace_periods_exceed_the_flush_timeout() {
    let seconds = |text: &str| text.strip_suffix('s').unwrap().parse::<u64>().unwrap();
    for (name, pod) in pods() {
        let variables = variables(&pod);
        let timeout = Some(value(&variables, "FLUSH_TIMEOUT")).filter(|text| !text.is_empty()).unwrap_or("5s");
        assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() > seconds(timeout), "{name}");
    }
    let unit = read("quant-pipeline.service");
    let stop = unit.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")).unwrap();
    let timeout = assignments(&read("quant-pipeline.environment"));
    assert!(seconds(stop) > seconds(value(&timeout, "FLUSH_TIMEOUT")));
}

/// Whether the variable is the path of a file or a directory.
fn is_path(name: &str) -> bool {
    name.ends_with("_FILE") || name.ends_with("_DIR")
}

#[test]
fn paths_in_manifests_are_mounted_volumes() {
    let mut paths = 0;
    for (name, pod) in pods() {
        let container = &pod["containers"][0];
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true, "{name}");
        let volumes: BTreeSet<_> = list(&pod["volumes"]).iter().map(|volume| text(volume, "name")).collect();
        let mounts = list(&container["volumeMounts"]);
        for mount in mounts {
            assert!(volumes.contains(text(mount, "name")), "{name}: {mount}");
        }
        for (variable, path) in variables(&pod).into_iter().filter(|(variable, _)| is_path(variable)) {
            let mount = mounts.iter().find(|mount| path.starts_with(text(mount, "mountPath")));
            let mount = mount.unwrap_or_else(|| panic!("{name}: nothing is mounted at {path}"));
            assert_eq!(mount["readOnly"] == true, variable.ends_with("_FILE"), "{name}: {variable}");
            paths += 1;
        }
    }
    assert_eq!(paths, 3);
    let claims = pods()[0].1["volumes"][2]["persistentVolumeClaim"]["claimName"].clone();
    let documents: Vec<Value> = serde_saphyr::from_multiple(&read("cronjob.yaml")).unwrap();
    assert_eq!(claims, documents[1]["metadata"]["name"], "the spool outlives the pod");
}

/// What systemd says of the units, as if their program were installed; nothing if it accepts them.
#[track_caller]
fn verify(unit: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let service = directory.path().join("quant-pipeline.service");
    let timer = directory.path().join("quant-pipeline.timer");
    std::fs::write(&service, unit.replace("/usr/local/bin/quant-pipeline", "/bin/true")).unwrap();
    std::fs::copy(path("quant-pipeline.timer"), &timer).unwrap();
    let output = Command::new("systemd-analyze").arg("verify").args([service, timer]).output().unwrap();
    // The directory of this test alone: the units of the machine are not the matter.
    let lines = String::from_utf8(output.stderr).unwrap();
    let lines = lines.lines().filter(|line| line.contains(directory.path().to_str().unwrap()));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn systemd_accepts_the_units() {
    if find_program("systemd-analyze").is_none() {
        left_out("systemd-analyze is not installed");
        return;
    }
    let unit = read("quant-pipeline.service");
    assert_eq!(verify(&unit), "");
    for (from, to, complaint) in [
        ("%%20", "%20", "Failed to resolve specifiers"),
        ("TimeoutStopSec", "TimeoutStop", "Unknown key 'TimeoutStop'"),
    ] {
        let broken = unit.replace(from, to);
        assert!(broken != unit && verify(&broken).contains(complaint), "{to}: {}", verify(&broken));
    }
}
