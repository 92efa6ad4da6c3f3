//! The state of one group in a gateway's own metrics: the time of its last push, and the run that made it.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::grouping::Grouping;
use crate::exposition::Labels;
use crate::exposition::samples::{self, LabelSet};
use crate::schema::{RUN_LAST_SUCCESS, RUN_START};

/// The metric with the time of a group's last successful push.
pub(super) const PUSH_TIME: &str = "push_time_seconds";
/// Every Pushgateway has this metric: a response without it comes from another server.
pub(super) const BUILD_INFO: &str = "pushgateway_build_info";

/// The state of a group on a gateway. A value that the gateway does not have is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::delivery) struct GroupState {
    /// Time of the last successful push, on the gateway's clock.
    pub(in crate::delivery) push_time: Option<f64>,
    /// Start of the run that pushed the state, on the clock of its node.
    pub(in crate::delivery) run_start: Option<f64>,
    /// Time of the last successful run, on the clock of its node.
    pub(in crate::delivery) last_success: Option<f64>,
    /// Whether the group has a run with other constant labels, which the state does not show.
    pub(in crate::delivery) hides_run: bool,
}

/// Reads the state of one group from the lines of a gateway's own metrics.
pub(super) struct GroupStateReader {
    labels: LabelSet,
    /// Those of the run's own series: the labels of the group and constant labels.
    run_labels: LabelSet,
    /// Further groups and the labels of further runs, which have at least the labels of the group.
    further_groups: FurtherGroups,
    further_runs: Vec<LabelSet>,
    run_start: Option<String>,
    last_success: Option<String>,
    is_gateway: bool,
    state: GroupState,
}

impl GroupStateReader {
    /// `namespace` is the prefix of the group's metrics, which have the constant labels as well. Without it, the state has no
    /// values of the run.
    pub(super) fn new(group: &Grouping, namespace: Option<&str>, constant: &Labels) -> Self {
        let labels = group.identity().into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut labels: BTreeMap<_, _> = labels.collect();
        // The gateway adds this label to every series.
        labels.entry("instance".to_owned()).or_default();
        let constant = constant.values().map(|(name, value)| (name.to_owned(), value.into_owned()));
        Self {
            run_labels: labels.clone().into_iter().chain(constant).collect(),
            labels,
            further_groups: FurtherGroups::default(),
            further_runs: Vec::new(),
            run_start: namespace.map(|namespace| RUN_START.name(namespace)),
            last_success: namespace.map(|namespace| RUN_LAST_SUCCESS.name(namespace)),
            is_gateway: false,
            state: GroupState::default(),
        }
    }

    pub(super) fn read(&mut self, line: &str) {
        let name = samples::name(line);
        let is_group = name == PUSH_TIME;
        let is_run = self.run_start.as_deref() == Some(name);
        let (field, expected) = if is_group {
            (&mut self.state.push_time, &self.labels)
        } else if is_run {
            (&mut self.state.run_start, &self.run_labels)
        } else if self.last_success.as_deref() == Some(name) {
            (&mut self.state.last_success, &self.run_labels)
        } else {
            self.is_gateway |= name == BUILD_INFO;
            return;
        };
        let Some((_, labels, value)) = samples::parse(line) else { return };
        if labels == *expected {
            *field = Some(value);
        } else if (is_group || is_run) && has_all(&labels, &self.labels) {
            if is_group { self.further_groups.insert(labels) } else { self.further_runs.push(labels) }
        }
    }

    /// Returns the state. `None` if the lines do not come from a Pushgateway.
    pub(super) fn finish(self) -> Option<GroupState> {
        let hides_run = self.further_runs.iter().any(|run| !self.further_groups.have(run));
        self.is_gateway.then_some(GroupState { hides_run, ..self.state })
    }
}

/// Groups by the names of their labels, then by the values. A gateway may have ten thousand groups of a job, with few
/// different names.
#[derive(Default)]
struct FurtherGroups(HashMap<Vec<String>, HashSet<Vec<String>>>);

impl FurtherGroups {
    fn insert(&mut self, group: LabelSet) {
        let (names, values): (Vec<_>, _) = group.into_iter().unzip();
        self.0.entry(names).or_default().insert(values);
    }

    /// Returns whether a run with these labels, of which some are constant labels, is one of the groups.
    fn have(&self, run: &LabelSet) -> bool {
        self.0.iter().any(|(names, groups)| {
            let values: Option<Vec<_>> = names.iter().map(|name| run.get(name).cloned()).collect();
            values.is_some_and(|values| groups.contains(&values))
        })
    }
}

