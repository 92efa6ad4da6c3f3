//! Programs built with `panic = "abort"` that use `with_flush_on_panic_abort()`: no destructor runs, and the final
//! state is still delivered. The programs are the example `pipeline`, and one in which application code that the
//! crate calls panics.
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

/// Margin for a busy machine on top of a deadline.
const SLACK: Duration = Duration::from_millis(1_500);

/// Path of the example `pipeline` with aborting panics.
fn pipeline_example() -> Option<PathBuf> {
    example_program("pipeline")
}

/// Builds an example with aborting panics. The build with all dependencies takes a minute, so it runs only where no
/// test may be skipped; elsewhere the function prints that and returns `None`.
fn example_program(example: &str) -> Option<PathBuf> {
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

/// Builds the examples; returns their directory.
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
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "the examples were not built: {}", String::from_utf8_lossy(&output.stderr));
    target.join("debug/examples")
}

fn command(pipeline_example: &Path, server: &MockGateway, file: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(pipeline_example);
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

fn run(pipeline_example: &Path, server: &MockGateway, arguments: &[&str]) -> (Ended, Exposition) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pipeline.prom");
    let ended = child::start(command(pipeline_example, server, &file, arguments)).wait();
    (ended, exposition::parse(&std::fs::read_to_string(file).unwrap()).without(&[("job", "j")]))
}

#[track_caller]
fn assert_aborted(ended: &Ended, stage: &str) {
    assert_eq!(ended.status.signal(), Some(Signal::ABORT.as_raw()), "{ended:?}");
    let panic_position = ended.stderr.find(&format!("{stage} panics because --panic asked for it"));
    // Header of the report's table.
    let reports: Vec<usize> = ended.stderr.match_indices("runs  failed").map(|(at, _)| at).collect();
    assert_eq!(reports.len(), 1, "{ended:?}");
    assert!(panic_position.is_some_and(|at| at < reports[0]), "the panic message comes before the report: {ended:?}");
}

#[track_caller]
fn total(exposition: &Exposition, stage: &str, status: &str) -> f64 {
    exposition.expect("quant_stage_total", &[("stage_id", stage), ("status", status)])
}

/// Asserts the final state of a run in which `stage` panicked.
#[track_caller]
fn assert_aborted_state(exposition: &Exposition, stage: &str) {
    assert_eq!(total(exposition, "foundation.ingest", "success"), 1.0);
    assert_eq!(
        total(exposition, "allocation.simulate", "success") + total(exposition, "allocation.simulate", "failure"),
        0.0
    );
    assert!(total(exposition, stage, "failure") >= 1.0, "{stage}");
    let reason = [("stage_id", stage), ("profile", "p"), ("reason", "interrupted")];
    assert_eq!(exposition.expect("quant_stage_failures_total", &reason), total(exposition, stage, "failure"));
    assert!(exposition.matching("quant_stage_active", &[]).iter().all(|active| active.value == 0.0));
    assert!(exposition.expect("quant_run_duration_seconds", &[]) > 0.0);
    assert!(exposition.family("quant_run_last_success_timestamp_seconds").is_none());
}

/// On the main thread, and on one of several worker threads.
#[test]
fn final_state_is_delivered_before_the_abort() {
    let Some(pipeline_example) = pipeline_example() else { return };
    for stage in ["risk.optimize", "foundation.features"] {
        let server = MockGateway::ok();
        let (ended, file) = run(&pipeline_example, &server, &["--panic", stage]);
        assert_aborted(&ended, stage);
        assert_eq!(server.requests().len(), 2, "at install and at the end");
        let last = exposition::parse(server.requests().last().unwrap().text());
        assert_aborted_state(&last, stage);
        assert_aborted_state(&file, stage);
    }
}

#[test]
fn failing_gateway_does_not_delay_the_abort() {
    let Some(pipeline_example) = pipeline_example() else { return };
    for reply in [Reply::Silent, Reply::status(400)] {
        let server = MockGateway::start([reply]);
        let (ended, file) = run(&pipeline_example, &server, &["--panic", "alpha.policy"]);
        assert_aborted(&ended, "alpha.policy");
        assert!(ended.elapsed < Duration::from_secs(2) + 2 * SLACK, "{:?}", ended.elapsed);
        assert_aborted_state(&file, "alpha.policy");
    }
}

/// The report goes to stderr, and `eprintln!` panics once stderr is closed: at the end of a successful run, and in
/// the panic hook. The final flush is over by then, so the process aborts at once.
#[test]
fn panicking_report_aborts_at_once() {
    let Some(pipeline_example) = pipeline_example() else { return };
    for arguments in [&[][..], &["--panic", "risk.optimize"]] {
        let server = MockGateway::start([Reply::ok(), Reply::Held(Answer::new(200))]);
        let directory = tempfile::tempdir().unwrap();
        let mut command = command(&pipeline_example, &server, &directory.path().join("pipeline.prom"), arguments);
        // After stderr is closed, only the report writes to it.
        command.env("RUST_LOG", "off").env("TV_PROMETHEUS_FLUSH_TIMEOUT", "20s");
        let mut running = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let last = exposition::parse(server.await_requests(2)[1].text());
        drop(running.stderr.take());
        let start = Instant::now();
        server.release();
        let status = child::wait_timeout(&mut running, SLACK);
        let elapsed = start.elapsed();
        // Both fail if the child has ended.
        let _ = running.kill();
        let _ = running.wait();
        let ended_by = status.map(|status| status.signal());
        assert_eq!(ended_by, Some(Some(Signal::ABORT.as_raw())), "{arguments:?}: after {elapsed:?}");
        assert_eq!(server.requests().len(), 2, "{arguments:?}: one final flush");
        let is_success = last.family("quant_run_last_success_timestamp_seconds").is_some();
        assert_eq!(is_success, arguments.is_empty(), "{arguments:?}");
        assert!(last.expect("quant_run_duration_seconds", &[]) > 0.0);
    }
}

#[test]
fn run_without_panic_ends_normally() {
    let Some(pipeline_example) = pipeline_example() else { return };
    let server = MockGateway::ok();
    let (ended, file) = run(&pipeline_example, &server, &[]);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let last = exposition::parse(server.requests().last().unwrap().text());
    for exposition in [last, file] {
        assert_eq!(total(&exposition, "allocation.simulate", "failure"), 0.0);
        assert!(exposition.expect("quant_run_last_success_timestamp_seconds", &[]) > 1.7e9);
    }
}
