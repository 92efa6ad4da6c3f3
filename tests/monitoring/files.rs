//! Readers for the files of `examples/monitoring`.

use std::path::PathBuf;

use serde_json::Value;

/// Returns the path of a file in `examples/monitoring`.
pub(crate) fn path(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../../examples/monitoring", name].iter().collect()
}

#[track_caller]
pub(crate) fn text(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap_or_else(|why| panic!("{name}: {why}"))
}

/// Reads a YAML file as JSON values.
#[track_caller]
pub(crate) fn yaml(name: &str) -> Value {
    serde_saphyr::from_str(&text(name)).unwrap_or_else(|why| panic!("{name}: {why}"))
}

#[track_caller]
pub(crate) fn dashboard() -> Value {
    serde_json::from_str(&text("grafana/dashboards/quant.json")).unwrap()
}

/// Names of the files in `examples/monitoring` with the given suffix, sorted.
pub(crate) fn with_suffix(suffix: &str) -> Vec<String> {
    let files = std::fs::read_dir(path("")).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = files.filter(|name| name.ends_with(suffix)).collect();
    names.sort();
    assert!(!names.is_empty(), "no file ends in {suffix}");
    names
}
