//! The final flush and what is on its way when it comes: a hopeless push does not hold it, a push in flight is waited
//! for or aborted, and no ending changes the exit code.
#![cfg(feature = "pushgateway")]
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use support::child;
use support::exposition;
use support::measured::{Measured, measured, stage};
use support::mock_gateway::Answer;
use support::{MockGateway, Reply, free_addr};
use tracing_stage_metrics::{MetricsLayer, MetricsLayerBuilder, Pushgateway};

const LONG: Duration = Duration::from_secs(30);
/// How long the final flush tries where nobody listens, and what a busy machine may add.
const PATIENCE: Duration = Duration::from_millis(2_000);

fn builder(url: &str) -> MetricsLayerBuilder {
    MetricsLayer::builder()
        .with_pushgateway(Pushgateway::new(url, "j").unwrap())
        .with_push_interval(Duration::from_secs(3_600))
        .with_flush_timeout(LONG)
}

#[test]
fn where_nobody_listens_the_final_flush_gives_up_after_a_second() {
    let Measured { guard, log: _, default: _default } = measured(builder(&free_addr().to_string()));
    stage("a");
    let begun = Instant::now();
    let error = guard.shutdown().unwrap_err();
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    assert!(!error.is_timeout() && !error.is_refused(), "{error:?}");
    assert!(error.to_string().contains("no server answers there"), "{error}");
}

/// It was there when the first push came, so that no push is on its way.
#[test]
fn where_the_gateway_went_away_too() {
    let Some(mut server) = support::pushgateway() else { return };
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url()));
    guard.flush().unwrap();
    server.stop();
    let begun = Instant::now();
    let error = guard.shutdown().unwrap_err();
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    assert!(!error.is_timeout() && !error.is_refused(), "{error:?}");
}

/// The first push is being tried again meanwhile, and knows why it fails.
#[test]
fn a_flush_in_vain_says_why() {
    let url = free_addr().to_string();
    let timeout = Duration::from_millis(700);
    let Measured { guard, log: _, default: _default } = measured(builder(&url).with_flush_timeout(timeout));
    let error = guard.flush().unwrap_err();
    assert!(format!("{error:?}").contains("no server answers there"), "{error:?}");
}

/// Between two tries nothing is on its way, so there is nothing to wait for.
#[test]
fn a_push_that_waits_for_its_next_try_does_not_hold_the_final_flush() {
    let pause = Reply::Answer(Answer::new(429).with_header("Retry-After", "20"));
    let server = MockGateway::start([pause, Reply::ok()]);
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url()));
    server.await_requests(1);
    stage("a");
    let begun = Instant::now();
    guard.shutdown().unwrap();
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    assert_has_stage(&server);
}

#[track_caller]
fn assert_has_stage(server: &MockGateway) {
    let last = exposition::parse(server.requests().last().unwrap().text());
    assert_eq!(last.expect("quant_stage_total", &[("stage_id", "a"), ("status", "success")]), 1.0);
    assert!(last.expect("quant_run_duration_seconds", &[]) > 0.0);
}

/// The push in flight has the time of a request, which is longer than that of a flush.
#[test]
fn an_awaited_flush_behind_a_push_in_flight_ends_in_its_time() {
    let server = MockGateway::start([Reply::Silent]);
    let timeout = Duration::from_millis(500);
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url()).with_flush_timeout(timeout));
    server.await_requests(1);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let begun = Instant::now();
    let error = runtime.block_on(guard.flush_async()).unwrap_err();
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    assert!(error.is_timeout(), "{error}");
}

#[test]
fn a_push_in_flight_that_never_ends_is_aborted_and_the_last_one_arrives() {
    let server = MockGateway::start([Reply::Held(Answer::new(200)), Reply::ok()]);
    let timeout = Duration::from_secs(2);
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url()).with_flush_timeout(timeout));
    server.await_requests(1);
    stage("a");
    let begun = Instant::now();
    guard.shutdown().unwrap();
    assert!(begun.elapsed() < timeout, "{:?}", begun.elapsed());
    // The gateway may still apply the first after the second, which is therefore sent again.
    let requests = server.requests();
    assert_eq!(requests.len(), 3);
    let [last, again] = [1, 2].map(|n| exposition::parse(requests[n].text()));
    let of_run = |found: &exposition::Exposition| found.expect("quant_run_duration_seconds", &[]);
    assert_eq!(of_run(&last), of_run(&again));
    assert_has_stage(&server);
}

#[test]
fn a_push_in_flight_that_ends_is_waited_for() {
    let server = MockGateway::start([Reply::Held(Answer::new(200)), Reply::ok()]);
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url()));
    server.await_requests(1);
    stage("a");
    let ending = std::thread::spawn(move || {
        let begun = Instant::now();
        guard.shutdown().unwrap();
        begun.elapsed()
    });
    server.release();
    let took = ending.join().unwrap();
    assert!(took < PATIENCE, "{took:?}");
    assert_eq!(server.requests().len(), 2);
    assert_has_stage(&server);
}

/// A flush that was ordered while a push was on its way carries what was recorded since.
#[test]
fn a_flush_behind_a_push_in_flight_carries_the_last_value() {
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

/// The network is no reason for the file to be old.
#[test]
fn the_text_file_is_written_though_the_gateway_is_silent() {
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

/// Not a test: what the children of the test below do.
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
        "panic" => panic!("as told"),
        unknown => panic!("no scenario {unknown}"),
    }
}

#[test]
fn no_gateway_changes_the_exit_code_or_holds_the_process() {
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

/// One push is for all who waited when it began.
#[test]
#[cfg(target_os = "linux")]
fn many_who_flush_at_once_share_a_push() {
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
        let others: Vec<_> = (0..COUNT).map(|_| flush()).collect();
        // One that sleeps has asked for its flush, and waits for the answer.
        let deadline = Instant::now() + support::PATIENCE;
        while sleeping(NAME) < COUNT {
            assert!(Instant::now() < deadline, "{} of {COUNT} wait", sleeping(NAME));
            std::thread::yield_now();
        }
        server.release();
        first.join().unwrap().unwrap();
        for other in others {
            other.join().unwrap().unwrap();
        }
    });
    let requests = server.requests();
    assert_eq!(requests.len(), 3, "at install, the one that was held, and one for all who waited");
    let found = exposition::parse(requests.last().unwrap().text());
    assert_eq!(found.expect("quant_stage_total", &[("stage_id", "a"), ("status", "success")]), 1.0);
}

/// How many threads of that name sleep.
#[cfg(target_os = "linux")]
fn sleeping(name: &str) -> usize {
    let stat = |task: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(task.unwrap().path().join("stat"));
    // `4711 (name) S …`; a thread may end while it is looked at.
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().filter_map(|task| stat(task).ok());
    tasks.filter(|stat| stat.contains(&format!(" ({name}) S "))).count()
}
