//! Totals as metric families.

use std::collections::HashMap;

use super::model::{Outcomes, StageCounts, StageKey, Totals};
use crate::exposition::{Counter, Families, Family, Labels, Number, Samples, Series};
use crate::schema::{Metric, PROFILE, RUNS_TOTAL, STAGE_ID, STAGE_RUN_SECONDS_TOTAL, STAGE_RUNS_TOTAL, STATUS};

const METRICS: [&Metric; 3] = [&RUNS_TOTAL, &STAGE_RUNS_TOTAL, &STAGE_RUN_SECONDS_TOTAL];

/// Returns whether the name is that of one of the totals.
pub(in crate::delivery) fn is_total(name: &str, namespace: &str) -> bool {
    name.strip_prefix(namespace)
        .and_then(|name| name.strip_prefix('_'))
        .is_some_and(|suffix| METRICS.iter().any(|metric| metric.suffix == suffix))
}

/// Puts the totals in the place of those of a state. `None` removes these. `constant` has the labels that all series of
/// the run have.
pub(in crate::delivery) fn replace_in(
    state: &Families,
    totals: Option<&Totals>,
    namespace: &str,
    constant: &Labels,
) -> Families {
    let mut state = state.clone();
    for (metric, series) in METRICS.into_iter().zip(totals.map(|totals| series(totals, constant)).unwrap_or_default()) {
        state.replace(Family {
            name: metric.name(namespace).into(),
            help: Some(metric.help.into()),
            unit: Some(metric.unit),
            samples: Samples::Counter(series),
        });
    }
    state
}

/// Returns the series of each metric.
fn series(totals: &Totals, constant: &Labels) -> [Vec<Series<Counter>>; 3] {
    let labels = |labels: &[(&str, &str)]| Labels::new(labels.iter().copied()).0.and(constant);
    // The series began in an earlier process.
    let counter = |labels, value| Series::new(labels, Counter::new(value, None));
    let statuses = |runs: Outcomes| [("success", runs.success), ("failure", runs.failure)];
    let runs = statuses(totals.runs).map(|(status, n)| counter(labels(&[(STATUS, status)]), Number::Integer(n)));
    let mut stage_runs = Vec::with_capacity(2 * totals.stages.len());
    let mut seconds = Vec::with_capacity(totals.stages.len());
    for (StageKey { stage_id, profile }, counts) in &totals.stages {
        let stage = [(STAGE_ID, stage_id.as_str()), (PROFILE, profile.as_str())];
        for (status, n) in statuses(counts.runs) {
            let labels = labels(&[stage[0], stage[1], (STATUS, status)]);
            stage_runs.push(counter(labels, Number::Integer(n)));
        }
        seconds.push(counter(labels(&stage), counts.seconds.into()));
    }
    [runs.into(), stage_runs, seconds]
}

/// Reads the totals of a state. `None` if it has none, or a value that is no count.
pub(in crate::delivery) fn of_families(state: &Families, namespace: &str) -> Option<Totals> {
    let mut totals = Totals::default();
    let mut is_present = false;
    for metric in METRICS {
        let name = metric.name(namespace);
        let Some(family) = state.get(&name) else { continue };
        let series: Vec<_> = match &family.samples {
            Samples::Counter(series) => series.iter().map(|series| (&series.labels, series.value.value)).collect(),
            Samples::Gauge(series) | Samples::Unknown(series) => {
                series.iter().map(|series| (&series.labels, series.value)).collect()
            }
            Samples::Histogram(_) | Samples::Summary(_) => return None,
        };
        for (labels, value) in series {
            let labels: HashMap<_, _> = labels.values().collect();
            let label = |name: &str| labels.get(name).map(|value| &**value);
            totals.add_sample(metric.suffix, label, value.as_f64())?;
        }
        is_present = true;
    }
    is_present.then_some(totals)
}

