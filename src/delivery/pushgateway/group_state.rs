//! The state of one group in a gateway's own metrics: the time of its last push, and the run that made it.

use std::collections::BTreeMap;

use super::grouping::Grouping;
use crate::exposition::samples::{self, LabelSet};
use crate::schema::{RUN_LAST_SUCCESS, RUN_START};

/// The metric with the time of a group's last successful push.
pub(super) const PUSH_TIME: &str = "push_time_seconds";
/// Every Pushgateway has this metric: a response without it comes from another server.
const BUILD_INFO: &str = "pushgateway_build_info";

/// The state of a group on a gateway. A value that the gateway does not have is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::delivery) struct GroupState {
    /// Time of the last successful push, on the gateway's clock.
    pub(in crate::delivery) push_time: Option<f64>,
    /// Start of the run that pushed the state, on the clock of its node.
    pub(in crate::delivery) run_start: Option<f64>,
    /// Time of the last successful run, on the clock of its node.
    pub(in crate::delivery) last_success: Option<f64>,
}

/// Reads the state of one group from the lines of a gateway's own metrics.
pub(super) struct GroupStateReader {
    labels: LabelSet,
    run_start: Option<String>,
    last_success: Option<String>,
    is_gateway: bool,
    state: GroupState,
}

impl GroupStateReader {
    /// `namespace` is the prefix of the group's metrics. Without it, the state has no values of the run.
    pub(super) fn new(group: &Grouping, namespace: Option<&str>) -> Self {
        let labels = group.identity().into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut labels: BTreeMap<_, _> = labels.collect();
        // The gateway adds this label to every series.
        labels.entry("instance".to_owned()).or_default();
        Self {
            labels,
            run_start: namespace.map(|namespace| RUN_START.name(namespace)),
            last_success: namespace.map(|namespace| RUN_LAST_SUCCESS.name(namespace)),
            is_gateway: false,
            state: GroupState::default(),
        }
    }

    pub(super) fn read(&mut self, line: &str) {
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        let field = if name == PUSH_TIME {
            &mut self.state.push_time
        } else if self.run_start.as_deref() == Some(name) {
            &mut self.state.run_start
        } else if self.last_success.as_deref() == Some(name) {
            &mut self.state.last_success
        } else {
            self.is_gateway |= name == BUILD_INFO;
            return;
        };
        if let Some((_, labels, value)) = samples::parse(line)
            && labels == self.labels
        {
            *field = Some(value);
        }
    }

    /// Returns the state. `None` if the lines do not come from a Pushgateway.
    pub(super) fn finish(self) -> Option<GroupState> {
        self.is_gateway.then_some(self.state)
    }
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
        let mut reader = GroupStateReader::new(&group, Some("quant"));
        TEXT.lines().for_each(|line| reader.read(line));
        reader.finish().unwrap()
    }

    #[test]
    fn run_has_the_exact_metric_name() {
        let expected = GroupState { push_time: Some(1.7e9), run_start: Some(1.6e9), last_success: Some(1.5e9) };
        assert_eq!(state(&[]), expected);
        assert_eq!(state(&[("instance", "i")]).run_start, None);
        let mut reader = GroupStateReader::new(&Grouping::new("a").unwrap(), None);
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
    fn page_of_another_server_has_no_state() {
        for page in ["", "<html>Please log in</html>", "push_time_seconds{instance=\"\",job=\"a\"} 9e9\n"] {
            let mut reader = GroupStateReader::new(&Grouping::new("a").unwrap(), Some("quant"));
            page.lines().for_each(|line| reader.read(line));
            assert_eq!(reader.finish(), None, "{page}");
        }
    }
}
