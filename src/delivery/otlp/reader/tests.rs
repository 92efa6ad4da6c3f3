use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicU64;

use metrics::{HistogramFn as _, Key, Recorder};
use opentelemetry_proto::tonic::metrics::v1::exemplar;
use proptest::prelude::*;

use super::super::families::{Limits, OtlpBounds};
use super::super::recorder::OtelRecorder;
use super::*;
use crate::exposition::Labels;
use crate::histogram::BucketHistogram;

const ZERO_THRESHOLD: f64 = 2.938_735_877_055_719e-39;

/// Returns a recorder with exponential histograms, and a reader of its metrics.
fn exponential(temporality: Temporality) -> (OtelRecorder, MetricReader) {
    let bounds = OtlpBounds { by_name: HashMap::from([("sizes".to_owned(), vec![1.0])]), default: vec![1.0, 2.0] };
    let limits = Limits { others: 2_000, ..Limits::default() };
    let families = Arc::new(OtlpFamilies::new(bounds, limits, Labels::default(), None).with_exponential_histograms());
    (OtelRecorder::new(Arc::clone(&families)), MetricReader::new(families, temporality))
}

fn record(recorder: &OtelRecorder, samples: &[f64]) {
    let metadata = metrics::Metadata::new("", metrics::Level::INFO, None);
    let histogram = recorder.register_histogram(&Key::from_static_name("sizes"), &metadata);
    samples.iter().for_each(|sample| histogram.record(*sample));
}

/// The point of the only series, if it is exported.
fn collect(reader: &mut MetricReader) -> Option<ExponentialHistogramDataPoint> {
    let metric = reader.collect(Vec::new()).pop()?;
    match metric.data.unwrap() {
        Data::ExponentialHistogram(ExponentialHistogram { mut data_points, aggregation_temporality }) => {
            let expected = if reader.has_increments() {
                AggregationTemporality::Delta
            } else {
                AggregationTemporality::Cumulative
            };
            assert_eq!(aggregation_temporality, i32::from(expected));
            assert_eq!(data_points.len(), 1);
            data_points.pop()
        }
        other => panic!("{other:?}"),
    }
}

/// The counts of an exponential histogram by index, as a receiver has them.
#[derive(Clone, Debug, PartialEq)]
struct Received {
    scale: i32,
    zero_count: u64,
    positive: BTreeMap<i32, u64>,
    negative: BTreeMap<i32, u64>,
}

impl Received {
    fn new(point: &ExponentialHistogramDataPoint) -> Self {
        let side = |buckets: &Option<Buckets>| {
            let Buckets { offset, bucket_counts } = buckets.clone().unwrap();
            (offset..).zip(bucket_counts).filter(|(_, count)| *count > 0).collect()
        };
        let (positive, negative) = (side(&point.positive), side(&point.negative));
        Self { scale: point.scale, zero_count: point.zero_count, positive, negative }
    }

    /// Merges pairs of buckets: the bucket from `base^index` on has twice the width at the next scale.
    fn at_scale(mut self, scale: i32) -> Self {
        while self.scale > scale {
            self.scale -= 1;
            for side in [&mut self.positive, &mut self.negative] {
                let mut merged = BTreeMap::new();
                std::mem::take(side)
                    .into_iter()
                    .for_each(|(index, count)| *merged.entry(index >> 1).or_default() += count);
                *side = merged;
            }
        }
        self
    }

    fn add(self, other: Self) -> Self {
        let scale = self.scale.min(other.scale);
        let (mut sum, other) = (self.at_scale(scale), other.at_scale(scale));
        sum.zero_count += other.zero_count;
        for (side, more) in [(&mut sum.positive, other.positive), (&mut sum.negative, other.negative)] {
            more.into_iter().for_each(|(index, count)| *side.entry(index).or_default() += count);
        }
        sum
    }

    /// The middle of the bucket that contains the sample of this rank, from 1. Positive buckets alone.
    fn sample(&self, rank: u64) -> f64 {
        let mut below = 0;
        for (index, count) in &self.positive {
            below += count;
            if below >= rank {
                return ((f64::from(*index) + 0.5) / f64::from(self.scale).exp2()).exp2();
            }
        }
        panic!("{rank} is not in {self:?}")
    }
}

