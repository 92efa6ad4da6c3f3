use tracing::{error, info_span};

use super::panic_of;
use super::support::pipeline::{Measured, Pipeline};

const VALID: &str = "\
# TYPE quant_stage_active gauge
quant_stage_active{stage_id=\"a\",profile=\"p\"} 2
quant_stage_active{stage_id=\"a\",profile=\"\"} 0
# TYPE quant_stage_duration_seconds histogram
quant_stage_duration_seconds_bucket{stage_id=\"a\",profile=\"p\",run_id=\"r\",le=\"+Inf\"} 3
quant_stage_duration_seconds_sum{stage_id=\"a\",profile=\"p\",run_id=\"r\"} 1.5
quant_stage_duration_seconds_count{stage_id=\"a\",profile=\"p\",run_id=\"r\"} 3
# TYPE quant_stage_failures_total counter
quant_stage_failures_total{stage_id=\"a\",profile=\"p\",reason=\"error\"} 1
quant_stage_failures_total{stage_id=\"a\",profile=\"p\",reason=\"panic\"} 0
# TYPE quant_stage_total counter
quant_stage_total{stage_id=\"a\",status=\"success\"} 2
quant_stage_total{stage_id=\"a\",status=\"failure\"} 1
";

#[test]
fn metrics_of_an_exposition_are_read() {
    let measured = Measured::read(VALID);
    assert_eq!(measured.totals(), ["a 2 1"]);
    assert_eq!(measured.runs(), ["a,p,r 3"]);
    assert_eq!(measured.failures(), ["a,p,error 1"]);
    assert_eq!(measured.active(), ["a,p 2"]);
    assert_eq!(measured.seconds("a"), 1.5);
    assert!(measured.has("quant_stage_total") && !measured.has("quant_stage"));
}

#[test]
fn inconsistent_metrics_panic() {
    let read = |from: &str, to: &str| panic_of(|| Measured::read(&VALID.replace(from, to)));
    let message = read("status=\"success\"} 2", "status=\"success\"} 3");
    assert!(message.contains("finished stages and durations"), "{message}");
    let message = read("reason=\"panic\"} 0", "reason=\"panic\"} 1");
    assert!(message.contains("failures and their reasons"), "{message}");
    let message = read("quant_stage_total{stage_id=\"a\",status=\"failure\"} 1\n", "");
    assert!(message.contains("no series quant_stage_total"), "{message}");
    let message = panic_of(|| Measured::read(VALID).seconds("b"));
    assert!(message.contains("no durations of b"), "{message}");
}

#[test]
fn pipeline_records_the_events_of_the_crate_alone() {
    let pipeline = Pipeline::start();
    error!("of the application");
    assert!(pipeline.heard().is_empty());
    let open = info_span!("x", stage_id = "open");
    let ended = pipeline.end();
    drop(open);
    assert_eq!(ended.heard().len(), 1);
    assert_eq!(ended.last.totals(), ["open 0 1"]);
}
