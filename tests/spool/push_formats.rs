//! Payloads in protobuf, and payloads in one format that a run with the other delivers.

use std::fs;
use std::path::Path;

use tracing_stage_metrics::{MetricsLayerBuilder, PushFormat};

use super::support::exposition::{self, Exposition};
use super::support::measured::{Measured, failing_stage, measured};
use super::support::mock_gateway::Request;
use super::support::{self, MockGateway, Reply, http};
use super::{builder, deliver, directory, leave_payload_with};

const FORMATS: [PushFormat; 2] = [PushFormat::Text, PushFormat::Protobuf];
const LAST_SUCCESS: &str = "quant_run_last_success_timestamp_seconds";
const STAGE_LAST_SUCCESS: &str = "quant_stage_last_success_timestamp_seconds";

fn builder_in(format: PushFormat, url: &str, job: &str, spool: &Path) -> MetricsLayerBuilder {
    builder(url, job, spool).map_pushgateway(|gateway| gateway.with_format(format))
}

/// A run of one stage that leaves its final payload in this format, and no other.
#[track_caller]
fn leave_payload_in(format: PushFormat, job: &str, stage_id: &str, spool: &Path) {
    leave_payload_with(spool, stage_id, |url| builder_in(format, url, job, spool));
    let payload = directory::payloads(spool).pop().unwrap();
    let is_text = String::from_utf8(fs::read(payload).unwrap()).is_ok_and(|text| text.contains("\n# TYPE "));
    assert_eq!(is_text, format == PushFormat::Text, "{format:?}");
}

/// What a Pushgateway shows of a job after pushes to it.
fn shown(server: &support::Pushgateway) -> Exposition {
    exposition::parse(&server.metrics())
}

fn labels<'a>(job: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [&[("instance", ""), ("job", job)], more].concat()
}

#[test]
fn payload_is_delivered_in_its_own_format() {
    for (left, later) in FORMATS.into_iter().flat_map(|left| FORMATS.map(|later| (left, later))) {
        let Some(server) = support::pushgateway() else { return };
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        leave_payload_in(left, "left", "a", spool);
        deliver(builder_in(later, &server.url(), "later", spool), spool);
        let total = labels("left", &[("stage_id", "a"), ("status", "success")]);
        assert_eq!(shown(&server).expect("quant_stage_total", &total), 1.0, "{left:?}, {later:?}");
        assert_eq!(directory::names(spool), [""; 0]);
    }
}

/// A push to the group by another client.
#[track_caller]
fn push(server: &support::Pushgateway, job: &str, headers: &[(&str, &str)], body: &[u8]) {
    let response = http::request(server.addr(), "POST", &format!("/metrics/job/{job}"), headers, body).unwrap();
    assert_eq!(response.status, 200, "{}", response.body);
}

/// The gateway has the application's metric with another type in another group. The metrics are not lost: the
/// quarantined file keeps them.
#[test]
fn refused_payload_is_replayed_with_the_stage_metrics_alone() {
    const TEXT: &str = "# TYPE rows counter\nrows 7\n# TYPE quant_run_duration_seconds gauge\n\
                        quant_run_duration_seconds 5\n";
    for format in FORMATS {
        let Some(server) = support::pushgateway() else { return };
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        push(&server, "other", &[], b"# TYPE rows gauge\nrows 1\n");
        let foreign = |builder: MetricsLayerBuilder| builder.with_exposition(|| TEXT.to_owned());
        leave_payload_with(spool, "a", |url| foreign(builder_in(format, url, "left", spool)));
        let payload = directory::only_payload(spool);
        directory::readdress(spool, &server.url());
        let before = fs::read(&payload).unwrap();
        let Measured { guard, log, default: _default } = measured(builder(&server.url(), "later", spool));
        directory::await_no_payload(spool);
        guard.shutdown().unwrap();
        let shown = shown(&server);
        assert_eq!(shown.expect("quant_run_duration_seconds", &labels("left", &[])), 5.0, "{format:?}");
        assert_eq!(shown.value("rows", &labels("left", &[])), None, "{format:?}");
        assert_eq!(fs::read(payload.with_extension("refused")).unwrap(), before, "{format:?}");
        let warnings = log.own();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        for part in ["it is renamed to *.refused", "the stages were pushed without them", "rows"] {
            assert!(warnings[0].contains(part), "{part}: {warnings:?}");
        }
    }
}

/// The gateway has a later, failed run of another node. Only the last success of the payload is new to it.
#[test]
fn last_success_of_an_outdated_payload_is_delivered_from_either_format() {
    for (left, later) in FORMATS.into_iter().flat_map(|left| FORMATS.map(|later| (left, later))) {
        let Some(server) = support::pushgateway() else { return };
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        leave_payload_in(left, "j", "good", spool);
        push(
            &server,
            "j",
            &[],
            b"# TYPE quant_run_start_timestamp_seconds gauge\nquant_run_start_timestamp_seconds 4e9\n",
        );
        deliver(builder_in(later, &server.url(), "later", spool), spool);
        let shown = shown(&server);
        assert!(shown.expect(LAST_SUCCESS, &labels("j", &[])) > 1.7e9, "{left:?}, {later:?}");
        assert_eq!(shown.expect("quant_run_start_timestamp_seconds", &labels("j", &[])), 4e9);
        assert!(shown.matching("quant_stage_total", &[("stage_id", "good")]).is_empty(), "{left:?}, {later:?}");
    }
}

/// The gateway does not answer in the second before the first push. The run's own state then carries the last success.
#[test]
fn last_success_is_carried_over_from_either_format_to_either() {
    for (left, now) in FORMATS.into_iter().flat_map(|left| FORMATS.map(|now| (left, now))) {
        let Some(reader) = support::pushgateway() else { return };
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        leave_payload_in(left, "j", "good", spool);
        let is_query = |request: &Request| request.method == "GET";
        let server =
            MockGateway::start_with(move |request| if is_query(request) { Reply::Silent } else { Reply::ok() });
        let Measured { guard, log: _, default: _default } = measured(builder_in(now, &server.url(), "j", spool));
        failing_stage("bad");
        guard.flush().unwrap();
        guard.shutdown().unwrap();
        let pushes: Vec<_> = server.requests().into_iter().filter(|request| request.method == "POST").collect();
        assert!(pushes.len() >= 2, "{}", pushes.len());
        for request in pushes {
            // A real gateway reads what the mock got.
            let content_type = request.header("content-type").unwrap();
            assert_eq!(content_type.starts_with("text/plain"), now == PushFormat::Text, "{content_type}");
            push(&reader, "j", &[("Content-Type", content_type)], &request.body);
            let shown = shown(&reader);
            assert!(shown.expect(LAST_SUCCESS, &labels("j", &[])) > 1.7e9, "{left:?}, {now:?}");
            let good = shown.matching(STAGE_LAST_SUCCESS, &[("stage_id", "good")]);
            assert_eq!(good.len(), 1, "{left:?}, {now:?}");
        }
        assert_eq!(directory::names(spool), [""; 0]);
    }
}
