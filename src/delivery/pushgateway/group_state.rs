//! The state of one group in a gateway's own metrics: the time of its last push, and the run that made it.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::grouping::Grouping;
use crate::delivery::totals::{Base, Totals, TotalsReader};
use crate::exposition::Labels;
use crate::exposition::samples::{self, LabelSet};
use crate::schema::{PROFILE, RUN_LAST_COMPLETION, RUN_LAST_SUCCESS, RUN_START};

/// The metric with the time of a group's last successful push.
pub(super) const PUSH_TIME: &str = "push_time_seconds";
/// Every Pushgateway has this metric: a response without it comes from another server.
pub(super) const BUILD_INFO: &str = "pushgateway_build_info";

/// The state of a group on a gateway. A value that the gateway does not have is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::delivery) struct GroupState {
    /// Time of the last successful push, on the gateway's clock.
    pub(in crate::delivery) push_time: Option<f64>,
    /// Start of the run that pushed the state, on the clock of its node.
    pub(in crate::delivery) run_start: Option<f64>,
    /// Time of the last successful run, on the clock of its node.
    pub(in crate::delivery) last_success: Option<f64>,
    /// Whether the group has a run with other constant labels, which the state does not show.
    pub(in crate::delivery) hides_run: bool,
    /// Start of a run of the group, with whatever labels of its own, that has not ended: it is at work, or was killed.
    pub(in crate::delivery) open_run: Option<f64>,
    /// The totals over all runs of the group; `None` if they cannot be read.
    pub(in crate::delivery) totals: Option<Totals>,
}

impl GroupState {
    /// Returns the base of a run that begins now. `None` if the totals cannot be read.
    pub(in crate::delivery) fn into_base(self) -> Option<Base> {
        Some(Base { shown: self.totals?, killed_run: self.open_run })
    }
}

