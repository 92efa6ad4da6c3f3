//! Totals over all runs of a group: exact whatever happens to the gateway and the processes.
#![cfg(all(feature = "pushgateway", unix))]
#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod support;

#[allow(dead_code)] // The tests of the spool use the rest.
#[path = "spool/directory.rs"]
mod directory;
#[path = "totals/in_flight.rs"]
mod in_flight;
#[path = "totals/killed.rs"]
mod killed;
#[path = "totals/prometheus.rs"]
mod prometheus;
#[path = "totals/relay.rs"]
mod relay;
#[path = "totals/spooled.rs"]
mod spooled;
#[path = "totals/unsupported.rs"]
mod unsupported;

use std::path::Path;
use std::time::Duration;

use support::exposition::{self, Exposition};
use support::measured::{Measured, await_first_push, failing_stage, measured, stage};
use tracing_stage_metrics::{MetricsLayer, MetricsLayerBuilder, PushFormat, Pushgateway};

const HOUR: Duration = Duration::from_secs(3_600);

/// A run of job `j`.
fn builder(url: &str) -> MetricsLayerBuilder {
    let gateway = Pushgateway::new(url, "j").unwrap();
    let builder = MetricsLayer::builder().with_pushgateway(gateway).with_cumulative_totals();
    builder.with_push_interval(HOUR).with_flush_timeout(Duration::from_secs(20))
}

fn spooling(url: &str, spool: &Path) -> MetricsLayerBuilder {
    directory::readdress(spool, url);
    builder(url).with_spool_dir(spool)
}

/// Runs the stages, the failing ones too, and ends. Returns whether the gateway has the final state.
#[track_caller]
fn run(builder: MetricsLayerBuilder, successes: &[&str], failures: &[&str]) -> bool {
    let Measured { guard, log: _, default: _default } = measured(builder);
    successes.iter().for_each(|id| stage(id));
    failures.iter().for_each(|id| failing_stage(id));
    guard.shutdown().is_ok()
}

/// The totals of job `j`: runs, and the runs of stage `a`. Both by status, successes first.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Shown {
    runs: [f64; 2],
    a: [f64; 2],
}

fn shown(runs: [u32; 2], a: [u32; 2]) -> Shown {
    Shown { runs: runs.map(f64::from), a: a.map(f64::from) }
}

/// Reads the totals of series with these labels, and of `a` where it is there.
fn totals_with(text: &str, labels: &[(&str, &str)]) -> Option<Shown> {
    let exposition = exposition::parse(text);
    let status = |name: &str, more: &[(&str, &str)]| {
        let values = ["success", "failure"]
            .map(|status| exposition.value(name, &[&[("status", status)], more, labels].concat()));
        let [Some(success), Some(failure)] = values else {
            assert_eq!(values, [None; 2], "both statuses or none: {name}");
            return None;
        };
        Some([success, failure])
    };
    let a = status("quant_stage_runs_total", &[("stage_id", "a"), ("profile", "")]);
    Some(Shown { runs: status("quant_runs_total", &[])?, a: a.unwrap_or_default() })
}

fn totals(server: &support::Pushgateway) -> Option<Shown> {
    totals_with(&server.metrics(), &[("instance", ""), ("job", "j")])
}

fn of_gateway(server: &support::Pushgateway) -> Exposition {
    exposition::parse(&server.metrics())
}

#[test]
fn totals_continue_from_run_to_run() {
    for format in [PushFormat::Text, PushFormat::Protobuf] {
        let Some(server) = support::pushgateway() else { return };
        let builder = || builder(&server.url()).map_pushgateway(|gateway| gateway.with_format(format));
        assert!(run(builder(), &["a", "a", "only in the first"], &[]));
        assert_eq!(totals(&server), Some(shown([1, 0], [2, 0])));
        assert!(run(builder(), &["a"], &["a"]));
        assert_eq!(totals(&server), Some(shown([1, 1], [3, 1])));
        let exposition = of_gateway(&server);
        let labels = [("instance", ""), ("job", "j"), ("stage_id", "only in the first"), ("profile", "")];
        let succeeded = [&labels[..], &[("status", "success")]].concat();
        assert_eq!(exposition.expect("quant_stage_runs_total", &succeeded), 1.0, "a stage that this run never ran");
        assert!(exposition.expect("quant_stage_run_seconds_total", &labels) > 0.0);
        let of_run = [("instance", ""), ("job", "j"), ("stage_id", "a"), ("status", "success")];
        assert_eq!(exposition.expect("quant_stage_total", &of_run), 1.0, "of this run alone");
    }
}

