//! Stages from several threads while the gateway goes away and comes back at random: the counts are exact at the end,
//! and nothing grows or is left over.
//!
//! A few seconds of it by default; `TSM_SOAK_SECONDS=900` for the long one. The figures go to stderr.
#![cfg(all(feature = "pushgateway", unix))]
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use support::log::Log;
use support::random::Random;
use support::{PATIENCE, exposition, servers};
use tracing_stage_metrics::{MetricsLayer, Pushgateway};
use tracing_subscriber::prelude::*;

const THREADS: usize = 4;
const DEFAULT_SECONDS: u64 = 8;
/// How much more memory may be resident at the end than after a quarter of the time.
const GROWTH: u64 = 6 << 20;
const SEED: u64 = 0x5eed;

/// What a process has: the threads and file handles it holds, and its resident memory.
fn entries(directory: &str) -> usize {
    fs::read_dir(directory).unwrap().count()
}

fn threads() -> usize {
    entries("/proc/self/task")
}

/// What the open file handles lead to.
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

/// What one thread did.
#[derive(Clone, Copy, Default)]
struct Done {
    outer: u64,
    failed: u64,
    inner: u64,
}

/// A stage within a stage, over and over; every seventh fails.
fn work(thread: usize, over: &AtomicBool) -> Done {
    let (outer, inner) = (format!("t{thread}"), format!("t{thread}.inner"));
    let mut done = Done::default();
    while !over.load(Ordering::Relaxed) {
        for _ in 0..50 {
            let span = tracing::info_span!("outer", stage_id = outer, profile = "soak", run_id = "1");
            span.in_scope(|| {
                tracing::info_span!("inner", stage_id = inner)
                    .in_scope(|| metrics::counter!("rows_total").increment(3));
                if done.outer % 7 == 6 {
                    tracing::error!("as told");
                    done.failed += 1;
                }
            });
            done.outer += 1;
            done.inner += 1;
        }
        // Leaves the others some of the processor.
        std::thread::sleep(Duration::from_micros(500));
    }
    done
}

/// Takes the gateway away and brings it back, until the time is over. It is there at the end.
fn take_away_and_bring_back(server: &mut support::Pushgateway, random: &mut Random, end: Instant) -> [u32; 3] {
    let mut times = [0; 3];
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
        times[action] += 1;
    }
    times
}

