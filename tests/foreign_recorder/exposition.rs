//! `with_exposition`: the delivery of a recorder of the application.

use metrics_exporter_prometheus::PrometheusBuilder;
use tracing::subscriber::with_default;
use tracing::{error, info_span};
use tracing_stage_metrics::{MetricsLayer, Pushgateway};
use tracing_subscriber::Registry;
use tracing_subscriber::layer::SubscriberExt;

use super::MemoryRecorder;
use super::support::MockGateway;
use super::support::measured::measured;

#[test]
fn rendering_of_the_application_is_delivered() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let file = tempfile::tempdir().unwrap();
    let path = file.path().join("last.prom");
    metrics::with_local_recorder(&recorder, || {
        let builder = MetricsLayer::builder().with_namespace("acme").with_expected_stages(["a", "b"]);
        let builder = builder.with_exposition(move || handle.render()).with_textfile(&path);
        let (layer, guard) = builder.build().unwrap();
        with_default(Registry::default().with(layer), || {
            metrics::counter!("rows_total").increment(3);
            info_span!("x", stage_id = "a", profile = "p").in_scope(|| ());
            let open = info_span!("x", stage_id = "b", profile = "p");
            let text = guard.render();
            for line in [
                "rows_total 3",
                "acme_stage_total{stage_id=\"a\",status=\"success\"} 1",
                "acme_stage_total{stage_id=\"b\",status=\"success\"} 0",
                "acme_stage_active{stage_id=\"b\",profile=\"p\"} 1",
            ] {
                assert!(text.lines().any(|rendered| rendered == line), "{line} is not in\n{text}");
            }
            assert!(!text.contains("acme_run_duration_seconds "), "{text}");
            guard.shutdown().unwrap();
            drop(open);
        });
    });
    let text = std::fs::read_to_string(&path).unwrap();
    for line in [
        "rows_total 3",
        "acme_stage_total{stage_id=\"b\",status=\"failure\"} 1",
        "acme_stage_failures_total{stage_id=\"b\",profile=\"p\",reason=\"unfinished\"} 1",
        "acme_stage_active{stage_id=\"b\",profile=\"p\"} 0",
    ] {
        assert!(text.lines().any(|rendered| rendered == line), "{line} is not in\n{text}");
    }
    assert!(text.contains("acme_run_duration_seconds "), "{text}");
    assert!(!text.contains("acme_run_last_success_timestamp_seconds "), "{text}");
}

