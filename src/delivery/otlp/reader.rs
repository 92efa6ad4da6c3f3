//! Reads the metrics as messages of the protocol.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_proto::tonic::metrics::v1::exponential_histogram_data_point::Buckets;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Exemplar, ExponentialHistogram, ExponentialHistogramDataPoint, Gauge, Histogram,
    HistogramDataPoint, Metric, NumberDataPoint, Sum,
};
use opentelemetry_sdk::metrics::Temporality;

use super::exemplars::FamilyExemplars;
use super::families::OtlpFamilies;
use super::request::point_count;
use super::series::{CounterSeries, HistogramSeries, OtlpFamily, Series, lock, seconds_of, ucum_code};
use crate::exposition::SeriesExemplars;
use crate::histogram::Snapshot;
use crate::unix_time;

/// Reads the metrics with one temporality.
pub(super) struct MetricReader {
    families: Arc<OtlpFamilies>,
    temporality: Temporality,
    /// Start of the totals, in nanoseconds of Unix time.
    start: u64,
    /// Time of the last collection, in nanoseconds of Unix time.
    last: u64,
}

impl MetricReader {
    pub(super) fn new(families: Arc<OtlpFamilies>, temporality: Temporality) -> Self {
        let now = nanos(unix_time::now());
        Self { families, temporality, start: now, last: now }
    }

    /// Returns whether the metrics contain increments, which the next collection does not repeat.
    pub(super) fn has_increments(&self) -> bool {
        self.temporality != Temporality::Cumulative
    }

    /// Returns the current state. Increments cover the time since the last call.
    pub(super) fn collect(&mut self, exemplars: Vec<SeriesExemplars>) -> Vec<Metric> {
        // The system clock may have been set back.
        let now = nanos(unix_time::now()).max(self.last);
        let previous = mem::replace(&mut self.last, now);
        let families = self.families.all();
        let mut exemplars = FamilyExemplars::by_name(exemplars, &self.families);
        let metric = |family: &Arc<OtlpFamily>| {
            self.metric(family, previous, exemplars.remove(&family.name).unwrap_or_default())
        };
        families.iter().filter_map(metric).collect()
    }

    fn metric(&self, family: &OtlpFamily, previous: u64, mut exemplars: FamilyExemplars) -> Option<Metric> {
        let template =
            |is_delta| PointTemplate { start: if is_delta { previous } else { self.start }, time: self.last, is_delta };
        let data = match &mut *lock(&family.series) {
            Series::Counters(sets) => {
                // `lowmemory` means cumulative for instruments with totals of their own.
                let (point, mut data_points) = (template(self.temporality == Temporality::Delta), Vec::new());
                sets.for_each(|attributes, series| {
                    let value = i64::try_from(point.count(series)).unwrap_or(i64::MAX);
                    let exemplars = point.exemplars(attributes, &mut exemplars);
                    data_points.push(NumberDataPoint { exemplars, ..point.number(attributes, Value::AsInt(value)) });
                });
                Data::Sum(Sum { data_points, aggregation_temporality: point.temporality(), is_monotonic: true })
            }
            Series::Seconds(sets) => {
                let (point, mut data_points) = (template(self.temporality == Temporality::Delta), Vec::new());
                sets.for_each(|attributes, series| {
                    data_points.push(point.number(attributes, Value::AsDouble(seconds_of(point.count(series)))));
                });
                Data::Sum(Sum { data_points, aggregation_temporality: point.temporality(), is_monotonic: true })
            }
            Series::Gauges(sets) => {
                let (point, mut data_points) = (template(false), Vec::new());
                sets.for_each(|attributes, gauge| {
                    let value = f64::from_bits(gauge.load(Ordering::Relaxed));
                    data_points.extend(point.gauge(attributes, value));
                });
                Data::Gauge(Gauge { data_points })
            }
            Series::Histograms(sets) => {
                let (point, mut data_points) = (template(self.has_increments()), Vec::new());
                sets.for_each(|attributes, series| {
                    let exemplars = point.exemplars(attributes, &mut exemplars);
                    let data_point = point.histogram(attributes, &family.bounds, series);
                    data_points.extend(data_point.map(|point| HistogramDataPoint { exemplars, ..point }));
                });
                Data::Histogram(Histogram { data_points, aggregation_temporality: point.temporality() })
            }
            Series::ExponentialHistograms(sets) => {
                let (point, mut data_points) = (template(self.has_increments()), Vec::new());
                sets.for_each(|attributes, series| {
                    let exemplars = point.exemplars(attributes, &mut exemplars);
                    let data_point = point.exponential_histogram(attributes, series);
                    data_points.extend(data_point.map(|point| ExponentialHistogramDataPoint { exemplars, ..point }));
                });
                let aggregation_temporality = point.temporality();
                Data::ExponentialHistogram(ExponentialHistogram { data_points, aggregation_temporality })
            }
            Series::Instrument(_) => return None,
        };
        if point_count(&data) == 0 {
            return None;
        }
        let (unit, help) = self.families.description(&family.name);
        Some(Metric {
            name: family.name.clone(),
            description: help.into_owned(),
            unit: unit.map_or("", ucum_code).to_owned(),
            metadata: Vec::new(),
            data: Some(data),
        })
    }
}

