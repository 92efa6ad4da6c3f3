//! `with_exposition`: the delivery for a recorder the application has.

use metrics_exporter_prometheus::PrometheusBuilder;
use tracing::subscriber::with_default;
use tracing::{error, info_span};
use tracing_stage_metrics::MetricsLayer;
use tracing_subscriber::Registry;
use tracing_subscriber::layer::SubscriberExt;

use super::Book;

#[test]
fn what_is_delivered_is_what_the_application_renders() {
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
                assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
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
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    assert!(text.contains("acme_run_duration_seconds "), "{text}");
    assert!(!text.contains("acme_run_last_success_timestamp_seconds "), "{text}");
}

#[test]
fn nothing_is_recorded_after_the_end() {
    let book = Book::default();
    metrics::with_local_recorder(&book, || {
        let (layer, guard) = MetricsLayer::builder().with_exposition(String::new).build().unwrap();
        with_default(Registry::default().with(layer), || {
            let open = info_span!("x", stage_id = "a");
            let entered = info_span!("x", stage_id = "b").entered();
            guard.shutdown().unwrap();
            let after = (book.counters(), book.nonzero_gauges("quant_stage_active"));
            assert!(after.0.contains(&"quant_stage_total{stage_id=a,status=failure} 1".to_owned()), "{after:?}");
            assert!(after.0.contains(&"quant_stage_total{stage_id=b,status=failure} 1".to_owned()), "{after:?}");
            assert!(after.1.is_empty(), "{after:?}");
            error!("late");
            open.record("profile", "not declared");
            drop((entered, open));
            info_span!("x", stage_id = "c").in_scope(|| error!("late"));
            assert_eq!((book.counters(), book.nonzero_gauges("quant_stage_active")), after);
            assert_eq!(book.durations("quant_stage_duration_seconds{stage_id=a,profile=,run_id=}").len(), 1);
        });
    });
}
