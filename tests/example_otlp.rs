//! The example `otlp` as its users run it: many processes, whose increments add up.
#![cfg(all(feature = "http", feature = "otlp"))]
#![allow(clippy::unwrap_used)]

mod support;

use support::MockGateway;
use support::collector::{Export, Rotel, Value, totals};

const RUNS: usize = 5;

fn run(endpoint: &str) {
    let mut command = support::example::command("otlp");
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
    command.env("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta");
    let ended = support::child::start(command).wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(ended.stderr.contains("allocation.simulate"), "the report of the run: {ended:?}");
}

#[test]
fn what_short_lived_processes_count_adds_up() {
    let server = MockGateway::ok();
    (0..RUNS).for_each(|_| run(&server.url()));
    let exports: Vec<_> = server.requests().iter().map(Export::of_http).collect();
    for export in &exports[1..] {
        assert_eq!(export.resource, exports[0].resource, "one series of them all");
    }
    let found = totals(&exports);
    let counted: Vec<_> = found
        .iter()
        .filter(|((name, labels), _)| name == "quant_stage_total" && labels["status"] == "success")
        .map(|((_, labels), value)| (labels["stage_id"].as_str(), value.clone()))
        .collect();
    let times = |n: usize| Value::Sum { value: (n * RUNS) as f64, delta: true };
    assert_eq!(
        counted,
        [
            ("allocation.simulate", times(2)),
            ("alpha.inference", times(1)),
            ("alpha.policy", times(1)),
            ("foundation.features", times(3)),
            ("foundation.ingest", times(1)),
            ("risk.optimize", times(1)),
        ]
    );
    let ids = found.keys().filter(|(name, _)| name == "quant_stage_duration_seconds");
    assert!(ids.clone().all(|(_, labels)| !labels.contains_key("run_id")));
    assert_eq!(ids.count(), 6, "one for each stage, however many runs");
}

#[test]
fn a_real_receiver_gets_the_example() {
    let Some(mut rotel) = Rotel::start() else { return };
    run(&format!("http://{}", rotel.http));
    rotel.await_line("quant_run_last_success_timestamp_seconds");
    let output = rotel.stop().stdout;
    assert!(output.contains("-> service.name: Str(otlp)\n"), "{output}");
    assert!(output.contains("-> stage_id: Str(risk.optimize)\n"), "{output}");
}
