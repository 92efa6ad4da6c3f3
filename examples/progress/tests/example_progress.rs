//! The example `progress` as a program: in a terminal, where it draws progress bars, and without one.
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

/// The span fields and the length of each bar.
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

/// Runs the program with its stderr in a terminal and returns all that it wrote there. Panics unless it succeeds.
#[track_caller]
fn in_a_terminal(mut command: Command) -> Vec<u8> {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let path = ptsname(&terminal, Vec::new()).unwrap();
    let end = OpenOptions::new().read(true).write(true).open(path.to_str().unwrap()).unwrap();
    tcsetwinsize(&end, Winsize { ws_row: ROWS, ws_col: COLUMNS, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();

    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(end).spawn().unwrap();
    drop(command); // also drops this process's handle of that end: the child has the last one
    let reader = std::thread::spawn(move || {
        let (mut written, mut terminal) = (Vec::new(), File::from(terminal));
        // Linux returns an error once the last handle of the other end is closed.
        let _ = terminal.read_to_end(&mut written);
        written
    });
    let ended = child::wait_timeout(&mut child, support::WAIT_TIMEOUT);
    if ended.is_none() {
        let _ = child.kill();
    }
    let written = reader.join().unwrap();
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}: {}", String::from_utf8_lossy(&written));
    written
}

/// The rows of the terminal after each drawing.
fn screens(written: &[u8]) -> Vec<Vec<String>> {
    let mut terminal = vt100::Parser::new(ROWS, COLUMNS, 0);
    let screens = written.split_inclusive(|byte| *byte == b'\r').map(|piece| {
        terminal.process(piece);
        terminal.screen().rows(0, COLUMNS).map(|row| row.trim_end().to_owned()).collect()
    });
    screens.collect()
}

/// The span fields, the position and the length of the bar in a row; `None` if the row has no bar.
fn bar(row: &str) -> Option<(&str, u32, u32)> {
    let (_, rest) = row.strip_prefix('[')?.split_once("] ")?;
    let (progress, fields) = rest.split_once(' ')?;
    let (position, length) = progress.split_once('/')?;
    Some((fields, position.parse().ok()?, length.parse().ok()?))
}

#[track_caller]
fn assert_all_stages_succeeded(textfile: &std::path::Path) {
    let metrics = exposition::parse(&std::fs::read_to_string(textfile).unwrap());
    for (stage, runs) in [("foundation.ingest", 1.0), ("foundation.features", 2.0), ("allocation.simulate", 1.0)] {
        assert_eq!(metrics.expect("quant_stage_total", &[("stage_id", stage), ("status", "success")]), runs, "{stage}");
        assert_eq!(metrics.expect("quant_stage_total", &[("stage_id", stage), ("status", "failure")]), 0.0, "{stage}");
        let labels = [("stage_id", stage), ("profile", "crypto_production"), ("run_id", "20260105-191332")];
        assert_eq!(metrics.expect("quant_stage_duration_seconds_count", &labels), runs, "{stage}");
    }
}

/// Checks the rows after the end of the program: the complete log and report, and no bar.
#[track_caller]
fn assert_log_and_report(rows: &[String]) {
    let starts: Vec<_> = rows.iter().map(|row| row.split(['.', ' ']).next().unwrap()).collect();
    assert_eq!(starts[2..6], ["stage", "foundation", "foundation", "allocation"], "{rows:#?}");
    assert!(rows[0].starts_with("20") && rows[0].contains(" metrics go to the text file "), "{rows:#?}");
    assert!(rows[1].starts_with("20") && rows[1].ends_with(" all files are read"), "{rows:#?}");
    assert!(rows[6..].iter().all(String::is_empty), "{rows:#?}");
}

#[test]
fn stages_have_bars_and_metrics_in_a_terminal() {
    let directory = tempfile::tempdir().unwrap();
    let textfile = directory.path().join("progress.prom");
    let screens = screens(&in_a_terminal(example(&textfile)));

    let mut bars = BTreeMap::<_, Vec<_>>::new();
    for (fields, position, length) in screens.iter().flatten().filter_map(|row| bar(row)) {
        bars.entry(fields).or_default().push((position, length));
    }
    // A bar may be drawn before its length is set.
    let lengths: Vec<_> = bars.iter().map(|(fields, drawn)| (*fields, drawn[drawn.len() - 1].1)).collect();
    assert_eq!(lengths, BARS, "every stage span has a bar, and no other span");
    for (fields, drawn) in &bars {
        let positions: BTreeSet<_> = drawn.iter().map(|(position, _)| position).collect();
        assert!(positions.len() > 1, "the bar moves: {fields} {drawn:?}");
    }
    let at_once = |rows: &Vec<String>| rows.iter().filter_map(|row| bar(row)).count();
    assert_eq!(screens.iter().map(at_once).max(), Some(2), "the two assets have bars at the same time");

    assert_log_and_report(screens.last().unwrap());
    assert_all_stages_succeeded(&textfile);
}

#[test]
fn stages_have_metrics_and_no_bars_without_a_terminal() {
    let directory = tempfile::tempdir().unwrap();
    let textfile = directory.path().join("progress.prom");
    let ended = child::start(example(&textfile)).wait();
    assert!(ended.status.success(), "{ended:?}");
    assert!(!ended.stderr.contains('\r') && !ended.stderr.contains("0/"), "{ended:?}");
    assert_log_and_report(screens(ended.stderr.replace('\n', "\r\n").as_bytes()).last().unwrap());
    assert_all_stages_succeeded(&textfile);
}

#[test]
fn bar_is_parsed_and_other_rows_are_not() {
    assert_eq!(bar("[==>   ] 3/30 stage_id=\"a\" asset=\"b\""), Some(("stage_id=\"a\" asset=\"b\"", 3, 30)));
    for row in ["", "stage  runs", "[===] 3 of 30 stage_id=\"a\"", "[===] ingest"] {
        assert_eq!(bar(row), None, "{row:?}");
    }
}
