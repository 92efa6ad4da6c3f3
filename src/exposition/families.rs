//! Metric families in memory: what every format is written from.

use std::sync::Arc;

use metrics::{SharedString, Unit};

use super::labels::Labels;
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
    /// In milliseconds of Unix time, where a foreign text has one.
    pub(crate) timestamp: Option<i64>,
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
            Self::Counter(series) => sort(series),
            Self::Gauge(series) | Self::Unknown(series) => sort(series),
            Self::Histogram(series) => sort(series),
            Self::Summary(series) => sort(series),
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

    /// Returns the value of a gauge without labels.
    pub(crate) fn gauge_value(&self, name: &str) -> Option<f64> {
        self.gauge(name).iter().find(|series| series.labels.is_empty()).map(|series| series.value.as_f64())
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
