//! A running job: contents and times of its pushes, its resource usage, and no foreign events in the application's
//! log.
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

fn parse(request: &Request) -> Exposition {
    exposition::parse(request.text())
}

#[test]
fn first_push_goes_out_at_install_without_blocking() {
    let server = MockGateway::start([Reply::Silent]);
    let start = Instant::now();
    let builder = builder(&server.url()).with_flush_timeout(Duration::from_millis(200));
    let Measured { guard: _guard, log: _, default: _default } = measured(builder);
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
    let first = parse(&server.await_requests(1)[0]);
    assert!(first.expect("quant_run_start_timestamp_seconds", &[]) > 1.7e9);
    assert!(first.family("quant_run_last_completion_timestamp_seconds").is_none());
}

#[test]
fn pushes_follow_the_interval_and_carry_changes() {
    const INTERVAL: Duration = Duration::from_millis(100);
    let server = MockGateway::ok();
    let builder = builder(&server.url()).with_push_interval(INTERVAL);
    let Measured { guard, log, default: _default } = measured(builder);
    let active =
        |exposition: &Exposition| exposition.value("quant_stage_active", &[("stage_id", "a"), ("profile", "")]);
    let pushed = |wanted: &dyn Fn(&Exposition) -> bool| parse(&server.await_request(|request| wanted(&parse(request))));

    let open = info_span!("s", stage_id = "a");
    let exposition = pushed(&|exposition| active(exposition) == Some(1.0));
    assert_eq!(exposition.expect("quant_stage_total", &[("stage_id", "a"), ("status", "success")]), 0.0);
    drop(open);
    let exposition = pushed(&|exposition| active(exposition) == Some(0.0));
    assert_eq!(exposition.expect("quant_stage_total", &[("stage_id", "a"), ("status", "success")]), 1.0);
    stage("b");
    pushed(&|exposition| {
        exposition.value("quant_stage_total", &[("stage_id", "b"), ("status", "success")]) == Some(1.0)
    });

    let (before, start) = (server.requests().len(), Instant::now());
    server.await_requests(before + 5);
    // Five pushes span at least four intervals: no push comes early.
    assert!(start.elapsed() >= INTERVAL * 4 - Duration::from_millis(20), "{:?}", start.elapsed());
    guard.shutdown().unwrap();
    let counts: Vec<f64> = server
        .requests()
        .iter()
        .map(|request| parse(request).expect("quant_telemetry_push_total", &[("result", "success")]))
        .collect();
    // The final state is rendered before a push in flight has ended, so it may miss that push.
    let (last, counts) = counts.split_last().unwrap();
    assert_eq!(counts, (0..counts.len()).map(|push| push as f64).collect::<Vec<_>>(), "one push after another");
    let sent = counts.len() as f64;
    assert!([sent, sent - 1.0].contains(last), "{last} after {sent}");
    assert_eq!(log.own(), [""; 0]);
}

#[test]
fn restarted_gateway_gets_the_next_push_and_each_change_is_logged_once() {
    let Some(mut server) = support::pushgateway() else { return };
    let builder = builder(&server.url()).with_push_interval(Duration::from_millis(100));
    let Measured { guard, log, default: _default } = measured(builder);
    guard.flush().unwrap();
    stage("a");
    server.stop();
    let count_of_events = |prefix: &str| log.own().iter().filter(|text| text.starts_with(prefix)).count();
    await_true(|| count_of_events("metrics are not delivered") == 1);
    server.restart();
    await_true(|| count_of_events("metrics are delivered again") == 1);
    let exposition = exposition::parse(&server.metrics());
    let labels = [("instance", ""), ("job", "j"), ("stage_id", "a"), ("status", "success")];
    assert_eq!(exposition.expect("quant_stage_total", &labels), 1.0, "the restarted gateway has everything again");
    guard.shutdown().unwrap();
    assert_eq!(log.own().len(), 2, "{:?}", log.own());
    // Depending on the moment, the connection is refused or closed within a request.
    assert!(log.own()[0].contains(&server.url()), "the warning names the gateway: {:?}", log.own());
}

/// Waits for an effect of another thread or process.
#[track_caller]
fn await_true(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + support::WAIT_TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "the condition did not hold within {:?}", support::WAIT_TIMEOUT);
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(feature = "resource-usage")]
fn usage(exposition: &Exposition, resource: &str) -> f64 {
    let samples = exposition.matching("quant_engine_resource_usage", &[("resource_type", resource)]);
    assert_eq!(samples.len(), 1, "{resource}");
    samples[0].value
}

#[test]
#[cfg(feature = "resource-usage")]
fn first_push_has_resource_usage() {
    let server = MockGateway::ok();
    let Measured { guard: _guard, log: _, default: _default } = measured(builder(&server.url()));
    let first = parse(&server.await_requests(1)[0]);
    let (cpu, memory) = (usage(&first, "cpu"), usage(&first, "mem"));
    let cores = std::thread::available_parallelism().unwrap().get() as f64;
    assert!(cpu > 0.0 && cpu <= cores * 1.5, "{cpu} of {cores} cores");
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    let resident = status.split(' ').nth(1).unwrap().parse::<f64>().unwrap() * 4096.0;
    assert!(memory > resident / 4.0 && memory < resident * 4.0, "{memory} {resident}");
}

#[test]
#[cfg(feature = "resource-usage")]
fn resource_usage_is_never_zero() {
    for _ in 0..50 {
        let (_layer, guard) = MetricsLayer::builder().build().unwrap();
        // Holds from the first render on. A sample that is being taken is absent.
        await_true(|| {
            let exposition = exposition::parse(&guard.render());
            let samples = exposition.matching("quant_engine_resource_usage", &[("resource_type", "mem")]);
            assert!(samples.iter().all(|sample| sample.value > 1e6), "{samples:?}");
            samples.len() == 1
        });
    }
}

