//! The example `progress` as its users run it: in a terminal, where it draws bars, and without one.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

#[path = "../../../tests/support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::process::{Command, Stdio};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use support::{child, exposition};

const ROWS: u16 = 24;
/// Wide enough for the line of the log.
const COLUMNS: u16 = 250;

/// The fields of the span of each bar, and how far it goes.
const BARS: [(&str, u32); 4] = [
    ("stage_id=\"allocation.simulate\"", 30),
    ("stage_id=\"foundation.features\" asset=\"BTC\"", 20),
    ("stage_id=\"foundation.features\" asset=\"ETH\"", 40),
    ("stage_id=\"foundation.ingest\"", 30),
];

fn example(textfile: &std::path::Path) -> Command {
    let mut command = support::example::isolated(env!("CARGO_BIN_EXE_progress"));
    command.env("TV_PROMETHEUS_TEXTFILE", textfile).env("TERM", "xterm").env_remove("NO_COLOR");
    command
}

/// Runs it to a good end with its stderr in a terminal: all that it wrote there.
#[track_caller]
fn in_a_terminal(mut command: Command) -> Vec<u8> {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let path = ptsname(&terminal, Vec::new()).unwrap();
    let end = OpenOptions::new().read(true).write(true).open(path.to_str().unwrap()).unwrap();
    tcsetwinsize(&end, Winsize { ws_row: ROWS, ws_col: COLUMNS, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();

    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(end).spawn().unwrap();
    drop(command); // and with it this process's side of that end: the child's is the last one
    let reader = std::thread::spawn(move || {
        let (mut written, mut terminal) = (Vec::new(), File::from(terminal));
        // When the last end is closed Linux has an error for it.
        let _ = terminal.read_to_end(&mut written);
        written
    });
    let ended = child::wait_timeout(&mut child, support::PATIENCE);
    if ended.is_none() {
        let _ = child.kill();
    }
    let written = reader.join().unwrap();
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}: {}", String::from_utf8_lossy(&written));
    written
}

/// The rows of the terminal at each moment between two drawings, the last one at the end.
fn screens(written: &[u8]) -> Vec<Vec<String>> {
    let mut terminal = vt100::Parser::new(ROWS, COLUMNS, 0);
    let moments = written.split_inclusive(|byte| *byte == b'\r').map(|piece| {
        terminal.process(piece);
        terminal.screen().rows(0, COLUMNS).map(|row| row.trim_end().to_owned()).collect()
    });
    moments.collect()
}

/// Where a row is a bar: the fields of its span, how far it is, and how far it goes.
fn bar(row: &str) -> Option<(&str, u32, u32)> {
    let (_, rest) = row.strip_prefix('[')?.split_once("] ")?;
    let (progress, fields) = rest.split_once(' ')?;
    let (position, length) = progress.split_once('/')?;
    Some((fields, position.parse().ok()?, length.parse().ok()?))
}

#[track_caller]
fn assert_all_stages_succeeded(textfile: &std::path::Path) {
    let found = exposition::parse(&std::fs::read_to_string(textfile).unwrap());
    for (stage, runs) in [("foundation.ingest", 1.0), ("foundation.features", 2.0), ("allocation.simulate", 1.0)] {
        assert_eq!(found.expect("quant_stage_total", &[("stage_id", stage), ("status", "success")]), runs, "{stage}");
        assert_eq!(found.expect("quant_stage_total", &[("stage_id", stage), ("status", "failure")]), 0.0, "{stage}");
        let labels = [("stage_id", stage), ("profile", "crypto_production"), ("run_id", "20260105-191332")];
        assert_eq!(found.expect("quant_stage_duration_seconds_count", &labels), runs, "{stage}");
    }
}

/// What is there when the program has ended: no bar, and the log and the report whole.
#[track_caller]
fn assert_log_and_report(rows: &[String]) {
    let starts: Vec<_> = rows.iter().map(|row| row.split(['.', ' ']).next().unwrap()).collect();
    assert_eq!(starts[1..5], ["stage", "foundation", "foundation", "allocation"], "{rows:#?}");
    assert!(rows[0].starts_with("20") && rows[0].ends_with(" all files are read"), "{rows:#?}");
    assert!(rows[5..].iter().all(String::is_empty), "{rows:#?}");
}

#[test]
fn every_stage_has_its_bar_and_its_metrics() {
    let directory = tempfile::tempdir().unwrap();
    let textfile = directory.path().join("progress.prom");
    let screens = screens(&in_a_terminal(example(&textfile)));

    let mut seen = BTreeMap::<_, Vec<_>>::new();
    for (fields, position, length) in screens.iter().flatten().filter_map(|row| bar(row)) {
        seen.entry(fields).or_default().push((position, length));
    }
    // A bar may be drawn before it is told its length.
    let lengths: Vec<_> = seen.iter().map(|(fields, drawn)| (*fields, drawn[drawn.len() - 1].1)).collect();
    assert_eq!(lengths, BARS, "no span but those of the stages has one");
    for (fields, drawn) in &seen {
        let positions: BTreeSet<_> = drawn.iter().map(|(position, _)| position).collect();
        assert!(positions.len() > 1, "it moves: {fields} {drawn:?}");
    }
    let at_once = |rows: &Vec<String>| rows.iter().filter_map(|row| bar(row)).count();
    assert_eq!(screens.iter().map(at_once).max(), Some(2), "those of the two assets");

    assert_log_and_report(screens.last().unwrap());
    assert_all_stages_succeeded(&textfile);
}

#[test]
fn without_a_terminal_there_are_no_bars_and_the_same_metrics() {
    let directory = tempfile::tempdir().unwrap();
    let textfile = directory.path().join("progress.prom");
    let ended = child::start(example(&textfile)).wait();
    assert!(ended.status.success(), "{ended:?}");
    assert!(!ended.stderr.contains('\r') && !ended.stderr.contains("0/"), "{ended:?}");
    assert_log_and_report(screens(ended.stderr.replace('\n', "\r\n").as_bytes()).last().unwrap());
    assert_all_stages_succeeded(&textfile);
}

#[test]
fn a_bar_is_told_from_other_rows() {
    assert_eq!(bar("[==>   ] 3/30 stage_id=\"a\" asset=\"b\""), Some(("stage_id=\"a\" asset=\"b\"", 3, 30)));
    for other in ["", "stage  runs", "[===] 3 of 30 stage_id=\"a\"", "[===] ingest"] {
        assert_eq!(bar(other), None, "{other:?}");
    }
}
