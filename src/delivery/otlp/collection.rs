//! What is exported: the state of the metrics as messages of the protocol, in requests of a size that collectors take.

use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use opentelemetry::KeyValue;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
    ScopeMetrics, Sum,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_sdk::metrics::Temporality;
use prost::Message;

use crate::delivery::otlp::families::{CounterSeries, HistogramSeries, OtlpFamilies, OtlpFamily, Series, lock};
use crate::delivery::otlp::{SCOPE, ucum};
use crate::unix_time;

/// Reads the metrics, and knows when it did so last.
pub(crate) struct Collection {
    families: Arc<OtlpFamilies>,
    temporality: Temporality,
    /// When the totals began, in nanoseconds of Unix time.
    start: u64,
    last: u64,
}

impl Collection {
    pub(crate) fn new(families: Arc<OtlpFamilies>, temporality: Temporality) -> Self {
        let now = nanos();
        Self { families, temporality, start: now, last: now }
    }

    /// Whether what it returned must arrive, since the next collection does not have it again.
    pub(crate) fn has_increments(&self) -> bool {
        self.temporality != Temporality::Cumulative
    }

    /// Returns the state of this moment. Increments are those since the last call.
    pub(crate) fn collect(&mut self) -> Vec<Metric> {
        // The clock of the system may have been set back.
        let now = nanos().max(self.last);
        let previous = mem::replace(&mut self.last, now);
        let families = self.families.all();
        families.iter().filter_map(|family| self.metric(family, previous)).collect()
    }

    fn metric(&self, family: &OtlpFamily, previous: u64) -> Option<Metric> {
        let point = |is_delta| Point { start: if is_delta { previous } else { self.start }, time: self.last, is_delta };
        let data = match &mut *lock(&family.series) {
            Series::Counters(sets) => {
                // What `lowmemory` says of instruments whose totals somebody keeps anyway.
                let (point, mut data_points) = (point(self.temporality == Temporality::Delta), Vec::new());
                sets.for_each(|attributes, series| data_points.push(point.of_counter(attributes, series)));
                Data::Sum(Sum { data_points, aggregation_temporality: point.temporality(), is_monotonic: true })
            }
            Series::Gauges(sets) => {
                let (point, mut data_points) = (point(false), Vec::new());
                sets.for_each(|attributes, gauge| {
                    let value = f64::from_bits(gauge.load(Ordering::Relaxed));
                    data_points.extend(point.of_gauge(attributes, value));
                });
                Data::Gauge(Gauge { data_points })
            }
            Series::Histograms(sets) => {
                let (point, mut data_points) = (point(self.has_increments()), Vec::new());
                sets.for_each(|attributes, series| {
                    data_points.extend(point.of_histogram(attributes, &family.bounds, series));
                });
                Data::Histogram(Histogram { data_points, aggregation_temporality: point.temporality() })
            }
            Series::Instrument(_) => return None,
        };
        if count(&data) == 0 {
            return None;
        }
        let (unit, help) = self.families.description(&family.name);
        Some(Metric {
            name: family.name.clone(),
            description: help.into_owned(),
            unit: unit.map_or("", ucum).to_owned(),
            metadata: Vec::new(),
            data: Some(data),
        })
    }
}

fn nanos() -> u64 {
    u64::try_from(unix_time::now().as_nanos()).unwrap_or(u64::MAX)
}

/// What the data points of a metric have in common.
#[derive(Clone, Copy)]
struct Point {
    start: u64,
    time: u64,
    is_delta: bool,
}

impl Point {
    fn temporality(self) -> i32 {
        let temporality =
            if self.is_delta { AggregationTemporality::Delta } else { AggregationTemporality::Cumulative };
        temporality.into()
    }

    fn of_counter(self, attributes: &[KeyValue], series: &mut CounterSeries) -> NumberDataPoint {
        let total = series.total();
        let value = if self.is_delta { total - mem::replace(&mut series.exported, total) } else { total };
        self.number(attributes, Value::AsInt(i64::try_from(value).unwrap_or(i64::MAX)))
    }

