//! Metric families in memory: what every format is written from.

use std::collections::HashSet;
use std::sync::Arc;

use metrics::{SharedString, Unit};

use super::labels::Labels;
use super::problem::{Problem, Problems};
use super::values::{Counter, Histogram, Number, Summary};

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum MetricKind {
    Counter,
    Gauge,
    Histogram,
    Summary,
}

impl MetricKind {
    /// The name of the kind in the text format.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Summary => "summary",
        }
    }
}

/// All metrics of one moment, each family once, sorted by name. A clone shares the families.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Families(Vec<Arc<Family>>);

/// The series of one metric.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Family {
    pub(crate) name: Arc<str>,
    pub(crate) help: Option<SharedString>,
    /// The text format 0.0.4 does not have it.
    pub(crate) unit: Option<Unit>,
    pub(crate) samples: Samples,
}

/// The kind of a family, and its series, sorted by their labels.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Samples {
    Counter(Vec<Series<Counter>>),
    Gauge(Vec<Series<Number>>),
    Histogram(Vec<Series<Histogram>>),
    Summary(Vec<Series<Summary>>),
    /// Of a text that does not name the kind.
    Unknown(Vec<Series<Number>>),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Series<T> {
    pub(crate) labels: Labels,
    pub(crate) value: T,
}

impl<T> Series<T> {
    pub(crate) fn new(labels: Labels, value: T) -> Self {
        Self { labels, value }
    }
}

impl Samples {
    /// `None` where it is unknown.
    pub(crate) fn kind(&self) -> Option<MetricKind> {
        match self {
            Self::Counter(_) => Some(MetricKind::Counter),
            Self::Gauge(_) => Some(MetricKind::Gauge),
            Self::Histogram(_) => Some(MetricKind::Histogram),
            Self::Summary(_) => Some(MetricKind::Summary),
            Self::Unknown(_) => None,
        }
    }

    fn sort(&mut self) {
        fn sort<T>(series: &mut [Series<T>]) {
            series.sort_by(|a, b| a.labels.cmp(&b.labels));
        }
        match self {
            Self::Counter(series) => sort(series),
            Self::Gauge(series) | Self::Unknown(series) => sort(series),
            Self::Histogram(series) => sort(series),
            Self::Summary(series) => sort(series),
        }
    }

    /// Adds labels to each series that has none of the same name. Of series that become one the first stays; whether there
    /// are such.
    fn add_labels(&mut self, more: &Labels) -> bool {
        fn add<T>(all: &mut Vec<Series<T>>, more: &Labels) -> bool {
            let before = all.len();
            let mut identities = HashSet::with_capacity(before);
            all.retain_mut(|series| {
                series.labels = series.labels.and(more);
                identities.insert(series.labels.identity())
            });
            all.len() < before
        }
        match self {
            Self::Counter(series) => add(series, more),
            Self::Gauge(series) | Self::Unknown(series) => add(series, more),
            Self::Histogram(series) => add(series, more),
            Self::Summary(series) => add(series, more),
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Counter(series) => series.is_empty(),
            Self::Gauge(series) | Self::Unknown(series) => series.is_empty(),
            Self::Histogram(series) => series.is_empty(),
            Self::Summary(series) => series.is_empty(),
        }
    }
}

impl Family {
    /// Returns the unit if this name of the family ends in it. Prometheus refuses a scrape with another unit: every version one
    /// in OpenMetrics, versions before 3.9 one in protobuf.
    pub(super) fn unit_in(&self, name: &str) -> Option<&'static str> {
        let unit = self.unit?.as_str();
        name.strip_suffix(unit)?.ends_with('_').then_some(unit)
    }
}

impl Families {
    /// Puts families with different names, and the series of each, in their order. Leaves out families without series.
    pub(crate) fn new(mut families: Vec<Family>) -> Self {
        families.retain(|family| !family.samples.is_empty());
        families.sort_by(|a, b| a.name.cmp(&b.name));
        for family in &mut families {
            family.samples.sort();
        }
        Self(families.into_iter().map(Arc::new).collect())
    }