/// Reads the state of one group from the lines of a gateway's own metrics.
pub(super) struct GroupStateReader {
    labels: LabelSet,
    /// Those of the run's own series: the labels of the group and constant labels.
    run_labels: LabelSet,
    /// The further labels of groups that have at least the labels of this one.
    further_groups: FurtherGroups,
    /// The starts and ends of runs that have at least the labels of the group.
    starts: Vec<(LabelSet, f64)>,
    completions: Vec<(LabelSet, f64)>,
    totals: TotalsReader,
    run_start: Option<String>,
    last_completion: Option<String>,
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
            starts: Vec::new(),
            completions: Vec::new(),
            totals: TotalsReader::new(namespace),
            run_start: namespace.map(|namespace| RUN_START.name(namespace)),
            last_completion: namespace.map(|namespace| RUN_LAST_COMPLETION.name(namespace)),
            last_success: namespace.map(|namespace| RUN_LAST_SUCCESS.name(namespace)),
            is_gateway: false,
            state: GroupState::default(),
        }
    }

    pub(super) fn read(&mut self, line: &str) {
        let name = samples::name(line);
        let is = |metric: &Option<String>| metric.as_deref() == Some(name);
        let is_total = self.totals.reads(name);
        let [is_start, is_completion, is_success] =
            [&self.run_start, &self.last_completion, &self.last_success].map(is);
        if !(is_total || is_start || is_completion || is_success || name == PUSH_TIME) {
            self.is_gateway |= name == BUILD_INFO;
            return;
        }
        let Some((_, mut labels, value)) = samples::parse(line) else {
            // Without its labels, the sample may be one of the group.
            if is_total {
                self.totals.add_unreadable();
            }
            return;
        };
        if !has_all(&labels, &self.labels) {
            return;
        }
        if is_total {
            labels.retain(|name, _| !self.labels.contains_key(name) || name == PROFILE);
            self.totals.add(name, labels, value);
        } else if is_start {
            self.starts.push((labels, value));
        } else if is_completion {
            self.completions.push((labels, value));
        } else if is_success {
            if labels == self.run_labels {
                self.state.last_success = Some(value);
            }
        } else if labels == self.labels {
            self.state.push_time = Some(value);
        } else if value > 0.0 {
            // Else no push of the group has succeeded, and it has no series.
            labels.retain(|name, _| !self.labels.contains_key(name));
            self.further_groups.insert(labels);
        }
    }

    /// Returns the state. `None` if the lines do not come from a Pushgateway.
    pub(super) fn finish(self) -> Option<GroupState> {
        if !self.is_gateway {
            return None;
        }
        let is_of_group = |run: &LabelSet| !self.further_groups.have(run);
        let of_group = |runs: &[(LabelSet, f64)]| {
            let times = runs.iter().filter(|(labels, _)| is_of_group(labels)).map(|(_, time)| *time);
            times.reduce(f64::max)
        };
        let is_shown = |(labels, _): &&(LabelSet, f64)| *labels == self.run_labels;
        let is_hidden = |(labels, _): &(LabelSet, f64)| *labels != self.run_labels && is_of_group(labels);
        let completion = of_group(&self.completions);
        Some(GroupState {
            run_start: self.starts.iter().find(is_shown).map(|(_, time)| *time),
            hides_run: self.starts.iter().any(is_hidden),
            open_run: of_group(&self.starts).filter(|start| completion.is_none_or(|end| end < *start)),
            totals: self.totals.finish(is_of_group),
            ..self.state
        })
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
        let expected = GroupState {
            push_time: Some(1.7e9),
            run_start: Some(1.6e9),
            last_success: Some(1.5e9),
            hides_run: false,
            open_run: Some(1.6e9),
            totals: Some(Totals::default()),
        };
        assert_eq!(state(&[]), expected);
        assert_eq!(state(&[("instance", "i")]).run_start, None);
        let mut reader = GroupStateReader::new(&Grouping::new("a").unwrap(), None, &Labels::default());
        TEXT.lines().for_each(|line| reader.read(line));
        let pushed = GroupState { push_time: Some(1.7e9), totals: Some(Totals::default()), ..GroupState::default() };
        assert_eq!(reader.finish().unwrap(), pushed);
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

    fn totals_of(lines: &[&str]) -> GroupState {
        let mut group = Grouping::new("a").unwrap();
        group.add("team", "t").unwrap();
        let mut reader = GroupStateReader::new(&group, Some("x"), &Labels::default());
        ["pushgateway_build_info 1"].iter().chain(lines).for_each(|line| reader.read(line));
        reader.finish().unwrap()
    }

    #[test]
    fn totals_are_those_of_the_group_whatever_its_constant_labels() {
        let state = totals_of(&[
            "x_runs_total{instance=\"\",job=\"a\",status=\"failure\",team=\"t\"} 2",
            "x_runs_total{env=\"old\",instance=\"\",job=\"a\",status=\"success\",team=\"t\"} 3",
            "x_runs_total{instance=\"\",job=\"a\",profile=\"p\",status=\"success\",team=\"t\"} 50",
            "x_runs_total{instance=\"\",job=\"a\",status=\"success\",team=\"other\"} 70",
            "y_runs_total{instance=\"\",job=\"a\",status=\"success\",team=\"t\"} 90",
            "x_stage_runs_total{instance=\"\",job=\"a\",profile=\"q\",stage_id=\"s\",status=\"success\",team=\"t\"} 1.5e+06",
            "x_stage_run_seconds_total{instance=\"\",job=\"a\",profile=\"q\",stage_id=\"s\",team=\"t\"} 0.1",
            "push_time_seconds{instance=\"\",job=\"a\",profile=\"p\",team=\"t\"} 6",
            "push_time_seconds{instance=\"\",job=\"a\",team=\"t\"} 5",
        ]);
        let totals = state.totals.unwrap();
        assert_eq!((totals.runs.success, totals.runs.failure), (3, 2));
        let stages: Vec<_> = totals.stages.iter().collect();
        let [(key, counts)] = stages[..] else { panic!("{stages:?}") };
        assert_eq!((key.stage_id.as_str(), key.profile.as_str()), ("s", "q"));
        assert_eq!((counts.runs.success, counts.runs.failure, counts.seconds), (1_500_000, 0, 0.1));
    }

    #[test]
    fn totals_that_cannot_be_read_are_none() {
        for line in [
            "x_runs_total{instance=\"\",job=\"a\",status=\"failure\",team=\"t\"} NaN",
            "x_runs_total{instance=\"\",job=\"a\",status=\"fail",
        ] {
            assert_eq!(totals_of(&[line]).totals, None, "{line}");
        }
    }

    #[test]
    fn run_without_an_end_after_its_start_is_open() {
        let start = "x_run_start_timestamp_seconds{instance=\"\",job=\"a\",team=\"t\"} 5";
        let end = |time: &str, more: &str| {
            format!("x_run_last_completion_timestamp_seconds{{{more}instance=\"\",job=\"a\",team=\"t\"}} {time}")
        };
        let open = |lines: &[&str]| totals_of(lines).open_run;
        assert_eq!((open(&[]), open(&[start])), (None, Some(5.0)));
        assert_eq!((open(&[start, &end("4", "")]), open(&[start, &end("6", "")])), (Some(5.0), None));
        assert_eq!(open(&[start, &end("6", "env=\"old\",")]), None, "of a run with other constant labels");
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
