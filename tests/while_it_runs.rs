//! While the job runs: what is pushed and when, what the process uses, and what the application's log is spared.
#![cfg(feature = "pushgateway")]
#![allow(clippy::unwrap_used)]

mod support;

use std::hint::black_box;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::child::{self, Running};
use support::exposition::{self, Exposition};
use support::log::{Log, OWN_TARGET};
use support::measured::{Measured, measured, stage};
use support::mock_gateway::{Answer, Request};
use support::{MockGateway, Reply};
use tracing::info_span;
use tracing_stage_metrics::{MetricsLayer, MetricsLayerBuilder, Pushgateway};
use tracing_subscriber::prelude::*;

const HOUR: Duration = Duration::from_secs(3_600);

fn builder(url: &str) -> MetricsLayerBuilder {
    MetricsLayer::builder().with_pushgateway(Pushgateway::new(url, "j").unwrap()).with_push_interval(HOUR)
}

fn parsed(request: &Request) -> Exposition {
    exposition::parse(request.text())
}

#[test]
fn the_first_push_goes_out_at_install_and_makes_nobody_wait() {
    let server = MockGateway::start([Reply::Silent]);
    let begun = Instant::now();
    let builder = builder(&server.url()).with_flush_timeout(Duration::from_millis(200));
    let Measured { guard: _guard, log: _, default: _default } = measured(builder);
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    let first = parsed(&server.await_requests(1)[0]);
    assert!(first.expect("quant_run_start_timestamp_seconds", &[]) > 1.7e9);
    assert!(first.family("quant_run_last_completion_timestamp_seconds").is_none());
}

#[test]
fn pushes_follow_the_interval_and_what_changes() {
    const INTERVAL: Duration = Duration::from_millis(100);
    let server = MockGateway::ok();
    let builder = builder(&server.url()).with_push_interval(INTERVAL);
    let Measured { guard, log, default: _default } = measured(builder);
    let active = |found: &Exposition| found.value("quant_stage_active", &[("stage_id", "a"), ("profile", "")]);
    let pushed =
        |wanted: &dyn Fn(&Exposition) -> bool| parsed(&server.await_request(|request| wanted(&parsed(request))));

    let open = info_span!("s", stage_id = "a");
    let found = pushed(&|found| active(found) == Some(1.0));
    assert_eq!(found.expect("quant_stage_total", &[("stage_id", "a"), ("status", "success")]), 0.0);
    drop(open);
    let found = pushed(&|found| active(found) == Some(0.0));
    assert_eq!(found.expect("quant_stage_total", &[("stage_id", "a"), ("status", "success")]), 1.0);
    stage("b");
    pushed(&|found| found.value("quant_stage_total", &[("stage_id", "b"), ("status", "success")]) == Some(1.0));

    let (before, begun) = (server.requests().len(), Instant::now());
    server.await_requests(before + 5);
    // Five pushes are four intervals and a part of one; nothing comes sooner than its time.
    assert!(begun.elapsed() >= INTERVAL * 4 - Duration::from_millis(20), "{:?}", begun.elapsed());
    guard.shutdown().unwrap();
    let counts: Vec<f64> = server
        .requests()
        .iter()
        .map(|request| parsed(request).expect("quant_telemetry_push_total", &[("result", "success")]))
        .collect();
    // The last state is made before the push that may be in flight has ended, and does not have that one's count.
    let (last, counts) = counts.split_last().unwrap();
    assert_eq!(counts, (0..counts.len()).map(|push| push as f64).collect::<Vec<_>>(), "one after the other");
    let sent = counts.len() as f64;
    assert!([sent, sent - 1.0].contains(last), "{last} after {sent}");
    assert_eq!(log.own(), [""; 0]);
}

#[test]
fn a_gateway_that_restarts_gets_the_next_push_and_both_are_told_once() {
    let Some(mut server) = support::pushgateway() else { return };
    let builder = builder(&server.url()).with_push_interval(Duration::from_millis(100));
    let Measured { guard, log, default: _default } = measured(builder);
    guard.flush().unwrap();
    stage("a");
    server.stop();
    let said = |begin: &str| log.own().iter().filter(|text| text.starts_with(begin)).count();
    await_true(|| said("metrics are not delivered") == 1);
    server.restart();
    await_true(|| said("metrics are delivered again") == 1);
    let scraped = exposition::parse(&server.metrics());
    let labels = [("instance", ""), ("job", "j"), ("stage_id", "a"), ("status", "success")];
    assert_eq!(scraped.expect("quant_stage_total", &labels), 1.0, "it lost its memory and has all again");
    guard.shutdown().unwrap();
    assert_eq!(log.own().len(), 2, "{:?}", log.own());
    // Refused, or cut off in the middle of a request: that depends on the moment.
    assert!(log.own()[0].contains(&server.url()), "it is named: {:?}", log.own());
}