    /// None where the value is not finite, as in the SDK.
    fn of_gauge(self, attributes: &[KeyValue], value: f64) -> Option<NumberDataPoint> {
        value.is_finite().then(|| Self { start: 0, ..self }.number(attributes, Value::AsDouble(value)))
    }

    fn number(self, attributes: &[KeyValue], value: Value) -> NumberDataPoint {
        NumberDataPoint {
            attributes: attributes.iter().map(Into::into).collect(),
            start_time_unix_nano: self.start,
            time_unix_nano: self.time,
            exemplars: Vec::new(),
            flags: 0,
            value: Some(value),
        }
    }

    /// None where no samples came since the last export of increments.
    fn of_histogram(
        self,
        attributes: &[KeyValue],
        bounds: &[f64],
        series: &mut HistogramSeries,
    ) -> Option<HistogramDataPoint> {
        let mut now = series.histogram.snapshot();
        if self.is_delta {
            let exported = mem::replace(&mut series.exported, now.clone());
            now.counts.iter_mut().zip(&exported.counts).for_each(|(count, exported)| *count -= exported);
            now.sum -= exported.sum;
        }
        let count = now.counts.iter().sum();
        (count > 0 || !self.is_delta).then(|| HistogramDataPoint {
            attributes: attributes.iter().map(Into::into).collect(),
            start_time_unix_nano: self.start,
            time_unix_nano: self.time,
            count,
            sum: Some(now.sum),
            bucket_counts: now.counts,
            explicit_bounds: bounds.to_vec(),
            exemplars: Vec::new(),
            flags: 0,
            min: None,
            max: None,
        })
    }
}

/// Where the metrics come from, as every request says.
#[derive(Clone, Debug)]
pub(crate) struct Origin(Resource);

impl Origin {
    pub(crate) fn new(attributes: BTreeMap<String, String>) -> Self {
        let attributes = attributes.into_iter().map(|(name, value)| (&KeyValue::new(name, value)).into());
        Self(Resource { attributes: attributes.collect(), ..Resource::default() })
    }

    pub(crate) fn request(&self, metrics: Vec<Metric>) -> ExportMetricsServiceRequest {
        let scope = InstrumentationScope { name: SCOPE.to_owned(), ..InstrumentationScope::default() };
        ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(self.0.clone()),
                scope_metrics: vec![ScopeMetrics { scope: Some(scope), metrics, schema_url: String::new() }],
                schema_url: String::new(),
            }],
        }
    }
}

/// Metrics that go out in one request.
#[derive(Debug, PartialEq)]
pub(crate) struct Part {
    pub(crate) metrics: Vec<Metric>,
    /// Of the metrics, encoded.
    pub(crate) bytes: usize,
}

impl Part {
    /// How many data points are in it.
    pub(crate) fn points(&self) -> usize {
        self.metrics.iter().filter_map(|metric| metric.data.as_ref()).map(count).sum()
    }
}

/// Distributes metrics over parts of at most `limit` bytes each. A data point that is larger has a part of its own.
pub(crate) fn parts(metrics: Vec<Metric>, limit: usize) -> VecDeque<Part> {
    let (mut parts, mut part) = (VecDeque::new(), Part { metrics: Vec::new(), bytes: 0 });
    for mut metric in metrics {
        while let Some(rest) = fill(&mut part, metric, limit) {
            parts.push_back(mem::replace(&mut part, Part { metrics: Vec::new(), bytes: 0 }));
            metric = rest;
        }
    }
    if !part.metrics.is_empty() {
        parts.push_back(part);
    }
    parts
}

/// Adds as many data points of the metric to the part as there is room for, one at least to an empty part. Returns the
/// metric with the others.
fn fill(part: &mut Part, mut metric: Metric, limit: usize) -> Option<Metric> {
    /// A tag of one byte and a length of at most five.
    const FRAME: usize = 6;
    let mut data = metric.data.take()?;
    let points = count(&data);
    // Of the metric, of its data, and for what the data says of all points.
    let mut bytes = part.bytes + metric.encoded_len() + 3 * FRAME;
    let mut fitting = 0;
    while fitting < points {
        let more = encoded_len(&data, fitting) + FRAME;
        let is_first = part.metrics.is_empty() && fitting == 0;
        if bytes + more > limit && !is_first {
            break;
        }
        bytes += more;
        fitting += 1;
    }
    let rest = (fitting < points).then(|| Metric { data: Some(split_off(&mut data, fitting)), ..metric.clone() });
    if fitting > 0 {
        metric.data = Some(data);
        part.metrics.push(metric);
        part.bytes = bytes;
    }
    rest
}

