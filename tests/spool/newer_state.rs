//! An older state never replaces a newer one, whatever the clocks say, and no last success is lost.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use tracing_stage_metrics::{MetricsLayer, Pushgateway};

use super::support::measured::{Measured, failing_stage, measured, stage};
use super::support::mock_gateway::Answer;
use super::support::{self, MockGateway, Reply, child, exposition, http, servers};
use super::{builder, deliver, directory, leave_payload, push_count, request_line, request_lines, scenarios};

const LAST_SUCCESS: &str = "quant_run_last_success_timestamp_seconds";
const STAGE_LAST_SUCCESS: &str = "quant_stage_last_success_timestamp_seconds";
const RUN_START: &str = "quant_run_start_timestamp_seconds";

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// An exposition with a run start and a value that identifies the state.
fn state(run_start: f64, value: u32) -> String {
    format!("# TYPE {RUN_START} gauge\n{RUN_START} {run_start}\n# TYPE state gauge\nstate {value}\n")
}

#[track_caller]
fn push(server: &support::Pushgateway, job: &str, text: &str) {
    let response = http::request(server.addr(), "POST", &format!("/metrics/job/{job}"), &[], text.as_bytes()).unwrap();
    assert_eq!(response.status, 200);
}

#[track_caller]
fn gauge(server: &support::Pushgateway, job: &str, metric: &str) -> f64 {
    exposition::parse(&server.metrics()).expect(metric, &[("instance", ""), ("job", job)])
}

/// The payload comes from a node whose clock was an hour fast and has been corrected since. The gateway, which that
/// run had reached, has a later run of the group.
#[test]
fn later_run_stays_after_the_nodes_clock_was_set_back() {
    let Some(server) = support::pushgateway() else { return };
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    push(&server, "j", &state(now(), 2));
    let (ahead, before) = (now() + 3_600.0, now() - 60.0);
    let head = [("run-start", ahead - 5.0), ("written", ahead), ("gateway-written", before)];
    directory::write_payload(spool, &server.url(), "j", &head, &state(ahead - 5.0, 1));
    deliver(builder(&server.url(), "unrelated", spool), spool);
    assert_eq!(gauge(&server, "j", "state"), 2.0);
}

/// The node's clock is still wrong; the `Date` header of the gateway's responses gives the offset.
#[test]
fn payload_times_are_compared_on_the_gateways_clock() {
    for (offset, pushed_later, expected) in [(3_600.0, true, 2.0), (-3_600.0, false, 1.0)] {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        // The run never reached the gateway, so its payload has the node's time only.
        let written = now() - 30.0;
        directory::write_payload(
            spool,
            "http://x",
            "j",
            &[("run-start", written), ("written", written)],
            &state(written, 1),
        );
        let push_time = written + offset + if pushed_later { 10.0 } else { -10.0 };
        let body = format!(
            "push_time_seconds{{instance=\"\",job=\"j\"}} {push_time}\n\
             {RUN_START}{{instance=\"\",job=\"j\"}} 1\npushgateway_build_info 1\n"
        );
        let date = httpdate::fmt_http_date(UNIX_EPOCH + std::time::Duration::from_secs_f64(now() + offset));
        let server = MockGateway::start_with(move |request| {
            let response = Answer::new(200).with_header("Date", &date);
            Reply::Answer(if request.method == "GET" { response.with_body(&body) } else { response })
        });
        deliver(builder(&server.url(), "unrelated", spool), spool);
        assert_eq!(push_count(&server, "j"), if expected == 1.0 { 1 } else { 0 }, "{offset}");
    }
}

/// The payload keeps the offset, so that a later run compares no clocks of two different days.
#[test]
fn payload_has_the_gateway_time_of_its_run() {
    let date = httpdate::fmt_http_date(UNIX_EPOCH + std::time::Duration::from_secs_f64(now() + 3_600.0));
    let answer = |status| Reply::Answer(Answer::new(status).with_header("Date", &date));
    let server = MockGateway::start([answer(200), answer(401)]);
    let directory = tempfile::tempdir().unwrap();
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "j", directory.path()));
    guard.flush().unwrap_err();
    guard.shutdown().unwrap_err();
    let text = fs::read_to_string(directory::only_payload(directory.path())).unwrap();
    let time = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).unwrap().parse::<f64>().unwrap();
    let ahead = time("gateway-written: ") - time("written: ");
    assert!((ahead - 3_600.0).abs() < 60.0, "{ahead}");
}

