//! Exemplars that are kept apart from the values of their series.

use std::collections::HashMap;

use metrics::Key;

use super::families::{Families, Samples};
use super::labels::Labels;
use super::names::metric_name;
use super::values::Exemplar;

impl Families {
    /// Sets the exemplars of histograms, one for each bucket, and of counters, one for each. Series that are not there have
    /// none. If keys are of one series, the exemplar with the latest time counts.
    pub(crate) fn set_exemplars(&mut self, exemplars: Vec<(Key, Vec<Option<Exemplar>>)>) {
        let mut by_name = HashMap::<_, HashMap<Labels, Vec<Option<Exemplar>>>>::new();
        for (key, more) in exemplars {
            let pairs = key.labels().map(|label| (label.key(), label.value()));
            let series = by_name.entry(metric_name(key.name()).into_owned()).or_default();
            let known = series.entry(Labels::new(pairs).0.identity()).or_default();
            known.resize(known.len().max(more.len()), None);
            for (known, more) in known.iter_mut().zip(more) {
                let is_later = |more: &Exemplar| known.as_ref().is_none_or(|known| known.time < more.time);
                if let Some(more) = more.filter(is_later) {
                    *known = Some(more);
                }
            }
        }
        for (name, mut exemplars) in by_name {
            match self.get_mut(&name).map(|family| &mut family.samples) {
                Some(Samples::Histogram(series)) => {
                    for series in series {
                        series.value.exemplars = exemplars.remove(&series.labels.identity()).unwrap_or_default();
                    }
                }
                Some(Samples::Counter(series)) => {
                    for series in series {
                        series.value.exemplar =
                            exemplars.remove(&series.labels.identity()).into_iter().flatten().next().flatten();
                    }
                }
                _ => {}
            }
        }
    }
}
