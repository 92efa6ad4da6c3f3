//! SIGKILL at every step of spooling, pushing and replaying: no payload is lost.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant, SystemTime};

use super::support::child::{self, Running, Signal};
use super::support::exposition;
use super::support::measured::{Measured, measured};
use super::support::mock_gateway::{Answer, Request};
use super::support::{self, MockGateway, Reply};
use super::{builder, directory, leave_payload, push_count, request_line, request_lines, scenarios};

fn held() -> Reply {
    Reply::Held(Answer::new(200))
}

/// A run that delivers every waiting payload without any warning.
#[track_caller]
fn last_run(server: &MockGateway, spool: &Path) {
    let Measured { guard, log, default: _default } = measured(builder(&server.url(), "last", spool));
    directory::await_no_payload(spool);
    age_temporary_files(spool);
    guard.shutdown().unwrap();
    assert_eq!(directory::names(spool), [""; 0]);
    assert_eq!(log.own(), [""; 0]);
}

/// Ages the temporary files of killed processes by an hour: younger files may still be written.
fn age_temporary_files(spool: &Path) {
    for name in directory::names(spool) {
        assert!(name.starts_with('.') && name.ends_with(".tmp"), "neither a payload nor a temporary file: {name}");
        let file = std::fs::File::options().write(true).open(spool.join(name)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(3_600)).unwrap();
    }
}

#[track_caller]
fn kill(running: Running) {
    running.signal(Signal::KILL);
    running.wait();
}

/// The payload is written during the push, with the same content.
#[test]
fn kill_during_the_final_push_leaves_the_payload() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    let server = MockGateway::start([Reply::ok(), held()]);
    let running = child::start(scenarios::command("end after a push", &server.url(), "killed", spool));
    let pushed = server.await_requests(2).pop().unwrap();
    directory::await_true("the payload", || directory::payloads(spool).len() == 1);
    let (group, text) = directory::content(&directory::only_payload(spool));
    assert_eq!((group.as_str(), text.as_str()), ("/metrics/job/killed", pushed.text()));
    assert!(exposition::parse(&text).expect("quant_run_duration_seconds", &[]) > 0.0);
    kill(running);

    let server = MockGateway::ok();
    last_run(&server, spool);
    let delivered = server.await_request(|request| request_line(request) == "POST job/killed");
    assert_eq!(delivered.text(), text);
}

#[test]
fn kill_during_a_replay_leaves_the_payloads() {
    for requests in [2, 3] {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        for job in ["one", "two"] {
            leave_payload(spool, job, "left");
        }
        let mut replies = vec![Reply::ok(); requests - 1];
        replies.push(held());
        let server = MockGateway::start(replies);
        let running = child::start(scenarios::command("stay", &server.url(), "killed", spool));
        server.await_requests(requests);
        kill(running);
        assert_eq!(directory::payloads(spool).len(), 2);

        let server = MockGateway::ok();
        last_run(&server, spool);
        assert_eq!((push_count(&server, "one"), push_count(&server, "two")), (1, 1), "{:?}", request_lines(&server));
    }
}

/// The gateway records the time of each push: the delivery of one payload of a group must not make the later ones
/// look outdated.
#[test]
fn kill_between_two_payloads_of_a_group_keeps_the_later_ones() {
    let Some(server) = support::pushgateway() else { return };
    let mut killed_between = 0;
    for round in 0..8 {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        let job = format!("left{round}");
        for id in ["monday", "tuesday", "wednesday"] {
            leave_payload(spool, &job, id);
        }
        let running = child::start(scenarios::command("stay", &server.url(), "killed", spool));
        directory::await_true("the first is delivered", || directory::payloads(spool).len() < 3);
        kill(running);
        killed_between += usize::from(!directory::payloads(spool).is_empty());
        let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "last", spool));
        directory::await_no_payload(spool);
        guard.shutdown().unwrap();
        let exposition = exposition::parse(&server.metrics());
        let labels = [("instance", ""), ("job", &job), ("stage_id", "wednesday"), ("status", "success")];
        assert_eq!(exposition.expect("quant_stage_total", &labels), 1.0);
        assert_eq!(exposition.matching("quant_stage_total", &labels[1..2]).len(), 2, "only wednesday's stage remains");
    }
    assert!(killed_between > 0, "every process delivered everything before it was killed");
}

/// Delays that cover a time span evenly, in a fixed shuffled order.
fn delays(span: Duration, count: u32) -> impl Iterator<Item = Duration> {
    // The step shares no factor with the count, so each delay occurs once.
    (0..count).map(move |round| span * (round * 7 % count) / count)
}