#[test]
fn run_start_in_the_future_does_not_block_later_runs() {
    let Some(server) = support::pushgateway() else { return };
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    push(&server, "j", &state(4.07e9, 1));
    leave_payload(spool, "j", "left");
    deliver(builder(&server.url(), "unrelated", spool), spool);
    assert!(gauge(&server, "j", RUN_START) < 4e9);
}

#[test]
fn application_gauge_is_not_taken_for_the_run_start() {
    let Some(server) = support::pushgateway() else { return };
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    push(
        &server,
        "j",
        "# TYPE warehouse_run_start_timestamp_seconds gauge\nwarehouse_run_start_timestamp_seconds 4e9\n",
    );
    leave_payload(spool, "j", "left");
    deliver(builder(&server.url(), "unrelated", spool), spool);
    assert!(gauge(&server, "j", LAST_SUCCESS) > 1.7e9, "the payload is delivered");
}

/// The gateway shows the run of the payload, which its last push had not ended. The payload is its last state.
#[test]
fn payload_follows_its_own_run_with_constant_labels() {
    let Some(server) = support::pushgateway() else { return };
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    let labelled = |value| {
        format!(
            "# TYPE {RUN_START} gauge\n{RUN_START}{{env=\"prod\"}} 1700000000\n# TYPE state gauge\nstate{{env=\"prod\"}} {value}\n"
        )
    };
    push(&server, "j", &labelled(1));
    let written = now() - 60.0;
    let head = [("run-start", 1.7e9), ("written", written), ("gateway-written", written)];
    directory::write_payload(spool, &server.url(), "j", &head, &labelled(2));
    deliver(builder(&server.url(), "unrelated", spool), spool);
    let labels = [("env", "prod"), ("instance", ""), ("job", "j")];
    assert_eq!(exposition::parse(&server.metrics()).expect("state", &labels), 2.0);
}

/// The later run has a last success of its own, which the push of another one would replace.
#[test]
fn last_success_is_not_pushed_over_one_with_other_constant_labels() {
    let Some(server) = support::pushgateway() else { return };
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave_payload(spool, "j", "good");
    let gauge = |name, value| format!("# TYPE {name} gauge\n{name}{{env=\"prod\"}} {value}\n");
    let later = gauge(RUN_START, now()) + &gauge(LAST_SUCCESS, 1.7e9);
    push(&server, "j", &later);
    deliver(builder(&server.url(), "unrelated", spool), spool);
    let metrics = exposition::parse(&server.metrics());
    assert_eq!(metrics.expect(LAST_SUCCESS, &[("env", "prod"), ("instance", ""), ("job", "j")]), 1.7e9);
}

/// Of two payloads with other labels, the later run of the gateway hides only the second.
#[test]
fn last_success_of_an_outdated_payload_keeps_its_labels() {
    let Some(server) = support::pushgateway() else { return };
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    let gauge = |name, env: &str, value: f64| format!("# TYPE {name} gauge\n{name}{{env=\"{env}\"}} {value}\n");
    push(&server, "j", &gauge(RUN_START, "a", now()));
    let start = now() - 50.0;
    for (env, success) in [("a", start + 1.0), ("b", start + 2.0)] {
        let head = [("run-start", start), ("written", start + 5.0), ("gateway-written", start + 5.0)];
        directory::write_payload(
            spool,
            &server.url(),
            "j",
            &head,
            &(gauge(LAST_SUCCESS, env, success) + &gauge(RUN_START, env, start)),
        );
    }
    deliver(builder(&server.url(), "unrelated", spool), spool);
    let labels = |env| [("env", env), ("instance", ""), ("job", "j")];
    let metrics = exposition::parse(&server.metrics());
    assert_eq!(metrics.expect(LAST_SUCCESS, &labels("a")), start + 1.0);
    assert_eq!(metrics.value(LAST_SUCCESS, &labels("b")), None);
}

