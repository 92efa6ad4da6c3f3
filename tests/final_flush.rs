//! The final flush behind other pushes: it waits for a push in flight or aborts it, gives up early where no gateway
//! listens, and never changes the exit code.
#![cfg(feature = "pushgateway")]
#![allow(clippy::unwrap_used)]

mod support;

use std::thread;
use std::time::{Duration, Instant};

use support::child;
use support::exposition;
use support::measured::{Measured, measured, stage};
use support::mock_gateway::Answer;
use support::{MockGateway, Reply, free_addr};
use tracing_stage_metrics::{MetricsLayer, MetricsLayerBuilder, Pushgateway};

const LONG_TIMEOUT: Duration = Duration::from_secs(30);
/// The time of a final flush where no gateway listens, with an allowance for a busy machine.
const SHORT: Duration = Duration::from_millis(2_000);

fn builder(url: &str) -> MetricsLayerBuilder {
    MetricsLayer::builder()
        .with_pushgateway(Pushgateway::new(url, "j").unwrap())
        .with_push_interval(Duration::from_secs(3_600))
        .with_flush_timeout(LONG_TIMEOUT)
}

#[test]
fn final_flush_gives_up_early_where_no_gateway_listens() {
    let Measured { guard, log: _, default: _default } = measured(builder(&free_addr().to_string()));
    stage("a");
    let start = Instant::now();
    let error = guard.shutdown().unwrap_err();
    assert!(start.elapsed() < SHORT, "{:?}", start.elapsed());
    assert!(!error.is_timeout() && !error.is_refused(), "{error:?}");
    assert!(error.to_string().contains("no server answers there"), "{error}");
}

/// The first push has succeeded, so that no push is in flight.
#[test]
fn final_flush_gives_up_early_after_the_gateway_has_stopped() {
    let Some(mut server) = support::pushgateway() else { return };
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url()));
    guard.flush().unwrap();
    server.stop();
    let start = Instant::now();
    let error = guard.shutdown().unwrap_err();
    assert!(start.elapsed() < SHORT, "{:?}", start.elapsed());
    assert!(!error.is_timeout() && !error.is_refused(), "{error:?}");
}

/// The first push is in its retries, and its error is the cause.
#[test]
fn timed_out_flush_has_the_cause_of_the_last_attempt() {
    let url = free_addr().to_string();
    let timeout = Duration::from_millis(700);
    let Measured { guard, log: _, default: _default } = measured(builder(&url).with_flush_timeout(timeout));
    let error = guard.flush().unwrap_err();
    assert!(format!("{error:?}").contains("no server answers there"), "{error:?}");
}

/// Between two attempts there is no request to wait for.
#[test]
fn push_in_its_backoff_does_not_delay_the_final_flush() {
    let pause = Reply::Answer(Answer::new(429).with_header("Retry-After", "20"));
    let server = MockGateway::start([pause, Reply::ok()]);
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url()));
    server.await_requests(1);
    stage("a");
    let start = Instant::now();
    guard.shutdown().unwrap();
    assert!(start.elapsed() < SHORT, "{:?}", start.elapsed());
    assert_has_stage(&server);
}

#[track_caller]
fn assert_has_stage(server: &MockGateway) {
    let last = exposition::parse(server.requests().last().unwrap().text());
    assert_eq!(last.expect("quant_stage_total", &[("stage_id", "a"), ("status", "success")]), 1.0);
    assert!(last.expect("quant_run_duration_seconds", &[]) > 0.0);
}

/// The request timeout of the push in flight is longer than the flush timeout.
#[test]
fn async_flush_behind_a_push_in_flight_keeps_its_timeout() {
    let server = MockGateway::start([Reply::Silent]);
    let timeout = Duration::from_millis(500);
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url()).with_flush_timeout(timeout));
    server.await_requests(1);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let start = Instant::now();
    let error = runtime.block_on(guard.flush_async()).unwrap_err();
    assert!(start.elapsed() < SHORT, "{:?}", start.elapsed());
    assert!(error.is_timeout(), "{error}");
}

