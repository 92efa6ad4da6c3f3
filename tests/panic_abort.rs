//! Programs that abort where they panic (`panic = "abort"`), with `with_flush_on_panic_abort()`: no destructor runs, and
//! the last state is delivered all the same. They are the example `pipeline`, built so, and a program of this test in which
//! code of the application panics that the crate calls.
#![cfg(all(feature = "pushgateway", unix))]
#![allow(clippy::unwrap_used)]

#[path = "panic_abort/foreign_code.rs"]
mod foreign_code;
mod support;

use std::io::Write as _;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use support::child::{self, Ended, Signal};
use support::exposition::{self, Exposition};
use support::mock_gateway::Answer;
use support::{MockGateway, Reply, servers};

/// What a busy machine may add to a time that is kept.
const SLACK: Duration = Duration::from_millis(1_500);

/// The example `pipeline` with panics that abort.
fn program() -> Option<PathBuf> {
    built("pipeline")
}

/// An example with panics that abort. It takes a minute to build, with everything it stands on, so it is built where
/// nothing may be left out; `None`, said out loud, elsewhere.
fn built(example: &str) -> Option<PathBuf> {
    static EXAMPLES: OnceLock<PathBuf> = OnceLock::new();
    if !std::env::var(servers::REQUIRE_SERVERS).is_ok_and(|value| !matches!(value.as_str(), "" | "0")) {
        let thread = std::thread::current();
        let test = thread.name().unwrap_or("a test");
        let _ = writeln!(
            std::io::stderr(),
            "LEFT OUT: {test} ({}): it builds the example anew, with {}=1 only",
            file!(),
            servers::REQUIRE_SERVERS
        );
        return None;
    }
    let path = EXAMPLES.get_or_init(build).join(example);
    Some(path.with_extension(std::env::consts::EXE_EXTENSION))
}

/// The directory of the examples.
fn build() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    // target/PROFILE/deps/TEST
    let target = tests.ancestors().nth(3).unwrap().join("panic-abort");
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["build", "--quiet", "--example", "pipeline", "--example", "panic_abort_program", "--target-dir"])
        .arg(&target)
        .args(["--config", "profile.dev.panic=\"abort\"", "--config", "profile.dev.debug=false"]);
    let built = cargo.output().unwrap();
    assert!(built.status.success(), "the examples were not built: {}", String::from_utf8_lossy(&built.stderr));
    target.join("debug/examples")
}

fn command(program: &Path, server: &MockGateway, file: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if ["TV_PROMETHEUS_", "OTEL_", "RUST_"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command
        .args(["--profile", "p", "--run-id", "1", "--textfile"])
        .arg(file)
        .args(arguments)
        .env("TV_PROMETHEUS_PUSHGATEWAY", server.url())
        .env("TV_PROMETHEUS_JOB", "j")
        .env("TV_PROMETHEUS_FLUSH_TIMEOUT", "2s");
    command
}

fn run(program: &Path, server: &MockGateway, arguments: &[&str]) -> (Ended, Exposition) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pipeline.prom");
    let ended = child::start(command(program, server, &file, arguments)).wait();
    (ended, exposition::parse(&std::fs::read_to_string(file).unwrap()).without(&[("job", "j")]))
}

#[track_caller]
fn assert_aborted(ended: &Ended, stage: &str) {
    assert_eq!(ended.status.signal(), Some(Signal::ABORT.as_raw()), "{ended:?}");
    let panicked = ended.stderr.find(&format!("{stage} panics because --panic asked for it"));
    // The header of its table.
    let reports: Vec<usize> = ended.stderr.match_indices("runs  failed").map(|(at, _)| at).collect();
    assert_eq!(reports.len(), 1, "{ended:?}");
    assert!(panicked.is_some_and(|at| at < reports[0]), "what panicked is told first: {ended:?}");
}

#[track_caller]
fn total(found: &Exposition, stage: &str, status: &str) -> f64 {
    found.expect("quant_stage_total", &[("stage_id", stage), ("status", status)])
}