impl Totals {
    /// Adds a sample of one of the metrics, named by its suffix. `None` if it is no valid one.
    pub(super) fn add_sample<'a>(
        &mut self,
        suffix: &str,
        label: impl Fn(&str) -> Option<&'a str>,
        value: f64,
    ) -> Option<()> {
        let outcomes = || match (count(value)?, label(STATUS)?) {
            (success, "success") => Some(Outcomes { success, failure: 0 }),
            (failure, "failure") => Some(Outcomes { success: 0, failure }),
            _ => None,
        };
        let (runs, seconds) = match suffix {
            suffix if suffix == RUNS_TOTAL.suffix => {
                self.add_runs(outcomes()?);
                return Some(());
            }
            suffix if suffix == STAGE_RUNS_TOTAL.suffix => (outcomes()?, 0.0),
            _ => (Outcomes::default(), (value.is_finite() && value >= 0.0).then_some(value)?),
        };
        let profile = label(PROFILE).unwrap_or_default();
        let key = StageKey::new(label(STAGE_ID)?, profile);
        self.take_over(&key, StageCounts { runs, seconds });
        Some(())
    }
}

fn count(value: f64) -> Option<u64> {
    /// From here on, adding one changes nothing.
    const TOO_MANY: f64 = (1_u64 << f64::MANTISSA_DIGITS) as f64;
    (value.fract() == 0.0 && (0.0..TOO_MANY).contains(&value)).then_some(value as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::model::tests::increments;
    use super::*;
    use crate::PushFormat;

    fn constant() -> Labels {
        Labels::new([("env", "p")].iter().copied()).0
    }

    proptest! {
        #[test]
        fn totals_come_back_from_both_formats(increments in increments(), seconds in 0.0..1e9_f64) {
            let mut totals = Totals::default().plus(&increments);
            totals.stages.values_mut().for_each(|counts| counts.seconds += seconds);
            for format in [PushFormat::Text, PushFormat::Protobuf] {
                let families = replace_in(&Families::default(), Some(&totals), "x", &constant());
                let back = format.decode(&format.encode(&families)).unwrap();
                prop_assert_eq!(of_families(&back, "x"), Some(totals.clone()));
                prop_assert_eq!(of_families(&back, "y"), None);
            }
        }
    }

    #[test]
    fn totals_take_the_place_of_those_of_the_state() {
        let state = PushFormat::Text
            .decode(b"# TYPE x_runs_total counter\nx_runs_total{status=\"success\"} 9\n# TYPE z gauge\nz 1\n");
        let state = state.unwrap();
        let with = replace_in(&state, Some(&Totals::default()), "x", &constant());
        let help = RUNS_TOTAL.help;
        assert_eq!(
            with.to_text(),
            format!(
                "# HELP x_runs_total {help}\n# TYPE x_runs_total counter\n\
                 x_runs_total{{status=\"failure\",env=\"p\"}} 0\nx_runs_total{{status=\"success\",env=\"p\"}} 0\n\
                 # TYPE z gauge\nz 1\n"
            )
        );
        assert_eq!(replace_in(&state, None, "x", &constant()).to_text(), "# TYPE z gauge\nz 1\n");
    }

    #[test]
    fn value_that_is_no_count_is_no_total() {
        for line in [
            "x_runs_total{status=\"success\"} 1.5",
            "x_runs_total{status=\"success\"} -1",
            "x_runs_total{status=\"success\"} NaN",
            "x_runs_total{status=\"success\"} 1e16",
            "x_runs_total{status=\"late\"} 1",
            "x_runs_total 1",
            "x_stage_runs_total{status=\"success\"} 1",
            "x_stage_run_seconds_total{stage_id=\"a\"} +Inf",
        ] {
            let state = PushFormat::Text.decode(format!("{line}\n").as_bytes()).unwrap();
            assert_eq!(of_families(&state, "x"), None, "{line}");
        }
    }
}