#[test]
fn both_statuses_are_zero_from_the_first_push_on() {
    let Some(server) = support::pushgateway() else { return };
    let Measured { guard, log, default: _default } = measured(builder(&server.url()));
    await_first_push(&guard);
    assert_eq!(totals(&server), Some(shown([0, 0], [0, 0])));
    let open = tracing::info_span!("s", stage_id = "a").entered();
    guard.flush().unwrap();
    assert!(of_gateway(&server).family("quant_stage_runs_total").is_some(), "of a stage that has not ended");
    drop(open);
    guard.flush().unwrap();
    assert_eq!(totals(&server), Some(shown([0, 0], [1, 0])), "a run counts at its end");
    guard.shutdown().unwrap();
    assert_eq!(totals(&server), Some(shown([1, 0], [1, 0])));
    assert_eq!(log.own(), [""; 0]);
}

/// The base is that of the group with exactly these labels. Constant labels may change.
#[test]
fn base_is_that_of_the_group_whatever_the_constant_labels() {
    let Some(server) = support::pushgateway() else { return };
    let grouped = |profile: &str| {
        let gateway = Pushgateway::new(server.url(), "j").unwrap().with_grouping_label("team", profile).unwrap();
        builder(&server.url()).with_pushgateway(gateway)
    };
    assert!(run(grouped("other"), &["a"], &[]));
    assert!(run(grouped("other"), &["a"], &[]));
    assert!(run(builder(&server.url()).with_label("version", "1"), &["a"], &[]));
    assert!(run(builder(&server.url()).with_label("version", "2"), &["a"], &[]));
    let of = |labels: &[(&str, &str)]| totals_with(&server.metrics(), labels);
    assert_eq!(of(&[("instance", ""), ("job", "j"), ("version", "2")]), Some(shown([2, 0], [2, 0])));
    assert_eq!(of(&[("instance", ""), ("job", "j"), ("version", "1")]), None);
    assert_eq!(of(&[("instance", ""), ("job", "j"), ("team", "other")]), Some(shown([2, 0], [2, 0])));
}

/// A refused push leaves a group without series. Its labels are those of a stage.
#[test]
fn group_whose_pushes_were_refused_has_no_part_in_the_totals() {
    let Some(server) = support::pushgateway() else { return };
    for runs in [1.0, 2.0] {
        let Measured { guard, log: _, default: _default } = measured(builder(&server.url()));
        tracing::info_span!("s", stage_id = "a", profile = "p").in_scope(|| {});
        guard.shutdown().unwrap();
        let labels = [("instance", ""), ("job", "j"), ("stage_id", "a"), ("profile", "p"), ("status", "success")];
        assert_eq!(of_gateway(&server).expect("quant_stage_runs_total", &labels), runs);
        let of_another_kind = b"# TYPE quant_runs_total gauge\nquant_runs_total 1\n";
        let path = "/metrics/job/j/profile/p";
        assert_eq!(support::http::request(server.addr(), "POST", path, &[], of_another_kind).unwrap().status, 400);
    }
}

#[test]
fn runs_within_a_second_are_all_counted() {
    let Some(server) = support::pushgateway() else { return };
    let spool = tempfile::tempdir().unwrap();
    for _ in 0..12 {
        assert!(run(spooling(&server.url(), spool.path()), &["a"], &[]));
    }
    assert_eq!(totals(&server), Some(shown([12, 0], [12, 0])));
    assert_eq!(directory::names(spool.path()), [""; 0]);
}

/// One recorder for three guards, with a label that this crate does not know. It still has the end of the run before.
#[test]
fn foreign_recorder_has_the_totals_too() {
    let Some(server) = support::pushgateway() else { return };
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().add_global_label("env", "p").build_recorder();
    for before in 0..3 {
        let handle = recorder.handle();
        let builder = builder(&server.url()).with_exposition(move || handle.render());
        metrics::with_local_recorder(&recorder, || {
            let Measured { guard, log: _, default: _default } = measured(builder);
            stage("a");
            guard.flush().unwrap();
            assert_eq!(totals(&server), Some(shown([before, 0], [before + 1, 0])), "the run has not ended");
            guard.shutdown().unwrap();
        });
        assert_eq!(totals(&server), Some(shown([before + 1, 0], [before + 1, 0])));
    }
}