/// Waits for what happens on another thread.
#[track_caller]
fn await_true(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + support::PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "it did not come true in {:?}", support::PATIENCE);
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(feature = "resource-usage")]
fn usage(found: &Exposition, resource: &str) -> f64 {
    let samples = found.matching("quant_engine_resource_usage", &[("resource_type", resource)]);
    assert_eq!(samples.len(), 1, "{resource}");
    samples[0].value
}

#[test]
#[cfg(feature = "resource-usage")]
fn the_first_push_has_the_resources_already() {
    let server = MockGateway::ok();
    let Measured { guard: _guard, log: _, default: _default } = measured(builder(&server.url()));
    let first = parsed(&server.await_requests(1)[0]);
    let (cpu, memory) = (usage(&first, "cpu"), usage(&first, "mem"));
    let cores = std::thread::available_parallelism().unwrap().get() as f64;
    assert!(cpu > 0.0 && cpu <= cores * 1.5, "{cpu} of {cores} cores");
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    let resident = status.split(' ').nth(1).unwrap().parse::<f64>().unwrap() * 4096.0;
    assert!(memory > resident / 4.0 && memory < resident * 4.0, "{memory} {resident}");
}

#[test]
#[cfg(feature = "resource-usage")]
fn resources_are_never_shown_as_zero() {
    for _ in 0..50 {
        let (_layer, guard) = MetricsLayer::builder().build().unwrap();
        // From the first look on. A sample that is being taken at this moment is missing in it.
        await_true(|| {
            let found = exposition::parse(&guard.render());
            let samples = found.matching("quant_engine_resource_usage", &[("resource_type", "mem")]);
            assert!(samples.iter().all(|sample| sample.value > 1e6), "{samples:?}");
            samples.len() == 1
        });
    }
}

/// Not a test: what the children of the tests below do.
#[test]
fn scenarios() {
    let Some(scenario) = child::scenario() else { return };
    let builder = MetricsLayer::builder().with_env().unwrap().with_push_interval(Duration::from_millis(50));
    match scenario.as_str() {
        #[cfg(feature = "resource-usage")]
        "work" => {
            let builder = builder.with_resource_usage(Duration::from_millis(50));
            let (_layer, guard) = builder.install().unwrap();
            drop(black_box(vec![1_u8; 96 << 20]));
            burn(Duration::from_millis(300));
            guard.shutdown().unwrap();
        }
        "everything traced" => {
            let (layer, guard) = builder.install().unwrap();
            let log = Log::default();
            tracing_subscriber::registry().with(layer).with(log.clone()).init();
            stage("a");
            guard.flush().ok();
            // For pushes on the interval, and what is left of each on the delivery thread.
            std::thread::sleep(Duration::from_millis(300));
            tracing::info!("its own");
            drop(guard);
            println!("\nown events: {}", log.own().len());
            let foreign: Vec<_> = log.entries().into_iter().filter(|entry| entry.target != OWN_TARGET).collect();
            println!("foreign events: {}", foreign.len());
            for entry in foreign {
                println!("foreign: {} {}", entry.target, entry.text);
            }
        }
        unknown => panic!("no scenario {unknown}"),
    }
}

/// Uses the CPU for so long, on one thread, by the CPU's own clock.
#[cfg(feature = "resource-usage")]
fn burn(cpu: Duration) {
    let ticks = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
    };
    let begun = ticks();
    while ticks() - begun < cpu {
        black_box((0..10_000_u64).fold(0, |sum, n| black_box(sum ^ n)));
    }
}

#[test]
#[cfg(feature = "resource-usage")]
fn cpu_and_peak_memory_are_those_of_the_work() {
    let server = MockGateway::ok();
    let mut command = child::command("scenarios", "work");
    command.env("TV_PROMETHEUS_PUSHGATEWAY", server.url());
    let ended = child::start(command).wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let requests = server.requests();
    let last = parsed(requests.last().unwrap());
    let cpu = last.expect("quant_run_cpu_seconds", &[]);
    assert!((0.3..ended.elapsed.as_secs_f64() * 2.0).contains(&cpu), "{cpu} in {:?}", ended.elapsed);
    let peak = last.expect("quant_run_peak_memory_bytes", &[]);
    assert!((96e6..400e6).contains(&peak), "{peak}");
    assert!(usage(&last, "mem") < 96e6, "what was freed is in the peak alone");
    let busiest = requests.iter().map(|request| usage(&parsed(request), "cpu")).fold(0.0, f64::max);
    assert!(busiest > 0.2 && busiest < 3.0, "about one core: {busiest}");
}

