//! Several processes with one directory.

use std::collections::BTreeMap;

use super::support::child;
use super::support::log::Log;
use super::support::measured::{Measured, measured, stage};
use super::support::{MockGateway, Reply};
use super::{asked, assert_has_stage, builder, directory, leave, pushes_of, scenarios};

#[test]
fn processes_at_once_deliver_each_payload_once() {
    const LEFT: usize = 60;
    const PROCESSES: usize = 6;
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    for number in 0..LEFT {
        leave(spool, &format!("left{number}"), &format!("stage{number}"));
    }
    let server = MockGateway::ok();
    let children: Vec<_> = (0..PROCESSES)
        .map(|number| {
            let job = format!("later{number}");
            child::start(scenarios::command("end when the spool is empty", &server.url(), &job, spool))
        })
        .collect();
    for running in children {
        let ended = running.wait();
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        assert!(!ended.stderr.contains("WARN"), "{ended:?}");
    }

    let mut pushes: BTreeMap<String, usize> = BTreeMap::new();
    for request in server.requests() {
        if let Some(job) = asked(&request).strip_prefix("POST job/") {
            *pushes.entry(job.to_owned()).or_default() += 1;
            if let Some(number) = job.strip_prefix("left") {
                assert_has_stage(request.text(), &format!("stage{number}"));
            }
        }
    }
    let mut wanted: BTreeMap<String, usize> = (0..LEFT).map(|number| (format!("left{number}"), 1)).collect();
    wanted.extend((0..PROCESSES).map(|number| (format!("later{number}"), 2)));
    assert_eq!(pushes, wanted);
    assert_eq!(directory::names(spool), [""; 0]);
}

/// While one process delivers a payload, others leave it alone: it is neither sent nor removed nor set aside.
#[test]
fn what_one_process_delivers_no_other_touches() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave(spool, "left", "left");
    let slow = MockGateway::start([Reply::ok(), Reply::Silent]);
    let running = child::start(scenarios::command("stay", &slow.url(), "slow", spool));
    slow.await_requests(2);

    let server = MockGateway::ok();
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "later", spool));
    guard.flush().unwrap();
    guard.shutdown().unwrap();
    assert_eq!(server.requests().len(), 3, "its own pushes: {:?}", super::all_asked(&server));
    assert_eq!(directory::content(&directory::only_payload(spool)).0, "/metrics/job/left");

    // It dies: the payload is anybody's again.
    running.signal(child::Signal::KILL);
    running.wait();
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "later", spool));
    directory::await_no_payload(spool);
    guard.shutdown().unwrap();
    assert_eq!(pushes_of(&server, "left"), 1);
    assert_eq!(directory::names(spool), [""; 0]);
}

/// The younger of two payloads of a group waits for the older one: sent at the same time by another process, it could
/// come first, and the older state would be the one that stays.
#[test]
fn what_waits_behind_a_payload_in_other_hands_is_left_alone_too() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    for (job, id) in [("left", "monday"), ("left", "tuesday"), ("unrelated", "monday")] {
        leave(spool, job, id);
    }
    let slow = MockGateway::start([Reply::ok(), Reply::Silent]);
    let running = child::start(scenarios::command("stay", &slow.url(), "slow", spool));
    slow.await_requests(2);

    let server = MockGateway::ok();
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "later", spool));
    server.await_request(|request| asked(request) == "POST job/unrelated");
    guard.flush().unwrap();
    guard.shutdown().unwrap();
    assert_eq!(pushes_of(&server, "left"), 0, "monday is in other hands: {:?}", super::all_asked(&server));
    assert_eq!(directory::payloads(spool).len(), 2);

    running.signal(child::Signal::KILL);
    running.wait();
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "later", spool));
    directory::await_no_payload(spool);
    guard.shutdown().unwrap();
    let left: Vec<_> = server.requests().into_iter().filter(|request| asked(request) == "POST job/left").collect();
    assert_eq!(left.len(), 2);
    assert_has_stage(left[0].text(), "monday");
    assert_has_stage(left[1].text(), "tuesday");
}

/// Another process ends a run of the group, which is newer: its file is there and locked while it pushes. The gateway
/// itself tells nothing.
#[test]
fn an_earlier_payload_is_not_sent_while_a_run_of_its_group_ends() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    for (job, id) in [("left", "monday"), ("left", "tuesday"), ("unrelated", "monday")] {
        leave(spool, job, id);
    }
    let server = MockGateway::start_by(|request| Reply::status(if request.method == "GET" { 403 } else { 200 }));
    let builder = builder(&server.url(), "later", spool);
    let ending = std::fs::File::open(&directory::payloads(spool)[1]).unwrap();
    ending.lock().unwrap();
    let Measured { guard, log: _, default: _default } = measured(builder);
    guard.flush().unwrap();
    guard.shutdown().unwrap();
    assert_eq!((pushes_of(&server, "left"), pushes_of(&server, "unrelated")), (0, 1));
    assert_eq!(directory::payloads(spool).len(), 2);
}

/// Those that end at the same time clear each other's half-written files away as little as the whole ones.
#[test]
fn many_that_end_at_once_each_leave_their_payload() {
    const THREADS: usize = 8;
    const ROUNDS: usize = 25;
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    let refusing = MockGateway::start([Reply::status(401)]);
    let logs: Vec<(String, Log)> = std::thread::scope(|scope| {
        let run = |thread: usize| {
            let url = refusing.url();
            move || {
                let mut logs = Vec::new();
                for round in 0..ROUNDS {
                    let job = format!("j{thread}x{round}");
                    let Measured { guard, log, default: _default } = measured(builder(&url, &job, spool));
                    stage("a");
                    guard.shutdown().unwrap_err();
                    logs.push((job, log));
                }
                logs
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(run(thread))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let groups: Vec<String> = directory::payloads(spool).iter().map(|payload| directory::content(payload).0).collect();
    let unwritten: Vec<_> = logs.iter().filter(|(job, _)| !groups.contains(&format!("/metrics/job/{job}"))).collect();
    let told: Vec<_> = unwritten.iter().map(|(job, log)| format!("{job}: {}", log.text())).collect();
    assert_eq!(told, [""; 0], "of {} payloads", logs.len());
    assert_eq!(directory::names(spool).len(), THREADS * ROUNDS);
}