/// A label with an empty value makes another group, which has no later state.
#[test]
fn empty_grouping_label_makes_a_separate_group() {
    let Some(server) = support::pushgateway() else { return };
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    let written = now() - 30.0;
    directory::write_payload(spool, &server.url(), "j/region@base64/=", &[("written", written)], &state(written, 1));
    push(&server, "j", &state(now(), 2));
    deliver(builder(&server.url(), "unrelated", spool), spool);
    assert_eq!(gauge(&server, "j", "state"), 2.0);
    let exposition = exposition::parse(&server.metrics());
    assert_eq!(exposition.expect("state", &[("instance", ""), ("job", "j"), ("region", "")]), 1.0);
}

/// A page of a proxy says nothing about the group, whatever its content.
#[test]
fn proxy_page_does_not_count_as_gateway_state() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave_payload(spool, "left", "left");
    let page = "push_time_seconds{instance=\"\",job=\"left\"} 9e9\n";
    let server = MockGateway::start_with(move |_| Reply::Answer(Answer::new(200).with_body(page)));
    deliver(builder(&server.url(), "unrelated", spool), spool);
    assert_eq!(push_count(&server, "left"), 1);
}

#[test]
fn payload_is_delivered_to_its_own_gateway_only() {
    let (Some(own), Some(other)) = (support::pushgateway(), support::pushgateway()) else { return };
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    for job in ["later", "j"] {
        leave_payload(spool, job, "left");
    }
    directory::readdress(spool, &other.url());
    let spooled = directory::names(spool);
    // `builder` would readdress all payloads to its own gateway.
    let run = |url: &str| {
        let gateway = Pushgateway::new(url, "later").unwrap();
        measured(MetricsLayer::builder().with_pushgateway(gateway).with_spool_dir(spool))
    };
    let Measured { guard, log, default: _default } = run(&own.url());
    guard.flush().unwrap();
    guard.shutdown().unwrap();
    assert_eq!(log.own(), [""; 0]);
    assert_eq!(directory::names(spool), spooled);
    let exposition = exposition::parse(&own.metrics());
    assert_eq!(exposition.value(LAST_SUCCESS, &[("instance", ""), ("job", "j")]), None);

    let Measured { guard, log: _, default: _default } = run(&other.url());
    directory::await_no_payload(spool);
    guard.shutdown().unwrap();
    assert!(gauge(&other, "j", LAST_SUCCESS) > 1.7e9);
}

#[test]
fn last_success_survives_a_failed_run_of_its_group() {
    let Some(mut server) = support::pushgateway() else { return };
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    let spooled = leave_success(&mut server, spool);
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "j", spool));
    failing_stage("good");
    guard.shutdown().unwrap();
    assert_eq!(gauge(&server, "j", LAST_SUCCESS), spooled.expect(LAST_SUCCESS, &[]));
    let labels = [("instance", ""), ("job", "j"), ("profile", ""), ("stage_id", "good")];
    let exposition = exposition::parse(&server.metrics());
    let expected = spooled.expect(STAGE_LAST_SUCCESS, &[("stage_id", "good"), ("profile", "")]);
    assert_eq!(exposition.expect(STAGE_LAST_SUCCESS, &labels), expected);
    assert!(
        exposition.expect(RUN_START, &labels[..2]) > spooled.expect(RUN_START, &[]),
        "the state is the second run's"
    );
    assert_eq!(directory::names(spool), [""; 0]);
}

/// Runs one successful stage while the gateway is down. Returns the metrics in the payload that it leaves for the job `j`.
#[track_caller]
fn leave_success(server: &mut servers::Pushgateway, spool: &std::path::Path) -> exposition::Exposition {
    server.stop();
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "j", spool));
    stage("good");
    guard.shutdown().unwrap_err();
    server.restart();
    exposition::parse(&directory::content(&directory::only_payload(spool)).1)
}

#[test]
fn last_success_survives_an_early_kill() {
    let Some(mut server) = support::pushgateway() else { return };
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    let spooled = leave_success(&mut server, spool);
    let running = child::start(scenarios::command("stay", &server.url(), "j", spool));
    let run_start = || exposition::parse(&server.metrics()).value(RUN_START, &[("instance", ""), ("job", "j")]);
    directory::await_true("the run has pushed", || {
        run_start().is_some_and(|start| start > spooled.expect(RUN_START, &[]))
    });
    running.signal(child::Signal::KILL);
    running.wait();
    assert_eq!(gauge(&server, "j", LAST_SUCCESS), spooled.expect(LAST_SUCCESS, &[]));
}

