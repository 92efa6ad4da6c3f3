//! The label sets that all programs push.

pub(crate) const PROFILE: &str = "crypto_production";
pub(crate) const RUN_ID: &str = "20260105-191332";

pub(crate) fn name(n: usize) -> String {
    format!("foundation.ingest_{n}")
}

/// Number of distinct stages; more label sets differ in their run id.
const STAGES: usize = 100;

/// Stage id and run id of a label set.
pub(crate) fn sets(number: usize) -> impl Iterator<Item = (String, String)> {
    (0..number).map(|n| (name(n % STAGES), format!("20260105-{:06}", n / STAGES)))
}

/// Number of stages of a job that have succeeded once, as the gateway reports it.
pub(crate) fn on_gateway(scraped: &str, job: &str) -> usize {
    let of_job = scraped.lines().filter(|line| line.starts_with("quant_stage_total{") && line.contains(job));
    of_job.filter(|line| line.contains("status=\"success\"") && line.ends_with(" 1")).count()
}
