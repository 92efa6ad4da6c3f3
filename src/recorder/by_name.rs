//! The recorded metrics, by their final names.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metrics::{Key, SharedString, Unit};

use crate::exposition::{
    Counter, Family, Histogram, Labels, MetricKind, Number, Owner, Problem, Problems, Samples, Series, WrittenBounds,
    metric_name, owner_of,
};
use crate::histogram::{BucketHistogram, Cells};
use crate::unix_time;

/// All series by their final names. Keys with the same final name and labels share a series, so none is written twice.
pub(super) struct MetricsByName {
    families: BTreeMap<Arc<str>, Registered>,
    descriptions: HashMap<String, Description>,
    bounds: Arc<BoundsByName>,
    /// Labels of every series that has none of the same name.
    constant: Labels,
    pub(super) problems: Problems,
}

struct Description {
    unit: Option<Unit>,
    help: SharedString,
}

struct Registered {
    /// Whether this is a metric of this crate, whose name is reserved from the start.
    is_own: bool,
    table: Table,
}

enum Table {
    Counters(SeriesTable<AtomicU64>),
    Gauges(SeriesTable<AtomicU64>),
    Histograms(HistogramBounds, SeriesTable<BucketHistogram>),
}

/// The series of a family by their [identity](Labels::identity).
type SeriesTable<T> = HashMap<Labels, RegisteredSeries<T>>;

struct RegisteredSeries<T> {
    labels: Labels,
    value: Arc<T>,
    /// The Unix time of the registration.
    created: Duration,
}

impl<T> RegisteredSeries<T> {
    fn new(labels: Labels, value: Arc<T>) -> Self {
        Self { labels, value, created: unix_time::now() }
    }
}

/// The upper bounds of a histogram, as values and as they are written, and its cells if it is a native histogram too.
#[derive(Clone)]
pub(super) struct HistogramBounds {
    values: Arc<[f64]>,
    cells: Option<Arc<Cells>>,
    pub(super) written: WrittenBounds,
}

impl HistogramBounds {
    fn new(bounds: &[f64], is_native: bool) -> Self {
        Self {
            values: Arc::from(bounds),
            cells: is_native.then(|| Arc::new(Cells::new(bounds))),
            written: WrittenBounds::with_infinity(bounds),
        }
    }

    fn histogram(&self) -> BucketHistogram {
        let bounds = Arc::clone(&self.values);
        match &self.cells {
            Some(cells) => BucketHistogram::native(bounds, Arc::clone(cells)),
            None => BucketHistogram::new(bounds),
        }
    }
}

/// The upper bounds of each histogram, by its final name.
pub(super) struct BoundsByName {
    default: HistogramBounds,
    by_name: HashMap<String, HistogramBounds>,
}

impl BoundsByName {
    /// Collects the bounds. The last bounds of a name count. `are_native` makes all of them native histograms too.
    pub(super) fn new<'a>(
        default: &[f64],
        by_name: impl IntoIterator<Item = (&'a str, &'a [f64])>,
        are_native: bool,
    ) -> Self {
        let bounds = |(name, of)| (metric_name(name).into_owned(), HistogramBounds::new(of, are_native));
        Self { default: HistogramBounds::new(default, are_native), by_name: by_name.into_iter().map(bounds).collect() }
    }

    pub(super) fn of(&self, name: &str) -> &HistogramBounds {
        self.by_name.get(name).unwrap_or(&self.default)
    }
}

impl MetricsByName {
    /// Creates an empty table. `own` has the names that belong to this crate, even if the application uses one first.
    pub(super) fn new(
        bounds: Arc<BoundsByName>,
        own: impl IntoIterator<Item = (String, MetricKind)>,
        constant: Labels,
    ) -> Self {
        let own = own.into_iter().map(|(name, kind)| {
            let table = Table::new(kind, bounds.of(&name));
            (Arc::from(name), Registered { is_own: true, table })
        });
        let (families, descriptions) = (own.collect(), HashMap::new());
        Self { families, descriptions, bounds, constant, problems: Problems::default() }
    }

    /// Sets the unit and the help text. The first description of a name counts.
    pub(super) fn describe(&mut self, name: &str, unit: Option<Unit>, help: SharedString) {
        // To Prometheus a number of things has no unit.
        let unit = unit.filter(|unit| *unit != Unit::Count);
        self.descriptions.entry(metric_name(name).into_owned()).or_insert(Description { unit, help });
    }

    pub(super) fn counter(&mut self, key: &Key) -> Arc<AtomicU64> {
        match self.table(key, MetricKind::Counter) {
            Some((Table::Counters(series), constant, problems)) => {
                let labels = checked(key, Labels::new(pairs(key)), constant, problems);
                let new = || RegisteredSeries::new(labels.clone(), Arc::default());
                Arc::clone(&series.entry(labels.identity()).or_insert_with(new).value)
            }
            _ => Arc::default(),
        }
    }