    /// Adds labels to each series that has none of the same name.
    pub(crate) fn with_labels(mut self, more: &Labels, problems: &mut Problems) -> Self {
        if more.is_empty() {
            return self;
        }
        for family in &mut self.0 {
            let family = Arc::make_mut(family);
            if family.samples.add_labels(more) {
                problems.add(Problem::Repeated { metric: family.name.to_string() });
            }
            family.samples.sort();
        }
        self
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Family> {
        self.0.iter().map(|family| &**family)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Family> {
        let at = self.0.binary_search_by(|family| (*family.name).cmp(name)).ok()?;
        self.0.get(at).map(|family| &**family)
    }

    #[cfg(feature = "trace-id")]
    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut Family> {
        let at = self.0.binary_search_by(|family| (*family.name).cmp(name)).ok()?;
        self.0.get_mut(at).map(Arc::make_mut)
    }

    /// Returns the families whose name is wanted; `None` if these are none or all.
    pub(crate) fn part(&self, mut is_wanted: impl FnMut(&str) -> bool) -> Option<Self> {
        let part: Vec<_> = self.0.iter().filter(|family| is_wanted(&family.name)).map(Arc::clone).collect();
        (!part.is_empty() && part.len() < self.0.len()).then_some(Self(part))
    }

    /// Returns the series of a gauge, none if it is not there.
    pub(crate) fn gauge(&self, name: &str) -> &[Series<Number>] {
        match self.get(name).map(|family| &family.samples) {
            Some(Samples::Gauge(series) | Samples::Unknown(series)) => series,
            _ => &[],
        }
    }

    /// Returns the series of a gauge that has no labels but the constant ones.
    pub(crate) fn plain_gauge(&self, name: &str) -> Option<&Series<Number>> {
        self.gauge(name).iter().min_by_key(|series| series.labels.iter().count())
    }

    /// Puts a family in the place of the one with its name. A family without series removes that one.
    pub(crate) fn replace(&mut self, mut family: Family) {
        let at = self.0.binary_search_by(|other| (*other.name).cmp(&family.name));
        family.samples.sort();
        match (at, family.samples.is_empty()) {
            (Ok(at), true) => drop(self.0.remove(at)),
            (Err(_), true) => {}
            (Ok(at), false) => self.0[at] = Arc::new(family),
            (Err(at), false) => self.0.insert(at, Arc::new(family)),
        }
    }

    /// Adds a family, or its series to those of the same family; of another kind, they are left out. A series that is there already
    /// is replaced.
    pub(crate) fn add(&mut self, family: Family, problems: &mut Problems) {
        if family.samples.is_empty() {
            return;
        }
        match self.0.binary_search_by(|other| other.name.cmp(&family.name)) {
            Err(at) => self.0.insert(at, Arc::new(family)),
            Ok(at) => {
                let known = Arc::make_mut(&mut self.0[at]);
                let is_replaced = match (&mut known.samples, family.samples) {
                    (Samples::Counter(series), Samples::Counter(more)) => extend(series, more),
                    (Samples::Gauge(series), Samples::Gauge(more)) => extend(series, more),
                    _ => false,
                };
                if is_replaced {
                    problems.add(Problem::SeriesTaken { metric: family.name.to_string() });
                }
                known.samples.sort();
            }
        }
    }

    /// Adds series to a gauge. `new` makes the family if it is not there.
    pub(crate) fn add_to_gauge(&mut self, name: &str, more: Vec<Series<Number>>, new: impl FnOnce() -> Family) {
        let at = match self.0.binary_search_by(|family| (*family.name).cmp(name)) {
            Ok(at) => at,
            Err(at) => {
                self.0.insert(at, Arc::new(new()));
                at
            }
        };
        let family = Arc::make_mut(&mut self.0[at]);
        if let Samples::Gauge(series) | Samples::Unknown(series) = &mut family.samples {
            series.extend(more);
        }
        family.samples.sort();
    }
}

/// Adds series in the place of those that are the same ones. Returns whether there are such.
fn extend<T>(series: &mut Vec<Series<T>>, more: Vec<Series<T>>) -> bool {
    let new: HashSet<_> = more.iter().map(|series| series.labels.identity()).collect();
    let before = series.len();
    series.retain(|series| !new.contains(&series.labels.identity()));
    let is_replaced = series.len() < before;
    series.extend(more);
    is_replaced
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    #[test]
    fn further_labels_are_on_every_series_without_the_name() {
        let more = Labels::new([("env", "prod")].into_iter()).0;
        let mut problems = Problems::default();
        let mut with_labels =
            |text| parse(text, |_| None, &mut problems).unwrap().with_labels(&more, &mut problems).to_text();
        let text = "a 1\na{env=\"test\"} 2\n# TYPE s summary\ns{quantile=\"0.5\"} 1\ns_sum 1\n\
            # TYPE h histogram\nh_bucket{x=\"1\",le=\"1\"} 3\nh_count{x=\"1\"} 3\n";
        let expected = "a{env=\"prod\"} 1\na{env=\"test\"} 2\n\
            # TYPE h histogram\nh_bucket{x=\"1\",env=\"prod\",le=\"1\"} 3\nh_count{x=\"1\",env=\"prod\"} 3\n\
            # TYPE s summary\ns{env=\"prod\",quantile=\"0.5\"} 1\ns_sum{env=\"prod\"} 1\n";
        assert_eq!(with_labels(text), expected);
        assert_eq!(with_labels("b 1\nb{env=\"prod\"} 2\n"), "b{env=\"prod\"} 1\n", "of two that become one the first");
        let problems: Vec<_> = problems.take().iter().map(ToString::to_string).collect();
        assert!(
            matches!(&problems[..], [problem] if problem.contains("a series of `b` more than once")),
            "{problems:?}"
        );
    }
}