/// Entry point of the child processes; does nothing in an ordinary test run.
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
            burn_cpu(Duration::from_millis(300));
            guard.shutdown().unwrap();
        }
        "everything traced" => {
            let (layer, guard) = builder.install().unwrap();
            let log = Log::default();
            tracing_subscriber::registry().with(layer).with(log.clone()).init();
            stage("a");
            guard.flush().ok();
            // Time for pushes on the interval, and for remaining events of the delivery thread.
            std::thread::sleep(Duration::from_millis(300));
            tracing::info!("application event");
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

/// Uses this much CPU time on one thread.
#[cfg(feature = "resource-usage")]
fn burn_cpu(cpu: Duration) {
    let ticks = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
    };
    let start = ticks();
    while ticks() - start < cpu {
        black_box((0..10_000_u64).fold(0, |sum, n| black_box(sum ^ n)));
    }
}

#[test]
#[cfg(feature = "resource-usage")]
fn cpu_and_peak_memory_measure_the_work() {
    let server = MockGateway::ok();
    let mut command = child::command("scenarios", "work");
    command.env("TV_PROMETHEUS_PUSHGATEWAY", server.url());
    let ended = child::start(command).wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let requests = server.requests();
    let last = parse(requests.last().unwrap());
    let cpu = last.expect("quant_run_cpu_seconds", &[]);
    assert!((0.3..ended.elapsed.as_secs_f64() * 2.0).contains(&cpu), "{cpu} in {:?}", ended.elapsed);
    let peak = last.expect("quant_run_peak_memory_bytes", &[]);
    assert!((96e6..400e6).contains(&peak), "{peak}");
    assert!(usage(&last, "mem") < 96e6, "freed memory shows in the peak only");
    let busiest = requests.iter().map(|request| usage(&parse(request), "cpu")).fold(0.0, f64::max);
    assert!(busiest > 0.2 && busiest < 3.0, "about one core: {busiest}");
}

/// Waits for a job whose log records all threads at every level, with a push every 50 ms. Asserts that the log has
/// only events of the crate and the application; returns the number of the crate's.
#[track_caller]
fn assert_no_foreign_events(context: &str, running: Running) -> usize {
    let ended = running.wait();
    assert_eq!(ended.status.code(), Some(0), "{context}: {ended:?}");
    let foreign: Vec<_> = ended.stdout.lines().filter(|line| line.starts_with("foreign")).collect();
    assert_eq!(foreign, ["foreign events: 1", "foreign: running_job application event"], "{context}: {}", ended.stdout);
    let own = ended.stdout.lines().find_map(|line| line.strip_prefix("own events: ")).unwrap();
    own.parse().unwrap()
}

fn command_with_full_log(url: &str) -> Command {
    let mut command = child::command("scenarios", "everything traced");
    command
        .env("TV_PROMETHEUS_PUSHGATEWAY", url)
        .env("TV_PROMETHEUS_JOB", "j")
        .env("TV_PROMETHEUS_FLUSH_TIMEOUT", "700ms");
    command
}

/// By address, by name (resolved on a thread of its own), refused, and failing.
#[test]
fn http_client_events_stay_out_of_the_applications_log() {
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
        let own_events = assert_no_foreign_events(&url, child::start(command_with_full_log(&url)));
        // On a busy machine a push may exceed the interval, which the crate reports.
        assert!(own_events > 0 || !own, "{url}: {own_events}");
    }
    assert!(server.requests().len() > 8, "at install, on the interval, at the flush and at the end, for two URLs");
}

/// Neither the rest of a broken response nor a cancelled request may cause an event.
#[test]
fn broken_responses_log_nothing_foreign() {
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
    let jobs: Vec<_> = broken
        .into_iter()
        .map(|reply| {
            let server = MockGateway::start([reply.clone()]);
            let running = child::start(command_with_full_log(&server.url()));
            (reply, server, running)
        })
        .collect();
    for (reply, server, running) in jobs {
        assert_no_foreign_events(&format!("{reply:?}"), running);
        assert!(server.requests().len() > 1, "{reply:?}");
    }
}

/// A push of the run's own cancels the replay.
#[test]
fn replay_logs_nothing_foreign() {
    let spool = tempfile::tempdir().unwrap();
    let is_replay_query = |request: &Request| request.method == "GET";
    // A payload goes to its own gateway only, so one server plays both runs. It refuses the first.
    let reply_to_replays = Arc::new(Mutex::new(None::<Reply>));
    let shared_reply = Arc::clone(&reply_to_replays);
    let server = MockGateway::start_with(move |request| match shared_reply.lock().unwrap().clone() {
        None => Reply::status(401),
        Some(reply) if is_replay_query(request) => reply,
        Some(_) => Reply::ok(),
    });
    let Measured { guard, log: _, default } = measured(builder(&server.url()).with_spool_dir(spool.path()));
    stage("left");
    guard.shutdown().unwrap_err();
    drop(default);
    let broken = Reply::Raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n");
    for reply in [Reply::Silent, Reply::Endless, broken] {
        let context = format!("{reply:?}");
        *reply_to_replays.lock().unwrap() = Some(reply);
        let before = server.requests().len();
        let mut command = command_with_full_log(&server.url());
        command.env("TV_PROMETHEUS_SPOOL_DIR", spool.path()).env("TV_PROMETHEUS_JOB", "other");
        assert_no_foreign_events(&context, child::start(command));
        assert!(server.requests()[before..].iter().any(is_replay_query), "{context}");
    }
}