/// Panics unless each bucket has the samples between its bounds, which the definition gives up to rounding.
#[track_caller]
fn assert_has_samples(received: &Received, samples: &[f64]) {
    let side = |sign: f64| samples.iter().map(move |sample| sample * sign).filter(|sample| *sample > ZERO_THRESHOLD);
    for (buckets, samples) in [(&received.positive, side(1.0)), (&received.negative, side(-1.0))] {
        let exponents: Vec<_> = samples.map(|sample| sample.log2() * f64::from(received.scale).exp2()).collect();
        assert_eq!(buckets.values().sum::<u64>(), exponents.len() as u64);
        for (index, count) in buckets {
            let between = |slack: f64| {
                let is_between =
                    |at: &&f64| f64::from(*index) - slack < **at && **at <= f64::from(*index) + 1.0 + slack;
                exponents.iter().filter(is_between).count() as u64
            };
            assert!((between(-1e-6)..=between(1e-6)).contains(count), "{index}: {count} in {received:?}");
        }
    }
    assert_eq!(received.zero_count, samples.iter().filter(|sample| sample.abs() <= ZERO_THRESHOLD).count() as u64);
}

fn any_sample() -> impl Strategy<Value = f64> {
    let special = [0.0, -0.0, 5e-324, -5e-324, f64::MIN_POSITIVE, ZERO_THRESHOLD, f64::MAX, f64::MIN, f64::NAN];
    let infinite = [f64::INFINITY, f64::NEG_INFINITY];
    let special: Vec<_> = special.into_iter().chain(infinite).collect();
    prop_oneof![any::<f64>(), prop::sample::select(special), -1e3..1e3_f64, 0.5..2.0_f64]
}

proptest! {
    /// The samples of each export are in its point. What a receiver adds up is what a cumulative export has.
    #[test]
    fn increments_add_up_to_the_cumulative_histogram(
        exports in prop::collection::vec(prop::collection::vec(any_sample(), 0..60), 1..5),
    ) {
        let (of_totals, mut totals) = exponential(Temporality::Cumulative);
        let (of_increments, mut increments) = exponential(Temporality::Delta);
        let (mut all, mut sum) = (Vec::new(), None::<Received>);
        for samples in exports {
            record(&of_totals, &samples);
            record(&of_increments, &samples);
            let finite: Vec<_> = samples.into_iter().filter(|sample| sample.is_finite()).collect();
            all.extend(finite.iter().copied());
            let (total, increment) = (collect(&mut totals).unwrap(), collect(&mut increments));
            prop_assert_eq!(increment.is_some(), !finite.is_empty());
            let points = [(Some(&total), &all), (increment.as_ref(), &finite)];
            for (point, samples) in points.into_iter().filter_map(|(point, samples)| Some((point?, samples))) {
                prop_assert_eq!(point.count, samples.len() as u64);
                assert_has_samples(&Received::new(point), samples);
                let [positive, negative] = [&point.positive, &point.negative].map(|side| side.as_ref().unwrap());
                prop_assert!(positive.bucket_counts.len() + negative.bucket_counts.len() <= 160);
                prop_assert!(point.scale <= 3 && point.zero_threshold == ZERO_THRESHOLD);
                prop_assert_eq!((point.min, point.max), (None, None));
            }
            let increment = increment.as_ref().map(Received::new);
            sum = sum.map_or(increment.clone(), |sum: Received| Some(increment.map_or(sum.clone(), |more| sum.add(more))));
            if let Some(sum) = &sum {
                let total = Received::new(&total);
                let scale = sum.scale.min(total.scale);
                prop_assert_eq!(sum.clone().at_scale(scale), total.at_scale(scale));
            }
        }
    }

    #[test]
    fn quantiles_are_within_ten_percent(mut samples in prop::collection::vec(1e-3..3e2_f64, 1..300), percent in 1..=100_u64) {
        for temporality in [Temporality::Cumulative, Temporality::Delta] {
            let (recorder, mut reader) = exponential(temporality);
            record(&recorder, &samples);
            let point = collect(&mut reader).unwrap();
            prop_assert!((point.sum.unwrap() - samples.iter().sum::<f64>()).abs() < 1e-6);
            samples.sort_by(f64::total_cmp);
            let rank = (samples.len() as u64 * percent).div_ceil(100);
            let (actual, expected) = (Received::new(&point).sample(rank), samples[rank as usize - 1]);
            prop_assert!((actual / expected - 1.0).abs() <= 0.1, "{} for {}", actual, expected);
        }
    }
}

/// Samples of 50 octaves do not fit into 160 buckets at scale 3, which are 20 octaves.
#[test]
fn scale_of_increments_is_that_of_their_own_samples() {
    let wide: Vec<_> = (0..50).map(|octave| f64::from(octave).exp2()).collect();
    for (temporality, expected) in
        [(Temporality::Cumulative, [(3, 2), (1, 52), (1, 54)]), (Temporality::Delta, [(3, 2), (1, 50), (3, 2)])]
    {
        let (recorder, mut reader) = exponential(temporality);
        let mut previous_time = None;
        for ((samples, expected), first) in [&[1.0, 1.5][..], &wide, &[1.0, 1.5]].into_iter().zip(expected).zip(0..) {
            record(&recorder, samples);
            let point = collect(&mut reader).unwrap();
            assert_eq!((point.scale, point.count), expected, "{temporality:?}");
            assert!(point.start_time_unix_nano <= point.time_unix_nano);
            if reader.has_increments() && first > 0 {
                assert_eq!(Some(point.start_time_unix_nano), previous_time, "without a gap or an overlap");
            }
            previous_time = Some(point.time_unix_nano);
        }
        let unchanged = collect(&mut reader);
        assert_eq!(unchanged.map(|point| point.count), (!reader.has_increments()).then_some(54));
    }
}

