//! Every metric of this crate: name, kind, unit, help text and labels.

use metrics::Unit;

/// Target of the crate's own events, which the layer ignores.
pub(crate) const OWN_TARGET: &str = "tracing_stage_metrics";

/// Default prefix of the metric names: `quant`. `MetricsLayerBuilder::with_namespace` changes it.
pub const DEFAULT_NAMESPACE: &str = "quant";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InstrumentKind {
    Counter,
    Gauge,
    Histogram,
    /// A counter of seconds with a fraction, which the counters of the `metrics` facade do not have.
    Seconds,
}

/// One metric, without its namespace.
#[derive(Debug)]
pub(crate) struct Metric {
    pub(crate) suffix: &'static str,
    pub(crate) kind: InstrumentKind,
    pub(crate) unit: Unit,
    pub(crate) labels: &'static [&'static str],
    pub(crate) help: &'static str,
}

impl Metric {
    pub(crate) fn name(&self, namespace: &str) -> String {
        format!("{namespace}_{}", self.suffix)
    }
}

pub(crate) const STAGE_ID: &str = "stage_id";
pub(crate) const PROFILE: &str = "profile";
pub(crate) const RUN_ID: &str = "run_id";
pub(crate) const STATUS: &str = "status";
pub(crate) const REASON: &str = "reason";

/// The label value that stands for values beyond a limit.
pub(crate) const OVERFLOW: &str = "_overflow";

/// Names that a grouping label must not have, since the metrics have them as labels. `profile` and `run_id` are allowed: a
/// grouping label of that name fixes the value for the whole process.
#[cfg_attr(not(feature = "pushgateway"), allow(dead_code))]
pub(crate) const RESERVED_LABELS: &[&str] = &[STAGE_ID, STATUS, REASON, "resource_type", "node", "result"];

