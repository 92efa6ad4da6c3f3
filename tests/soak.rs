//! Stages from several threads while the gateway disappears and returns at random: counts are exact at the end, and
//! no resource grows or leaks.
//!
//! Runs a few seconds by default; `TSM_SOAK_SECONDS=900` makes a long run. The figures go to stderr.
#![cfg(all(feature = "pushgateway", unix))]
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use support::log::Log;
use support::random::Random;
use support::{WAIT_TIMEOUT, exposition, servers};
use tracing_stage_metrics::{MetricsLayer, Pushgateway};
use tracing_subscriber::prelude::*;

const THREADS: usize = 4;
const DEFAULT_SECONDS: u64 = 8;
/// Allowed growth of resident memory between a quarter of the run and its end.
const MAX_GROWTH: u64 = 6 << 20;
const SEED: u64 = 0x5eed;

/// Number of entries in a directory.
fn entries(directory: &str) -> usize {
    fs::read_dir(directory).unwrap().count()
}

fn threads() -> usize {
    entries("/proc/self/task")
}

/// Targets of the open file handles.
fn handles() -> Vec<String> {
    let handles =
        fs::read_dir("/proc/self/fd").unwrap().filter_map(|handle| fs::read_link(handle.unwrap().path()).ok());
    handles.map(|target| target.display().to_string()).collect()
}

fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().trim().parse::<u64>().unwrap() << 10
}

/// Spans of one thread.
#[derive(Clone, Copy, Default)]
struct Counts {
    outer: u64,
    failed: u64,
    inner: u64,
}

/// Opens a stage within a stage in a loop; every seventh outer stage fails.
fn work(thread: usize, stop: &AtomicBool) -> Counts {
    let (outer, inner) = (format!("t{thread}"), format!("t{thread}.inner"));
    let mut counts = Counts::default();
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..50 {
            let span = tracing::info_span!("outer", stage_id = outer, profile = "soak", run_id = "1");
            span.in_scope(|| {
                tracing::info_span!("inner", stage_id = inner)
                    .in_scope(|| metrics::counter!("rows_total").increment(3));
                if counts.outer % 7 == 6 {
                    tracing::error!("on purpose");
                    counts.failed += 1;
                }
            });
            counts.outer += 1;
            counts.inner += 1;
        }
        // Leaves processor time to the other threads.
        std::thread::sleep(Duration::from_micros(500));
    }
    counts
}

/// Freezes, stops and restarts the gateway until `end`; it is up afterwards. Returns how often each happened.
fn disrupt_gateway(server: &mut support::Pushgateway, random: &mut Random, end: Instant) -> [u32; 3] {
    let mut disruptions = [0; 3];
    while Instant::now() < end {
        std::thread::sleep(random.millis(50, 500));
        let action = random.below(3) as usize;
        match action {
            0 => {
                server.freeze();
                std::thread::sleep(random.millis(50, 900));
                server.thaw();
            }
            1 => {
                server.stop();
                std::thread::sleep(random.millis(10, 700));
                server.restart();
            }
            _ => server.restart(),
        }
        disruptions[action] += 1;
    }
    disruptions
}

#[track_caller]
fn await_true(condition: impl Fn() -> bool, what: impl Fn() -> String) {
    let deadline = Instant::now() + WAIT_TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "not in {WAIT_TIMEOUT:?}: {}", what());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The only test of this binary: it counts the threads and handles of the process.
