//! The metrics that no recorder holds: a recorder cannot take back a series, and its counters have no fractions. They are added when
//! the metrics are read.

use std::sync::Arc;

use crate::exposition::{Counter, Families, Family, Labels, Number, Problems, Samples, Series};
use crate::layer::StageTracker;
use crate::schema::{self, Metric};

/// Adds `quant_run_info` and `quant_stage_cpu_seconds_total`, where there are some, with the constant labels.
pub(super) fn add(
    families: &mut Families,
    stages: &StageTracker,
    namespace: &str,
    constant: &Labels,
    problems: &mut Problems,
) {
    let labels = |metric: &Metric, values: &[&str]| {
        Labels::new(metric.labels.iter().copied().zip(values.iter().copied())).0.and(constant)
    };
    let info = &schema::RUN_INFO;
    let run = stages.run_info().map(|values| Series::new(labels(info, &values), Number::Integer(1)));
    families.add(family(info, namespace, Samples::Gauge(run.into_iter().collect())), problems);
    let cpu = &schema::STAGE_CPU;
    let of_stages = stages.cpu_times().map(|(values, time, created)| {
        Series::new(labels(cpu, &values), Counter::new(Number::Float(time.as_secs_f64()), Some(created)))
    });
    families.add(family(cpu, namespace, Samples::Counter(of_stages.collect())), problems);
}

fn family(metric: &Metric, namespace: &str, samples: Samples) -> Family {
    Family { name: Arc::from(metric.name(namespace)), help: Some(metric.help.into()), unit: None, samples }
}