    pub(super) fn gauge(&mut self, key: &Key) -> Arc<AtomicU64> {
        match self.table(key, MetricKind::Gauge) {
            Some((Table::Gauges(series), constant, problems)) => {
                let labels = checked(key, Labels::new(pairs(key)), constant, problems);
                let identity = labels.identity();
                if series.contains_key(&identity) {
                    problems.add(Problem::SharedGauge { metric: key.name().to_owned() });
                }
                let new = || RegisteredSeries::new(labels, Arc::default());
                Arc::clone(&series.entry(identity).or_insert_with(new).value)
            }
            _ => Arc::default(),
        }
    }

    pub(super) fn histogram(&mut self, key: &Key) -> Arc<BucketHistogram> {
        match self.table(key, MetricKind::Histogram) {
            Some((Table::Histograms(bounds, series), constant, problems)) => {
                let labels = checked(key, Labels::of_histogram(pairs(key)), constant, problems);
                let new = || RegisteredSeries::new(labels.clone(), Arc::new(bounds.histogram()));
                Arc::clone(&series.entry(labels.identity()).or_insert_with(new).value)
            }
            _ => Arc::new(BucketHistogram::new(Arc::default())),
        }
    }

    /// Returns the series of the metric with the name of this key. `None` if that metric is of another kind: values recorded
    /// under the key are not written then.
    fn table(&mut self, key: &Key, kind: MetricKind) -> Option<(&mut Table, &Labels, &mut Problems)> {
        let name = metric_name(key.name());
        if !self.families.contains_key(&*name) {
            let kind_of = |name: &str| self.families.get(name).map(|family| Some(family.table.kind()));
            if let Some(owner) = owner_of(&name, Some(kind), kind_of) {
                self.left_out(key, kind, owner);
                return None;
            }
            let registered = Registered { is_own: false, table: Table::new(kind, self.bounds.of(&name)) };
            self.families.insert(Arc::from(&*name), registered);
        }
        let of = self.families.get(&*name).map(|family| family.table.kind());
        if of != Some(kind) {
            self.left_out(key, kind, (name.into_owned(), of));
            return None;
        }
        self.families.get_mut(&*name).map(|family| (&mut family.table, &self.constant, &mut self.problems))
    }

    fn left_out(&mut self, key: &Key, kind: MetricKind, (owner, of): (String, Option<MetricKind>)) {
        let is_own = self.families.get(&*owner).is_some_and(|family| family.is_own);
        let owner = Owner { metric: owner, kind: of, is_own };
        self.problems.add(Problem::NameTaken { metric: key.name().to_owned(), kind: Some(kind), owner });
    }

    /// Reads all series. The families are sorted by name and include those of this crate that have no series.
    pub(super) fn read(&self) -> Vec<Family> {
        self.families.iter().map(|(name, registered)| self.family(name, registered)).collect()
    }

    fn family(&self, name: &Arc<str>, registered: &Registered) -> Family {
        let integer = |series: &RegisteredSeries<AtomicU64>| {
            Counter::new(Number::Integer(series.value.load(Ordering::Acquire)), Some(series.created))
        };
        let float = |series: &RegisteredSeries<AtomicU64>| f64::from_bits(series.value.load(Ordering::Acquire)).into();
        let samples = match &registered.table {
            Table::Counters(table) => Samples::Counter(read(table, integer)),
            Table::Gauges(table) => Samples::Gauge(read(table, float)),
            Table::Histograms(bounds, table) => Samples::Histogram(read(table, |series| {
                Histogram::new(bounds.written.clone(), series.value.snapshot(), Some(series.created))
            })),
        };
        let description = self.descriptions.get(&**name);
        Family {
            name: Arc::clone(name),
            help: description.map(|description| description.help.clone()),
            unit: description.and_then(|description| description.unit),
            samples,
        }
    }
}

impl Table {
    fn new(kind: MetricKind, bounds: &HistogramBounds) -> Self {
        match kind {
            MetricKind::Counter => Self::Counters(HashMap::new()),
            MetricKind::Gauge => Self::Gauges(HashMap::new()),
            _ => Self::Histograms(bounds.clone(), HashMap::new()),
        }
    }

    fn kind(&self) -> MetricKind {
        match self {
            Self::Counters(_) => MetricKind::Counter,
            Self::Gauges(_) => MetricKind::Gauge,
            Self::Histograms(..) => MetricKind::Histogram,
        }
    }
}

fn read<T, V>(table: &SeriesTable<T>, value: impl Fn(&RegisteredSeries<T>) -> V) -> Vec<Series<V>> {
    table.values().map(|series| Series::new(series.labels.clone(), value(series))).collect()
}

pub(super) fn pairs(key: &Key) -> impl Iterator<Item = (&str, &str)> + Clone {
    key.labels().map(|label| (label.key(), label.value()))
}

/// Returns the final labels of a key and reports labels that were joined.
fn checked(
    key: &Key,
    (labels, collision): (Labels, Option<String>),
    constant: &Labels,
    problems: &mut Problems,
) -> Labels {
    if let Some(label) = collision {
        problems.add(Problem::JoinedLabels { metric: key.name().to_owned(), label });
    }
    labels.and(constant)
}
