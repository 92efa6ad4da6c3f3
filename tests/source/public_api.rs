//! The public API, item by item, in `public_api.txt`, so that every change shows up in review.
//!
//! `TSM_BLESS=1 cargo test -p source --test public_api` rewrites the list. It covers all features and comes from rustdoc's JSON
//! output, whose format depends on the compiler; if `public-api` does not know the format, the test is skipped.
#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The directory of the crate.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// Builds rustdoc's JSON output in a target directory of its own: `RUSTC_BOOTSTRAP`, which lets a stable compiler
/// write JSON, would invalidate half of the usual one.
fn rustdoc_json() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("public-api");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(ROOT).env("RUSTC_BOOTSTRAP", "1").env_remove("RUSTDOCFLAGS");
    cargo.args(["rustdoc", "--quiet", "--locked", "--lib", "--all-features", "--target-dir"]).arg(&target);
    cargo.args(["--", "-Z", "unstable-options", "--output-format", "json", "--cap-lints", "allow"]);
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    target.join("doc/tracing_stage_metrics.json")
}

#[test]
fn public_api_equals_the_committed_list() {
    let api = public_api::Builder::from_rustdoc_json(rustdoc_json())
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .omit_auto_derived_impls(true)
        .build();
    let api = match api {
        Ok(api) => api,
        Err(err) => {
            let required = std::env::var("TSM_REQUIRE_SERVERS").is_ok_and(|value| value == "1");
            assert!(!required, "{err}");
            // `eprintln!` would not do: the harness captures what a passing test prints with it.
            let _ = writeln!(std::io::stderr(), "LEFT OUT: the public API: {err}");
            return;
        }
    };
    let current: String = api.items().map(|item| format!("{item}\n")).collect();
    let list = Path::new(ROOT).join("tests/public_api.txt");
    if std::env::var_os("TSM_BLESS").is_some() {
        std::fs::write(&list, &current).unwrap();
    }
    let committed = std::fs::read_to_string(&list).unwrap();
    let (current, committed): (Vec<_>, Vec<_>) = (current.lines().collect(), committed.lines().collect());
    let lines_only_in = |a: &[&str], b: &[&str], sign: &str| -> String {
        a.iter().filter(|line| !b.contains(line)).map(|line| format!("{sign} {line}\n")).collect()
    };
    let difference = lines_only_in(&committed, &current, "-") + &lines_only_in(&current, &committed, "+");
    assert!(
        difference.is_empty(),
        "the public API has changed; if that is intended, run this test with TSM_BLESS=1:\n{difference}"
    );
    assert!(current.len() > 50, "{}", current.len());
}