/// Runs a job whose subscriber takes everything of every thread, with a push every 50 ms, and checks that it heard nothing
/// but the crate and the application. Returns how many words of the crate it heard.
#[track_caller]
fn assert_nothing_foreign(what: &str, running: Running) -> usize {
    let ended = running.wait();
    assert_eq!(ended.status.code(), Some(0), "{what}: {ended:?}");
    let foreign: Vec<_> = ended.stdout.lines().filter(|line| line.starts_with("foreign")).collect();
    assert_eq!(foreign, ["foreign events: 1", "foreign: while_it_runs its own"], "{what}: {}", ended.stdout);
    let own = ended.stdout.lines().find_map(|line| line.strip_prefix("own events: ")).unwrap();
    own.parse().unwrap()
}

fn everything_traced(url: &str) -> Command {
    let mut command = child::command("scenarios", "everything traced");
    command
        .env("TV_PROMETHEUS_PUSHGATEWAY", url)
        .env("TV_PROMETHEUS_JOB", "j")
        .env("TV_PROMETHEUS_FLUSH_TIMEOUT", "700ms");
    command
}

/// By address, by name (which is looked up on a thread of its own), refused, and failing.
#[test]
fn the_http_client_is_not_in_the_applications_log() {
    let server = MockGateway::ok();
    let port = server.addr().port();
    let (refusing, resetting) = (MockGateway::start([Reply::status(400)]), MockGateway::start([Reply::Reset]));
    for (url, own) in [
        (server.url(), false),
        (format!("http://localhost:{port}"), false),
        (refusing.url(), true),
        (resetting.url(), true),
        (support::free_addr().to_string(), true),
        ("nonexistent.invalid".to_owned(), true),
    ] {
        let told = assert_nothing_foreign(&url, child::start(everything_traced(&url)));
        // On a busy machine a push may take longer than the interval, which is told.
        assert!(told > 0 || !own, "{url}: {told}");
    }
    assert!(server.requests().len() > 8, "at install, on the interval, flush and end, twice");
}

/// What a broken answer leaves of its connection is no reason to talk either, nor is a request that is given up.
#[test]
fn a_broken_answer_leaves_nothing_in_the_applications_log() {
    let broken = [
        Reply::Raw(""),
        Reply::Raw("SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"),
        Reply::Raw("HTTP/1.1 200 OK\r\nContent-Le"),
        Reply::Raw("HTTP/1.1 2000 OK\r\n\r\n"),
        Reply::Raw("HTTP/1.1 200 OK\r\nContent-Length: some\r\n\r\n"),
        Reply::Raw("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok, and more than it said"),
        Reply::Raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n"),
        Reply::Raw("HTTP/1.1 503 Out Of Order\r\nContent-Length: 1000\r\n\r\ncut off"),
        Reply::Endless,
        Reply::Silent,
        Reply::Trickled(Answer::new(200), Duration::from_millis(50)),
    ];
    let at_work: Vec<_> = broken
        .into_iter()
        .map(|reply| {
            let server = MockGateway::start([reply.clone()]);
            let running = child::start(everything_traced(&server.url()));
            (reply, server, running)
        })
        .collect();
    for (reply, server, running) in at_work {
        assert_nothing_foreign(&format!("{reply:?}"), running);
        assert!(server.requests().len() > 1, "{reply:?}");
    }
}

/// A replay that is given up for a push of the run's own.
#[test]
fn a_replay_leaves_nothing_in_the_applications_log() {
    let spool = tempfile::tempdir().unwrap();
    let of_a_replay = |request: &Request| request.method == "GET";
    // A payload is delivered to its own gateway only. The first run is refused.
    let to_replays = Arc::new(Mutex::new(None::<Reply>));
    let answer = Arc::clone(&to_replays);
    let server = MockGateway::start_by(move |request| match answer.lock().unwrap().clone() {
        None => Reply::status(401),
        Some(reply) if of_a_replay(request) => reply,
        Some(_) => Reply::ok(),
    });
    let Measured { guard, log: _, default } = measured(builder(&server.url()).with_spool_dir(spool.path()));
    stage("left");
    guard.shutdown().unwrap_err();
    drop(default);
    let broken = Reply::Raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n");
    for reply in [Reply::Silent, Reply::Endless, broken] {
        let told = format!("{reply:?}");
        *to_replays.lock().unwrap() = Some(reply);
        let before = server.requests().len();
        let mut command = everything_traced(&server.url());
        command.env("TV_PROMETHEUS_SPOOL_DIR", spool.path()).env("TV_PROMETHEUS_JOB", "other");
        assert_nothing_foreign(&told, child::start(command));
        assert!(server.requests()[before..].iter().any(of_a_replay), "{told}");
    }
}