#[track_caller]
fn await_true(condition: impl Fn() -> bool, what: impl Fn() -> String) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in {PATIENCE:?}: {}", what());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The only test of this binary: it counts the threads and handles of the process.
#[test]
fn counts_are_exact_and_nothing_grows_whatever_the_gateway_does() {
    if !servers::installed(servers::PUSHGATEWAY) {
        return;
    }
    let seconds = std::env::var("TSM_SOAK_SECONDS").map_or(DEFAULT_SECONDS, |text| text.parse().unwrap());
    let duration = Duration::from_secs(seconds);
    let threads_at_first = threads();
    let mut server = support::Pushgateway::start();
    let spool = tempfile::tempdir().unwrap();
    // What a runtime makes once in a process, the socket for its signals for one, is no leak.
    let (_layer, first) = MetricsLayer::builder().build().unwrap();
    first.shutdown().unwrap();
    await_true(|| threads() == threads_at_first, || format!("no thread is left: {} of {threads_at_first}", threads()));
    let (threads_before, handles_before) = (threads(), handles().len());

    let (layer, guard) = MetricsLayer::builder()
        .with_pushgateway(Pushgateway::new(server.url(), "soak").unwrap())
        .with_push_interval(Duration::from_millis(100))
        .with_flush_timeout(Duration::from_secs(20))
        .with_spool_dir(spool.path())
        .with_flush_on_signals()
        .install()
        .unwrap();
    let log = Log::default();
    let own = tracing_subscriber::filter::filter_fn(|metadata| metadata.target() == support::log::OWN_TARGET);
    tracing_subscriber::registry().with(layer).with(log.clone().with_filter(own)).init();

    let (over, mut random, begun) = (AtomicBool::new(false), Random::new(SEED), Instant::now());
    let (done, memory, times) = std::thread::scope(|scope| {
        let over = &over;
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || work(thread, over))).collect();
        let memory = scope.spawn(move || {
            let mut memory = Vec::new();
            while !over.load(Ordering::Relaxed) {
                memory.push((begun.elapsed(), resident_bytes()));
                std::thread::sleep(duration / 100);
            }
            memory
        });
        let times = take_away_and_bring_back(&mut server, &mut random, begun + duration);
        over.store(true, Ordering::Relaxed);
        let done: Vec<Done> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        (done, memory.join().unwrap(), times)
    });
    guard.shutdown().unwrap();
    await_true(|| threads() == threads_before, || format!("no thread is left: {} of {threads_before}", threads()));
    await_true(|| handles().len() == handles_before, || format!("no file handle is left: {:?}", handles()));

    let settled = memory.iter().filter(|(at, _)| *at >= duration / 4).map(|(_, bytes)| *bytes);
    let (first, last, most) =
        (settled.clone().next().unwrap(), settled.clone().next_back().unwrap(), settled.max().unwrap());
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let stages: u64 = done.iter().map(|done| done.outer + done.inner).sum();
    let found = exposition::parse(&server.metrics());
    let of_job = |name: &str, labels: &[(&str, &str)]| {
        found.expect(name, &[labels, &[("instance", ""), ("job", "soak")]].concat())
    };
    let pushes = ["success", "failure"].map(|result| of_job("quant_telemetry_push_total", &[("result", result)]));
    let _ = writeln!(
        std::io::stderr(),
        "soak, {seconds} s: {stages} stages; gateway frozen {} times, stopped {}, restarted {}; pushes {} ok, {} \
         failed; resident {:.1} MiB after a quarter, {:.1} at the end, {:.1} at most; {threads_before} threads and \
         {handles_before} handles before and after",
        times[0],
        times[1],
        times[2],
        pushes[0],
        pushes[1],
        mebibytes(first),
        mebibytes(last),
        mebibytes(most),
    );

    for (thread, done) in done.iter().enumerate() {
        let (outer, inner) = (format!("t{thread}"), format!("t{thread}.inner"));
        let total = |stage: &str, status| of_job("quant_stage_total", &[("stage_id", stage), ("status", status)]);
        assert_eq!(total(&outer, "success"), (done.outer - done.failed) as f64, "{outer}");
        assert_eq!(total(&outer, "failure"), done.failed as f64, "{outer}");
        assert_eq!((total(&inner, "success"), total(&inner, "failure")), (done.inner as f64, 0.0), "{inner}");
        for (stage, runs) in [(&outer, done.outer), (&inner, done.inner)] {
            let labels = [("stage_id", stage.as_str()), ("profile", "soak"), ("run_id", "1")];
            assert_eq!(of_job("quant_stage_duration_seconds_count", &labels), runs as f64, "{stage}");
            assert_eq!(of_job("quant_stage_active", &labels[..2]), 0.0, "{stage}");
        }
        assert!(done.outer >= 50, "thread {thread} did not come to work");
    }
    let inner: u64 = done.iter().map(|done| done.inner).sum();
    assert_eq!(of_job("rows_total", &[]), 3.0 * inner as f64);
    assert!(last < first + GROWTH, "{:.1} MiB after a quarter, {:.1} at the end", mebibytes(first), mebibytes(last));
    assert!(most < first + 2 * GROWTH, "{:.1} MiB after a quarter, {:.1} at most", mebibytes(first), mebibytes(most));
    assert_eq!(entries(spool.path().to_str().unwrap()), 0, "the spool is empty");

    // Lost, back, lost, back: never the same word twice in a row.
    let said = log.own();
    for (number, text) in said.iter().enumerate() {
        let expected = ["metrics are not delivered", "metrics are delivered again"][number % 2];
        assert!(text.starts_with(expected), "{number}: {said:#?}");
    }
    assert!(times.iter().sum::<u32>() > 0 && pushes[1] > 0.0, "the gateway was never away: {times:?}, {pushes:?}");
}
