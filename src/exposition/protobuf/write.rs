//! Writes metric families.

use std::time::Duration;

use prost::Message as _;

use super::message::{
    Bucket, BucketSpan, Counter, Exemplar, Histogram, LabelPair, Metric, MetricFamily, MetricType, Quantile, Summary,
    Timestamp, Value,
};
use crate::exposition::families::{Families, Family, Samples, Series};
use crate::exposition::labels::Labels;
use crate::exposition::values::{self, Number};
use crate::histogram::NativeBuckets;

impl Families {
    /// Returns the families in the protobuf format, in a stable order.
    pub(crate) fn to_protobuf(&self) -> Vec<u8> {
        let (mut all, mut family) = (Vec::new(), Vec::new());
        for next in self.iter() {
            family.clear();
            write_family(&mut family, next);
            encode(&mut all, |to| prost::encode_length_delimiter(family.len(), to));
            all.extend_from_slice(&family);
        }
        all
    }
}

fn write_family(to: &mut Vec<u8>, family: &Family) {
    let Family { name, help, samples, .. } = family;
    let unit = match samples {
        Samples::Counter(_) => family.unit_in(name.strip_suffix("_total").unwrap_or(name)),
        _ => family.unit_in(name),
    };
    let header = MetricFamily {
        name: Some(name.to_string()),
        help: help.as_ref().map(|help| help.clone().into_owned()),
        r#type: Some(type_of(samples).into()),
        metric: Vec::new(),
        unit: unit.map(str::to_owned),
    };
    encode(to, |to| header.encode(to));
    match samples {
        Samples::Counter(series) => write_series(to, series, |value, metric| metric.counter = Some(counter(value))),
        Samples::Gauge(series) => write_series(to, series, |value, metric| metric.gauge = Some(number(*value))),
        Samples::Unknown(series) => write_series(to, series, |value, metric| metric.untyped = Some(number(*value))),
        Samples::Summary(series) => write_series(to, series, |value, metric| metric.summary = Some(summary(value))),
        Samples::Histogram(series) => {
            write_series(to, series, |value, metric| set_histogram(metric.histogram.get_or_insert_default(), value));
        }
    }
}

/// Writes one series at a time: parts of a message that follow each other are one message.
fn write_series<T>(to: &mut Vec<u8>, series: &[Series<T>], set_value: impl Fn(&T, &mut Metric)) {
    let mut part = MetricFamily { metric: vec![Metric::default()], ..MetricFamily::default() };
    for series in series {
        // Its vectors and strings are used again.
        for metric in &mut part.metric {
            set_labels(&mut metric.label, &series.labels);
            set_value(&series.value, metric);
        }
        encode(to, |to| part.encode(to));
    }
}

/// Encodes into a vector, which has room for everything.
fn encode(to: &mut Vec<u8>, encode: impl FnOnce(&mut Vec<u8>) -> Result<(), prost::EncodeError>) {
    let encoded = encode(to);
    debug_assert_eq!(encoded, Ok(()));
}

fn type_of(samples: &Samples) -> MetricType {
    match samples {
        Samples::Counter(_) => MetricType::Counter,
        Samples::Gauge(_) => MetricType::Gauge,
        Samples::Histogram(_) => MetricType::Histogram,
        Samples::Summary(_) => MetricType::Summary,
        Samples::Unknown(_) => MetricType::Untyped,
    }
}

fn set_labels(pairs: &mut Vec<LabelPair>, labels: &Labels) {
    let mut count = 0;
    for (name, value) in labels.values() {
        if count == pairs.len() {
            pairs.push(LabelPair::default());
        }
        set(&mut pairs[count].name, name);
        set(&mut pairs[count].value, &value);
        count += 1;
    }
    pairs.truncate(count);
}

fn set(to: &mut Option<String>, text: &str) {
    let to = to.get_or_insert_default();
    to.clear();
    to.push_str(text);
}

fn number(value: Number) -> Value {
    Value { value: Some(value.as_f64()) }
}

fn counter(values::Counter { value, exemplar: example, created }: &values::Counter) -> Counter {
    let exemplar = example.as_ref().map(exemplar);
    Counter { value: Some(value.as_f64()), exemplar, created_timestamp: created.map(timestamp) }
}

fn summary(values::Summary { quantiles, values, sum, count }: &values::Summary) -> Summary {
    let quantiles = quantiles.values().zip(values);
    let quantile = |(quantile, value): (f64, &f64)| Quantile { quantile: Some(quantile), value: Some(*value) };
    Summary { sample_count: *count, sample_sum: *sum, quantile: quantiles.map(quantile).collect() }
}

fn set_histogram(histogram: &mut Histogram, value: &values::Histogram) {
    let values::Histogram { bounds, cumulative, exemplars, native, sum, count, created } = value;
    let exemplars = exemplars.iter().map(Option::as_ref).chain(std::iter::repeat(None));
    let buckets = bounds.values().zip(cumulative).zip(exemplars);
    histogram.bucket.clear();
    histogram.bucket.extend(buckets.map(|((bound, count), example)| Bucket {
        cumulative_count: Some(*count),
        upper_bound: Some(bound),
        exemplar: example.map(exemplar),
    }));
    histogram.sample_count = *count;
    histogram.sample_sum = *sum;
    histogram.created_timestamp = created.map(timestamp);
    histogram.schema = native.as_ref().map(|native| native.schema);
    histogram.zero_threshold = native.as_ref().map(|native| native.zero_threshold);
    histogram.zero_count = native.as_ref().map(|native| native.zero_count);
    let buckets = |of: fn(&NativeBuckets) -> &[(i32, u64)]| native.as_deref().map(of).unwrap_or_default();
    (histogram.negative_span, histogram.negative_delta) = spans(buckets(|native| &native.negative));
    (histogram.positive_span, histogram.positive_delta) = spans(buckets(|native| &native.positive));
    if native.is_some() && histogram.positive_span.is_empty() {
        // Without a span, a reader takes a histogram without samples and zero threshold for one without native buckets.
        histogram.positive_span.push(BucketSpan { offset: Some(0), length: Some(0) });
    }
}

/// The indexes of native buckets, and the difference of each count to the one before. Both wrap: a reader gets the same
/// numbers back.
fn spans(buckets: &[(i32, u64)]) -> (Vec<BucketSpan>, Vec<i64>) {
    let (mut spans, mut deltas) = (Vec::<BucketSpan>::new(), Vec::with_capacity(buckets.len()));
    let (mut next, mut before) = (0_i32, 0_u64);
    for (index, count) in buckets {
        match spans.last_mut() {
            Some(BucketSpan { length: Some(length), .. }) if *index == next => *length += 1,
            _ => spans.push(BucketSpan { offset: Some(index.wrapping_sub(next)), length: Some(1) }),
        }
        deltas.push(count.wrapping_sub(before).cast_signed());
        (next, before) = (index.wrapping_add(1), *count);
    }
    (spans, deltas)
}

fn exemplar(values::Exemplar { labels, value, time }: &values::Exemplar) -> Exemplar {
    let mut label = Vec::new();
    set_labels(&mut label, labels);
    Exemplar { label, value: Some(*value), timestamp: time.map(timestamp) }
}

fn timestamp(time: Duration) -> Timestamp {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    Timestamp { seconds, nanos: time.subsec_nanos().cast_signed() }
}
