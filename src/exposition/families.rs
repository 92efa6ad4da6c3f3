//! Metric families in memory: what every format is written from.

use std::sync::Arc;

use metrics::SharedString;

use super::labels::Labels;
use crate::histogram::Snapshot;

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

/// All metrics of one moment, each family once, sorted by name.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Families(Vec<Family>);

/// The series of one metric.
#[derive(Debug, PartialEq)]
pub(crate) struct Family {
    pub(crate) name: Arc<str>,
    pub(crate) help: Option<SharedString>,
    pub(crate) samples: Samples,
}

/// The kind of a family, and its series, sorted by their labels.
#[derive(Debug, PartialEq)]
pub(crate) enum Samples {
    Counter(Vec<Series<Number>>),
    Gauge(Vec<Series<Number>>),
    Histogram(Vec<Series<Histogram>>),
    Summary(Vec<Series<Summary>>),
    /// Of a text that does not name the kind.
    Unknown(Vec<Series<Number>>),
}

#[derive(Debug, PartialEq)]
pub(crate) struct Series<T> {
    pub(crate) labels: Labels,
    pub(crate) value: T,
    /// In milliseconds of Unix time, where a foreign text has one.
    pub(crate) timestamp: Option<i64>,
}

/// A value: counters are exact beyond what a float can tell apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Number {
    Integer(u64),
    Float(f64),
}

#[derive(Debug, PartialEq)]
pub(crate) struct Histogram {
    /// Upper bounds, `+Inf` among them.
    pub(crate) bounds: WrittenBounds,
    /// How many samples are not above each bound.
    pub(crate) cumulative: Vec<u64>,
    /// Absent where a foreign text leaves it out, as the count.
    pub(crate) sum: Option<f64>,
    pub(crate) count: Option<u64>,
}

#[derive(Debug, PartialEq)]
pub(crate) struct Summary {
    pub(crate) quantiles: WrittenBounds,
    pub(crate) values: Vec<f64>,
    pub(crate) sum: Option<f64>,
    pub(crate) count: Option<u64>,
}

/// Bounds or quantiles as they are spelled in the labels `le` and `quantile`. Shared by the series of a family: another
/// spelling is another series.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct WrittenBounds(Arc<[Box<str>]>);

impl WrittenBounds {
    /// The buckets of a histogram with these upper bounds and `+Inf`.
    pub(crate) fn with_infinity(bounds: &[f64]) -> Self {
        Self(bounds.iter().map(|bound| bound.to_string().into()).chain(["+Inf".into()]).collect())
    }

    pub(super) fn spelled<'a>(bounds: impl Iterator<Item = &'a str>) -> Self {
        Self(bounds.map(Box::from).collect())
    }

    pub(super) fn none() -> Self {
        Self(Arc::default())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|bound| &**bound)
    }
}

impl Histogram {
    /// `bounds` has one bound for each count.
    pub(crate) fn new(bounds: WrittenBounds, Snapshot { counts: mut cumulative, sum }: Snapshot) -> Self {
        let mut count = 0;
        for bucket in &mut cumulative {
            count += *bucket;
            *bucket = count;
        }
        Self { bounds, cumulative, sum: Some(sum), count: Some(count) }
    }

    /// Adds the samples of a histogram with the same bounds.
    pub(crate) fn add(&mut self, other: &Self) {
        self.cumulative.iter_mut().zip(&other.cumulative).for_each(|(count, other)| *count += other);
        self.sum = self.sum.zip(other.sum).map(|(a, b)| a + b);
        self.count = self.count.zip(other.count).map(|(a, b)| a + b);
    }
}

impl<T> Series<T> {
    pub(crate) fn new(labels: Labels, value: T) -> Self {
        Self { labels, value, timestamp: None }
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
            Self::Counter(series) | Self::Gauge(series) | Self::Unknown(series) => sort(series),
            Self::Histogram(series) => sort(series),
            Self::Summary(series) => sort(series),
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Counter(series) | Self::Gauge(series) | Self::Unknown(series) => series.is_empty(),
            Self::Histogram(series) => series.is_empty(),
            Self::Summary(series) => series.is_empty(),
        }
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
        Self(families)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Family> {
        self.0.iter()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Keeps the families whose name is wanted.
    pub(crate) fn retain(&mut self, mut is_wanted: impl FnMut(&str) -> bool) {
        self.0.retain(|family| is_wanted(&family.name));
    }
}
