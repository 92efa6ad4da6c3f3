//! Where there are no totals, nothing is shown under their names, and one warning says why.

use tracing_stage_metrics::{MetricsLayer, MetricsLayerBuilder};

use super::relay::{Mode, Relay};
use super::support::measured::{Measured, measured, stage};
use super::support::{self, MockGateway};
use super::{HOUR, builder, directory, run, shown, spooling, totals};

#[track_caller]
fn assert_unsupported(builder: MetricsLayerBuilder, warning: &str) {
    let Measured { guard, log, default: _default } = measured(builder.with_push_interval(HOUR));
    stage("a");
    guard.flush().unwrap();
    assert!(!guard.render().contains("quant_runs_total") && !guard.render().contains("quant_stage_run"));
    guard.shutdown().unwrap();
    assert_eq!(log.own(), [warning]);
}

#[test]
fn ways_out_without_totals_are_named_in_one_warning() {
    let totals = || MetricsLayer::builder().with_cumulative_totals();
    let alone =
        "cumulative totals are left out: only a gateway or a text file keeps those of earlier runs: set one of them";
    assert_unsupported(totals(), alone);
    #[cfg(feature = "http")]
    assert_unsupported(totals().with_http_listener("127.0.0.1:0".parse().unwrap()), alone);
    let server = MockGateway::ok();
    let grouped = builder(&server.url()).with_instance_grouping();
    let instance = "cumulative totals are left out: with the instance in the grouping, no later run continues a group";
    assert_unsupported(grouped, instance);
    let pushed: String = server.requests().iter().map(|request| request.text().to_owned()).collect();
    assert!(pushed.contains("quant_stage_total") && !pushed.contains("quant_runs_total"));
}

#[test]
#[cfg(feature = "otlp")]
fn otlp_has_no_totals() {
    let provider = opentelemetry_sdk::metrics::SdkMeterProvider::builder().build();
    let alone =
        "cumulative totals are left out: only a gateway or a text file keeps those of earlier runs: set one of them";
    assert_unsupported(MetricsLayer::builder().with_cumulative_totals().with_meter_provider(provider.clone()), alone);
    let Some(server) = support::pushgateway() else { return };
    for _ in 0..2 {
        let builder = builder(&server.url()).with_meter_provider(provider.clone());
        let Measured { guard, log, default: _default } = measured(builder);
        stage("a");
        guard.shutdown().unwrap();
        assert_eq!(log.own(), ["cumulative totals are not exported over OTLP"]);
    }
    assert_eq!(totals(&server), Some(shown([2, 0], [2, 0])));
}

/// It answers reads and has no groups.
#[test]
fn victoria_metrics_has_no_totals() {
    let Some(server) = support::victoria_metrics() else { return };
    let spool = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let Measured { guard, log, default: _default } = measured(spooling(&server.import_url(), spool.path()));
        stage("a");
        guard.flush().unwrap();
        guard.shutdown().unwrap();
        let [warning] = &log.own()[..] else { panic!("{:?}", log.own()) };
        assert!(warning.contains("shows no metrics of a Pushgateway"), "{warning}");
        assert_eq!(directory::names(spool.path()), [""; 0]);
    }
    let request = |query: &str| format!("last_over_time({query}{{job='j'}}[1h])");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert_eq!(server.query_at(now, &request("quant_runs_total")).len(), 0);
    assert_eq!(server.query_at(now, &request("quant_run_duration_seconds")).len(), 1);
}

/// Pushes pass and reads do not. The totals that are there stay, and the spool does not fill up.
#[test]
fn proxy_that_shows_nothing_leaves_the_totals_as_they_are() {
    for (status, page) in [(403, "no"), (200, "<html>Please log in</html>\n")] {
        let Some(server) = support::pushgateway() else { return };
        let (relay, spool) = (Relay::start(&server), tempfile::tempdir().unwrap());
        assert!(run(builder(&server.url()), &["a"], &[]));
        relay.set(Mode::Hide(status, page));
        let Measured { guard, log, default: _default } = measured(spooling(&relay.url(), spool.path()));
        stage("a");
        for _ in 0..3 {
            guard.flush().unwrap();
        }
        guard.shutdown().unwrap();
        assert_eq!(totals(&server), Some(shown([1, 0], [1, 0])));
        assert_eq!(directory::names(spool.path()), [""; 0]);
        let [warning] = &log.own()[..] else { panic!("{:?}", log.own()) };
        assert!(warning.starts_with("the cumulative totals are left out until the gateway shows"), "{warning}");
    }
}

/// The gateway does not answer the read at first.
#[test]
fn base_is_read_by_a_later_push() {
    let Some(server) = support::pushgateway() else { return };
    let relay = Relay::start(&server);
    assert!(run(builder(&server.url()), &["a"], &[]));
    relay.set(Mode::Hide(503, ""));
    let Measured { guard, log, default: _default } = measured(builder(&relay.url()));
    stage("a");
    guard.flush().unwrap();
    assert!(relay.pushes().iter().all(|push| !push.text().contains("quant_runs_total")));
    assert_eq!(totals(&server), Some(shown([1, 0], [1, 0])));
    relay.set(Mode::Forward);
    guard.flush().unwrap();
    assert_eq!(totals(&server), Some(shown([1, 0], [2, 0])));
    guard.shutdown().unwrap();
    assert_eq!(totals(&server), Some(shown([2, 0], [2, 0])));
    assert_eq!(log.own(), [""; 0]);
}

/// The last push arrives without totals. The payload stays until a later run adds them.
#[test]
fn run_that_never_knew_its_base_is_added_later() {
    let Some(server) = support::pushgateway() else { return };
    let (relay, spool) = (Relay::start(&server), tempfile::tempdir().unwrap());
    assert!(run(builder(&server.url()), &["a"], &[]));
    relay.set(Mode::Hide(503, ""));
    assert!(run(spooling(&relay.url(), spool.path()), &["a"], &[]), "the push itself succeeds");
    assert_eq!(totals(&server), Some(shown([1, 0], [1, 0])));
    relay.set(Mode::Forward);
    assert!(run(spooling(&relay.url(), spool.path()), &["a"], &[]));
    assert_eq!(totals(&server), Some(shown([3, 0], [3, 0])));
    assert_eq!(directory::names(spool.path()), [""; 0]);
}

/// Pushes pass, and every read fails. A run that has no more pushes says so, and one that goes on too.
#[test]
fn reads_that_always_fail_are_reported_once() {
    for flushes in [0, 3] {
        let Some(server) = support::pushgateway() else { return };
        let relay = Relay::start(&server);
        relay.set(Mode::Hide(500, "an error of the gateway"));
        let Measured { guard, log, default: _default } = measured(builder(&relay.url()));
        stage("a");
        (0..flushes).for_each(|_| guard.flush().unwrap());
        let reported = || log.own().iter().filter(|event| event.contains("totals")).count();
        assert_eq!(reported(), usize::from(flushes > 0));
        guard.shutdown().unwrap();
        assert_eq!(totals(&server), None);
        let [warning] = &log.own()[..] else { panic!("{:?}", log.own()) };
        assert!(warning.starts_with("the cumulative totals are left out until the gateway shows"), "{warning}");
        assert!(warning.contains("500") && warning.contains("an error of the gateway"), "{warning}");
    }
}
