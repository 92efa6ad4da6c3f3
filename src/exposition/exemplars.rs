//! Exemplars that are kept apart from the values of their series.

use std::collections::HashMap;

use super::families::{Families, Samples};
use super::labels::Labels;
use super::names::metric_name;
use super::values::{Exemplar, SeriesExemplars};

impl Families {
    /// Sets the exemplars of histograms, one for each bucket, and of counters, one for each. Series that are not there have
    /// none. If keys are of one series, the exemplar with the latest time counts. The series have the constant labels as well.
    pub(crate) fn set_exemplars(&mut self, exemplars: Vec<SeriesExemplars>, constant: &Labels) {
        let mut by_name = HashMap::<_, HashMap<Labels, Vec<Option<Exemplar>>>>::new();
        for (key, more) in exemplars {
            let pairs = key.labels().map(|label| (label.key(), label.value()));
            let series = by_name.entry(metric_name(key.name()).into_owned()).or_default();
            Exemplar::keep_latest(series.entry(Labels::new(pairs).0.and(constant).identity()).or_default(), more);
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use metrics::{Key, Label};

    use super::*;
    use crate::exposition::{Counter, Family, Histogram, Number, Series, WrittenBounds};
    use crate::histogram::Snapshot;

    fn key(name: &'static str, labels: &[(&'static str, &'static str)]) -> Key {
        Key::from_parts(name, labels.iter().map(|(name, value)| Label::new(*name, *value)).collect::<Vec<_>>())
    }

    fn exemplar(value: f64, seconds: u64) -> Option<Exemplar> {
        Some(Exemplar { labels: Labels::default(), value, time: Some(Duration::from_secs(seconds)) })
    }

    fn family(name: &str, samples: Samples) -> Family {
        Family { name: name.into(), help: None, unit: None, samples }
    }

    /// The label sets `a="1"`, `b="2"` of a histogram with two buckets and of a counter.
    fn families() -> Families {
        let labels = |name, value| Labels::new([(name, value)].into_iter()).0;
        let bounds = WrittenBounds::with_infinity(&[1.0]);
        let histogram = |labels| {
            Series::new(
                labels,
                Histogram::new(bounds.clone(), Snapshot { counts: vec![1, 1], sum: 3.0, native: None }, None),
            )
        };
        let counter = |labels| Series::new(labels, Counter::new(Number::Integer(1), None));
        let both = || [labels("a", "1"), labels("b", "2")].into_iter();
        Families::new(vec![
            family("counter", Samples::Counter(both().map(counter).collect())),
            family("histogram", Samples::Histogram(both().map(histogram).collect())),
        ])
    }

    fn of_histogram(families: &Families) -> Vec<Vec<Option<Exemplar>>> {
        let Some(Samples::Histogram(series)) = families.get("histogram").map(|family| &family.samples) else {
            panic!("no histogram")
        };
        series.iter().map(|series| series.value.exemplars.clone()).collect()
    }

    #[test]
    fn exemplar_is_set_in_its_series_alone() {
        let mut families = families();
        let exemplars = vec![
            (key("histogram", &[("c", ""), ("b", "2")]), vec![None, exemplar(2.0, 1)]),
            (key("counter", &[("a", "1")]), vec![exemplar(1.0, 2)]),
            (key("counter", &[("a", "3")]), vec![exemplar(1.0, 3)]),
            (key("gone", &[]), vec![exemplar(1.0, 4)]),
        ];
        families.set_exemplars(exemplars, &Labels::default());
        assert_eq!(of_histogram(&families), [vec![], vec![None, exemplar(2.0, 1)]]);
        let Some(Samples::Counter(series)) = families.get("counter").map(|family| &family.samples) else {
            panic!("no counter")
        };
        let of_counter: Vec<_> = series.iter().map(|series| series.value.exemplar.clone()).collect();
        assert_eq!(of_counter, [exemplar(1.0, 2), None]);
    }

    #[test]
    fn constant_labels_belong_to_the_series() {
        let mut families = families();
        let constant = Labels::new([("b", "2")].into_iter()).0;
        families.set_exemplars(vec![(key("histogram", &[]), vec![exemplar(2.0, 1)])], &constant);
        assert_eq!(of_histogram(&families), [vec![], vec![exemplar(2.0, 1)]]);
    }

    #[test]
    fn latest_exemplar_of_a_series_counts() {
        let (early, late) = (vec![exemplar(0.1, 1), exemplar(5.0, 9)], vec![exemplar(0.2, 2), exemplar(4.0, 8)]);
        for exemplars in [[early.clone(), late.clone()], [late, early]] {
            let mut families = families();
            families
                .set_exemplars(exemplars.map(|of| (key("histogram", &[("a", "1")]), of)).to_vec(), &Labels::default());
            assert_eq!(of_histogram(&families), [vec![exemplar(0.2, 2), exemplar(5.0, 9)], vec![]]);
        }
    }
}
