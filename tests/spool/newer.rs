//! An older state never takes the place of a newer one, whatever the clocks say, and a last success is never lost.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use tracing_stage_metrics::{MetricsLayer, Pushgateway};

use super::support::measured::{Measured, failing_stage, measured, stage};
use super::support::mock_gateway::Answer;
use super::support::{self, MockGateway, Reply, child, exposition, http};
use super::{all_asked, asked, builder, directory, leave, pushes_of, scenarios};

const LAST_SUCCESS: &str = "quant_run_last_success_timestamp_seconds";
const STAGE_LAST_SUCCESS: &str = "quant_stage_last_success_timestamp_seconds";
const RUN_START: &str = "quant_run_start_timestamp_seconds";

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// A metric of a group whose value tells whose state is there.
fn state(run_start: f64, value: u32) -> String {
    format!("# TYPE {RUN_START} gauge\n{RUN_START} {run_start}\n# TYPE state gauge\nstate {value}\n")
}

#[track_caller]
fn push(server: &support::Pushgateway, job: &str, text: &str) {
    let answer = http::request(server.addr(), "POST", &format!("/metrics/job/{job}"), &[], text.as_bytes()).unwrap();
    assert_eq!(answer.status, 200);
}

#[track_caller]
fn shown(server: &support::Pushgateway, job: &str, metric: &str) -> f64 {
    exposition::parse(&server.metrics()).expect(metric, &[("instance", ""), ("job", job)])
}

/// A run of another group that delivers what is there.
#[track_caller]
fn deliver(url: &str, spool: &std::path::Path) {
    let Measured { guard, log, default: _default } = measured(builder(url, "unrelated", spool));
    directory::await_no_payload(spool);
    guard.shutdown().unwrap();
    assert_eq!(log.own(), [""; 0]);
}

/// The run's payload is from a node whose clock was an hour ahead, and has been set right since. The gateway, which that
/// run had reached, has a later run of the group.
#[test]
fn a_later_run_stays_though_the_clock_went_back_between_the_runs() {
    let Some(server) = support::pushgateway() else { return };
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    push(&server, "j", &state(now(), 2));
    let (ahead, before) = (now() + 3_600.0, now() - 60.0);
    let head = [("run-start", ahead - 5.0), ("written", ahead), ("gateway-written", before)];
    directory::put(spool, &server.url(), "j", &head, &state(ahead - 5.0, 1));
    deliver(&server.url(), spool);
    assert_eq!(shown(&server, "j", "state"), 2.0);
}

/// The same node has the wrong clock still: what the gateway's answers say of it counts.
#[test]
fn a_node_with_a_wrong_clock_is_compared_on_the_gateways_clock() {
    for (offset, pushed_later, wanted) in [(3_600.0, true, 2.0), (-3_600.0, false, 1.0)] {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        // The run never reached the gateway, so that its payload has the time of the node alone.
        let written = now() - 30.0;
        directory::put(spool, "http://x", "j", &[("run-start", written), ("written", written)], &state(written, 1));
        let push_time = written + offset + if pushed_later { 10.0 } else { -10.0 };
        let body = format!(
            "push_time_seconds{{instance=\"\",job=\"j\"}} {push_time}\n\
             {RUN_START}{{instance=\"\",job=\"j\"}} 1\npushgateway_build_info 1\n"
        );
        let date = httpdate::fmt_http_date(UNIX_EPOCH + std::time::Duration::from_secs_f64(now() + offset));
        let server = MockGateway::start_by(move |request| {
            let answer = Answer::new(200).with_header("Date", &date);
            Reply::Answer(if request.method == "GET" { answer.with_body(&body) } else { answer })
        });
        deliver(&server.url(), spool);
        assert_eq!(pushes_of(&server, "j"), if wanted == 1.0 { 1 } else { 0 }, "{offset}");
    }
}

#[test]
fn a_run_dated_2099_does_not_keep_others_out() {
    let Some(server) = support::pushgateway() else { return };
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    push(&server, "j", &state(4.07e9, 1));
    leave(spool, "j", "left");
    deliver(&server.url(), spool);
    assert!(shown(&server, "j", RUN_START) < 4e9);
}

#[test]
fn an_application_gauge_is_not_taken_for_the_start_of_a_run() {
    let Some(server) = support::pushgateway() else { return };
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    push(
        &server,
        "j",
        "# TYPE warehouse_run_start_timestamp_seconds gauge\nwarehouse_run_start_timestamp_seconds 4e9\n",
    );
    leave(spool, "j", "left");
    deliver(&server.url(), spool);
    assert!(shown(&server, "j", LAST_SUCCESS) > 1.7e9, "it was delivered");
}

/// A label with an empty value makes another group, which has no later state.
#[test]
fn groups_with_and_without_an_empty_label_are_two() {
    let Some(server) = support::pushgateway() else { return };
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    let written = now() - 30.0;
    directory::put(spool, &server.url(), "j/region@base64/=", &[("written", written)], &state(written, 1));
    push(&server, "j", &state(now(), 2));
    deliver(&server.url(), spool);
    assert_eq!(shown(&server, "j", "state"), 2.0);
    let found = exposition::parse(&server.metrics());
    assert_eq!(found.expect("state", &[("instance", ""), ("job", "j"), ("region", "")]), 1.0);
}