/// Evaluates an expression with the data points of a metric, whatever their kind.
macro_rules! with_points {
    ($data:expr, $points:ident => $body:expr, else $none:expr) => {
        match $data {
            Data::Gauge(Gauge { data_points: $points }) => $body,
            Data::Sum(Sum { data_points: $points, .. }) => $body,
            Data::Histogram(Histogram { data_points: $points, .. }) => $body,
            Data::ExponentialHistogram(_) | Data::Summary(_) => $none,
        }
    };
}

fn count(data: &Data) -> usize {
    with_points!(data, points => points.len(), else 0)
}

fn encoded_len(data: &Data, at: usize) -> usize {
    with_points!(data, points => points.get(at).map_or(0, Message::encoded_len), else 0)
}

/// Leaves the first points, and returns the others as data of the same kind.
fn split_off(data: &mut Data, at: usize) -> Data {
    match data {
        Data::Gauge(gauge) => Data::Gauge(Gauge { data_points: gauge.data_points.split_off(at) }),
        Data::Sum(sum) => {
            let data_points = sum.data_points.split_off(at);
            Data::Sum(Sum { data_points, ..*sum })
        }
        Data::Histogram(histogram) => {
            let data_points = histogram.data_points.split_off(at);
            Data::Histogram(Histogram { data_points, ..*histogram })
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use crate::delivery::otlp::collection::*;
    use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value::AsInt;
    use proptest::prelude::*;

    /// A sum with a data point for each of these label values.
    fn sum(name: &str, values: &[String]) -> Metric {
        let point = |value: &String| NumberDataPoint {
            attributes: vec![(&KeyValue::new("label", value.clone())).into()],
            value: Some(AsInt(1)),
            ..NumberDataPoint::default()
        };
        let data_points = values.iter().map(point).collect();
        let data = Data::Sum(Sum { data_points, aggregation_temporality: 1, is_monotonic: true });
        Metric { name: name.to_owned(), unit: "s".to_owned(), data: Some(data), ..Metric::default() }
    }

    fn points(metrics: &[Metric]) -> Vec<(&str, &NumberDataPoint)> {
        metrics
            .iter()
            .flat_map(|metric| match &metric.data {
                Some(Data::Sum(sum)) => sum.data_points.iter().map(|point| (metric.name.as_str(), point)),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    proptest! {
        #[test]
        fn parts_have_every_data_point_once_and_are_within_the_limit(
            values in prop::collection::vec(prop::collection::vec("[a-z]{0,400}", 0..12), 0..6),
            limit in 1_usize..2_000,
        ) {
            let metrics: Vec<_> = values.iter().enumerate().map(|(n, values)| sum(&format!("m{n}"), values)).collect();
            let origin = Origin::new(BTreeMap::new());
            let empty = origin.request(Vec::new()).encoded_len();
            let parts = parts(metrics.clone(), limit);
            let all: Vec<_> = parts.iter().flat_map(|part| part.metrics.clone()).collect();
            prop_assert_eq!(points(&all), points(&metrics));
            for part in &parts {
                prop_assert_ne!(part.points(), 0);
                let encoded = origin.request(part.metrics.clone()).encoded_len() - empty;
                // The lengths of the messages around the metrics grow by four bytes each at most.
                prop_assert!(encoded <= part.bytes + 8, "{} {}", encoded, part.bytes);
                prop_assert!(part.bytes <= limit || part.points() == 1);
            }
        }

        /// A part that a collector finds too large can be divided.
        #[test]
        fn half_the_limit_divides_a_part(values in prop::collection::vec("[a-z]{0,400}", 2..12)) {
            let whole = parts(vec![sum("m", &values)], usize::MAX).remove(0).unwrap();
            let bytes = whole.bytes;
            prop_assert!(parts(whole.metrics, bytes / 2).len() > 1);
        }
    }
}