#[test]
fn counts_stay_exact_and_resources_bounded_under_gateway_outages() {
    if !servers::installed(servers::PUSHGATEWAY) {
        return;
    }
    let seconds = std::env::var("TSM_SOAK_SECONDS").map_or(DEFAULT_SECONDS, |text| text.parse().unwrap());
    let duration = Duration::from_secs(seconds);
    let initial_threads = threads();
    let mut server = support::Pushgateway::start();
    let spool = tempfile::tempdir().unwrap();
    // A first runtime creates process-wide resources, such as the socket for signals; they are no leak.
    let (_layer, first) = MetricsLayer::builder().build().unwrap();
    first.shutdown().unwrap();
    await_true(|| threads() == initial_threads, || format!("threads have ended: {} of {initial_threads}", threads()));
    let (threads_before, handles_before) = (threads(), handles().len());

    let (layer, guard) = MetricsLayer::builder()
        .with_pushgateway(Pushgateway::new(server.url(), "soak").unwrap())
        .with_push_interval(Duration::from_millis(100))
        .with_flush_timeout(Duration::from_secs(20))
        .with_spool_dir(spool.path())
        .with_cumulative_totals()
        .with_flush_on_signals()
        .install()
        .unwrap();
    let log = Log::default();
    let own_target = tracing_subscriber::filter::filter_fn(|metadata| metadata.target() == support::log::OWN_TARGET);
    tracing_subscriber::registry().with(layer).with(log.clone().with_filter(own_target)).init();

    let (stop, mut random, start) = (AtomicBool::new(false), Random::new(SEED), Instant::now());
    let (counts, memory, disruptions) = std::thread::scope(|scope| {
        let stop = &stop;
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || work(thread, stop))).collect();
        let memory = scope.spawn(move || {
            let mut memory = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                memory.push((start.elapsed(), resident_bytes()));
                std::thread::sleep(duration / 100);
            }
            memory
        });
        let disruptions = disrupt_gateway(&mut server, &mut random, start + duration);
        stop.store(true, Ordering::Relaxed);
        let counts: Vec<Counts> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        (counts, memory.join().unwrap(), disruptions)
    });
    guard.shutdown().unwrap();
    await_true(|| threads() == threads_before, || format!("threads have ended: {} of {threads_before}", threads()));
    await_true(|| handles().len() == handles_before, || format!("file handles are closed: {:?}", handles()));

    let settled = memory.iter().filter(|(at, _)| *at >= duration / 4).map(|(_, bytes)| *bytes);
    let (first, last, peak) =
        (settled.clone().next().unwrap(), settled.clone().next_back().unwrap(), settled.max().unwrap());
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let stages: u64 = counts.iter().map(|counts| counts.outer + counts.inner).sum();
    let exposition = exposition::parse(&server.metrics());
    let job_value = |name: &str, labels: &[(&str, &str)]| {
        exposition.expect(name, &[labels, &[("instance", ""), ("job", "soak")]].concat())
    };
    let pushes = ["success", "failure"].map(|result| job_value("quant_telemetry_push_total", &[("result", result)]));
    let _ = writeln!(
        std::io::stderr(),
        "soak, {seconds} s: {stages} stages; gateway frozen {} times, stopped {}, restarted {}; pushes {} ok, {} \
         failed; resident {:.1} MiB after a quarter, {:.1} at the end, {:.1} at most; {threads_before} threads and \
         {handles_before} handles before and after",
        disruptions[0],
        disruptions[1],
        disruptions[2],
        pushes[0],
        pushes[1],
        mebibytes(first),
        mebibytes(last),
        mebibytes(peak),
    );

    for (thread, counts) in counts.iter().enumerate() {
        let (outer, inner) = (format!("t{thread}"), format!("t{thread}.inner"));
        let total = |stage: &str, status| job_value("quant_stage_total", &[("stage_id", stage), ("status", status)]);
        assert_eq!(total(&outer, "success"), (counts.outer - counts.failed) as f64, "{outer}");
        assert_eq!(total(&outer, "failure"), counts.failed as f64, "{outer}");
        assert_eq!((total(&inner, "success"), total(&inner, "failure")), (counts.inner as f64, 0.0), "{inner}");
        for (stage, runs) in [(&outer, counts.outer), (&inner, counts.inner)] {
            let labels = [("stage_id", stage.as_str()), ("profile", "soak"), ("run_id", "1")];
            assert_eq!(job_value("quant_stage_duration_seconds_count", &labels), runs as f64, "{stage}");
            assert_eq!(job_value("quant_stage_active", &labels[..2]), 0.0, "{stage}");
            let total = |status| {
                let labels = [&labels[..2], &[("status", status)]].concat();
                job_value("quant_stage_runs_total", &labels)
            };
            assert_eq!((total("success") + total("failure")) as u64, runs, "{stage}");
            assert!(job_value("quant_stage_run_seconds_total", &labels[..2]) > 0.0, "{stage}");
        }
        assert!(counts.outer >= 50, "thread {thread} did too little work");
    }
    let inner: u64 = counts.iter().map(|counts| counts.inner).sum();
    assert_eq!(job_value("rows_total", &[]), 3.0 * inner as f64);
    assert!(
        last < first + MAX_GROWTH,
        "{:.1} MiB after a quarter, {:.1} at the end",
        mebibytes(first),
        mebibytes(last)
    );
    assert!(
        peak < first + 2 * MAX_GROWTH,
        "{:.1} MiB after a quarter, {:.1} at most",
        mebibytes(first),
        mebibytes(peak)
    );
    assert_eq!(entries(spool.path().to_str().unwrap()), 0, "the spool is empty");

    // Outage and recovery alternate: the same message never comes twice in a row.
    let warnings = log.own();
    for (number, text) in warnings.iter().enumerate() {
        let expected = ["metrics are not delivered", "metrics are delivered again"][number % 2];
        assert!(text.starts_with(expected), "{number}: {warnings:#?}");
    }
    assert!(
        disruptions.iter().sum::<u32>() > 0 && pushes[1] > 0.0,
        "the gateway was never down: {disruptions:?}, {pushes:?}"
    );
}
