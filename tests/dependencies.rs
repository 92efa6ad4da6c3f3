//! What this crate brings along: under which licences, from where, and for which compilers. By cargo alone, so that it is
//! checked wherever the tests run; `cargo deny check` reads the same `deny.toml`, and knows more.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

/// What cargo knows of all packages, with every feature. `more`: further arguments.
fn metadata(more: &[&str]) -> Value {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(["metadata", "--format-version", "1", "--locked"]);
    let found = cargo.arg("--all-features").args(more).output().unwrap();
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    serde_json::from_slice(&found.stdout).unwrap()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

/// The packages that are built for whoever depends on this one, and this one: no dependencies of the tests.
fn brought_along(metadata: &Value) -> Vec<&Value> {
    let mut open = vec![metadata["resolve"]["root"].as_str().unwrap()];
    let mut ids = BTreeSet::new();
    while let Some(id) = open.pop() {
        if !ids.insert(id) {
            continue;
        }
        let of = list(&metadata["resolve"]["nodes"]).iter().find(|node| node["id"] == id).unwrap();
        let is_built = |dependency: &&Value| list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"] != "dev");
        let built = list(&of["deps"]).iter().filter(is_built);
        open.extend(built.map(|dependency| dependency["pkg"].as_str().unwrap()));
    }
    let packages = list(&metadata["packages"]).iter();
    packages.filter(|package| ids.contains(package["id"].as_str().unwrap())).collect()
}

/// The list of licences in `deny.toml`.
fn allowed() -> BTreeSet<String> {
    let file = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deny.toml")).unwrap();
    let (_, list) = file.split_once("\nallow = [").unwrap();
    let (list, _) = list.split_once(']').unwrap();
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Whether a licence expression can be met by these alone. `AND` binds before `OR`, and a slash is the `OR` of old.
fn is_met(expression: &str, by: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<_> = spaced.split_whitespace().collect();
    let mut rest = &words[..];
    let met = any(&mut rest, by);
    assert!(rest.is_empty(), "cannot read {expression:?}");
    met
}

fn any(words: &mut &[&str], by: &BTreeSet<String>) -> bool {
    let mut met = all(words, by);
    while let ["OR", rest @ ..] = *words {
        *words = rest;
        met |= all(words, by);
    }
    met
}

fn all(words: &mut &[&str], by: &BTreeSet<String>) -> bool {
    let mut met = one(words, by);
    while let ["AND", rest @ ..] = *words {
        *words = rest;
        met &= one(words, by);
    }
    met
}

fn one(words: &mut &[&str], by: &BTreeSet<String>) -> bool {
    match *words {
        ["(", rest @ ..] => {
            *words = rest;
            let met = any(words, by);
            *words = words.strip_prefix(&[")"]).unwrap();
            met
        }
        [licence, "WITH", exception, rest @ ..] => {
            *words = rest;
            by.contains(&format!("{licence} WITH {exception}"))
        }
        [licence, rest @ ..] => {
            *words = rest;
            by.contains(*licence)
        }
        [] => panic!("an expression ends in the middle"),
    }
}

/// The packages whose licence these do not meet.
fn not_met<'a>(packages: &[&'a Value], by: &BTreeSet<String>) -> Vec<&'a str> {
    let licence = |package: &Value| package["license"].as_str().unwrap_or("none at all").to_owned();
    let wrong = packages.iter().filter(|package| !is_met(&licence(package), by));
    wrong.map(|package| package["name"].as_str().unwrap()).collect()
}

#[test]
fn all_licences_are_allowed_and_all_that_are_allowed_are_needed() {
    let metadata = metadata(&[]);
    let packages = brought_along(&metadata);
    assert!(packages.len() > 100, "{}", packages.len());
    let allowed = allowed();
    assert_eq!(not_met(&packages, &allowed), Vec::<&str>::new());
    for licence in &allowed {
        let mut others = allowed.clone();
        others.remove(licence);
        assert!(!not_met(&packages, &others).is_empty(), "nothing needs {licence}");
    }
}

#[test]
fn all_sources_are_crates_io() {
    let metadata = metadata(&[]);
    let packages = brought_along(&metadata);
    let others = packages.iter().filter(|package| package["name"] != env!("CARGO_PKG_NAME"));
    for package in others {
        assert_eq!(package["source"], "registry+https://github.com/rust-lang/crates.io-index", "{}", package["name"]);
    }
}

/// In the versions of `Cargo.lock`, on the platforms that people have.
#[test]
fn no_dependency_needs_a_newer_compiler() {
    let minor = |version: &str| version.split('.').nth(1).unwrap().parse::<u32>().unwrap();
    let own = minor(env!("CARGO_PKG_RUST_VERSION"));
    for platform in ["x86_64-unknown-linux-gnu", "aarch64-apple-darwin", "x86_64-pc-windows-msvc"] {
        let metadata = metadata(&["--filter-platform", platform]);
        let packages = brought_along(&metadata);
        let stated = packages.iter().filter_map(|package| Some((package, package["rust_version"].as_str()?)));
        let newer: Vec<_> = stated.filter(|(_, version)| minor(version) > own).map(|(of, _)| &of["name"]).collect();
        assert_eq!(newer, Vec::<&Value>::new(), "{platform}");
    }
}

#[test]
fn licence_expressions_are_read() {
    let by = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned).into();
    for met in ["MIT", "MIT OR GPL-3.0", "GPL-3.0/MIT", "MIT AND (GPL-3.0 OR ISC)", "Apache-2.0 WITH LLVM-exception"] {
        assert!(is_met(met, &by), "{met}");
    }
    for not in ["GPL-3.0", "MIT AND GPL-3.0", "(MIT OR ISC) AND GPL-3.0", "Apache-2.0", "ISC AND GPL-3.0 OR Zlib"] {
        assert!(!is_met(not, &by), "{not}");
    }
    assert!(is_met("GPL-3.0 AND Zlib OR MIT", &by), "AND binds first");
}