#[test]
fn final_flush_aborts_a_push_without_an_answer() {
    let server = MockGateway::start([Reply::Held(Answer::new(200)), Reply::ok()]);
    let timeout = Duration::from_secs(2);
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url()).with_flush_timeout(timeout));
    server.await_requests(1);
    stage("a");
    let start = Instant::now();
    let ending = std::thread::spawn(move || guard.shutdown());
    server.await_requests(2);
    let second = Instant::now();
    server.await_requests(3);
    // The gateway may still apply the first push after the second, which is therefore sent again a little later.
    assert!(second.elapsed() > Duration::from_millis(100), "{:?}", second.elapsed());
    ending.join().unwrap().unwrap();
    assert!(start.elapsed() < timeout, "{:?}", start.elapsed());
    let requests = server.requests();
    assert_eq!(requests.len(), 3);
    let [last, again] = [1, 2].map(|n| exposition::parse(requests[n].text()));
    let run_duration = |push: &exposition::Exposition| push.expect("quant_run_duration_seconds", &[]);
    assert_eq!(run_duration(&last), run_duration(&again));
    assert_eq!(last.expect("quant_telemetry_push_total", &[("result", "failure")]), 1.0, "the aborted push");
    assert_has_stage(&server);
}

#[test]
fn final_flush_waits_for_a_push_in_flight() {
    let server = MockGateway::start([Reply::Held(Answer::new(200)), Reply::ok()]);
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url()));
    server.await_requests(1);
    stage("a");
    let ending = std::thread::spawn(move || {
        let start = Instant::now();
        guard.shutdown().unwrap();
        start.elapsed()
    });
    server.release();
    let elapsed = ending.join().unwrap();
    assert!(elapsed < SHORT, "{elapsed:?}");
    assert_eq!(server.requests().len(), 2);
    assert_has_stage(&server);
}

/// A flush requested during a push delivers the values recorded since the start of that push.
#[test]
fn flush_behind_a_push_in_flight_delivers_the_last_value() {
    let server = MockGateway::start([Reply::Held(Answer::new(200)), Reply::ok()]);
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url()));
    server.await_requests(1);
    stage("a");
    let flush = std::thread::spawn(move || {
        let result = guard.flush();
        (guard, result)
    });
    server.release();
    let (_guard, flushed) = flush.join().unwrap();
    flushed.unwrap();
    let last = exposition::parse(server.requests().last().unwrap().text());
    assert_eq!(last.expect("quant_stage_total", &[("stage_id", "a"), ("status", "success")]), 1.0);
}

/// The text file does not wait for the network.
#[test]
fn silent_gateway_does_not_delay_the_text_file() {
    let server = MockGateway::start([Reply::Silent]);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("job.prom");
    let timeout = Duration::from_millis(700);
    let built = builder(&server.url()).with_flush_timeout(timeout).with_textfile(&path);
    let Measured { guard, log: _, default: _default } = measured(built);
    stage("a");
    assert!(guard.shutdown().unwrap_err().is_timeout());
    let file = exposition::parse(&std::fs::read_to_string(&path).unwrap()).without(&[("job", "j")]);
    assert_eq!(file.expect("quant_stage_total", &[("stage_id", "a"), ("status", "success")]), 1.0);
    assert!(file.expect("quant_run_last_completion_timestamp_seconds", &[]) > 0.0);
}

/// Not a test: the scenarios of the child processes.
#[test]
fn scenarios() {
    let Some(scenario) = child::scenario() else { return };
    let builder = MetricsLayer::builder().with_env().unwrap().with_flush_timeout(Duration::from_millis(700));
    let Measured { guard, log: _, default: _default } = measured(builder);
    stage("a");
    match scenario.as_str() {
        "return" => {}
        "finish" => assert!(guard.finish(Err::<(), _>("its own error")).is_err()),
        "exit 0" => guard.exit(0),
        "exit 3" => guard.exit(3),
        "panic" => panic!("on purpose"),
        unknown => panic!("unknown scenario: {unknown}"),
    }
}