pub(crate) const STAGE_DURATION: Metric = Metric {
    suffix: "stage_duration_seconds",
    kind: InstrumentKind::Histogram,
    unit: Unit::Seconds,
    labels: &[STAGE_ID, PROFILE, RUN_ID],
    help: "Duration of a stage, from the creation of its span to its last exit.",
};
pub(crate) const STAGE_TOTAL: Metric = Metric {
    suffix: "stage_total",
    kind: InstrumentKind::Counter,
    unit: Unit::Count,
    labels: &[STAGE_ID, STATUS],
    help: "Finished stages by status: success or failure.",
};
pub(crate) const RESOURCE_USAGE: Metric = Metric {
    suffix: "engine_resource_usage",
    kind: InstrumentKind::Gauge,
    unit: Unit::Count,
    labels: &["resource_type", "node"],
    help: "Resources used by this process: cpu in cores since the last sample, mem in resident bytes.",
};
pub(crate) const STAGE_ACTIVE: Metric = Metric {
    suffix: "stage_active",
    kind: InstrumentKind::Gauge,
    unit: Unit::Count,
    labels: &[STAGE_ID, PROFILE],
    help: "Stages running now.",
};
pub(crate) const STAGE_FAILURES: Metric = Metric {
    suffix: "stage_failures_total",
    kind: InstrumentKind::Counter,
    unit: Unit::Count,
    labels: &[STAGE_ID, PROFILE, REASON],
    help: "Failed stages by reason: error, panic, cancelled, interrupted or unfinished.",
};
pub(crate) const STAGE_LAST_DURATION: Metric = Metric {
    suffix: "stage_last_duration_seconds",
    kind: InstrumentKind::Gauge,
    unit: Unit::Seconds,
    labels: &[STAGE_ID, PROFILE],
    help: "Duration of the stage the last time it finished.",
};
pub(crate) const STAGE_LAST_SUCCESS: Metric = Metric {
    suffix: "stage_last_success_timestamp_seconds",
    kind: InstrumentKind::Gauge,
    unit: Unit::Seconds,
    labels: &[STAGE_ID, PROFILE],
    help: "Unix time at which the stage last succeeded.",
};
pub(crate) const STAGE_LAST_FAILED: Metric = Metric {
    suffix: "stage_last_failed",
    kind: InstrumentKind::Gauge,
    unit: Unit::Count,
    labels: &[STAGE_ID, PROFILE],
    help: "Whether the stage failed the last time it finished: 1 if it did, else 0.",
};
pub(crate) const STAGE_CPU: Metric = Metric {
    suffix: "stage_cpu_seconds_total",
    kind: InstrumentKind::Seconds,
    unit: Unit::Seconds,
    labels: &[STAGE_ID, PROFILE],
    help: "CPU time of threads while they were inside a finished stage, stages within it included.",
};
pub(crate) const RUN_INFO: Metric = Metric {
    suffix: "run_info",
    kind: InstrumentKind::Gauge,
    unit: Unit::Count,
    labels: &[RUN_ID, PROFILE],
    help: "The first run id and profile of this run, always 1; empty labels until a stage has them.",
};
pub(crate) const RUN_START: Metric = Metric {
    suffix: "run_start_timestamp_seconds",
    kind: InstrumentKind::Gauge,
    unit: Unit::Seconds,
    labels: &[],
    help: "Unix time at which this run started.",
};
pub(crate) const RUN_DURATION: Metric = Metric {
    suffix: "run_duration_seconds",
    kind: InstrumentKind::Gauge,
    unit: Unit::Seconds,
    labels: &[],
    help: "Duration of the run, set at its end.",
};
pub(crate) const RUN_LAST_COMPLETION: Metric = Metric {
    suffix: "run_last_completion_timestamp_seconds",
    kind: InstrumentKind::Gauge,
    unit: Unit::Seconds,
    labels: &[],
    help: "Unix time at which the run ended, whether it succeeded or not.",
};
pub(crate) const RUN_CPU: Metric = Metric {
    suffix: "run_cpu_seconds",
    kind: InstrumentKind::Gauge,
    unit: Unit::Seconds,
    labels: &[],
    help: "User and system CPU time of the run, set at its end.",
};
pub(crate) const RUN_PEAK_MEMORY: Metric = Metric {
    suffix: "run_peak_memory_bytes",
    kind: InstrumentKind::Gauge,
    unit: Unit::Bytes,
    labels: &[],
    help: "Peak resident memory of the process, set at the end of the run.",
};
pub(crate) const RUN_LAST_SUCCESS: Metric = Metric {
    suffix: "run_last_success_timestamp_seconds",
    kind: InstrumentKind::Gauge,
    unit: Unit::Seconds,
    labels: &[],
    help: "Unix time at which the last successful run ended.",
};
pub(crate) const RUNS_TOTAL: Metric = Metric {
    suffix: "runs_total",
    kind: InstrumentKind::Counter,
    unit: Unit::Count,
    labels: &[STATUS],
    help: "Ended runs of this group over all runs, by status: success or failure.",
};
pub(crate) const STAGE_RUNS_TOTAL: Metric = Metric {
    suffix: "stage_runs_total",
    kind: InstrumentKind::Counter,
    unit: Unit::Count,
    labels: &[STAGE_ID, PROFILE, STATUS],
    help: "Finished stages of this group over all runs, by status: success or failure.",
};
pub(crate) const STAGE_RUN_SECONDS_TOTAL: Metric = Metric {
    suffix: "stage_run_seconds_total",
    kind: InstrumentKind::Counter,
    unit: Unit::Seconds,
    labels: &[STAGE_ID, PROFILE],
    help: "Duration of the finished stages of this group over all runs.",
};
pub(crate) const PUSH_TOTAL: Metric = Metric {
    suffix: "telemetry_push_total",
    kind: InstrumentKind::Counter,
    unit: Unit::Count,
    labels: &["result"],
    help: "Pushes to the Pushgateway by result: success or failure; retries are not counted separately.",
};
pub(crate) const OVERFLOW_TOTAL: Metric = Metric {
    suffix: "telemetry_overflow_total",
    kind: InstrumentKind::Counter,
    unit: Unit::Count,
    labels: &[],
    help: "Finished stages counted in an overflow series because the limit on label sets was reached.",
};