/// A page says nothing of the group, whatever is in it.
#[test]
fn a_page_of_a_proxy_is_not_the_gateways_word() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave(spool, "left", "left");
    let page = "push_time_seconds{instance=\"\",job=\"left\"} 9e9\n";
    let server = MockGateway::start_by(move |_| Reply::Answer(Answer::new(200).with_body(page)));
    deliver(&server.url(), spool);
    assert_eq!(pushes_of(&server, "left"), 1);
}

#[test]
fn a_payload_goes_to_its_own_gateway_alone() {
    let (Some(ours), Some(theirs)) = (support::pushgateway(), support::pushgateway()) else { return };
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    for job in ["later", "j"] {
        leave(spool, job, "left");
    }
    directory::readdress(spool, &theirs.url());
    let left = directory::names(spool);
    // Not by `builder`, which makes all payloads ones for its gateway.
    let run = |url: &str| {
        let gateway = Pushgateway::new(url, "later").unwrap();
        measured(MetricsLayer::builder().with_pushgateway(gateway).with_spool_dir(spool))
    };
    let Measured { guard, log, default: _default } = run(&ours.url());
    guard.flush().unwrap();
    guard.shutdown().unwrap();
    assert_eq!(log.own(), [""; 0]);
    assert_eq!(directory::names(spool), left);
    let found = exposition::parse(&ours.metrics());
    assert_eq!(found.value(LAST_SUCCESS, &[("instance", ""), ("job", "j")]), None);

    let Measured { guard, log: _, default: _default } = run(&theirs.url());
    directory::await_no_payload(spool);
    guard.shutdown().unwrap();
    assert!(shown(&theirs, "j", LAST_SUCCESS) > 1.7e9);
}

#[test]
fn a_last_success_survives_a_failed_run_of_the_same_group() {
    let Some(mut server) = support::pushgateway() else { return };
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    server.stop();
    leave_by_dead(&server.url(), spool, "j");
    let left = exposition::parse(&directory::content(&directory::only_payload(spool)).1);
    server.restart();
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "j", spool));
    failing_stage("good");
    guard.shutdown().unwrap();
    assert_eq!(shown(&server, "j", LAST_SUCCESS), left.expect(LAST_SUCCESS, &[]));
    let labels = [("instance", ""), ("job", "j"), ("profile", ""), ("stage_id", "good")];
    let found = exposition::parse(&server.metrics());
    let wanted = left.expect(STAGE_LAST_SUCCESS, &[("stage_id", "good"), ("profile", "")]);
    assert_eq!(found.expect(STAGE_LAST_SUCCESS, &labels), wanted);
    assert!(found.expect(RUN_START, &labels[..2]) > left.expect(RUN_START, &[]), "the state is that of the second run");
    assert_eq!(directory::names(spool), [""; 0]);
}

/// A run of one good stage whose gateway is away.
#[track_caller]
fn leave_by_dead(url: &str, spool: &std::path::Path, job: &str) {
    let Measured { guard, log: _, default: _default } = measured(builder(url, job, spool));
    stage("good");
    guard.shutdown().unwrap_err();
}

#[test]
fn a_last_success_survives_a_run_that_is_killed_in_its_first_second() {
    let Some(mut server) = support::pushgateway() else { return };
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    server.stop();
    leave_by_dead(&server.url(), spool, "j");
    let left = exposition::parse(&directory::content(&directory::only_payload(spool)).1);
    server.restart();
    let running = child::start(scenarios::command("stay", &server.url(), "j", spool));
    let is_pushed = || exposition::parse(&server.metrics()).value(RUN_START, &[("instance", ""), ("job", "j")]);
    directory::await_true("it pushed", || is_pushed().is_some_and(|start| start > left.expect(RUN_START, &[])));
    running.signal(child::Signal::KILL);
    running.wait();
    assert_eq!(shown(&server, "j", LAST_SUCCESS), left.expect(LAST_SUCCESS, &[]));
}

/// The gateway has a later run, of another node, that failed. Of what was left, the last success alone is news.
#[test]
fn a_last_success_survives_when_its_payload_is_out_of_date() {
    let Some(server) = support::pushgateway() else { return };
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave(spool, "j", "good");
    leave(spool, "j", "good");
    let wanted = exposition::parse(&directory::content(&directory::payloads(spool)[1]).1).expect(LAST_SUCCESS, &[]);
    let later = now();
    push(&server, "j", &state(later, 2));
    deliver(&server.url(), spool);
    assert_eq!((shown(&server, "j", "state"), shown(&server, "j", RUN_START)), (2.0, later));
    assert_eq!(shown(&server, "j", LAST_SUCCESS), wanted);
    let found = exposition::parse(&server.metrics());
    let stages = found
        .family("quant_stage_total")
        .is_some_and(|_| !found.matching("quant_stage_total", &[("job", "j")]).is_empty());
    assert!(!stages, "nothing else of it");

    // One that is later still stays.
    leave(spool, "j", "good");
    push(&server, "j", &format!("# TYPE {LAST_SUCCESS} gauge\n{LAST_SUCCESS} {}\n", now() + 1.0));
    let there = shown(&server, "j", LAST_SUCCESS);
    deliver(&server.url(), spool);
    assert_eq!(shown(&server, "j", LAST_SUCCESS), there);
}