#[test]
fn failing_gateways_keep_the_exit_code_and_the_timeout() {
    let silent = MockGateway::start([Reply::Silent]);
    let refusing = MockGateway::start([Reply::status(400)]);
    let urls = [silent.url(), refusing.url(), free_addr().to_string(), "nonexistent.invalid".to_owned()];
    for url in urls {
        for (scenario, code) in [("return", 0), ("finish", 0), ("exit 0", 0), ("exit 3", 3), ("panic", 101)] {
            let mut command = child::command("scenarios", scenario);
            command.env("TV_PROMETHEUS_PUSHGATEWAY", &url);
            let ended = child::start(command).wait();
            assert_eq!(ended.status.code(), Some(code), "{url}: {ended:?}");
            assert!(ended.elapsed < Duration::from_millis(2_500), "{url} {scenario}: {:?}", ended.elapsed);
        }
    }
}

/// One push answers every flush that was waiting when it started.
#[test]
#[cfg(target_os = "linux")]
fn concurrent_flushes_share_a_push() {
    const NAME: &str = "flushes";
    const COUNT: usize = 32;
    let server = MockGateway::start([Reply::ok(), Reply::Held(Answer::new(200)), Reply::ok()]);
    let Measured { guard, log: _log, default: _default } = measured(builder(&server.url()));
    server.await_requests(1);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| guard.flush());
        server.await_requests(2);
        stage("a");
        let flush = || std::thread::Builder::new().name(NAME.to_owned()).spawn_scoped(scope, || guard.flush()).unwrap();
        let flushes: Vec<_> = (0..COUNT).map(|_| flush()).collect();
        // A thread that sleeps has requested its flush and waits for the answer.
        let deadline = Instant::now() + support::WAIT_TIMEOUT;
        while sleeping(NAME) < COUNT {
            assert!(Instant::now() < deadline, "{} of {COUNT} threads wait", sleeping(NAME));
            std::thread::yield_now();
        }
        server.release();
        first.join().unwrap().unwrap();
        for flush in flushes {
            flush.join().unwrap().unwrap();
        }
    });
    let requests = server.requests();
    assert_eq!(requests.len(), 3, "one push at install, the held one, and one for all waiting flushes");
    let last = exposition::parse(requests.last().unwrap().text());
    assert_eq!(last.expect("quant_stage_total", &[("stage_id", "a"), ("status", "success")]), 1.0);
}

/// The number of sleeping threads with this name.
#[cfg(target_os = "linux")]
fn sleeping(name: &str) -> usize {
    let stat = |task: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(task.unwrap().path().join("stat"));
    // `4711 (name) S …`; a thread may end before its file is read.
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().filter_map(|task| stat(task).ok());
    tasks.filter(|stat| stat.contains(&format!(" ({name}) S "))).count()
}

#[test]
fn run_handle_flushes_reads_and_fails_from_another_thread() {
    let Some(server) = support::pushgateway() else { return };
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url()));
    stage("a");
    let handle = guard.handle();
    let read = move || {
        handle.flush().unwrap();
        handle.fail();
        (handle.render(), handle.report())
    };
    let (rendered, report) = thread::spawn(read).join().unwrap();
    let success = [("stage_id", "a"), ("status", "success")];
    let pushed = exposition::parse(&server.metrics());
    assert_eq!(pushed.expect("quant_stage_total", &[&success[..], &[("job", "j"), ("instance", "")]].concat()), 1.0);
    assert_eq!(exposition::parse(&rendered).expect("quant_stage_total", &success), 1.0);
    assert_eq!(report.stage("a").unwrap().runs(), 1);
    guard.shutdown().unwrap();
    let last = exposition::parse(&server.metrics());
    assert!(last.family("quant_run_last_completion_timestamp_seconds").is_some());
    assert!(last.family("quant_run_last_success_timestamp_seconds").is_none(), "the handle made the run a failure");
}

#[test]
fn run_handle_only_reads_after_the_final_flush() {
    let gateway = MockGateway::ok();
    let Measured { guard, log: _, default: _default } = measured(builder(&gateway.url()));
    stage("a");
    let handle = guard.handle();
    drop(guard);
    let requests = gateway.requests().len();
    let last = handle.render();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for error in [handle.flush().unwrap_err(), runtime.block_on(handle.flush_async()).unwrap_err()] {
        assert_eq!(error.to_string(), "the run has ended: its final flush was the last delivery");
    }
    handle.fail();
    stage("a");
    assert_eq!(handle.render(), last);
    assert_eq!(handle.report().stage("a").unwrap().runs(), 1);
    assert_eq!(gateway.requests().len(), requests);
}