/// The gateway shows the run itself when it answers the read. The series of the recorder have a label of its own.
#[test]
fn run_does_not_count_itself_as_killed() {
    let Some(server) = support::pushgateway() else { return };
    let relay = relay::Relay::start(&server);
    relay.set(relay::Mode::Hide(503, ""));
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().add_global_label("env", "p").build_recorder();
    let handle = recorder.handle();
    let builder = builder(&relay.url()).with_exposition(move || handle.render());
    metrics::with_local_recorder(&recorder, || {
        let Measured { guard, log: _, default: _default } = measured(builder);
        guard.flush().unwrap();
        relay.set(relay::Mode::Forward);
        guard.flush().unwrap();
        assert_eq!(totals(&server), Some(shown([0, 0], [0, 0])));
        stage("a");
        guard.shutdown().unwrap();
    });
    assert_eq!(totals(&server), Some(shown([1, 0], [1, 0])));
}

#[test]
fn metrics_of_the_application_with_these_names_are_left_out() {
    let Some(server) = support::pushgateway() else { return };
    let relay = relay::Relay::start(&server);
    assert!(run(builder(&relay.url()), &["a"], &[]));
    relay.set(relay::Mode::Hide(503, ""));
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let builder = builder(&relay.url()).with_exposition(move || handle.render());
    metrics::with_local_recorder(&recorder, || {
        let Measured { guard, log: _, default: _default } = measured(builder);
        metrics::counter!("quant_runs_total", "status" => "success").increment(500);
        guard.flush().unwrap();
        assert_eq!(totals(&server), Some(shown([1, 0], [1, 0])), "while the base is unknown");
        relay.set(relay::Mode::Forward);
        stage("a");
        guard.shutdown().unwrap();
    });
    assert_eq!(totals(&server), Some(shown([2, 0], [2, 0])));
}

/// Without a gateway the base is the file, which each write replaces.
#[test]
fn totals_of_a_text_file_continue() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("job.prom");
    let builder = || {
        let builder = MetricsLayer::builder().with_textfile(&path).with_job("j").with_cumulative_totals();
        builder.with_push_interval(HOUR)
    };
    let of_file = || totals_with(&std::fs::read_to_string(&path).unwrap(), &[("job", "j")]);
    assert!(run(builder(), &["a"], &[]));
    assert!(run(builder(), &["a"], &["a"]));
    assert_eq!(of_file(), Some(shown([1, 1], [2, 1])));
    // Never ends.
    let Measured { guard, log: _, default } = measured(builder());
    stage("a");
    guard.flush().unwrap();
    assert_eq!(of_file(), Some(shown([1, 1], [3, 1])));
    std::mem::forget((guard, default));
    assert!(run(builder(), &["a"], &[]));
    assert_eq!(of_file(), Some(shown([2, 2], [4, 1])));
}

#[test]
fn text_file_with_totals_that_are_no_counts_is_reported_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("job.prom");
    std::fs::write(&path, "# TYPE quant_runs_total counter\nquant_runs_total{status=\"success\"} NaN\n").unwrap();
    let Measured { guard, log, default: _default } =
        measured(MetricsLayer::builder().with_textfile(&path).with_cumulative_totals());
    guard.flush().unwrap();
    guard.shutdown().unwrap();
    assert_eq!(totals_with(&std::fs::read_to_string(&path).unwrap(), &[]), Some(shown([0, 1], [0, 0])));
    let [warning] = &log.own()[..] else { panic!("{:?}", log.own()) };
    assert!(
        warning.starts_with("the cumulative totals lack earlier runs") && warning.contains("job.prom"),
        "{warning}"
    );
}

/// `render`, a text file and a listener beside a gateway show its totals.
#[test]
#[cfg(feature = "http")]
fn all_ways_out_show_the_totals_of_the_gateway() {
    let Some(server) = support::pushgateway() else { return };
    assert!(run(builder(&server.url()), &["a"], &[]));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("job.prom");
    let builder = builder(&server.url()).with_textfile(&path).with_http_listener("127.0.0.1:0".parse().unwrap());
    let Measured { guard, log: _, default: _default } = measured(builder);
    stage("a");
    guard.flush().unwrap();
    // The first write of the file may come before the answer of the gateway.
    guard.flush().unwrap();
    let expected = Some(shown([1, 0], [2, 0]));
    let listener = support::http::request(guard.listen_addr().unwrap(), "GET", "/metrics", &[], b"").unwrap();
    for (text, labels) in
        [(guard.render(), &[][..]), (listener.body, &[]), (std::fs::read_to_string(&path).unwrap(), &[("job", "j")])]
    {
        assert_eq!(totals_with(&text, labels), expected, "{labels:?}");
    }
    assert_eq!(totals(&server), expected);
}
