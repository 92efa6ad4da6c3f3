//! Several processes with one spool directory.

use std::collections::BTreeMap;
use std::time::Duration;

use super::support::child;
use super::support::log::Log;
use super::support::measured::{Measured, measured, stage};
use super::support::{MockGateway, Reply};
use super::{assert_has_stage, builder, directory, leave_payload, push_count, request_line, scenarios};

#[test]
fn concurrent_processes_deliver_each_payload_once() {
    const PAYLOADS: usize = 60;
    const PROCESSES: usize = 6;
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    for number in 0..PAYLOADS {
        leave_payload(spool, &format!("left{number}"), &format!("stage{number}"));
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
        if let Some(job) = request_line(&request).strip_prefix("POST job/") {
            *pushes.entry(job.to_owned()).or_default() += 1;
            if let Some(number) = job.strip_prefix("left") {
                assert_has_stage(request.text(), &format!("stage{number}"));
            }
        }
    }
    let mut expected: BTreeMap<String, usize> = (0..PAYLOADS).map(|number| (format!("left{number}"), 1)).collect();
    expected.extend((0..PROCESSES).map(|number| (format!("later{number}"), 2)));
    assert_eq!(pushes, expected);
    assert_eq!(directory::names(spool), [""; 0]);
}

/// While one process delivers a payload, the others neither send nor remove nor quarantine it.
#[test]
fn payload_in_delivery_is_untouched_by_other_processes() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave_payload(spool, "left", "left");
    let slow = MockGateway::start([Reply::ok(), Reply::Silent]);
    let running = child::start(scenarios::command("stay", &slow.url(), "slow", spool));
    slow.await_requests(2);

    let server = MockGateway::ok();
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "later", spool));
    guard.flush().unwrap();
    guard.shutdown().unwrap();
    assert_eq!(server.requests().len(), 3, "its own pushes: {:?}", super::request_lines(&server));
    assert_eq!(directory::content(&directory::only_payload(spool)).0, "/metrics/job/left");

    // The process dies and releases its lock on the payload.
    running.signal(child::Signal::KILL);
    running.wait();
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "later", spool));
    directory::await_no_payload(spool);
    guard.shutdown().unwrap();
    assert_eq!(push_count(&server, "left"), 1);
    assert_eq!(directory::names(spool), [""; 0]);
}

/// The newer of two payloads of a group waits for the older one. If another process sent it concurrently, it could
/// arrive first, and the older state would remain.
#[test]
fn newer_payload_waits_for_a_locked_older_one_of_its_group() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    for (job, id) in [("left", "monday"), ("left", "tuesday"), ("unrelated", "monday")] {
        leave_payload(spool, job, id);
    }
    let slow = MockGateway::start([Reply::ok(), Reply::Silent]);
    let running = child::start(scenarios::command("stay", &slow.url(), "slow", spool));
    slow.await_requests(2);

    let server = MockGateway::ok();
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "later", spool));
    server.await_request(|request| request_line(request) == "POST job/unrelated");
    guard.flush().unwrap();
    guard.shutdown().unwrap();
    assert_eq!(
        push_count(&server, "left"),
        0,
        "another process holds monday's payload: {:?}",
        super::request_lines(&server)
    );
    assert_eq!(directory::payloads(spool).len(), 2);

    running.signal(child::Signal::KILL);
    running.wait();
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "later", spool));
    directory::await_no_payload(spool);
    guard.shutdown().unwrap();
    let left: Vec<_> =
        server.requests().into_iter().filter(|request| request_line(request) == "POST job/left").collect();
    assert_eq!(left.len(), 2);
    assert_has_stage(left[0].text(), "monday");
    assert_has_stage(left[1].text(), "tuesday");
}

/// Another process ends a newer run of the group: its payload exists and is locked during the push. The gateway
/// exposes no metrics.
#[test]
fn older_payload_is_not_sent_while_a_run_of_its_group_ends() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    for (job, id) in [("left", "monday"), ("left", "tuesday"), ("unrelated", "monday")] {
        leave_payload(spool, job, id);
    }
    let server = MockGateway::start_with(|request| Reply::status(if request.method == "GET" { 403 } else { 200 }));
    let builder = builder(&server.url(), "later", spool);
    let ending = std::fs::File::open(&directory::payloads(spool)[1]).unwrap();
    ending.lock().unwrap();
    let Measured { guard, log: _, default: _default } = measured(builder);
    guard.flush().unwrap();
    // The final flush repeats a replay in progress.
    directory::await_true("the free payload is delivered", || directory::payloads(spool).len() == 2);
    guard.shutdown().unwrap();
    assert_eq!((push_count(&server, "left"), push_count(&server, "unrelated")), (0, 1));
    assert_eq!(directory::payloads(spool).len(), 2);
}

/// The gateway may apply the payload of the other process after the last state of this run, so the last state is sent again.
#[test]
fn ending_run_waits_for_another_process_that_delivers_an_earlier_payload() {
    for is_done in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        leave_payload(spool, "j", "monday");
        let server = MockGateway::ok();
        let timeout = if is_done { Duration::from_secs(20) } else { Duration::from_millis(500) };
        let builder = builder(&server.url(), "j", spool).with_flush_timeout(timeout);
        let payload = directory::only_payload(spool);
        let lock = std::fs::File::open(&payload).unwrap();
        lock.lock().unwrap();
        let Measured { guard, log: _, default: _default } = measured(builder);
        server.await_requests(1);
        let before = push_count(&server, "j");
        let result = std::thread::scope(|scope| {
            let end = scope.spawn(move || guard.shutdown());
            directory::await_true("the last state is sent", || push_count(&server, "j") == before + 1);
            if is_done {
                // No event shows that the run waits. Without the wait the second push would have arrived by then.
                std::thread::sleep(Duration::from_millis(100));
                assert_eq!(push_count(&server, "j"), before + 1);
                std::fs::remove_file(&payload).unwrap();
                drop(lock);
            }
            end.join().unwrap()
        });
        if is_done {
            result.unwrap();
            assert_eq!(push_count(&server, "j"), before + 2);
            let sent: Vec<_> = server.requests().into_iter().map(|request| request.body).collect();
            assert_eq!(sent[sent.len() - 2], sent[sent.len() - 1]);
            assert_eq!(directory::names(spool), [""; 0]);
        } else {
            let text = "another process delivers an earlier state of this group, which may replace the final state";
            assert_eq!(result.unwrap_err().to_string(), text);
            assert_eq!(push_count(&server, "j"), before + 1);
            assert_eq!(directory::payloads(spool).len(), 2, "a later run delivers the last state");
        }
    }
}

/// Processes that end at the same time remove neither payloads nor temporary files of each other.
#[test]
fn concurrent_endings_each_leave_their_payload() {
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
    let logs_of_unwritten: Vec<_> = unwritten.iter().map(|(job, log)| format!("{job}: {}", log.text())).collect();
    assert_eq!(logs_of_unwritten, [""; 0], "of {} payloads", logs.len());
    assert_eq!(directory::names(spool).len(), THREADS * ROUNDS);
}
