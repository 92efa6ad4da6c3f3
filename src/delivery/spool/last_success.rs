//! The last successes in payloads that were not delivered. The next run of the group pushes them.

use std::collections::{BTreeMap, HashSet};

use super::format::Payload;
use crate::exposition::{Families, Family, Labels, Number, Samples, Series};
use crate::schema::{Metric, RUN_LAST_SUCCESS, STAGE_LAST_SUCCESS};

const METRICS: [&Metric; 2] = [&RUN_LAST_SUCCESS, &STAGE_LAST_SUCCESS];

/// Unix times of the last successes of runs and stages.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct LastSuccesses {
    /// By name of the metric, then by the [identity](Labels::identity) of the series. The latest time is kept.
    families: BTreeMap<String, BTreeMap<Labels, LastSuccess>>,
}

#[derive(Clone, Debug, PartialEq)]
struct LastSuccess {
    /// As the payload has them.
    labels: Labels,
    time: f64,
}

impl LastSuccesses {
    /// Adds the last successes of a payload. A payload in an unknown format has none.
    pub(super) fn add(&mut self, payload: &Payload) {
        let Some(namespace) = payload.namespace.as_deref() else { return };
        for (name, labels, time) in payload.gauges(&METRICS.map(|metric| metric.name(namespace))) {
            let series = self.families.entry(name).or_default();
            let latest = series.entry(labels.identity()).or_insert(LastSuccess { labels, time });
            latest.time = latest.time.max(time);
        }
    }

    /// Returns a state with the missing series added; `None` if none is missing. Its own series stay unchanged: they
    /// belong to a later run.
    pub(super) fn complete(&self, state: &Families) -> Option<Families> {
        let mut complete = None;
        for (name, series) in &self.families {
            let present: HashSet<_> = state.gauge(name).iter().map(|series| series.labels.identity()).collect();
            let missing = series.iter().filter(|(identity, _)| !present.contains(identity));
            let missing: Vec<_> = missing.map(|(_, last)| Series::new(last.labels.clone(), last.time.into())).collect();
            if !missing.is_empty() {
                let complete = complete.get_or_insert_with(|| state.clone());
                complete.add_to_gauge(name, missing, || family(name, Vec::new()));
            }
        }
        complete
    }
}

/// Returns a state of one last success of a run with these constant labels.
pub(super) fn of_run(name: &str, constant: Labels, time: f64) -> Families {
    Families::new(vec![family(name, vec![Series::new(constant, time.into())])])
}

/// Returns a family of last successes.
fn family(name: &str, series: Vec<Series<Number>>) -> Family {
    let metric = METRICS.iter().find(|metric| name.ends_with(metric.suffix));
    let help = metric.map(|metric| metric.help.into());
    Family { name: name.into(), help, unit: metric.map(|metric| metric.unit), samples: Samples::Gauge(series) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::pushgateway::EncodedState;
    use crate::{PushFormat, Pushgateway};

    fn payload(format: PushFormat, text: &str) -> Payload {
        let gateway = Pushgateway::new("gw", "a").unwrap().with_format(format);
        Payload::new(&gateway, "x", EncodedState::of_text(text, format))
    }

    const RUN: &str = "x_run_last_success_timestamp_seconds";
    const STAGE: &str = "x_stage_last_success_timestamp_seconds";

    #[test]
    fn missing_series_are_added_and_present_ones_stay() {
        for format in [PushFormat::Text, PushFormat::Protobuf] {
            let mut left = LastSuccesses::default();
            for text in [
                format!(
                    "{RUN} 5\n{STAGE}{{stage_id=\"a\",profile=\"\"}} 5\n{STAGE}{{stage_id=\"b\",profile=\"p\"}} 5\n"
                ),
                format!(
                    "y_{RUN} 9\n{STAGE}{{stage_id=\"b\",profile=\"p\"}} 6\n{STAGE}{{stage_id=\"c\",profile=\"\"}} 4\n"
                ),
            ] {
                left.add(&payload(format, &text));
            }
            let text = format!("# TYPE {STAGE} gauge\n{STAGE}{{stage_id=\"a\"}} 7\n# TYPE z gauge\nz 1\n");
            let state = PushFormat::Text.decode(text.as_bytes()).unwrap();
            let complete = left.complete(&state).unwrap();
            assert_eq!(
                complete.to_text(),
                format!(
                    "# HELP {RUN} {}\n# TYPE {RUN} gauge\n{RUN} 5\n\
                     # TYPE {STAGE} gauge\n{STAGE}{{stage_id=\"a\"}} 7\n\
                     {STAGE}{{stage_id=\"b\",profile=\"p\"}} 6\n{STAGE}{{stage_id=\"c\",profile=\"\"}} 4\n\
                     # TYPE z gauge\nz 1\n",
                    RUN_LAST_SUCCESS.help
                )
            );
            assert_eq!(left.complete(&complete), None);
            assert_eq!(state.to_text(), text, "the state itself is unchanged");
        }
    }

    #[test]
    fn payload_in_another_format_has_no_last_success() {
        for content_type in ["application/vnd.google.protobuf", "application/x"] {
            let mut payload = payload(PushFormat::Text, &format!("{RUN} 5\n"));
            payload.content_type = content_type.to_owned();
            let mut successes = LastSuccesses::default();
            successes.add(&payload);
            assert_eq!(successes, LastSuccesses::default());
        }
    }
}