/// Returns a Unix time in nanoseconds.
pub(super) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The common values of the data points of a metric.
#[derive(Clone, Copy)]
struct PointTemplate {
    start: u64,
    time: u64,
    is_delta: bool,
}

impl PointTemplate {
    fn temporality(self) -> i32 {
        let temporality =
            if self.is_delta { AggregationTemporality::Delta } else { AggregationTemporality::Cumulative };
        temporality.into()
    }

    /// Takes the exemplars of a series: those of increments are of the same time.
    fn exemplars(self, attributes: &[KeyValue], exemplars: &mut FamilyExemplars) -> Vec<Exemplar> {
        exemplars.take(attributes, if self.is_delta { self.start } else { 0 })
    }

    /// Returns the value of a counter: its total, or the increment since the last export.
    fn count(self, series: &mut CounterSeries) -> u64 {
        let total = series.total();
        // A counter of the application may wrap.
        if self.is_delta { total.wrapping_sub(mem::replace(&mut series.exported, total)) } else { total }
    }

    /// Returns the point of a gauge; `None` if the value is not finite, as in the SDK.
    fn gauge(self, attributes: &[KeyValue], value: f64) -> Option<NumberDataPoint> {
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

    /// Returns the point of a histogram; `None` without samples since the last export of increments.
    fn histogram(
        self,
        attributes: &[KeyValue],
        bounds: &[f64],
        series: &mut HistogramSeries,
    ) -> Option<HistogramDataPoint> {
        let (count, snapshot) = self.read(series)?;
        Some(HistogramDataPoint {
            attributes: attributes.iter().map(Into::into).collect(),
            start_time_unix_nano: self.start,
            time_unix_nano: self.time,
            count,
            sum: Some(snapshot.sum),
            bucket_counts: snapshot.counts,
            explicit_bounds: bounds.to_vec(),
            exemplars: Vec::new(),
            flags: 0,
            min: None,
            max: None,
        })
    }

    /// Returns the point of an exponential histogram; `None` without samples since the last export of increments.
    fn exponential_histogram(
        self,
        attributes: &[KeyValue],
        series: &mut HistogramSeries,
    ) -> Option<ExponentialHistogramDataPoint> {
        let (count, snapshot) = self.read(series)?;
        // Increments are the difference at the finest scale, whatever the scales of the exports.
        let native = snapshot.native?.limited_with_gaps();
        Some(ExponentialHistogramDataPoint {
            attributes: attributes.iter().map(Into::into).collect(),
            start_time_unix_nano: self.start,
            time_unix_nano: self.time,
            count,
            sum: Some(snapshot.sum),
            scale: native.schema,
            zero_count: native.zero_count,
            positive: Some(with_gaps(&native.positive)),
            negative: Some(with_gaps(&native.negative)),
            flags: 0,
            exemplars: Vec::new(),
            min: None,
            max: None,
            zero_threshold: native.zero_threshold,
        })
    }

    /// Returns a histogram and its count; `None` without samples since the last export of increments.
    fn read(self, series: &mut HistogramSeries) -> Option<(u64, Snapshot)> {
        let snapshot = if self.is_delta { series.take_increments()? } else { series.histogram.snapshot() };
        Some((snapshot.counts.iter().sum(), snapshot))
    }
}

/// Adds the empty buckets between others. The indexes of Prometheus are those of the upper bounds, the indexes of OTLP those
/// of the lower bounds.
fn with_gaps(buckets: &[(i32, u64)]) -> Buckets {
    let Some((first, _)) = buckets.first() else { return Buckets::default() };
    let mut bucket_counts = Vec::new();
    for (index, count) in buckets {
        bucket_counts.resize(first.abs_diff(*index) as usize, 0);
        bucket_counts.push(*count);
    }
    Buckets { offset: first - 1, bucket_counts }
}

#[cfg(test)]
#[path = "reader/tests.rs"]
mod tests;