/// The gateway has a later, failed run of another node. Only the last success of the payload is new to it.
#[test]
fn last_success_of_an_outdated_payload_is_delivered() {
    let Some(server) = support::pushgateway() else { return };
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave_payload(spool, "j", "good");
    leave_payload(spool, "j", "good");
    let expected = exposition::parse(&directory::content(&directory::payloads(spool)[1]).1).expect(LAST_SUCCESS, &[]);
    let later = now();
    push(&server, "j", &state(later, 2));
    deliver(builder(&server.url(), "unrelated", spool), spool);
    assert_eq!((gauge(&server, "j", "state"), gauge(&server, "j", RUN_START)), (2.0, later));
    assert_eq!(gauge(&server, "j", LAST_SUCCESS), expected);
    let exposition = exposition::parse(&server.metrics());
    let stages = exposition
        .family("quant_stage_total")
        .is_some_and(|_| !exposition.matching("quant_stage_total", &[("job", "j")]).is_empty());
    assert!(!stages, "only the last success is delivered");

    // A later success on the gateway stays.
    leave_payload(spool, "j", "good");
    push(&server, "j", &format!("# TYPE {LAST_SUCCESS} gauge\n{LAST_SUCCESS} {}\n", now() + 1.0));
    let expected = gauge(&server, "j", LAST_SUCCESS);
    deliver(builder(&server.url(), "unrelated", spool), spool);
    assert_eq!(gauge(&server, "j", LAST_SUCCESS), expected);

    // An earlier last success is replaced, and an equal one is not sent.
    for (offset, is_sent) in [(-1.0, true), (0.0, false)] {
        leave_payload(spool, "j", "good");
        let text = directory::content(&directory::only_payload(spool)).1;
        let wanted = exposition::parse(&text).expect(LAST_SUCCESS, &[]);
        push(&server, "j", &format!("# TYPE {LAST_SUCCESS} gauge\n{LAST_SUCCESS} {}\n", wanted + offset));
        let pushed = gauge(&server, "j", "push_time_seconds");
        deliver(builder(&server.url(), "unrelated", spool), spool);
        assert_eq!(gauge(&server, "j", LAST_SUCCESS), wanted);
        assert_eq!(gauge(&server, "j", "push_time_seconds") > pushed, is_sent, "{offset}");
    }
}

/// The gateway does not answer in the second before the first push. The run's own state then carries the last
/// success, and the payload is removed once the gateway has that state.
#[test]
fn last_success_is_carried_over_when_the_replay_fails() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave_payload(spool, "j", "good");
    let spooled = exposition::parse(&directory::content(&directory::only_payload(spool)).1);
    let server = MockGateway::start_with(|request| if request.method == "GET" { Reply::Silent } else { Reply::ok() });
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "j", spool));
    failing_stage("bad");
    server.await_request(|request| request.method == "POST");
    assert_eq!(directory::payloads(spool).len(), 1, "the payload stays until the final state is delivered");
    guard.flush().unwrap();
    guard.shutdown().unwrap();
    let queries = request_lines(&server).iter().filter(|line| **line == "GET /metrics").count();
    assert_eq!(queries, 1, "only before the first push");
    assert_eq!(push_count(&server, "j"), 3, "no earlier request can arrive late, so the last state is sent once");
    for request in server.requests().iter().filter(|request| request.method == "POST") {
        let exposition = exposition::parse(request.text());
        assert_eq!(exposition.expect(LAST_SUCCESS, &[]), spooled.expect(LAST_SUCCESS, &[]));
        let good = exposition.matching(STAGE_LAST_SUCCESS, &[("stage_id", "good")]);
        assert_eq!(good.len(), 1);
    }
    assert_eq!(directory::names(spool), [""; 0]);
}

/// The gateway may apply the unanswered payload at any time, after a push of this run.
#[test]
fn unanswered_payload_of_the_own_group_makes_the_last_state_be_sent_twice() {
    for no_answer in [Reply::Silent, Reply::Reset] {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        leave_payload(spool, "j", "left");
        let mut pushes = 0;
        let server = MockGateway::start_with(move |request| {
            pushes += usize::from(request.method == "POST");
            if pushes == 1 && request.method == "POST" { no_answer.clone() } else { Reply::ok() }
        });
        let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "j", spool));
        server.await_requests(3);
        guard.flush().unwrap();
        guard.shutdown().unwrap();
        // The payload, the first push, the flush, and the last state twice.
        assert_eq!(request_lines(&server), [&["GET /metrics"][..], &["POST job/j"; 5]].concat());
    }
}