pub(crate) const LAST_PUSH_DURATION: Metric = Metric {
    suffix: "telemetry_last_push_duration_seconds",
    kind: InstrumentKind::Gauge,
    unit: Unit::Seconds,
    labels: &[],
    help: "Duration of the last push, retries included.",
};
pub(crate) const SPOOL_FILES: Metric = Metric {
    suffix: "telemetry_spool_files",
    kind: InstrumentKind::Gauge,
    unit: Unit::Count,
    labels: &[],
    help: "Payloads in the spool directory waiting to be delivered.",
};
pub(crate) const SPOOL_DROPPED: Metric = Metric {
    suffix: "telemetry_spool_dropped_total",
    kind: InstrumentKind::Counter,
    unit: Unit::Count,
    labels: &[],
    help: "Payloads dropped from the spool to stay within its bounds.",
};
/// All metrics, in the order of the documentation.
pub(crate) const METRICS: &[&Metric] = &[
    &STAGE_DURATION,
    &STAGE_TOTAL,
    &RESOURCE_USAGE,
    &STAGE_ACTIVE,
    &STAGE_FAILURES,
    &STAGE_LAST_DURATION,
    &STAGE_LAST_SUCCESS,
    &STAGE_LAST_FAILED,
    &STAGE_CPU,
    &RUN_INFO,
    &RUN_START,
    &RUN_DURATION,
    &RUN_LAST_COMPLETION,
    &RUN_CPU,
    &RUN_PEAK_MEMORY,
    &RUN_LAST_SUCCESS,
    &RUNS_TOTAL,
    &STAGE_RUNS_TOTAL,
    &STAGE_RUN_SECONDS_TOTAL,
    &PUSH_TOTAL,
    &OVERFLOW_TOTAL,
    &LAST_PUSH_DURATION,
    &SPOOL_FILES,
    &SPOOL_DROPPED,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_help_a_base_unit_and_the_right_suffix() {
        for metric in METRICS {
            let name = metric.name(DEFAULT_NAMESPACE);
            assert!(metric.help.ends_with('.') && metric.help.len() > 10, "{name}: {}", metric.help);
            assert!(metric.help.starts_with(char::is_uppercase), "{name}: {}", metric.help);
            let is_counter = matches!(metric.kind, InstrumentKind::Counter | InstrumentKind::Seconds);
            assert_eq!(name.ends_with("_total"), is_counter, "{name}");
            let base = name.strip_suffix("_total").unwrap_or(&name);
            assert_eq!(metric.unit == Unit::Seconds, base.ends_with("_seconds"), "{name}");
            assert_eq!(metric.unit == Unit::Bytes, name.ends_with("_bytes"), "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
        }
        let different: std::collections::HashSet<_> = METRICS.iter().map(|metric| metric.suffix).collect();
        assert_eq!(different.len(), METRICS.len());
    }

    #[test]
    fn the_documentation_lists_every_metric_with_its_type_and_labels_and_no_other() {
        let page = include_str!("../docs/metrics.md");
        let rows: Vec<_> = page.lines().filter(|line| line.starts_with("| `quant_")).collect();
        for metric in METRICS {
            let kind = match metric.kind {
                InstrumentKind::Counter | InstrumentKind::Seconds => "counter",
                InstrumentKind::Gauge => "gauge",
                InstrumentKind::Histogram => "histogram",
            };
            let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
            let labels = if labels.is_empty() { "|".to_owned() } else { format!("| {} |", labels.join(", ")) };
            let row = format!("| `{}` | {kind} {labels}", metric.name(DEFAULT_NAMESPACE));
            assert_eq!(rows.iter().filter(|line| line.starts_with(&row)).count(), 1, "{row}");
        }
        assert_eq!(rows.len(), METRICS.len());
    }

    #[test]
    fn labels_of_metrics_cannot_be_grouping_labels() {
        let labels = METRICS.iter().flat_map(|metric| metric.labels);
        for label in labels.filter(|label| **label != PROFILE && **label != RUN_ID) {
            assert!(RESERVED_LABELS.contains(label), "{label}");
        }
    }
}