fn is_final_push(request: &Request) -> bool {
    exposition::parse(request.text()).value("quant_run_duration_seconds", &[]).is_some()
}

/// A slow response, during which the payload is on disk.
fn slow() -> Reply {
    Reply::Trickled(Answer::new(200), Duration::from_micros(500))
}

/// Kills children at times from before the final flush to after it. Every spooled payload arrives, and so does the
/// state of every child that finished; only a child killed before its payload was written delivers nothing.
#[test]
fn kill_at_any_time_of_the_final_flush_loses_no_payload() {
    const ROUNDS: u32 = 41;
    let server = MockGateway::start([slow()]);
    let start = |job: &str, spool: &Path| {
        let mut running = child::start(scenarios::command("end", &server.url(), job, spool));
        running.await_line("go");
        (running, Instant::now())
    };
    // Measures the duration of the flush and the process exit.
    let directory = tempfile::tempdir().unwrap();
    let (running, start_time) = start("measured", directory.path());
    running.wait();
    let span = start_time.elapsed();

    let (mut ended, mut spooled) = (BTreeSet::new(), BTreeSet::new());
    for (round, delay) in delays(span * 3 / 2, ROUNDS).enumerate() {
        let (job, directory) = (format!("k{round}"), tempfile::tempdir().unwrap());
        let spool = directory.path();
        let (running, start_time) = start(&job, spool);
        std::thread::sleep(delay.saturating_sub(start_time.elapsed()));
        running.signal(Signal::KILL);
        if running.wait().status.success() {
            ended.insert(job.clone());
        }
        for payload in directory::payloads(spool) {
            let (group, text) = directory::content(&payload);
            assert_eq!(group, format!("/metrics/job/{job}"));
            let duration = exposition::parse(&text).value("quant_run_duration_seconds", &[]);
            assert!(duration.is_some(), "the payload has the final state");
            spooled.insert(job.clone());
        }
        server.set_replies([Reply::ok()]);
        last_run(&server, spool);
        server.set_replies([slow()]);
    }
    let arrived: BTreeSet<String> = server
        .requests()
        .iter()
        .filter(|request| request.method == "POST" && is_final_push(request))
        .map(|request| request.path.replace("/metrics/job/", ""))
        .collect();
    println!("{ROUNDS} processes in {span:?}: {} finished, {} left a payload", ended.len(), spooled.len());
    assert!(ended.is_subset(&arrived), "{ended:?} of {arrived:?}");
    assert!(spooled.is_subset(&arrived), "{spooled:?} of {arrived:?}");
    // Both kinds of endings must occur, or the test shows nothing.
    assert!(!ended.is_empty() && ended.len() < ROUNDS as usize, "{} finished", ended.len());
    assert!(!spooled.is_empty(), "no process was killed while its payload was on disk");
}

/// Kills processes while they replay the payloads of others. Each process gets an answer for two of them.
#[test]
fn kill_at_any_time_of_a_replay_loses_no_payload() {
    const PAYLOADS: usize = 60;
    const ROUNDS: u32 = 23;
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    let left: BTreeSet<String> = (0..PAYLOADS).map(|number| format!("left{number}")).collect();
    for job in &left {
        leave_payload(spool, job, "left");
    }
    let answers = Arc::new(AtomicUsize::new(0));
    let left_answers = Arc::clone(&answers);
    let server = MockGateway::start_with(move |request| {
        let is_answered = !request_line(request).starts_with("POST job/left")
            || left_answers.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
        if is_answered { Reply::ok() } else { held() }
    });
    for (round, delay) in delays(Duration::from_millis(6), ROUNDS).enumerate() {
        let before = server.requests().len();
        answers.store(2, SeqCst);
        let running = child::start(scenarios::command("stay", &server.url(), &format!("killed{round}"), spool));
        // The own push, then a GET and a POST for each payload.
        server.await_requests(before + 1 + round % 5);
        std::thread::sleep(delay);
        kill(running);
    }
    server.release();
    let remaining = directory::payloads(spool).len();
    println!("{remaining} of {PAYLOADS} payloads remain after {ROUNDS} killed processes");
    assert!((1..PAYLOADS).contains(&remaining), "no process was killed between two deliveries");
    last_run(&server, spool);
    let posts: Vec<String> =
        request_lines(&server).iter().filter_map(|line| Some(line.strip_prefix("POST job/")?.into())).collect();
    let arrived: BTreeSet<String> = posts.iter().filter(|job| job.starts_with("left")).cloned().collect();
    assert_eq!(arrived, left);
    // Only the payload in flight at each kill may arrive twice.
    let times = posts.iter().filter(|job| job.starts_with("left")).count();
    assert!(times <= PAYLOADS + ROUNDS as usize, "{times} times");
}