/// A process sends a payload and cancels that for a push of its own; the gateway may still apply it. The process
/// keeps the file locked until it ends.
#[test]
fn sent_payload_without_response_stays_locked() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave_payload(spool, "left", "left");
    let mut pushes = 0;
    let server = MockGateway::start_with(move |request| match &*request_line(request) {
        "POST job/left" => Reply::Silent,
        "POST job/first" => {
            pushes += 1;
            if pushes == 2 { Reply::Held(Answer::new(200)) } else { Reply::ok() }
        }
        _ => Reply::ok(),
    });
    let first = measured(builder(&server.url(), "first", spool));
    server.await_request(|request| request_line(request) == "POST job/left");
    std::thread::scope(|scope| {
        let flush = scope.spawn(|| first.guard.flush());
        directory::await_true("the own push is in flight", || push_count(&server, "first") == 2);
        let gateway = Pushgateway::new(server.url(), "second").unwrap();
        let second = measured(MetricsLayer::builder().with_pushgateway(gateway).with_spool_dir(spool));
        second.guard.flush().unwrap();
        second.guard.shutdown().unwrap();
        assert_eq!(push_count(&server, "left"), 1, "no other process sends it");
        server.set_replies([Reply::status(401)]);
        server.release();
        flush.join().unwrap().unwrap();
    });
    first.guard.shutdown().unwrap_err();
    server.set_replies([Reply::ok()]);
    let spooled = fs::File::open(&directory::payloads(spool)[0]).unwrap();
    directory::await_true("the lock is free", || spooled.try_lock().is_ok());
    spooled.unlock().unwrap();
    let before = push_count(&server, "left");
    deliver(builder(&server.url(), "unrelated", spool), spool);
    assert_eq!(push_count(&server, "left"), before + 1);
}

/// The payload's namespace identifies the crate's metrics, not that of the delivering process.
#[test]
fn bad_request_uses_the_payloads_namespace() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    const TEXT: &str =
        "# TYPE acme_run_duration_seconds gauge\nacme_run_duration_seconds 5\n# TYPE rows gauge\nrows 7\n";
    let acme = |url: &str| {
        let builder = builder(url, "left", spool).with_namespace("acme").without_run_id_label();
        builder.with_exposition(|| TEXT.to_owned())
    };
    super::leave_payload_with(spool, "left", acme);
    let server = MockGateway::start_with(|request| {
        Reply::status(if request.method == "POST" && request.text().contains("rows 7") { 400 } else { 200 })
    });
    let Measured { guard, log, default: _default } = measured(builder(&server.url(), "later", spool));
    directory::await_no_payload(spool);
    guard.shutdown().unwrap();
    assert_eq!(push_count(&server, "left"), 2);
    let own = "# TYPE acme_run_duration_seconds gauge\nacme_run_duration_seconds 5\n";
    assert!(server.requests().iter().any(|request| request.text() == own));
    assert_eq!(log.own().len(), 1);
    assert!(log.text().contains("the stages were pushed without them"), "{}", log.text());
}

/// A payload of the previous format version.
#[test]
fn payload_of_format_1_is_delivered() {
    let Some(server) = support::pushgateway() else { return };
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    for number in [1, 2] {
        let text = state(now(), number).replace(
            "# TYPE quant",
            "# HELP quant_run_start_timestamp_seconds Unix time at which this run started.\n# TYPE quant",
        );
        let mut crc = flate2::Crc::new();
        crc.update(text.as_bytes());
        let (written, length, crc) = (now(), text.len(), crc.sum());
        let head = format!(
            "tracing-stage-metrics spool 1\ngroup /metrics/job/j\ntime {written}\nlength {length}\ncrc32 {crc:08x}\n\n"
        );
        fs::write(spool.join(format!("{number:020}-0badcafe-17-{number}.spool")), head + &text).unwrap();
    }
    deliver(builder(&server.url(), "unrelated", spool), spool);
    assert_eq!(
        gauge(&server, "j", "state"),
        2.0,
        "delivered in order, although the second was written before the first arrived"
    );
}
