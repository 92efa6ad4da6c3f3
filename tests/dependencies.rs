//! The dependencies of this crate: their licences, their sources and the compilers they need. These tests need cargo
//! alone, so that they run everywhere; `cargo deny check` reads the same `deny.toml` and checks more.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

/// The metadata of all packages with every feature. `arguments` are further arguments of `cargo metadata`.
fn metadata(arguments: &[&str]) -> Value {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(["metadata", "--format-version", "1", "--locked"]);
    let output = cargo.arg("--all-features").args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

/// This package and all packages that a dependent builds with it, without the dev-dependencies.
fn runtime_packages(metadata: &Value) -> Vec<&Value> {
    let mut pending = vec![metadata["resolve"]["root"].as_str().unwrap()];
    let mut ids = BTreeSet::new();
    while let Some(id) = pending.pop() {
        if !ids.insert(id) {
            continue;
        }
        let node = list(&metadata["resolve"]["nodes"]).iter().find(|node| node["id"] == id).unwrap();
        let is_built = |dependency: &&Value| list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"] != "dev");
        let built = list(&node["deps"]).iter().filter(is_built);
        pending.extend(built.map(|dependency| dependency["pkg"].as_str().unwrap()));
    }
    let packages = list(&metadata["packages"]).iter();
    packages.filter(|package| ids.contains(package["id"].as_str().unwrap())).collect()
}

/// The licences that `deny.toml` allows.
fn allowed() -> BTreeSet<String> {
    let file = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deny.toml")).unwrap();
    let (_, list) = file.split_once("\nallow = [").unwrap();
    let (list, _) = list.split_once(']').unwrap();
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Whether these licences satisfy a licence expression. `AND` binds tighter than `OR`; a slash is the old form of `OR`.
fn is_satisfied(expression: &str, licences: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<_> = spaced.split_whitespace().collect();
    let mut rest = &words[..];
    let satisfied = any(&mut rest, licences);
    assert!(rest.is_empty(), "cannot parse {expression:?}");
    satisfied
}

fn any(words: &mut &[&str], licences: &BTreeSet<String>) -> bool {
    let mut satisfied = all(words, licences);
    while let ["OR", rest @ ..] = *words {
        *words = rest;
        satisfied |= all(words, licences);
    }
    satisfied
}

fn all(words: &mut &[&str], licences: &BTreeSet<String>) -> bool {
    let mut satisfied = term(words, licences);
    while let ["AND", rest @ ..] = *words {
        *words = rest;
        satisfied &= term(words, licences);
    }
    satisfied
}

fn term(words: &mut &[&str], licences: &BTreeSet<String>) -> bool {
    match *words {
        ["(", rest @ ..] => {
            *words = rest;
            let satisfied = any(words, licences);
            *words = words.strip_prefix(&[")"]).unwrap();
            satisfied
        }
        [licence, "WITH", exception, rest @ ..] => {
            *words = rest;
            licences.contains(&format!("{licence} WITH {exception}"))
        }
        [licence, rest @ ..] => {
            *words = rest;
            licences.contains(*licence)
        }
        [] => panic!("the licence expression is incomplete"),
    }
}

/// The packages whose licence expression these licences do not satisfy.
fn unsatisfied<'a>(packages: &[&'a Value], licences: &BTreeSet<String>) -> Vec<&'a str> {
    let licence = |package: &Value| package["license"].as_str().unwrap_or("none at all").to_owned();
    let wrong = packages.iter().filter(|package| !is_satisfied(&licence(package), licences));
    wrong.map(|package| package["name"].as_str().unwrap()).collect()
}

#[test]
fn licences_are_allowed_and_no_allowed_licence_is_unused() {
    let metadata = metadata(&[]);
    let packages = runtime_packages(&metadata);
    assert!(packages.len() > 100, "more than 100 packages: {}", packages.len());
    let allowed = allowed();
    assert_eq!(unsatisfied(&packages, &allowed), Vec::<&str>::new());
    for licence in &allowed {
        let mut others = allowed.clone();
        others.remove(licence);
        assert!(!unsatisfied(&packages, &others).is_empty(), "nothing needs {licence}");
    }
}

#[test]
fn dependencies_come_from_crates_io() {
    let metadata = metadata(&[]);
    let packages = runtime_packages(&metadata);
    let others = packages.iter().filter(|package| package["name"] != env!("CARGO_PKG_NAME"));
    for package in others {
        assert_eq!(package["source"], "registry+https://github.com/rust-lang/crates.io-index", "{}", package["name"]);
    }
}

/// The versions are those of `Cargo.lock`, the platforms the most common ones.
#[test]
fn dependencies_build_with_the_minimum_rust_version() {
    let minor = |version: &str| version.split('.').nth(1).unwrap().parse::<u32>().unwrap();
    let own = minor(env!("CARGO_PKG_RUST_VERSION"));
    for platform in ["x86_64-unknown-linux-gnu", "aarch64-apple-darwin", "x86_64-pc-windows-msvc"] {
        let metadata = metadata(&["--filter-platform", platform]);
        let packages = runtime_packages(&metadata);
        let stated = packages.iter().filter_map(|package| Some((package, package["rust_version"].as_str()?)));
        let newer: Vec<_> =
            stated.filter(|(_, version)| minor(version) > own).map(|(package, _)| &package["name"]).collect();
        assert_eq!(newer, Vec::<&Value>::new(), "{platform}");
    }
}

#[test]
fn licence_expressions_are_evaluated() {
    let licences = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned).into();
    for satisfied in
        ["MIT", "MIT OR GPL-3.0", "GPL-3.0/MIT", "MIT AND (GPL-3.0 OR ISC)", "Apache-2.0 WITH LLVM-exception"]
    {
        assert!(is_satisfied(satisfied, &licences), "{satisfied}");
    }
    for unsatisfied in
        ["GPL-3.0", "MIT AND GPL-3.0", "(MIT OR ISC) AND GPL-3.0", "Apache-2.0", "ISC AND GPL-3.0 OR Zlib"]
    {
        assert!(!is_satisfied(unsatisfied, &licences), "{unsatisfied}");
    }
    assert!(is_satisfied("GPL-3.0 AND Zlib OR MIT", &licences), "AND binds tighter than OR");
}