/// The last state of a run whose stage panicked.
#[track_caller]
fn assert_cut_off(found: &Exposition, stage: &str) {
    assert_eq!(total(found, "foundation.ingest", "success"), 1.0);
    assert_eq!(total(found, "allocation.simulate", "success") + total(found, "allocation.simulate", "failure"), 0.0);
    assert!(total(found, stage, "failure") >= 1.0, "{stage}");
    let reason = [("stage_id", stage), ("profile", "p"), ("reason", "interrupted")];
    assert_eq!(found.expect("quant_stage_failures_total", &reason), total(found, stage, "failure"));
    assert!(found.matching("quant_stage_active", &[]).iter().all(|active| active.value == 0.0));
    assert!(found.expect("quant_run_duration_seconds", &[]) > 0.0);
    assert!(found.family("quant_run_last_success_timestamp_seconds").is_none());
}

/// On the main thread, and on one of several that work side by side.
#[test]
fn the_last_state_is_delivered_and_the_process_aborts() {
    let Some(program) = program() else { return };
    for stage in ["risk.optimize", "foundation.features"] {
        let server = MockGateway::ok();
        let (ended, file) = run(&program, &server, &["--panic", stage]);
        assert_aborted(&ended, stage);
        assert_eq!(server.requests().len(), 2, "at install and at the end");
        let last = exposition::parse(server.requests().last().unwrap().text());
        assert_cut_off(&last, stage);
        assert_cut_off(&file, stage);
    }
}

#[test]
fn no_gateway_holds_it() {
    let Some(program) = program() else { return };
    for reply in [Reply::Silent, Reply::status(400)] {
        let server = MockGateway::start([reply]);
        let (ended, file) = run(&program, &server, &["--panic", "alpha.policy"]);
        assert_aborted(&ended, "alpha.policy");
        assert!(ended.elapsed < Duration::from_secs(2) + 2 * SLACK, "{:?}", ended.elapsed);
        assert_cut_off(&file, "alpha.policy");
    }
}

/// The report goes to stderr, and `eprintln!` panics where nobody reads that any more: at the end of a good run, and
/// in the hook that another panic has called. The flush is over by then, and the process aborts at once.
#[test]
fn a_report_that_panics_aborts_it_at_once() {
    let Some(program) = program() else { return };
    for arguments in [&[][..], &["--panic", "risk.optimize"]] {
        let server = MockGateway::start([Reply::ok(), Reply::Held(Answer::new(200))]);
        let directory = tempfile::tempdir().unwrap();
        let mut command = command(&program, &server, &directory.path().join("pipeline.prom"), arguments);
        // Nothing but the report is written to stderr once it is closed.
        command.env("RUST_LOG", "off").env("TV_PROMETHEUS_FLUSH_TIMEOUT", "20s");
        let mut running = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let last = exposition::parse(server.await_requests(2)[1].text());
        drop(running.stderr.take());
        let begun = Instant::now();
        server.release();
        let status = child::wait_timeout(&mut running, SLACK);
        let took = begun.elapsed();
        // Both fail for a child that has ended.
        let _ = running.kill();
        let _ = running.wait();
        let ended_by = status.map(|status| status.signal());
        assert_eq!(ended_by, Some(Some(Signal::ABORT.as_raw())), "{arguments:?}: after {took:?}");
        assert_eq!(server.requests().len(), 2, "{arguments:?}: one final flush");
        let is_success = last.family("quant_run_last_success_timestamp_seconds").is_some();
        assert_eq!(is_success, arguments.is_empty(), "{arguments:?}");
        assert!(last.expect("quant_run_duration_seconds", &[]) > 0.0);
    }
}

#[test]
fn without_a_panic_it_ends_as_ever() {
    let Some(program) = program() else { return };
    let server = MockGateway::ok();
    let (ended, file) = run(&program, &server, &[]);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let last = exposition::parse(server.requests().last().unwrap().text());
    for found in [last, file] {
        assert_eq!(total(&found, "allocation.simulate", "failure"), 0.0);
        assert!(found.expect("quant_run_last_success_timestamp_seconds", &[]) > 1.7e9);
    }
}
