//! The example `otlp` as a program: the increments of several processes add up.
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
    assert!(ended.stderr.contains("allocation.simulate"), "stderr has the run report: {ended:?}");
}

#[test]
fn increments_of_short_lived_processes_add_up() {
    let server = MockGateway::ok();
    (0..RUNS).for_each(|_| run(&server.url()));
    let exports: Vec<_> = server.requests().iter().map(Export::from_http).collect();
    for export in &exports[1..] {
        assert_eq!(export.resource, exports[0].resource, "all processes have the same resource");
    }
    let totals = totals(&exports);
    let successes: Vec<_> = totals
        .iter()
        .filter(|((name, labels), _)| name == "quant_stage_total" && labels["status"] == "success")
        .map(|((_, labels), value)| (labels["stage_id"].as_str(), value.clone()))
        .collect();
    let total = |n: usize| Value::Sum { value: (n * RUNS) as f64, delta: true };
    assert_eq!(
        successes,
        [
            ("allocation.simulate", total(2)),
            ("alpha.inference", total(1)),
            ("alpha.policy", total(1)),
            ("foundation.features", total(3)),
            ("foundation.ingest", total(1)),
            ("risk.optimize", total(1)),
        ]
    );
    let durations = totals.keys().filter(|(name, _)| name == "quant_stage_duration_seconds");
    assert!(durations.clone().all(|(_, labels)| !labels.contains_key("run_id")));
    assert_eq!(durations.count(), 6, "one series for each stage, whatever the number of runs");
}

#[test]
fn real_receiver_accepts_the_example() {
    let Some(mut rotel) = Rotel::start() else { return };
    run(&format!("http://{}", rotel.http));
    rotel.await_line("quant_run_last_success_timestamp_seconds");
    let output = rotel.stop().stdout;
    assert!(output.contains("-> service.name: Str(otlp)\n"), "{output}");
    assert!(output.contains("-> stage_id: Str(risk.optimize)\n"), "{output}");
}
