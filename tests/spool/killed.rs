//! SIGKILL at every step of writing to the spool, pushing and delivering what was left: nothing is lost.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use super::support::child::{self, Running, Signal};
use super::support::exposition;
use super::support::measured::{Measured, measured};
use super::support::mock_gateway::{Answer, Request};
use super::support::{self, MockGateway, Reply};
use super::{all_asked, asked, builder, directory, leave, pushes_of, scenarios};

fn held() -> Reply {
    Reply::Held(Answer::new(200))
}

/// A run that finds everything in order and delivers what is there.
#[track_caller]
fn last_run(server: &MockGateway, spool: &Path) {
    let Measured { guard, log, default: _default } = measured(builder(&server.url(), "last", spool));
    directory::await_no_payload(spool);
    age(spool);
    guard.shutdown().unwrap();
    assert_eq!(directory::names(spool), [""; 0]);
    assert_eq!(log.own(), [""; 0]);
}

/// Lets an hour go by for what killed processes left half written: what is young may be in the making.
fn age(spool: &Path) {
    for name in directory::names(spool) {
        assert!(name.starts_with('.') && name.ends_with(".tmp"), "neither a payload nor half of one: {name}");
        let file = std::fs::File::options().write(true).open(spool.join(name)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(3_600)).unwrap();
    }
}

#[track_caller]
fn kill(running: Running) {
    running.signal(Signal::KILL);
    running.wait();
}

/// The payload is written while it is pushed, and the two are the same.
#[test]
fn while_the_final_push_is_on_its_way() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    let server = MockGateway::start([Reply::ok(), held()]);
    let running = child::start(scenarios::command("end", &server.url(), "killed", spool));
    let pushed = server.await_requests(2).pop().unwrap();
    directory::await_true("the payload", || directory::payloads(spool).len() == 1);
    let (group, text) = directory::content(&directory::only_payload(spool));
    assert_eq!((group.as_str(), text.as_str()), ("/metrics/job/killed", pushed.text()));
    assert!(exposition::parse(&text).expect("quant_run_duration_seconds", &[]) > 0.0);
    kill(running);

    let server = MockGateway::ok();
    last_run(&server, spool);
    let delivered = server.await_request(|request| asked(request) == "POST job/killed");
    assert_eq!(delivered.text(), text);
}

#[test]
fn while_what_was_left_is_on_its_way() {
    for requests in [2, 3] {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        for job in ["one", "two"] {
            leave(spool, job, "left");
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
        assert_eq!((pushes_of(&server, "one"), pushes_of(&server, "two")), (1, 1), "{:?}", all_asked(&server));
    }
}

/// With a gateway that keeps the time of its pushes: what was delivered of a group is no reason to drop what waits behind it.
#[test]
fn between_two_payloads_of_one_group() {
    let Some(server) = support::pushgateway() else { return };
    let mut killed_between = 0;
    for round in 0..8 {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        let job = format!("left{round}");
        for id in ["monday", "tuesday", "wednesday"] {
            leave(spool, &job, id);
        }
        let running = child::start(scenarios::command("stay", &server.url(), "killed", spool));
        directory::await_true("the first is delivered", || directory::payloads(spool).len() < 3);
        kill(running);
        killed_between += usize::from(!directory::payloads(spool).is_empty());
        let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "last", spool));
        directory::await_no_payload(spool);
        guard.shutdown().unwrap();
        let found = exposition::parse(&server.metrics());
        let labels = [("instance", ""), ("job", &job), ("stage_id", "wednesday"), ("status", "success")];
        assert_eq!(found.expect("quant_stage_total", &labels), 1.0);
        assert_eq!(found.matching("quant_stage_total", &labels[1..2]).len(), 2, "of wednesday alone");
    }
    assert!(killed_between > 0, "each process had delivered all before it was killed");
}

/// Delays that cover a span evenly, in an order that is the same in every run.
fn delays(span: Duration, count: u32) -> impl Iterator<Item = Duration> {
    // Steps that share no factor with the count visit each place once.
    (0..count).map(move |round| span * (round * 7 % count) / count)
}

