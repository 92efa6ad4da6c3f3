//! Reads the totals of one group from the lines of a gateway's own metrics.

use std::collections::BTreeMap;

use super::families::is_total;
use super::model::Totals;
use crate::exposition::samples::LabelSet;
use crate::schema::{PROFILE, STAGE_ID, STATUS};

/// Collects the samples that have all labels of a group. Some belong to further groups, which have more labels: which
/// ones is known at the end of the page.
pub(in crate::delivery) struct TotalsReader {
    namespace: Option<String>,
    /// By the labels of the sample that are neither the stage nor the status. `None` where one cannot be read.
    by_labels: BTreeMap<LabelSet, Option<Totals>>,
    has_unreadable: bool,
}

impl TotalsReader {
    /// `namespace` is the prefix of the metrics; without it there are none.
    pub(in crate::delivery) fn new(namespace: Option<&str>) -> Self {
        Self { namespace: namespace.map(str::to_owned), by_labels: BTreeMap::new(), has_unreadable: false }
    }

    /// Returns whether the samples of this name are totals.
    pub(in crate::delivery) fn reads(&self, name: &str) -> bool {
        self.namespace.as_deref().is_some_and(|namespace| is_total(name, namespace))
    }

    /// Adds a sample of the group, or of a further one. `labels` are those that the group does not have, and the profile.
    pub(in crate::delivery) fn add(&mut self, name: &str, mut labels: LabelSet, value: f64) {
        let Some(suffix) = self.namespace.as_deref().and_then(|namespace| name.get(namespace.len() + 1..)) else {
            return;
        };
        let [stage_id, status] = [STAGE_ID, STATUS].map(|name| labels.remove(name));
        let profile = labels.get(PROFILE).cloned();
        let label = |name: &str| match name {
            STAGE_ID => stage_id.as_deref(),
            STATUS => status.as_deref(),
            _ => profile.as_deref(),
        };
        let totals = self.by_labels.entry(labels).or_insert_with(|| Some(Totals::default()));
        if let Some(sums) = totals
            && sums.add_sample(suffix, label, value).is_none()
        {
            *totals = None;
        }
    }

    /// Notes a sample whose labels cannot be read.
    pub(in crate::delivery) fn add_unreadable(&mut self) {
        self.has_unreadable = true;
    }

    /// Returns the totals of the samples whose labels are of the group. `None` if one of them cannot be read. Runs with
    /// other constant labels count too: the group has the totals of one run.
    pub(in crate::delivery) fn finish(self, is_of_group: impl Fn(&LabelSet) -> bool) -> Option<Totals> {
        if self.has_unreadable {
            return None;
        }
        let mut sum = Totals::default();
        for (_, totals) in self.by_labels.into_iter().filter(|(labels, _)| is_of_group(labels)) {
            let totals = totals?;
            sum.add_runs(totals.runs);
            totals.stages.iter().for_each(|(key, counts)| sum.take_over(key, *counts));
        }
        Some(sum)
    }
}