/// The recorder of the application cannot take back a series, so it never gets one.
#[test]
fn run_info_has_one_series_beside_a_foreign_recorder() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let (handle, exporter) = (recorder.handle(), recorder.handle());
    metrics::with_local_recorder(&recorder, || {
        let builder = MetricsLayer::builder().with_label("env", "prod").with_exposition(move || handle.render());
        let measured = measured(builder);
        let run_info = || {
            let text = measured.guard.render();
            let lines = text.lines().filter(|line| line.starts_with("quant_run_info"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(run_info(), ["quant_run_info{run_id=\"\",profile=\"\",env=\"prod\"} 1"]);
        info_span!("x", stage_id = "a", run_id = "r").in_scope(|| {
            assert_eq!(run_info(), ["quant_run_info{run_id=\"r\",profile=\"\",env=\"prod\"} 1"]);
            info_span!("x", stage_id = "b", profile = "p").in_scope(|| ());
        });
        assert_eq!(run_info(), ["quant_run_info{run_id=\"r\",profile=\"p\",env=\"prod\"} 1"]);
        assert!(!exporter.render().contains("quant_run_info"));
    });
}

#[test]
fn last_failed_follows_each_run_in_a_foreign_recorder() {
    let recorder = MemoryRecorder::default();
    metrics::with_local_recorder(&recorder, || {
        let _measured = measured(MetricsLayer::builder().with_exposition(String::new));
        let failed = || recorder.nonzero_gauges("quant_stage_last_failed");
        for _ in 0..2 {
            info_span!("x", stage_id = "a").in_scope(|| ());
            assert_eq!(failed(), [""; 0]);
            for _ in 0..2 {
                info_span!("x", stage_id = "a").in_scope(|| error!("it broke"));
                assert_eq!(failed(), ["quant_stage_last_failed{stage_id=a,profile=} 1"]);
            }
        }
    });
}

#[test]
fn stages_after_the_shutdown_are_not_recorded() {
    let recorder = MemoryRecorder::default();
    metrics::with_local_recorder(&recorder, || {
        let (layer, guard) = MetricsLayer::builder().with_exposition(String::new).build().unwrap();
        with_default(Registry::default().with(layer), || {
            let open = info_span!("x", stage_id = "a");
            let entered = info_span!("x", stage_id = "b").entered();
            guard.shutdown().unwrap();
            let after = (recorder.counters(), recorder.nonzero_gauges("quant_stage_active"));
            assert!(after.0.contains(&"quant_stage_total{stage_id=a,status=failure} 1".to_owned()), "{after:?}");
            assert!(after.0.contains(&"quant_stage_total{stage_id=b,status=failure} 1".to_owned()), "{after:?}");
            assert!(after.1.is_empty(), "{after:?}");
            error!("late");
            open.record("profile", "not declared");
            drop((entered, open));
            info_span!("x", stage_id = "c").in_scope(|| error!("late"));
            assert_eq!((recorder.counters(), recorder.nonzero_gauges("quant_stage_active")), after);
            assert_eq!(recorder.durations("quant_stage_duration_seconds{stage_id=a,profile=,run_id=}").len(), 1);
        });
    });
}

const INVALID: &str = "\
# TYPE rows counter
rows 1
# TYPE rows gauge
rows 2
# TYPE quant_stage_total gauge
quant_stage_total 3
# TYPE x_count counter
x_count 4
# TYPE x histogram
x_bucket{le=\"1.0\"} 5
x_bucket{le=\"+Inf\"} 5
x_sum 1e+06
x_count 5
this is no line of the format
twice{a=\"1\"} 1
twice{a=\"1\"} 2
keys{a.b=\"1\",a_b=\"2\"} 6
";

#[test]
fn invalid_series_are_left_out_with_a_warning() {
    let server = MockGateway::ok();
    let gateway = Pushgateway::new(server.url(), "j").unwrap();
    let measured = measured(MetricsLayer::builder().with_exposition(|| INVALID.to_owned()).with_pushgateway(gateway));
    let expected =
        "keys{a_b=\"1;2\"} 6\n# TYPE rows counter\nrows 1\ntwice{a=\"1\"} 1\n# TYPE x_count counter\nx_count 4\n";
    let without_run_info = |text: &str| {
        let lines: Vec<_> = text.split_inclusive('\n').collect();
        let (own, others): (Vec<&str>, Vec<&str>) = lines.into_iter().partition(|line| line.contains("quant_run_info"));
        assert_eq!(own.len(), 3, "{text}");
        others.concat()
    };
    assert_eq!(without_run_info(&measured.guard.render()), expected);
    measured.guard.flush().unwrap();
    measured.guard.flush().unwrap();
    assert_eq!(without_run_info(server.requests().last().unwrap().text()), expected);
    let mut events = measured.log.own();
    events.sort();
    let warnings = [
        "gauge `quant_stage_total` is left out, because `quant_stage_total` is a counter of this crate",
        "gauge `rows` is left out, because `rows` is a counter: give the gauge another name",
        "histogram `x` is left out, because `x_count` is a counter",
        "the text of `with_exposition` has a series of `twice` more than once",
        "the text of `with_exposition` has lines that are not in the text format 0.0.4; they are left out: line 14, \
         \"this is no line of the format\", has more than a value and a timestamp",
    ];
    assert_eq!(events.len(), warnings.len(), "one event for each warning: {events:#?}");
    for (event, warning) in events.iter().zip(warnings) {
        assert!(event.starts_with(warning), "{event}");
    }
}

#[test]
fn text_without_a_valid_line_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("last.prom");
    let builder = MetricsLayer::builder().with_exposition(|| "<html>\n".to_owned()).with_textfile(&path);
    let measured = measured(builder);
    let error = measured.guard.flush().unwrap_err();
    assert_eq!(
        error.to_string(),
        "the text of `with_exposition` is not in the Prometheus text format 0.0.4: line 1, \"<html>\", has no value"
    );
    assert_eq!(measured.guard.render(), "<html>\n", "the render has the text unchanged");
    assert!(!path.exists());
    let _ = measured.guard.shutdown().unwrap_err();
}