/// The bucket of index 0 has the samples above 1, and those of a power of two are in the bucket below.
#[test]
fn indexes_are_those_of_the_lower_bounds() {
    let (recorder, mut reader) = exponential(Temporality::Cumulative);
    record(&recorder, &[1.0, 1.01, 2.0, -4.0, 0.0]);
    let point = collect(&mut reader).unwrap();
    let buckets = |offset, bucket_counts: &[u64]| Some(Buckets { offset, bucket_counts: bucket_counts.to_vec() });
    assert_eq!(point.positive, buckets(-1, &[1, 1, 0, 0, 0, 0, 0, 0, 1]));
    assert_eq!((point.negative, point.zero_count), (buckets(15, &[1]), 1));
}

#[test]
fn exemplars_are_those_of_their_series_and_of_the_time_of_increments() {
    let exemplar = |value, time| {
        let labels = Labels::new([("trace_id", "0102030405060708090a0b0c0d0e0f10")].into_iter()).0;
        Some(crate::exposition::Exemplar { labels, value, time: Some(time) })
    };
    let now = unix_time::now;
    for (temporality, expected) in [(Temporality::Cumulative, &[0.5, 4.0][..]), (Temporality::Delta, &[4.0])] {
        let (recorder, mut reader) = exponential(temporality);
        let before = now() - Duration::from_secs(1);
        record(&recorder, &[0.5, 4.0]);
        let exemplars = vec![
            (Key::from_static_name("sizes"), vec![None, exemplar(0.25, before - Duration::from_secs(1))]),
            (Key::from_static_name("sizes"), vec![None, exemplar(0.5, before), exemplar(4.0, now())]),
            (Key::from_parts("sizes", vec![metrics::Label::new("other", "series")]), vec![exemplar(7.0, now())]),
        ];
        let Some(Data::ExponentialHistogram(histogram)) = reader.collect(exemplars).pop().unwrap().data else {
            panic!("no exponential histogram")
        };
        let exemplars = &histogram.data_points[0].exemplars;
        let values: Vec<_> = exemplars.iter().map(|exemplar| exemplar.value).collect();
        let expected: Vec<_> = expected.iter().map(|value| Some(exemplar::Value::AsDouble(*value))).collect();
        assert_eq!(values, expected);
        let last = exemplars.last().unwrap();
        assert_eq!(last.trace_id, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
        assert!(last.time_unix_nano <= histogram.data_points[0].time_unix_nano && last.span_id.is_empty());
    }
}

#[test]
fn increment_of_a_counter_that_wrapped_does_not_overflow() {
    let (recorder, mut reader) = exponential(Temporality::Delta);
    let metadata = metrics::Metadata::new("", metrics::Level::INFO, None);
    let counter = recorder.register_counter(&Key::from_static_name("rows_total"), &metadata);
    for (increment, expected) in [(u64::MAX - 1, i64::MAX), (5, 5)] {
        counter.increment(increment);
        let Some(Data::Sum(sum)) = reader.collect(Vec::new()).pop().unwrap().data else { panic!("no sum") };
        assert_eq!(sum.data_points[0].value, Some(Value::AsInt(expected)));
    }
}

/// A reading between the count and the sum of the last sample must not lose the sum: an export without a count is left out.
#[test]
fn increments_read_while_samples_are_recorded_add_up() {
    const SAMPLES: u64 = 50_000;
    let mut series = HistogramSeries::new(BucketHistogram::new(Arc::from([1.0])));
    let histogram = Arc::clone(&series.histogram);
    let recorded = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for sample in 0..SAMPLES {
                // The reader has all samples before this one.
                while recorded.load(Ordering::Acquire) < sample {
                    std::hint::spin_loop();
                }
                histogram.record(2.0);
            }
        });
        let (mut count, mut sum, mut agree) = (0, 0.0, true);
        while count < SAMPLES {
            let Some(increments) = series.take_increments() else { continue };
            count += increments.counts.iter().sum::<u64>();
            sum += increments.sum;
            agree &= sum == 2.0 * count as f64;
            recorded.store(count, Ordering::Release);
        }
        assert!(agree, "each increment has the sum of its samples");
    });
}
