//! The help of `stage-metrics`.

use std::collections::BTreeSet;

use super::{error, output};

const COMMANDS: [&[&str]; 12] = [
    &[],
    &["check"],
    &["groups"],
    &["groups", "list"],
    &["groups", "prune"],
    &["groups", "delete"],
    &["spool"],
    &["spool", "list"],
    &["spool", "replay"],
    &["spool", "drop"],
    &["rules"],
    &["dashboard"],
];

/// The variables in the first column of the table on the page of the configuration, which a test of the library compares
/// with those that the code reads.
fn documented() -> BTreeSet<String> {
    let page = include_str!("../../docs/configuration.md");
    let (_, table) = page.split_once("\n## Environment variables\n").unwrap();
    let (table, _) = table.split_once("\n## ").unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    let names: BTreeSet<_> = rows.flat_map(|(names, _)| names.split("`, `").map(str::to_owned)).collect();
    assert!(names.len() > 10, "{names:?}");
    names
}

#[test]
fn every_command_explains_itself() {
    for command in COMMANDS {
        let help = output(0, &[command, &["--help"]].concat(), &[]);
        assert!(help.contains("\nUsage: stage-metrics"), "{help}");
        let has_examples = help.contains("\nEXAMPLES\n");
        assert!(has_examples || help.contains("\nEXIT CODES\n"), "{command:?}: {help}");
        assert!(help.lines().all(|line| line.chars().count() <= 110), "{command:?}: {help}");
        assert!(output(0, &[command, &["-h"]].concat(), &[]).len() < help.len());
    }
    assert!(output(0, &["--version"], &[]).starts_with(concat!("stage-metrics ", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn help_describes_every_variable() {
    for command in [&[][..], &["check"]] {
        let help = output(0, &[command, &["--help"]].concat(), &[]);
        let (_, variables) = help.split_once("VARIABLES\n").unwrap();
        let (variables, _) = variables.split_once("\nEXAMPLES\n").unwrap();
        let names = variables.lines().filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')));
        assert_eq!(names.map(str::to_owned).collect::<BTreeSet<_>>(), documented(), "{variables}");
        assert!(
            variables.contains("\n      time between two pushes: a number and ms, s, m, h or d [15s]\n"),
            "{variables}"
        );
    }
}

#[test]
fn program_without_a_command_shows_its_help() {
    for command in [&[][..], &["groups"], &["spool"]] {
        let text = error(2, command, &[]);
        let help = output(0, &[command, &["-h"]].concat(), &[]);
        assert_eq!(text, help);
    }
}

#[test]
fn unknown_command_suggests_a_known_one() {
    let text = error(2, &["chekc"], &[]);
    assert!(text.starts_with("stage-metrics: unrecognized subcommand 'chekc'") && text.contains("'check'"), "{text}");
}
