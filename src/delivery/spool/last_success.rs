//! The last successes in payloads that were not delivered. The next run of the group pushes them.

use std::collections::BTreeMap;

use super::format::Payload;
use crate::exposition::samples::{self, LabelSet};
use crate::schema::{Metric, RUN_LAST_SUCCESS, STAGE_LAST_SUCCESS};

const METRICS: [&Metric; 2] = [&RUN_LAST_SUCCESS, &STAGE_LAST_SUCCESS];

/// Unix times of the last successes of runs and stages.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct LastSuccesses {
    /// By name of the metric, then by the labels with a value, which identify a series. The latest time is kept.
    families: BTreeMap<String, BTreeMap<LabelSet, LastSuccess>>,
}

#[derive(Clone, Debug, PartialEq)]
struct LastSuccess {
    /// As the payload has them.
    labels: LabelSet,
    time: f64,
}

impl LastSuccesses {
    pub(super) fn is_empty(&self) -> bool {
        self.families.is_empty()
    }

    /// Adds the last successes of a payload. A payload whose body is no text has none.
    pub(super) fn add(&mut self, payload: &Payload) {
        let (Some(text), Some(namespace)) = (payload.text(), payload.namespace.as_deref()) else { return };
        for (name, labels, value) in samples::find(text, &METRICS.map(|metric| metric.name(namespace))) {
            let series = self.families.entry(name.to_owned()).or_default();
            let latest = series.entry(without_empty(&labels)).or_insert(LastSuccess { labels, time: value });
            latest.time = latest.time.max(value);
        }
    }

    /// Returns an exposition with the missing series added. Its own series stay unchanged: they belong to a later run.
    pub(super) fn complete(&self, exposition: &str) -> String {
        let mut text = exposition.to_owned();
        for (name, series) in &self.families {
            let names = [name.clone()];
            let present: Vec<_> = samples::find(&text, &names).map(|(_, labels, _)| without_empty(&labels)).collect();
            let mut missing = String::new();
            for (_, LastSuccess { labels, time }) in series.iter().filter(|(labels, _)| !present.contains(labels)) {
                samples::write(&mut missing, name, labels, *time);
            }
            if missing.is_empty() {
                continue;
            }
            match end_of_family(&text, name) {
                // The samples of a family must be adjacent.
                Some(end) => text.insert_str(end, &missing),
                None => text.push_str(&format!("{}{missing}", family_header(name))),
            }
        }
        text
    }
}

/// Returns the `HELP` and `TYPE` lines of a family of last successes.
pub(super) fn family_header(name: &str) -> String {
    let help = METRICS.iter().find(|metric| name.ends_with(metric.suffix)).map_or("", |metric| metric.help);
    format!("# HELP {name} {help}\n# TYPE {name} gauge\n")
}

fn without_empty(labels: &LabelSet) -> LabelSet {
    let labels = labels.iter().filter(|(_, value)| !value.is_empty());
    labels.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Returns the end of the last line of a family.
fn end_of_family(text: &str, name: &str) -> Option<usize> {
    let mut start = 0;
    let mut end = None;
    for line in text.split_inclusive('\n') {
        start += line.len();
        let line = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE ")).unwrap_or(line);
        if line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])) {
            end = Some(start);
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pushgateway;

    fn successes(texts: &[&str]) -> LastSuccesses {
        let gateway = Pushgateway::new("gw", "a").unwrap();
        let mut successes = LastSuccesses::default();
        for text in texts {
            successes.add(&Payload::from_text(&gateway, "x", (*text).to_owned().into()));
        }
        successes
    }

    const RUN: &str = "x_run_last_success_timestamp_seconds";
    const STAGE: &str = "x_stage_last_success_timestamp_seconds";

    #[test]
    fn missing_series_are_added_and_present_ones_stay() {
        let left = successes(&[
            &format!("{RUN} 5\n{STAGE}{{stage_id=\"a\",profile=\"\"}} 5\n{STAGE}{{stage_id=\"b\",profile=\"p\"}} 5\n"),
            &format!(
                "y_{RUN} 9\n{STAGE}{{stage_id=\"b\",profile=\"p\"}} 6\n{STAGE}{{stage_id=\"c\",profile=\"\"}} 4\n"
            ),
        ]);
        let text = format!("# TYPE {STAGE} gauge\n{STAGE}{{stage_id=\"a\",profile=\"\"}} 7\n# TYPE z gauge\nz 1\n");
        assert_eq!(
            left.complete(&text),
            format!(
                "# TYPE {STAGE} gauge\n{STAGE}{{stage_id=\"a\",profile=\"\"}} 7\n\
                 {STAGE}{{profile=\"p\",stage_id=\"b\"}} 6\n{STAGE}{{profile=\"\",stage_id=\"c\"}} 4\n\
                 # TYPE z gauge\nz 1\n\
                 # HELP {RUN} Unix time at which the last successful run ended.\n# TYPE {RUN} gauge\n{RUN} 5\n"
            )
            .replace("Unix time at which the last successful run ended.", RUN_LAST_SUCCESS.help)
        );
        let complete = left.complete(&text);
        assert_eq!(left.complete(&complete), complete);
    }

    #[test]
    fn payload_in_another_format_has_no_last_success() {
        let gateway = Pushgateway::new("gw", "a").unwrap();
        let mut payload = Payload::from_text(&gateway, "x", format!("{RUN} 5\n").into());
        payload.content_type = "application/vnd.google.protobuf".to_owned();
        let mut successes = LastSuccesses::default();
        successes.add(&payload);
        assert!(successes.is_empty());
    }
}
