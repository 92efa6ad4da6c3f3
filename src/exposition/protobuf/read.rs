//! Reads metric families, as this crate writes them.

use std::time::Duration;

use metrics::Unit;
use prost::Message as _;

use super::message::{
    Bucket, BucketSpan, Counter, Exemplar, FamilyName, Histogram, LabelPair, Metric, MetricFamily, MetricType,
    Quantile, Summary, Timestamp, Value,
};
use crate::exposition::families::{Families, Family, Samples, Series};
use crate::exposition::labels::Labels;
use crate::exposition::values::{self, Number, WrittenBounds};
use crate::histogram::NativeBuckets;

/// Reads the families whose name is wanted, without what this crate does not write. `None` if the bytes are not of the
/// format.
pub(crate) fn read(mut bytes: &[u8], is_wanted: impl Fn(&str) -> bool) -> Option<Families> {
    let mut families = Vec::new();
    while !bytes.is_empty() {
        let len = prost::decode_length_delimiter(&mut bytes).ok()?;
        let (family, rest) = bytes.split_at_checked(len)?;
        if is_wanted(&FamilyName::decode(family).ok()?.name?) {
            families.push(read_family(MetricFamily::decode(family).ok()?)?);
        }
        bytes = rest;
    }
    Some(Families::new(families))
}

fn read_family(MetricFamily { name, help, r#type, metric: metrics, unit }: MetricFamily) -> Option<Family> {
    // The default of a field is its first value.
    let samples = match MetricType::try_from(r#type.unwrap_or_default()).ok()? {
        MetricType::Counter => Samples::Counter(series(metrics, |metric| metric.counter.take().map(counter))),
        MetricType::Gauge => Samples::Gauge(series(metrics, |metric| metric.gauge.take().map(number))),
        MetricType::Untyped => Samples::Unknown(series(metrics, |metric| metric.untyped.take().map(number))),
        MetricType::Summary => {
            let mut shared = SharedBounds::default();
            Samples::Summary(series(metrics, |metric| metric.summary.take().map(|value| summary(value, &mut shared))))
        }
        MetricType::Histogram => {
            let mut shared = SharedBounds::default();
            Samples::Histogram(series(metrics, |metric| {
                metric.histogram.take().map(|value| histogram(value, &mut shared))
            }))
        }
    };
    let unit = unit.and_then(|unit| Unit::from_string(&unit));
    Some(Family { name: name?.into(), help: help.map(Into::into), unit, samples })
}

fn series<T>(metrics: Vec<Metric>, mut value: impl FnMut(&mut Metric) -> Option<T>) -> Vec<Series<T>> {
    let read = |mut metric: Metric| {
        let labels = labels(&metric.label);
        value(&mut metric).map(|value| Series::new(labels, value))
    };
    metrics.into_iter().filter_map(read).collect()
}

fn labels(pairs: &[LabelPair]) -> Labels {
    let text = Option::as_deref;
    let pairs = pairs.iter().map(|pair| (text(&pair.name).unwrap_or_default(), text(&pair.value).unwrap_or_default()));
    Labels::new(pairs).0
}

fn number(Value { value }: Value) -> Number {
    value.unwrap_or_default().into()
}

fn counter(Counter { value, exemplar: example, created_timestamp }: Counter) -> values::Counter {
    let value = value.unwrap_or_default().into();
    values::Counter { value, exemplar: example.map(exemplar), created: created_timestamp.and_then(time) }
}

fn summary(
    Summary { sample_count, sample_sum, quantile: quantiles }: Summary,
    shared: &mut SharedBounds,
) -> values::Summary {
    let quantile = |quantile: &Quantile| quantile.quantile.unwrap_or_default();
    values::Summary {
        quantiles: shared.of(quantiles.iter().map(quantile)),
        values: quantiles.iter().map(|quantile| quantile.value.unwrap_or_default()).collect(),
        sum: sample_sum,
        count: sample_count,
    }
}

fn histogram(histogram: Histogram, shared: &mut SharedBounds) -> values::Histogram {
    let native = histogram.schema.map(|schema| {
        Box::new(NativeBuckets {
            schema,
            zero_threshold: histogram.zero_threshold.unwrap_or_default(),
            zero_count: histogram.zero_count.unwrap_or_default(),
            positive: native_buckets(&histogram.positive_span, histogram.positive_delta),
            negative: native_buckets(&histogram.negative_span, histogram.negative_delta),
        })
    });
    let bound = |bucket: &Bucket| bucket.upper_bound.unwrap_or_default();
    let bounds = shared.of(histogram.bucket.iter().map(bound));
    let cumulative = histogram.bucket.iter().map(|bucket| bucket.cumulative_count.unwrap_or_default()).collect();
    let has_exemplars = histogram.bucket.iter().any(|bucket| bucket.exemplar.is_some());
    let exemplars = histogram.bucket.into_iter().map(|bucket| bucket.exemplar.map(exemplar));
    values::Histogram {
        bounds,
        cumulative,
        exemplars: if has_exemplars { exemplars.collect() } else { Vec::new() },
        native,
        sum: histogram.sample_sum,
        count: histogram.sample_count,
        created: histogram.created_timestamp.and_then(time),
    }
}

/// The inverse of the writer's spans. Buckets that a length claims, and that are not there, are left out.
fn native_buckets(spans: &[BucketSpan], deltas: Vec<i64>) -> Vec<(i32, u64)> {
    let mut next = 0_i32;
    let indexes = spans.iter().flat_map(|span| {
        let first = next.wrapping_add(span.offset.unwrap_or_default());
        let length = span.length.unwrap_or_default();
        next = first.wrapping_add_unsigned(length);
        (0..length).map(move |at| first.wrapping_add_unsigned(at))
    });
    let mut count = 0_u64;
    let bucket = |(index, delta)| {
        count = count.wrapping_add_signed(delta);
        (index, count)
    };
    indexes.zip(deltas).map(bucket).collect()
}

fn exemplar(Exemplar { label, value, timestamp }: Exemplar) -> values::Exemplar {
    values::Exemplar { labels: labels(&label), value: value.unwrap_or_default(), time: timestamp.and_then(time) }
}

/// `None` before 1970.
fn time(Timestamp { seconds, nanos }: Timestamp) -> Option<Duration> {
    Some(Duration::new(seconds.try_into().ok()?, nanos.try_into().ok()?))
}

/// The bounds of the series before, which most series have too.
#[derive(Default)]
struct SharedBounds(WrittenBounds);

impl SharedBounds {
    fn of(&mut self, values: impl Iterator<Item = f64> + Clone) -> WrittenBounds {
        if !self.0.values().map(f64::to_bits).eq(values.clone().map(f64::to_bits)) {
            self.0 = WrittenBounds::of_values(values);
        }
        self.0.clone()
    }
}