fn is_final(request: &Request) -> bool {
    exposition::parse(request.text()).value("quant_run_duration_seconds", &[]).is_some()
}

/// A gateway that takes a while to answer, in which a payload is on disk.
fn slow() -> Reply {
    Reply::Trickled(Answer::new(200), Duration::from_micros(500))
}

/// Kills children at all times from before the final flush to after it. What was in the spool at that time arrives, and
/// so does what a child that came to its end delivered; only a child that was killed before its payload was written
/// has none.
#[test]
fn at_any_time_of_the_final_flush() {
    const ROUNDS: u32 = 41;
    let server = MockGateway::start([slow()]);
    let start = |job: &str, spool: &Path| {
        let mut running = child::start(scenarios::command("end", &server.url(), job, spool));
        running.await_line("go");
        (running, Instant::now())
    };
    // How long the flush and the end of the process take.
    let directory = tempfile::tempdir().unwrap();
    let (running, begun) = start("measured", directory.path());
    running.wait();
    let span = begun.elapsed();

    let (mut ended, mut spooled) = (BTreeSet::new(), BTreeSet::new());
    for (round, delay) in delays(span * 3 / 2, ROUNDS).enumerate() {
        let (job, directory) = (format!("k{round}"), tempfile::tempdir().unwrap());
        let spool = directory.path();
        let (running, begun) = start(&job, spool);
        std::thread::sleep(delay.saturating_sub(begun.elapsed()));
        running.signal(Signal::KILL);
        if running.wait().status.success() {
            ended.insert(job.clone());
        }
        for payload in directory::payloads(spool) {
            let (group, text) = directory::content(&payload);
            assert_eq!(group, format!("/metrics/job/{job}"));
            let duration = exposition::parse(&text).value("quant_run_duration_seconds", &[]);
            assert!(duration.is_some(), "it is the last state");
            spooled.insert(job.clone());
        }
        server.set_replies([Reply::ok()]);
        last_run(&server, spool);
        server.set_replies([slow()]);
    }
    let arrived: BTreeSet<String> = server
        .requests()
        .iter()
        .filter(|request| request.method == "POST" && is_final(request))
        .map(|request| request.path.replace("/metrics/job/", ""))
        .collect();
    println!("of {ROUNDS} in {span:?}: {} came to their end, {} left a payload", ended.len(), spooled.len());
    assert!(ended.is_subset(&arrived), "{ended:?} of {arrived:?}");
    assert!(spooled.is_subset(&arrived), "{spooled:?} of {arrived:?}");
    // There were both kinds of ends, or it proves nothing.
    assert!(!ended.is_empty() && ended.len() < ROUNDS as usize, "{} came to their end", ended.len());
    assert!(!spooled.is_empty(), "no process was killed while its payload was on disk");
}

/// The same for processes that deliver what others left.
#[test]
fn at_any_time_of_a_replay() {
    const LEFT: usize = 60;
    const ROUNDS: u32 = 23;
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    let left: BTreeSet<String> = (0..LEFT).map(|number| format!("left{number}")).collect();
    for job in &left {
        leave(spool, job, "left");
    }
    let server = MockGateway::ok();
    for (round, delay) in delays(Duration::from_millis(6), ROUNDS).enumerate() {
        let before = server.requests().len();
        let running = child::start(scenarios::command("stay", &server.url(), &format!("killed{round}"), spool));
        server.await_requests(before + 1);
        std::thread::sleep(delay);
        kill(running);
    }
    let remaining = directory::payloads(spool).len();
    println!("{remaining} of {LEFT} were left after {ROUNDS} processes were killed");
    assert!((1..LEFT).contains(&remaining), "none was killed between two deliveries");
    last_run(&server, spool);
    let posts: Vec<String> =
        all_asked(&server).iter().filter_map(|asked| Some(asked.strip_prefix("POST job/")?.into())).collect();
    let arrived: BTreeSet<String> = posts.iter().filter(|job| job.starts_with("left")).cloned().collect();
    assert_eq!(arrived, left);
    // At most what a killed process had just sent came twice.
    let times = posts.iter().filter(|job| job.starts_with("left")).count();
    assert!(times <= LEFT + ROUNDS as usize, "{times} times");
}
