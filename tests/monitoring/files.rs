//! The files of `examples/monitoring`, read.

use std::path::PathBuf;

use serde_json::Value;

/// Where a file of `examples/monitoring` is.
pub(crate) fn path(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../../examples/monitoring", name].iter().collect()
}

#[track_caller]
pub(crate) fn text(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap_or_else(|why| panic!("{name}: {why}"))
}

/// YAML, as the values JSON would have.
#[track_caller]
pub(crate) fn yaml(name: &str) -> Value {
    serde_saphyr::from_str(&text(name)).unwrap_or_else(|why| panic!("{name}: {why}"))
}

#[track_caller]
pub(crate) fn dashboard() -> Value {
    serde_json::from_str(&text("grafana/dashboards/quant.json")).unwrap()
}

/// The names of the files in `examples/monitoring` that end so, in order.
pub(crate) fn ending_in(ending: &str) -> Vec<String> {
    let files = std::fs::read_dir(path("")).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = files.filter(|name| name.ends_with(ending)).collect();
    names.sort();
    assert!(!names.is_empty(), "no file ends in {ending}");
    names
}
