//! Requests to a collector, and their division into parts of a size that collectors accept.

use std::collections::{BTreeMap, VecDeque};
use std::mem;

use opentelemetry::KeyValue;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{
    ExponentialHistogram, Gauge, Histogram, Metric, ResourceMetrics, ScopeMetrics, Sum,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;

/// The instrumentation scope of all metrics.
pub(super) const SCOPE: &str = "tracing_stage_metrics";

/// The resource of every request: the origin of the metrics.
#[derive(Clone, Debug)]
pub(super) struct Origin(Resource);

impl Origin {
    pub(super) fn new(attributes: BTreeMap<String, String>) -> Self {
        let attributes = attributes.into_iter().map(|(name, value)| (&KeyValue::new(name, value)).into());
        Self(Resource { attributes: attributes.collect(), ..Resource::default() })
    }

    /// Returns a request with these metrics.
    pub(super) fn request(&self, metrics: Vec<Metric>) -> ExportMetricsServiceRequest {
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

/// The metrics of one request.
#[derive(Debug, PartialEq)]
pub(super) struct Part {
    pub(super) metrics: Vec<Metric>,
    /// Encoded size of the metrics.
    pub(super) bytes: usize,
}

impl Part {
    /// Returns the number of data points.
    pub(super) fn points(&self) -> usize {
        self.metrics.iter().filter_map(|metric| metric.data.as_ref()).map(point_count).sum()
    }
}

/// Splits metrics into parts of at most `limit` bytes each. A larger data point has a part of its own.
pub(super) fn split(metrics: Vec<Metric>, limit: usize) -> VecDeque<Part> {
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

/// Adds as many data points of the metric to the part as fit, and at least one to an empty part. Returns the metric
/// with the other points.
fn fill(part: &mut Part, mut metric: Metric, limit: usize) -> Option<Metric> {
    /// Bytes of a tag and a length.
    const FRAME: usize = 6;
    let mut data = metric.data.take()?;
    let points = point_count(&data);
    // Frames of the metric, of its data, and of the common values of its points.
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
            Data::ExponentialHistogram(ExponentialHistogram { data_points: $points, .. }) => $body,
            Data::Summary(_) => $none,
        }
    };
}

/// Returns the number of data points.
pub(super) fn point_count(data: &Data) -> usize {
    with_points!(data, points => points.len(), else 0)
}

fn encoded_len(data: &Data, at: usize) -> usize {
    with_points!(data, points => points.get(at).map_or(0, Message::encoded_len), else 0)
}

/// Keeps the first points, and returns the others as data of the same kind.
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
        Data::ExponentialHistogram(histogram) => {
            let data_points = histogram.data_points.split_off(at);
            Data::ExponentialHistogram(ExponentialHistogram { data_points, ..*histogram })
        }
        Data::Summary(_) => data.clone(),
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value::AsInt;
    use opentelemetry_proto::tonic::metrics::v1::{ExponentialHistogramDataPoint, NumberDataPoint};
    use proptest::prelude::*;

    use super::*;

    /// Returns a sum with a data point for each of these label values.
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

    /// Returns an exponential histogram with a data point for each of these label values.
    fn exponential_histogram(name: &str, values: &[String]) -> Metric {
        let point = |value: &String| ExponentialHistogramDataPoint {
            attributes: vec![(&KeyValue::new("label", value.clone())).into()],
            ..ExponentialHistogramDataPoint::default()
        };
        let data_points = values.iter().map(point).collect();
        let data = Data::ExponentialHistogram(ExponentialHistogram { data_points, aggregation_temporality: 1 });
        Metric { name: name.to_owned(), data: Some(data), ..Metric::default() }
    }

    /// The data points with the names of their metrics.
    fn points(metrics: &[Metric]) -> Vec<(&str, String)> {
        let points = |metric: &Metric| -> Vec<_> {
            match &metric.data {
                Some(Data::Sum(sum)) => sum.data_points.iter().map(|point| format!("{point:?}")).collect(),
                Some(Data::ExponentialHistogram(histogram)) => {
                    histogram.data_points.iter().map(|point| format!("{point:?}")).collect()
                }
                other => panic!("{other:?}"),
            }
        };
        metrics
            .iter()
            .flat_map(|metric| points(metric).into_iter().map(|point| (metric.name.as_str(), point)))
            .collect()
    }

    proptest! {
        #[test]
        fn parts_have_every_data_point_once_within_the_limit(
            values in prop::collection::vec(prop::collection::vec("[a-z]{0,400}", 0..12), 0..6),
            limit in 1_usize..2_000,
        ) {
            let metric = |(n, values): (usize, &Vec<String>)| {
                let metric = if n % 2 == 0 { sum } else { exponential_histogram };
                metric(&format!("m{n}"), values)
            };
            let metrics: Vec<_> = values.iter().enumerate().map(metric).collect();
            let origin = Origin::new(BTreeMap::new());
            let empty = origin.request(Vec::new()).encoded_len();
            let parts = split(metrics.clone(), limit);
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

        #[test]
        fn half_the_limit_splits_a_part(values in prop::collection::vec("[a-z]{0,400}", 2..12)) {
            let whole = split(vec![sum("m", &values)], usize::MAX).remove(0).unwrap();
            let bytes = whole.bytes;
            prop_assert!(split(whole.metrics, bytes / 2).len() > 1);
        }
    }
}
