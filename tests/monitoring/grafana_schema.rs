//! The dashboard has the fields of Grafana's schema, and no others.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::files;
use super::support::servers::{GRAFANA_SCHEMA, installed};

/// What the schema's own reader says of a dashboard; nothing if it accepts it.
#[track_caller]
fn faults(dashboard: &str) -> String {
    let mut reader = Command::new(GRAFANA_SCHEMA).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    reader.stdin.take().unwrap().write_all(dashboard.as_bytes()).unwrap();
    let output = reader.wait_with_output().unwrap();
    let faults = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.success(), faults.is_empty(), "{faults}");
    faults
}

#[test]
fn dashboard_matches_the_schema() {
    if !installed(GRAFANA_SCHEMA) {
        return;
    }
    let mut dashboard = files::dashboard();
    for panel in dashboard["panels"].as_array_mut().unwrap() {
        // Grafana gives queries the data source of their panel; the reader tells by it what they are.
        let datasource = panel["datasource"].clone();
        for target in panel.get_mut("targets").and_then(Value::as_array_mut).into_iter().flatten() {
            target["datasource"] = datasource.clone();
        }
    }
    let dashboard = serde_json::to_string_pretty(&dashboard).unwrap();
    assert_eq!(faults(&dashboard), "");
    for (from, to, fault) in [
        ("\"exemplar\": true", "\"exemplars\": true", "unexpected field 'exemplars'"),
        ("\"exemplar\": true", "\"exemplar\": \"yes\"", "cannot unmarshal string"),
        ("\"rowHeight\"", "\"row_height\"", "unexpected field 'row_height'"),
        ("\"inspect\": false", "\"align\": \"auto\"", "inspect: required field is missing"),
    ] {
        let broken = dashboard.replace(from, to);
        assert!(broken != dashboard && faults(&broken).contains(fault), "{to}: {}", faults(&broken));
    }
}