/// Returns whether a series with these labels has all those others.
pub(super) fn has_all(labels: &LabelSet, others: &LabelSet) -> bool {
    others.iter().all(|(name, value)| labels.get(name) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# TYPE push_time_seconds gauge\n\
        push_failure_time_seconds{instance=\"\",job=\"a\"} 9\n\
        push_time_seconds{instance=\"\",job=\"a\"} 1.7e+09\n\
        pushgateway_build_info{version=\"1.5.1\"} 1\n\
        quant_run_last_success_timestamp_seconds{instance=\"\",job=\"a\"} 1.5e+09\n\
        quant_run_start_timestamp_seconds{instance=\"\",job=\"a\"} 1.6e+09\n\
        quant_run_start_timestamp_seconds{instance=\"\",job=\"b\"} 5\n\
        warehouse_run_start_timestamp_seconds{instance=\"\",job=\"a\"} 6\n\
        push_time_seconds{instance=\"\",job=\"a\",profile=\"\"} 1.75e+09\n\
        push_time_seconds{instance=\"\",job=\"a\",profile=\"x\\\\y\\\"}\\n\"} 1.8e+09\n\
        push_time_seconds{instance=\"i\",job=\"a\"} 1.9e+09";

    fn state(labels: &[(&str, &str)]) -> GroupState {
        let mut group = Grouping::new("a").unwrap();
        for (name, value) in labels {
            group.add(*name, *value).unwrap();
        }
        let mut reader = GroupStateReader::new(&group, Some("quant"), &Labels::default());
        TEXT.lines().for_each(|line| reader.read(line));
        reader.finish().unwrap()
    }

    #[test]
    fn run_has_the_exact_metric_name() {
        let expected =
            GroupState { push_time: Some(1.7e9), run_start: Some(1.6e9), last_success: Some(1.5e9), hides_run: false };
        assert_eq!(state(&[]), expected);
        assert_eq!(state(&[("instance", "i")]).run_start, None);
        let mut reader = GroupStateReader::new(&Grouping::new("a").unwrap(), None, &Labels::default());
        TEXT.lines().for_each(|line| reader.read(line));
        assert_eq!(reader.finish().unwrap(), GroupState { push_time: Some(1.7e9), ..GroupState::default() });
    }

    #[test]
    fn group_has_exactly_these_labels() {
        let pushed = |labels| state(labels).push_time;
        assert_eq!(pushed(&[]), Some(1.7e9));
        assert_eq!(pushed(&[("profile", "x\\y\"}\n")]), Some(1.8e9));
        assert_eq!(pushed(&[("instance", "i")]), Some(1.9e9));
        assert_eq!(pushed(&[("profile", "")]), Some(1.75e9), "an empty value makes another group");
        assert_eq!(pushed(&[("profile", "other")]), None);
    }

    #[test]
    fn series_of_the_run_have_exactly_the_constant_labels_too() {
        let run = |constant: &[(&str, &str)]| {
            let constant = Labels::new(constant.iter().copied()).0;
            let mut reader = GroupStateReader::new(&Grouping::new("a").unwrap(), Some("x"), &constant);
            for line in [
                "pushgateway_build_info 1",
                "push_time_seconds{instance=\"\",job=\"a\"} 5",
                "push_time_seconds{instance=\"\",job=\"a\",profile=\"p\"} 6",
                "x_run_start_timestamp_seconds{env=\"x\",instance=\"\",job=\"a\",profile=\"p\"} 7",
                "x_run_start_timestamp_seconds{env=\"p\\nq\",instance=\"\",job=\"a\",team=\"t\"} 4",
            ] {
                reader.read(line);
            }
            let state = reader.finish().unwrap();
            assert_eq!(state.push_time, Some(5.0));
            (state.run_start, state.hides_run)
        };
        assert_eq!(run(&[("team", "t"), ("env", "p\nq")]), (Some(4.0), false));
        assert_eq!(run(&[("team", "t")]), (None, true));
        assert_eq!(run(&[]), (None, true));
    }

    /// As where a run id is a grouping label: nobody deletes the groups. The delivery thread waits for this.
    #[test]
    fn many_groups_of_a_job_take_no_time() {
        let mut reader = GroupStateReader::new(&Grouping::new("a").unwrap(), Some("x"), &Labels::default());
        let start = std::time::Instant::now();
        for name in ["push_time_seconds", "pushgateway_build_info", "x_run_start_timestamp_seconds"] {
            for id in 0..20_000 {
                reader.read(&format!("{name}{{instance=\"\",job=\"a\",run_id=\"{id}\"}} 5"));
            }
        }
        assert!(!reader.finish().unwrap().hides_run);
        assert!(start.elapsed() < std::time::Duration::from_secs(10), "{:?}", start.elapsed());
    }

    #[test]
    fn page_of_another_server_has_no_state() {
        for page in ["", "<html>Please log in</html>", "push_time_seconds{instance=\"\",job=\"a\"} 9e9\n"] {
            let mut reader = GroupStateReader::new(&Grouping::new("a").unwrap(), Some("quant"), &Labels::default());
            page.lines().for_each(|line| reader.read(line));
            assert_eq!(reader.finish(), None, "{page}");
        }
    }
}