/// The gateway cannot be asked in the second before the first push. The state of this run has the last success with it
/// then, and the payload goes when the gateway has that state.
#[test]
fn a_last_success_is_carried_over_where_the_payload_cannot_be_delivered_first() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave(spool, "j", "good");
    let left = exposition::parse(&directory::content(&directory::only_payload(spool)).1);
    let server = MockGateway::start_by(|request| if request.method == "GET" { Reply::Silent } else { Reply::ok() });
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "j", spool));
    failing_stage("bad");
    server.await_request(|request| request.method == "POST");
    assert_eq!(directory::payloads(spool).len(), 1, "only the final state is in its place");
    guard.shutdown().unwrap();
    assert!(all_asked(&server).iter().filter(|asked| **asked == "POST job/j").count() >= 2);
    for request in server.requests().iter().filter(|request| request.method == "POST") {
        let found = exposition::parse(request.text());
        assert_eq!(found.expect(LAST_SUCCESS, &[]), left.expect(LAST_SUCCESS, &[]));
        let good = found.matching(STAGE_LAST_SUCCESS, &[("stage_id", "good")]);
        assert_eq!(good.len(), 1);
    }
    assert_eq!(directory::names(spool), [""; 0]);
}

/// A process sends a payload and gives that up for a push of its own; the gateway may still apply it. The file is that
/// process's own until it ends.
#[test]
fn a_payload_that_was_sent_and_not_answered_stays_locked() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave(spool, "left", "left");
    let mut pushes = 0;
    let server = MockGateway::start_by(move |request| match &*asked(request) {
        "POST job/left" => Reply::Silent,
        "POST job/first" => {
            pushes += 1;
            if pushes == 2 { Reply::Held(Answer::new(200)) } else { Reply::ok() }
        }
        _ => Reply::ok(),
    });
    let first = measured(builder(&server.url(), "first", spool));
    server.await_request(|request| asked(request) == "POST job/left");
    std::thread::scope(|scope| {
        let flush = scope.spawn(|| first.guard.flush());
        directory::await_true("its own push is on its way", || pushes_of(&server, "first") == 2);
        let gateway = Pushgateway::new(server.url(), "second").unwrap();
        let second = measured(MetricsLayer::builder().with_pushgateway(gateway).with_spool_dir(spool));
        second.guard.flush().unwrap();
        second.guard.shutdown().unwrap();
        assert_eq!(pushes_of(&server, "left"), 1, "not by another process");
        server.set_replies([Reply::status(401)]);
        server.release();
        flush.join().unwrap().unwrap();
    });
    first.guard.shutdown().unwrap_err();
    server.set_replies([Reply::ok()]);
    let left = fs::File::open(&directory::payloads(spool)[0]).unwrap();
    directory::await_true("the lock is free", || left.try_lock().is_ok());
    left.unlock().unwrap();
    let before = pushes_of(&server, "left");
    deliver(&server.url(), spool);
    assert_eq!(pushes_of(&server, "left"), before + 1);
}

/// The names of this crate's metrics are those of the payload, not those of the process that delivers it.
#[test]
fn after_a_bad_request_the_stages_of_another_namespace_are_pushed_alone() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    const TEXT: &str =
        "# TYPE acme_run_duration_seconds gauge\nacme_run_duration_seconds 5\n# TYPE rows gauge\nrows 7\n";
    let acme = |url: &str| builder(url, "left", spool).with_namespace("acme").with_exposition(|| TEXT.to_owned());
    super::leave_by(spool, "left", acme);
    let server = MockGateway::start_by(|request| {
        Reply::status(if request.method == "POST" && request.text().contains("rows 7") { 400 } else { 200 })
    });
    let Measured { guard, log, default: _default } = measured(builder(&server.url(), "later", spool));
    directory::await_no_payload(spool);
    guard.shutdown().unwrap();
    assert_eq!(pushes_of(&server, "left"), 2);
    let own = "# TYPE acme_run_duration_seconds gauge\nacme_run_duration_seconds 5\n";
    assert!(server.requests().iter().any(|request| request.text() == own));
    assert_eq!(log.own().len(), 1);
    assert!(log.text().contains("the stages were pushed without them"), "{}", log.text());
}

/// What the version before left.
#[test]
fn a_file_of_the_first_format_is_delivered() {
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
    deliver(&server.url(), spool);
    assert_eq!(
        shown(&server, "j", "state"),
        2.0,
        "in their order, though the second was written before the first came"
    );
}
