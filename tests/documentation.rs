//! The pages of `docs/`, the README and the other Markdown files: rustdoc compiles their code, and their links resolve.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files below a directory of the repository with this ending, in order.
#[track_caller]
fn files(below: &str, ending: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut directories = vec![root().join(below)];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.to_str().unwrap().ends_with(ending) {
                files.push(path);
            }
        }
    }
    files.sort();
    assert!(!files.is_empty(), "{below} has a file that ends in {ending}");
    files
}

fn name(path: &Path) -> &str {
    path.strip_prefix(root()).unwrap().to_str().unwrap()
}

/// All Markdown files for readers: those beside the manifest, in `docs/` and in `examples/`.
fn pages() -> Vec<PathBuf> {
    let root_pages = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"].map(|name| root().join(name));
    root_pages.into_iter().chain(files("docs", ".md")).chain(files("examples", ".md")).collect()
}

/// Rustdoc compiles the README and the pages that are modules of the guide.
#[test]
fn pages_are_modules_of_the_guide() {
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

/// The languages of the code blocks in a text, those in Rust comments included.
fn languages(text: &str) -> Vec<&str> {
    let lines =
        text.lines().map(|line| line.trim_start().trim_start_matches("//!").trim_start_matches("///").trim_start());
    lines.filter_map(|line| line.strip_prefix("```")).step_by(2).collect()
}

#[test]
fn code_blocks_are_compiled() {
    for path in pages().into_iter().chain(files("src", ".rs")) {
        let text = fs::read_to_string(&path).unwrap();
        for language in languages(&text) {
            // A block without a language is Rust in a comment, and plain text on a page.
            let allowed = ["", "no_run", "rust", "rust,no_run", "toml", "yaml", "sh", "text", "promql"];
            assert!(allowed.contains(&language), "{}: ```{language}", name(&path));
        }
    }
    assert_eq!(languages("```ignore\n```\n/// ```no_run\n/// ```\n//! ```text\n"), ["ignore", "no_run", "text"]);
}

/// A test runs this example.
#[test]
fn migration_page_shows_the_example_exporter() {
    let page = fs::read_to_string(root().join("docs/migration.md")).unwrap();
    let example = fs::read_to_string(root().join("examples/exporter/src/main.rs")).unwrap();
    let code = example.split_once("\n\n#![allow(clippy::print_stdout)]\n\n").unwrap().1;
    assert!(page.contains(&format!("```text\n{code}```\n")));
}

/// The targets of the links in a text, without web addresses.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://"))
}

#[test]
fn links_to_files_and_headings_resolve() {
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
    assert!(followed > 10, "the pages have more than 10 links: {followed}");
    assert_eq!(links("[a](b.md#c), [d](https://e/f), [g](#h)").collect::<Vec<_>>(), ["b.md#c", "#h"]);
}

/// docs.rs has no file of the repository beside a page, so a link to a file would be dead there.
#[test]
fn guide_pages_link_to_no_files() {
    for page in files("docs", ".md") {
        let text = fs::read_to_string(&page).unwrap();
        assert_eq!(links(&text).collect::<Vec<_>>(), [""; 0], "{}", name(&page));
    }
}

/// Names of Rust files in backticks: paths from the root of the repository, or below `tests`.
fn rust_files(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2).filter(|name| name.ends_with(".rs") && !name.contains(char::is_whitespace))
}

/// The pages name tests as proof of their claims.
#[test]
fn rust_files_named_on_pages_exist() {
    let mut checked = 0;
    for page in pages() {
        for file in rust_files(&fs::read_to_string(&page).unwrap()) {
            let paths = [root().join(file), root().join("tests").join(file)];
            assert!(paths.iter().any(|path| path.is_file()), "{}: {file}", name(&page));
            checked += 1;
        }
    }
    assert!(checked > 30, "the pages name more than 30 files: {checked}");
    assert_eq!(rust_files("`a.rs`, b.rs, `c d.rs`, `src/e.rs`").collect::<Vec<_>>(), ["a.rs", "src/e.rs"]);
}

/// The foreign crates whose types a list of public items names.
fn crates(items: &str) -> BTreeSet<&str> {
    let paths = items.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':');
    let roots = paths.filter_map(|path| Some(path.split_once("::")?.0));
    roots.filter(|root| root.starts_with(|c: char| c.is_lowercase()) && *root != "tracing_stage_metrics").collect()
}

/// The README says how the versions of these crates affect semantic versioning.
#[test]
fn foreign_types_in_the_api_are_those_of_the_readme() {
    let items = fs::read_to_string(root().join("tests/public_api.txt")).unwrap();
    let is_of_opentelemetry = |item: &&str| crates(item).iter().any(|name| name.starts_with("opentelemetry"));
    let (opentelemetry, others): (Vec<_>, Vec<_>) = items.lines().partition(is_of_opentelemetry);
    let others: BTreeSet<_> = others.into_iter().flat_map(crates).collect();
    assert_eq!(Vec::from_iter(others), ["alloc", "core", "std", "tracing_core", "tracing_subscriber"]);
    let methods: Vec<_> = opentelemetry.iter().map(|item| item.split('(').next().unwrap()).collect();
    let method = |name| format!("pub fn tracing_stage_metrics::MetricsLayerBuilder::{name}");
    assert_eq!(methods, ["with_meter", "with_meter_provider"].map(method));
}

#[test]
fn version_has_a_section_in_the_changelog() {
    let changelog = fs::read_to_string(root().join("CHANGELOG.md")).unwrap();
    assert!(changelog.contains(concat!("\n## [", env!("CARGO_PKG_VERSION"), "]")));
}

/// Other tests compare the tables of variables with `env.rs` and `settings.rs`. The other two files read the proxy
/// variables alone.
#[test]
fn environment_is_read_in_four_files() {
    let reads = |path: &&PathBuf| {
        let source = fs::read_to_string(path).unwrap();
        ["env::var(", "env::vars", "env::var_os", "Matcher::from_system"].iter().any(|call| source.contains(call))
    };
    let sources = files("src", ".rs");
    let readers: Vec<_> = sources.iter().filter(reads).map(|path| name(path)).collect();
    assert_eq!(
        readers,
        [
            "src/config/env.rs",
            "src/delivery/http/client.rs",
            "src/delivery/http/secrets.rs",
            "src/delivery/otlp/settings.rs"
        ]
    );
}
