//! What Prometheus makes of the totals.

use super::support::servers;
use super::support::{Prometheus, Pushgateway};
use super::{builder, run};

const FAILED: &str = "quant_runs_total{job=\"j\",status=\"failure\"}";

/// The gateway comes back with the state that it had before two runs. `increase()` takes that for a reset and adds the
/// whole value. The difference lacks the two runs, and no more.
#[test]
fn difference_survives_a_gateway_with_an_older_state_and_increase_does_not() {
    if !servers::installed(servers::PUSHGATEWAY) || !servers::installed(servers::PROMETHEUS) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let [file, copy] = ["groups", "copy"].map(|name| directory.path().join(name));
    let mut server = Pushgateway::start_with(&[&format!("--persistence.file={}", file.display())]);
    let prometheus = Prometheus::start(&[("gateway", server.addr(), true)]);
    let fail = |server: &Pushgateway, total: f64| {
        assert!(run(builder(&server.url()), &[], &["a"]));
        prometheus.await_query(FAILED, |result| matches!(result, [(_, value)] if *value == total));
    };
    (1..=5_u32).for_each(|total| fail(&server, total.into()));
    // The gateway writes its file when it ends.
    server.restart();
    std::fs::copy(&file, &copy).unwrap();
    (6..=7_u32).for_each(|total| fail(&server, total.into()));
    server.stop();
    std::fs::copy(&copy, &file).unwrap();
    server.restart();
    fail(&server, 6.0);
    let value = |query: &str| prometheus.query(query).first().map(|(_, value)| *value).unwrap();
    assert_eq!(value(&format!("resets({FAILED}[5m])")), 1.0);
    let first = value(&format!("min_over_time({FAILED}[5m])"));
    assert!(value(&format!("increase({FAILED}[5m])")) > 8.0 - first, "8 runs failed");
    assert_eq!(value(&format!("{FAILED} - min_over_time({FAILED}[5m])")), 6.0 - first);
}
