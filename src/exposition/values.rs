//! The values of series.

use std::sync::Arc;
use std::time::Duration;

use super::labels::Labels;
use crate::histogram::{NativeBuckets, Snapshot};

/// A value. One form for each: what a float can count exactly is an integer. Counters are exact beyond that.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Number {
    Integer(u64),
    Float(f64),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Counter {
    pub(crate) value: Number,
    pub(crate) exemplar: Option<Exemplar>,
    /// The Unix time at which the series began in this process.
    pub(crate) created: Option<Duration>,
}

/// A histogram with buckets of its own, with native ones, or with both.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Histogram {
    /// Upper bounds, `+Inf` among them.
    pub(crate) bounds: WrittenBounds,
    /// How many samples are not above each bound.
    pub(crate) cumulative: Vec<u64>,
    /// For each bound; empty if no bucket has one.
    pub(crate) exemplars: Vec<Option<Exemplar>>,
    pub(crate) native: Option<Box<NativeBuckets>>,
    /// Absent where a foreign text leaves it out, as the count.
    pub(crate) sum: Option<f64>,
    pub(crate) count: Option<u64>,
    /// The Unix time at which the series began in this process.
    pub(crate) created: Option<Duration>,
}

/// One of the samples that a value is made of, and what it belongs to, such as a trace. The text format 0.0.4 does not
/// have it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Exemplar {
    pub(crate) labels: Labels,
    pub(crate) value: f64,
    /// The Unix time of the sample.
    pub(crate) time: Option<Duration>,
}

/// A series, and an exemplar for each of its buckets, or for its counter.
#[cfg(any(feature = "otlp", feature = "trace-id"))]
pub(crate) type SeriesExemplars = (metrics::Key, Vec<Option<Exemplar>>);

#[cfg(any(feature = "otlp", feature = "trace-id"))]
impl Exemplar {
    /// Replaces the exemplars that are earlier than those of the same buckets in `more`.
    pub(crate) fn keep_latest(known: &mut Vec<Option<Self>>, more: Vec<Option<Self>>) {
        known.resize(known.len().max(more.len()), None);
        for (known, more) in known.iter_mut().zip(more) {
            let is_later = |more: &Self| known.as_ref().is_none_or(|known| known.time < more.time);
            if let Some(more) = more.filter(is_later) {
                *known = Some(more);
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Summary {
    pub(crate) quantiles: WrittenBounds,
    pub(crate) values: Vec<f64>,
    pub(crate) sum: Option<f64>,
    pub(crate) count: Option<u64>,
}

/// Bounds or quantiles, as they are spelled in the labels `le` and `quantile` and as numbers. Shared by the series of a
/// family: another spelling is another series.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct WrittenBounds(Arc<[WrittenBound]>);

#[derive(Clone, Debug, PartialEq)]
pub(super) struct WrittenBound {
    pub(super) text: Box<str>,
    pub(super) value: f64,
}

impl WrittenBounds {
    /// The buckets of a histogram with these upper bounds and `+Inf`.
    pub(crate) fn with_infinity(bounds: &[f64]) -> Self {
        Self::of_values(bounds.iter().copied().chain([f64::INFINITY]))
    }

    /// Spells each value as the text format has it.
    pub(super) fn of_values(values: impl Iterator<Item = f64>) -> Self {
        values.map(|value| WrittenBound { text: Number::Float(value).to_string().into(), value }).collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &WrittenBound> {
        self.0.iter()
    }

    pub(super) fn get(&self, at: usize) -> Option<&WrittenBound> {
        self.0.get(at)
    }

    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|bound| &*bound.text)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = f64> {
        self.0.iter().map(|bound| bound.value)
    }
}

impl FromIterator<WrittenBound> for WrittenBounds {
    fn from_iter<I: IntoIterator<Item = WrittenBound>>(bounds: I) -> Self {
        Self(bounds.into_iter().collect())
    }
}

impl Number {
    pub(crate) fn as_f64(self) -> f64 {
        match self {
            Self::Integer(value) => value as f64,
            Self::Float(value) => value,
        }
    }
}

impl From<f64> for Number {
    fn from(value: f64) -> Self {
        /// Up to here a float tells an integer from its neighbours.
        const EXACT: f64 = (1_u64 << f64::MANTISSA_DIGITS) as f64;
        let is_integer = value.is_sign_positive() && value <= EXACT && value.fract() == 0.0;
        if is_integer { Self::Integer(value as u64) } else { Self::Float(value) }
    }
}

impl Counter {
    pub(crate) fn new(value: Number, created: Option<Duration>) -> Self {
        Self { value, exemplar: None, created }
    }
}

impl Histogram {
    /// `bounds` has one bound for each count.
    pub(crate) fn new(
        bounds: WrittenBounds,
        Snapshot { counts: mut cumulative, sum, native }: Snapshot,
        created: Option<Duration>,
    ) -> Self {
        let mut count = 0;
        for bucket in &mut cumulative {
            count += *bucket;
            *bucket = count;
        }
        let (sum, count, native) = (Some(sum), Some(count), native.map(|native| Box::new(native.limited())));
        Self { bounds, cumulative, exemplars: Vec::new(), native, sum, count, created }
    }

    /// Adds the samples of a histogram with the same bounds.
    pub(crate) fn add(&mut self, other: Self) {
        self.cumulative.iter_mut().zip(other.cumulative).for_each(|(count, other)| *count += other);
        self.native = self.native.take().zip(other.native).map(|(mut native, other)| {
            native.add(*other);
            Box::new(native.limited())
        });
        self.sum = self.sum.zip(other.sum).map(|(a, b)| a + b);
        self.count = self.count.zip(other.count).map(|(a, b)| a + b);
        self.created = self.created.into_iter().chain(other.created).min();
    }
}
