//! The text file: written at install and on the interval, replaced atomically, with errors reported.
#![cfg(feature = "pushgateway")]
#![allow(clippy::unwrap_used)]

mod support;

#[cfg(unix)]
#[path = "text_file/file_system.rs"]
mod file_system;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use support::exposition::{self, Exposition};
use support::measured::{Measured, measured, stage};
use support::{MockGateway, Reply};
use tracing_stage_metrics::{MetricsLayer, Pushgateway};

/// Waits until the file satisfies `wanted`; panics if it never does.
#[track_caller]
fn await_file(path: &Path, wanted: impl Fn(&Exposition) -> bool) -> Exposition {
    let deadline = Instant::now() + support::WAIT_TIMEOUT;
    loop {
        if let Ok(text) = fs::read_to_string(path) {
            let exposition = exposition::parse(&text);
            if wanted(&exposition) {
                return exposition;
            }
        }
        assert!(Instant::now() < deadline, "{} is not as wanted", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn successes(exposition: &Exposition, id: &str) -> Option<f64> {
    exposition.value("quant_stage_total", &[("stage_id", id), ("status", "success")])
}

#[test]
fn text_file_is_written_at_install_on_the_interval_and_at_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("job.prom");
    fs::write(&path, "# TYPE of_yesterday gauge\nof_yesterday 1\n").unwrap();
    let builder = MetricsLayer::builder().with_textfile(&path).with_push_interval(Duration::from_millis(50));
    let Measured { guard, log, default: _default } = measured(builder);
    let first = await_file(&path, |exposition| exposition.family("quant_run_start_timestamp_seconds").is_some());
    assert!(first.family("of_yesterday").is_none());
    stage("a");
    await_file(&path, |exposition| successes(exposition, "a") == Some(1.0));
    stage("b");
    guard.shutdown().unwrap();
    let last = exposition::parse(&fs::read_to_string(&path).unwrap());
    assert_eq!(successes(&last, "b"), Some(1.0));
    assert!(last.family("quant_run_last_success_timestamp_seconds").is_some());
    assert_eq!(
        last.expect("quant_telemetry_push_total", &[("result", "success")]),
        0.0,
        "writing a file is not a push"
    );
    assert_eq!(log.own(), [""; 0]);
}

#[test]
fn reader_never_sees_a_partial_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("job.prom");
    let Measured { guard, log: _, default: _default } = measured(MetricsLayer::builder().with_textfile(&path));
    for id in 0..50 {
        stage(&format!("stage {id}"));
    }
    guard.flush().unwrap();
    let (done, expected_lines) = (AtomicBool::new(false), fs::read_to_string(&path).unwrap().lines().count());
    let reads = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !done.load(Ordering::Relaxed) || reads == 0 {
                let text = fs::read_to_string(&path).unwrap();
                assert!(
                    text.ends_with('\n') && text.lines().count() == expected_lines,
                    "{} lines of {expected_lines}",
                    text.lines().count()
                );
                reads += 1;
            }
            reads
        });
        for _ in 0..100 {
            guard.flush().unwrap();
        }
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap()
    });
    assert!(reads > 10, "{reads}");
    let names: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(names, ["job.prom"]);
}

/// Text file and gateway after their first state; then the file's directory is removed.
#[track_caller]
fn start_then_remove_directory(inner: &Path, path: &Path, server: &MockGateway) -> Measured {
    fs::create_dir(inner).unwrap();
    let builder = MetricsLayer::builder()
        .with_textfile(path)
        .with_pushgateway(Pushgateway::new(server.url(), "j").unwrap())
        .with_push_interval(Duration::from_secs(3_600));
    let measured = measured(builder);
    measured.guard.flush().unwrap();
    fs::remove_dir_all(inner).unwrap();
    measured
}

#[test]
fn removed_directory_is_reported_and_does_not_stop_the_push() {
    let directory = tempfile::tempdir().unwrap();
    let inner = directory.path().join("inner");
    let path = inner.join("job.prom");
    let server = MockGateway::ok();
    let Measured { guard, log, default: _default } = start_then_remove_directory(&inner, &path, &server);
    stage("a");
    let error = guard.flush().unwrap_err();
    assert_eq!(error.to_string(), format!("cannot write text file {path:?}"));
    assert_eq!(format!("{error:?}"), format!("{error}: No such file or directory (os error 2)"));
    assert!(!error.is_config() && !error.is_timeout() && !error.is_refused());
    let pushed = exposition::parse(server.requests().last().unwrap().text());
    assert_eq!(successes(&pushed, "a"), Some(1.0), "the gateway has the stage");

    fs::create_dir(&inner).unwrap();
    guard.shutdown().unwrap();
    let file = exposition::parse(&fs::read_to_string(&path).unwrap()).without(&[("job", "j")]);
    assert_eq!(successes(&file, "a"), Some(1.0));
    let count_of_warnings = |prefix: &str| log.own().iter().filter(|text| text.starts_with(prefix)).count();
    assert_eq!(count_of_warnings("metrics are not delivered"), 1, "{:?}", log.own());
}

/// A file that is never writable hides no gateway failure, and its events have a field of their own.
#[test]
fn file_and_gateway_fail_and_recover_independently() {
    let directory = tempfile::tempdir().unwrap();
    let inner = directory.path().join("inner");
    let path = inner.join("job.prom");
    let server = MockGateway::ok();
    let Measured { guard, log, default: _default } = start_then_remove_directory(&inner, &path, &server);
    guard.flush().unwrap_err();
    server.set_replies([Reply::status(401)]);
    guard.flush().unwrap_err();
    server.set_replies([Reply::ok()]);
    guard.flush().unwrap_err();
    fs::create_dir(&inner).unwrap();
    guard.shutdown().unwrap();

    let file = format!(" destination=the text file {}", path.display());
    let own = log.own();
    let events: Vec<_> =
        own.iter().map(|text| (text.starts_with("metrics are delivered"), text.contains(&file))).collect();
    assert_eq!(events, [(false, true), (false, false), (true, false)], "{own:?}");
    assert!(
        own[1].contains("401") && own[..].iter().filter(|text| text.contains("destination=")).count() == 1,
        "{own:?}"
    );
}
