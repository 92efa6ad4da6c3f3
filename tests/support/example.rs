//! The examples as programs of their own, with a real `main`.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

/// A command that runs an example. Cargo builds it along with the tests, but not for `--test NAME` alone: where it is
/// missing or older than its sources it is built first.
#[track_caller]
pub fn command(example: &str) -> Command {
    let tests = std::env::current_exe().expect("the path of this test binary");
    // target/PROFILE/deps/TEST
    let profile = tests.ancestors().nth(2).expect("the directory of the profile").to_owned();
    let program = profile.join("examples").join(example).with_extension(std::env::consts::EXE_EXTENSION);
    if is_older_than_its_sources(&program) {
        build(example, &profile);
    }
    isolated(program)
}

/// A command that knows nothing of the settings of whoever runs the tests.
pub fn isolated(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("TV_PROMETHEUS_") || name.starts_with("OTEL_") || name == "RUST_LOG" {
            command.env_remove(&*name);
        }
    }
    command
}

fn is_older_than_its_sources(program: &Path) -> bool {
    let root = super::workspace();
    let Ok(built) = fs::metadata(program).and_then(|data| data.modified()) else { return true };
    newest(&root.join("src")).max(newest(&root.join("examples"))) > built
}

/// When the youngest file in there was changed.
fn newest(directory: &Path) -> SystemTime {
    let entries = fs::read_dir(directory).expect("the sources").map(|entry| entry.expect("an entry").path());
    let changed = |path: PathBuf| match path.is_dir() {
        true => newest(&path),
        false => fs::metadata(&path).and_then(|data| data.modified()).expect("the time of a change"),
    };
    entries.map(changed).max().unwrap_or(SystemTime::UNIX_EPOCH)
}

#[track_caller]
fn build(example: &str, profile: &Path) {
    let mut cargo = Command::new(env!("CARGO"));
    // Of the workspace, as `tests/run` builds the tests: otherwise some dependencies have fewer features and are built anew.
    cargo.current_dir(super::workspace()).args(["build", "--quiet", "--workspace", "--all-features"]);
    cargo.args(["--example", example, "--target-dir"]);
    cargo.arg(profile.parent().expect("the target directory"));
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let built = cargo.output().expect("cargo");
    assert!(built.status.success(), "the example was not built: {}", String::from_utf8_lossy(&built.stderr));
}
