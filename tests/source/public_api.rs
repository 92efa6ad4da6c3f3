//! The public API, item by item, so that a change to it is seen where it is reviewed: in `public_api.txt`.
//!
//! `TSM_BLESS=1 cargo test -p source --test public_api` writes the list anew. It is of all features, and made from what
//! rustdoc writes for tools, whose format goes with the compiler: one that `public-api` does not know is left out.
#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The directory of the crate.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// What rustdoc knows. Built beside everything else: `RUSTC_BOOTSTRAP`, which lets a stable compiler write it, would have
/// half of it built anew.
fn rustdoc_json() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("public-api");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(ROOT).env("RUSTC_BOOTSTRAP", "1").env_remove("RUSTDOCFLAGS");
    cargo.args(["rustdoc", "--quiet", "--locked", "--lib", "--all-features", "--target-dir"]).arg(&target);
    cargo.args(["--", "-Z", "unstable-options", "--output-format", "json", "--cap-lints", "allow"]);
    let built = cargo.output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    target.join("doc/tracing_stage_metrics.json")
}

#[test]
fn the_public_api_is_the_one_that_is_listed() {
    let api = public_api::Builder::from_rustdoc_json(rustdoc_json())
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .omit_auto_derived_impls(true)
        .build();
    let api = match api {
        Ok(api) => api,
        Err(why) => {
            let required = std::env::var("TSM_REQUIRE_SERVERS").is_ok_and(|value| value == "1");
            assert!(!required, "{why}");
            // Not `eprintln!`: the harness swallows what a passing test prints with it.
            let _ = writeln!(std::io::stderr(), "LEFT OUT: the public API: {why}");
            return;
        }
    };
    let found: String = api.items().map(|item| format!("{item}\n")).collect();
    let list = Path::new(ROOT).join("tests/public_api.txt");
    if std::env::var_os("TSM_BLESS").is_some() {
        std::fs::write(&list, &found).unwrap();
    }
    let listed = std::fs::read_to_string(&list).unwrap();
    let (found, listed): (Vec<_>, Vec<_>) = (found.lines().collect(), listed.lines().collect());
    let only = |these: &[&str], those: &[&str], sign: &str| -> String {
        these.iter().filter(|line| !those.contains(line)).map(|line| format!("{sign} {line}\n")).collect()
    };
    let difference = only(&listed, &found, "-") + &only(&found, &listed, "+");
    assert!(difference.is_empty(), "the public API has changed; if it is to, run this with TSM_BLESS=1:\n{difference}");
    assert!(found.len() > 50, "{}", found.len());
}
