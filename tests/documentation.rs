//! The pages of `docs/`, the README and its like: all of their code is compiled, and their links lead somewhere.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files below a directory of the repository that end so, in order.
#[track_caller]
fn files(below: &str, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root().join(below)];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.to_str().unwrap().ends_with(ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "nothing in {below} ends in {ending}");
    found
}

fn name(path: &Path) -> &str {
    path.strip_prefix(root()).unwrap().to_str().unwrap()
}

/// What people read: the pages and the files beside the manifest.
fn pages() -> Vec<PathBuf> {
    let of_root = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"].map(|name| root().join(name));
    of_root.into_iter().chain(files("docs", ".md")).chain(files("examples", ".md")).collect()
}

/// Rustdoc compiles what is in a module of the guide, or in the README.
#[test]
fn every_page_is_one_of_the_guide() {
    let guide = fs::read_to_string(root().join("src/guide.rs")).unwrap();
    let front = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    assert!(front.contains("include_str!(\"../README.md\")"));
    for page in files("docs", ".md") {
        let module = page.file_stem().unwrap().to_str().unwrap();
        let included = format!("#[doc = include_str!(\"../docs/{module}.md\")]");
        assert!(guide.contains(&included) && guide.contains(&format!("\npub mod {module} {{}}")), "{module}");
        assert!(guide.contains(&format!("//! - [`{module}`]: ")), "{module} is in the list of pages");
    }
}

/// The languages of the blocks of code in a text, comments of Rust included.
fn languages(text: &str) -> Vec<&str> {
    let lines =
        text.lines().map(|line| line.trim_start().trim_start_matches("//!").trim_start_matches("///").trim_start());
    lines.filter_map(|line| line.strip_prefix("```")).step_by(2).collect()
}

#[test]
fn no_code_is_left_uncompiled() {
    for path in pages().into_iter().chain(files("src", ".rs")) {
        let text = fs::read_to_string(&path).unwrap();
        for language in languages(&text) {
            // Without a language it is Rust in a comment, and nothing in particular on a page.
            let known = ["", "no_run", "rust,no_run", "toml", "yaml", "sh", "text"];
            assert!(known.contains(&language), "{}: ```{language}", name(&path));
        }
    }
    assert_eq!(languages("```ignore\n```\n/// ```no_run\n/// ```\n//! ```text\n"), ["ignore", "no_run", "text"]);
}

/// The targets of the links in a text that are no addresses of the web.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://"))
}

#[test]
fn links_to_files_and_headings_lead_somewhere() {
    let mut followed = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for link in links(&text) {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: {link}", name(&page));
            if !heading.is_empty() {
                let text = fs::read_to_string(target).unwrap();
                let mut headings = text.lines().filter_map(|line| line.strip_prefix("## "));
                assert!(
                    headings.any(|line| line.to_lowercase().replace(' ', "-") == heading),
                    "{}: {link}",
                    name(&page)
                );
            }
            followed += 1;
        }
    }
    assert!(followed > 10, "{followed}");
    assert_eq!(links("[a](b.md#c), [d](https://e/f), [g](#h)").collect::<Vec<_>>(), ["b.md#c", "#h"]);
}

/// On docs.rs a page is not where it is in the repository, so a link to a file leads nowhere there.
#[test]
fn pages_of_the_guide_have_no_links_to_files() {
    for page in files("docs", ".md") {
        let text = fs::read_to_string(&page).unwrap();
        assert_eq!(links(&text).collect::<Vec<_>>(), [""; 0], "{}", name(&page));
    }
}

/// Names of Rust files in backticks: paths from the root of the repository, or below `tests`.
fn rust_files(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2).filter(|name| name.ends_with(".rs") && !name.contains(char::is_whitespace))
}

/// The tests that the pages name as shown are there.
#[test]
fn files_that_pages_name_exist() {
    let mut found = 0;
    for page in pages() {
        for file in rust_files(&fs::read_to_string(&page).unwrap()) {
            let paths = [root().join(file), root().join("tests").join(file)];
            assert!(paths.iter().any(|path| path.is_file()), "{}: {file}", name(&page));
            found += 1;
        }
    }
    assert!(found > 30, "{found}");
    assert_eq!(rust_files("`a.rs`, b.rs, `c d.rs`, `src/e.rs`").collect::<Vec<_>>(), ["a.rs", "src/e.rs"]);
}

/// The crates whose types are in a list of public items.
fn crates(items: &str) -> BTreeSet<&str> {
    let paths = items.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':');
    let roots = paths.filter_map(|path| Some(path.split_once("::")?.0));
    roots.filter(|root| root.starts_with(|c: char| c.is_lowercase()) && *root != "tracing_stage_metrics").collect()
}

/// What the README says of versions is about these.
#[test]
fn foreign_types_are_those_that_the_readme_names() {
    let items = fs::read_to_string(root().join("tests/public_api.txt")).unwrap();
    let is_of_opentelemetry = |item: &&str| crates(item).iter().any(|name| name.starts_with("opentelemetry"));
    let (those, others): (Vec<_>, Vec<_>) = items.lines().partition(is_of_opentelemetry);
    let others: BTreeSet<_> = others.into_iter().flat_map(crates).collect();
    assert_eq!(Vec::from_iter(others), ["alloc", "core", "std", "tracing_core", "tracing_subscriber"]);
    let methods: Vec<_> = those.iter().map(|item| item.split('(').next().unwrap()).collect();
    let method = |name| format!("pub fn tracing_stage_metrics::MetricsLayerBuilder::{name}");
    assert_eq!(methods, ["with_meter", "with_meter_provider"].map(method));
}

#[test]
fn the_version_has_its_section_in_the_changelog() {
    let changelog = fs::read_to_string(root().join("CHANGELOG.md")).unwrap();
    assert!(changelog.contains(concat!("\n## [", env!("CARGO_PKG_VERSION"), "]")));
}

/// The tables of variables are compared with `env.rs` and `settings.rs`; the others ask for the proxies only.
#[test]
fn the_environment_is_read_in_four_places() {
    let reads = |path: &&PathBuf| {
        let source = fs::read_to_string(path).unwrap();
        ["env::var", "Matcher::from_system"].iter().any(|call| source.contains(call))
    };
    let sources = files("src", ".rs");
    let found: Vec<_> = sources.iter().filter(reads).map(|path| name(path)).collect();
    assert_eq!(
        found,
        [
            "src/config/env.rs",
            "src/delivery/http/client.rs",
            "src/delivery/http/secrets.rs",
            "src/delivery/otlp/settings.rs"
        ]
    );
}
