//! Tests of native histograms, against the definition of their buckets.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use metrics::HistogramFn;
use proptest::prelude::*;

use super::native::{Cells, NativeBuckets};
use super::{BucketHistogram, Snapshot};

const ZERO_THRESHOLD: f64 = 2.938_735_877_055_719e-39;

/// The index of a positive value: the smallest whose bound, `2^(index / 2^schema)`, is not below the value.
fn index_of(value: f64, schema: i32) -> i32 {
    /// The bounds of schema 3 from 1/2 to 1, from the Go client of Prometheus.
    #[allow(clippy::approx_constant)]
    const BOUNDS: [f64; 8] = [
        0.5,
        0.545_253_866_332_628_8,
        0.594_603_557_501_360_5,
        0.648_419_777_325_504_8,
        0.707_106_781_186_547_5,
        0.771_105_412_703_970_4,
        0.840_896_415_253_714_4,
        0.917_004_043_204_671_1,
    ];
    if value.is_infinite() {
        return index_of(f64::MAX, schema) + 1;
    }
    let (mut fraction, mut exponent) = (value, 0);
    while fraction >= 1.0 {
        (fraction, exponent) = (fraction / 2.0, exponent + 1);
    }
    while fraction < 0.5 {
        (fraction, exponent) = (fraction * 2.0, exponent - 1);
    }
    let finest = 8 * (exponent - 1) + BOUNDS.partition_point(|bound| *bound < fraction) as i32;
    let width = 1 << (3 - schema);
    (finest + width - 1).div_euclid(width)
}

/// The native buckets of samples at a schema.
fn native_of(samples: &[f64], schema: i32) -> NativeBuckets {
    let count = |samples: &mut dyn Iterator<Item = f64>| {
        let mut buckets = BTreeMap::<_, u64>::new();
        samples.for_each(|sample| *buckets.entry(index_of(sample, schema)).or_default() += 1);
        buckets.into_iter().collect::<Vec<_>>()
    };
    NativeBuckets {
        schema,
        zero_threshold: ZERO_THRESHOLD,
        zero_count: samples.iter().filter(|sample| sample.abs() <= ZERO_THRESHOLD).count() as u64,
        positive: count(&mut samples.iter().copied().filter(|sample| *sample > ZERO_THRESHOLD)),
        negative: count(&mut samples.iter().map(|sample| -sample).filter(|sample| *sample > ZERO_THRESHOLD)),
    }
}

fn histogram(bounds: &[f64]) -> BucketHistogram {
    BucketHistogram::native(Arc::from(bounds), Arc::new(Cells::new(bounds)))
}

fn snapshot(bounds: &[f64], samples: &[f64]) -> Snapshot {
    let histogram = histogram(bounds);
    samples.iter().for_each(|sample| histogram.record(*sample));
    histogram.snapshot()
}

fn native_snapshot(samples: &[f64]) -> NativeBuckets {
    *snapshot(&[], samples).native.unwrap()
}

fn buckets(native: &NativeBuckets) -> usize {
    native.positive.len() + native.negative.len()
}

fn total(native: &NativeBuckets) -> u64 {
    let sides = native.positive.iter().chain(&native.negative);
    native.zero_count + sides.map(|(_, count)| count).sum::<u64>()
}

/// Any float, many at the bounds of native buckets and next to them.
fn sample() -> impl Strategy<Value = f64> {
    let bound = (-1_100..1_100_i32, 0..8_i32, any::<bool>()).prop_map(|(octave, eighth, is_negative)| {
        let bound = f64::from(octave).exp2() * (f64::from(eighth) / 8.0).exp2();
        if is_negative { -bound } else { bound }
    });
    let special = [0.0, -0.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, f64::MIN, 5e-324, ZERO_THRESHOLD];
    let next = |of: f64, by: i64| f64::from_bits(of.to_bits().saturating_add_signed(by));
    prop_oneof![
        any::<f64>(),
        (bound, -1..=1_i64).prop_map(move |(bound, by)| next(bound, by)),
        (prop::sample::select(special.to_vec()), -1..=1_i64).prop_map(move |(special, by)| next(special, by)),
        -1e3..1e3_f64,
    ]
}

#[test]
fn power_of_two_is_the_upper_bound_of_its_bucket() {
    for octave in -127..=1_023_i32 {
        let power = f64::from(octave).exp2();
        let native = native_snapshot(&[power.next_down(), power, power.next_up(), -power]);
        assert_eq!(native.positive, [(8 * octave, 2), (8 * octave + 1, 1)], "2^{octave}");
        assert_eq!(native.negative, [(8 * octave, 1)], "-2^{octave}");
    }
}

#[test]
fn values_at_the_limits_have_their_buckets() {
    let native = native_snapshot(&[0.0, -0.0, 5e-324, ZERO_THRESHOLD, -ZERO_THRESHOLD, f64::NAN]);
    assert_eq!(native, NativeBuckets { zero_count: 5, ..NativeBuckets::default() });
    let native = native_snapshot(&[ZERO_THRESHOLD.next_up(), f64::MAX, f64::INFINITY, f64::MIN, f64::NEG_INFINITY]);
    assert_eq!(native.positive, [(-1_023, 1), (8_192, 1), (8_193, 1)]);
    assert_eq!((native.negative, native.zero_count), (vec![(8_192, 1), (8_193, 1)], 0));
}

/// Prometheus refuses a histogram whose count differs from that of its buckets, unless the sum is NaN.
#[test]
fn sum_is_nan_if_a_sample_has_no_bucket() {
    let snapshot = snapshot(&[1.0], &[0.5, f64::NAN]);
    assert_eq!(snapshot.counts, [1, 1]);
    assert!(snapshot.sum.is_nan());
    assert_eq!(total(&snapshot.native.unwrap()), 1);
}

#[test]
fn resolution_is_halved_until_the_buckets_are_within_the_limit() {
    let octaves = |octaves: std::ops::Range<i32>| -> Vec<f64> {
        let eighths = octaves.start * 8 + 1..=octaves.end * 8;
        eighths.map(|eighth| (f64::from(eighth) / 8.0).exp2() * (1.0 - 1e-9)).collect()
    };
    for (samples, schema, expected) in
        [(octaves(0..20), 3, 160), (octaves(0..21), 2, 84), (octaves(-30..34), 1, 128), (octaves(-128..1_023), -3, 144)]
    {
        let native = native_snapshot(&samples).limited();
        assert_eq!((native.schema, buckets(&native)), (schema, expected));
        assert_eq!(total(&native), samples.len() as u64);
    }
    let both: Vec<_> = octaves(-128..1_023).into_iter().flat_map(|sample| [sample, -sample]).collect();
    let native = native_snapshot(&both).limited();
    assert_eq!((native.schema, buckets(&native), total(&native)), (-4, 144, both.len() as u64));
}

/// `docs/cost.md` has the figures.
#[test]
fn memory_of_a_histogram_is_bounded() {
    let bytes = |record: &dyn Fn()| allocation_counter::measure(record).bytes_current;
    let bounds: Vec<_> = (1..=16).map(f64::from).collect();
    let cells = Arc::new(Cells::new(&bounds));
    let histogram = std::cell::OnceCell::new();
    let empty = bytes(&|| drop(histogram.set(BucketHistogram::native(Arc::default(), Arc::clone(&cells)))));
    let histogram = histogram.into_inner().unwrap();
    assert_eq!(empty + bytes(&|| histogram.record(1.5)), 592 + 512 + 128);
    assert_eq!(bytes(&|| histogram.record(1.5)), 0);
    let every_bucket = || {
        for exponent in 0..2_048_u64 {
            for mantissa in 0..32_u64 {
                let value = f64::from_bits(exponent << 52 | mantissa << 47);
                histogram.record(value);
                histogram.record(-value);
            }
        }
    };
    let all = bytes(&every_bucket);
    assert!(all > 160_000 && empty + 640 + all <= 167_500, "{all}");
    assert_eq!(bytes(&every_bucket), 0);
}

/// The buckets of both kinds are read while threads record.
#[test]
fn buckets_of_both_kinds_agree_in_every_reading() {
    let histogram = histogram(&[-1.0, 0.0, 1.0, 8.0]);
    let is_over = AtomicBool::new(false);
    let readings = std::thread::scope(|scope| {
        let recorders = [1.0, -3.0].map(|first| {
            let histogram = &histogram;
            scope.spawn(move || {
                let mut sample = first;
                for _ in 0..100_000 {
                    histogram.record(sample);
                    sample *= if f64::abs(sample) > 1e6 { 1e-9 } else { 1.7 };
                }
            })
        });
        let reader = scope.spawn(|| {
            let mut readings = Vec::new();
            while !is_over.load(Ordering::Acquire) {
                readings.push(histogram.snapshot());
            }
            readings
        });
        recorders.into_iter().for_each(|recorder| recorder.join().unwrap());
        is_over.store(true, Ordering::Release);
        reader.join().unwrap()
    });
    let counts = readings.iter().map(|reading| reading.counts.iter().sum::<u64>());
    assert!(counts.clone().any(|count| count > 0 && count < 200_000), "no reading while threads record");
    for (reading, count) in readings.iter().zip(counts) {
        assert_eq!(total(reading.native.as_ref().unwrap()), count);
    }
    assert_eq!(histogram.snapshot().counts.iter().sum::<u64>(), 200_000);
}

proptest! {
    #[test]
    fn samples_are_in_the_buckets_of_both_kinds(
        mut bounds in prop::collection::vec(sample().prop_filter("finite", |bound| bound.is_finite()), 0..12),
        samples in prop::collection::vec(sample(), 0..60),
        picked in prop::collection::vec(any::<prop::sample::Index>(), 3),
    ) {
        bounds.sort_by(f64::total_cmp);
        bounds.dedup();
        let mut samples = samples;
        samples.extend(picked.iter().filter(|_| !bounds.is_empty()).map(|at| bounds[at.index(bounds.len())]));
        let plain = BucketHistogram::new(Arc::from(&bounds[..]));
        samples.iter().for_each(|sample| plain.record(*sample));
        let both = snapshot(&bounds, &samples);
        prop_assert_eq!(&both.counts, &plain.snapshot().counts);
        prop_assert!(both.sum == plain.snapshot().sum || both.sum.is_nan() && plain.snapshot().sum.is_nan());
        prop_assert_eq!(*both.native.unwrap(), native_of(&samples, 3));
    }

    #[test]
    fn limited_histogram_has_the_buckets_of_its_schema(samples in prop::collection::vec(sample(), 0..600)) {
        let native = native_snapshot(&samples).limited();
        prop_assert!(buckets(&native) <= 160, "{}", buckets(&native));
        prop_assert_eq!(total(&native), samples.iter().filter(|sample| !sample.is_nan()).count() as u64);
        prop_assert!(native.schema == 3 || buckets(&native_of(&samples, native.schema + 1)) > 160);
        prop_assert_eq!(&native, &native_of(&samples, native.schema));
    }

    #[cfg(feature = "otlp")]
    #[test]
    fn limit_with_gaps_includes_the_empty_buckets_between_others(samples in prop::collection::vec(sample(), 0..30)) {
        let width = |native: &NativeBuckets| -> i32 {
            let width = |buckets: &[(i32, u64)]| Some(buckets.last()?.0 - buckets.first()?.0 + 1);
            width(&native.positive).unwrap_or(0) + width(&native.negative).unwrap_or(0)
        };
        let native = native_snapshot(&samples).limited_with_gaps();
        prop_assert!(width(&native) <= 160, "{}", width(&native));
        prop_assert!(native.schema == 3 || width(&native_of(&samples, native.schema + 1)) > 160);
        prop_assert_eq!(&native, &native_of(&samples, native.schema));
    }

    #[cfg(feature = "otlp")]
    #[test]
    fn difference_of_two_readings_has_the_samples_between_them(
        before in prop::collection::vec(sample(), 0..60),
        after in prop::collection::vec(sample(), 0..60),
    ) {
        let histogram = histogram(&[0.0, 1.0]);
        before.iter().for_each(|sample| histogram.record(*sample));
        let earlier = histogram.snapshot();
        after.iter().for_each(|sample| histogram.record(*sample));
        let mut between = histogram.snapshot();
        between -= &earlier;
        prop_assert_eq!(between.counts, snapshot(&[0.0, 1.0], &after).counts);
        prop_assert_eq!(*between.native.unwrap(), native_of(&after, 3));
    }

    #[test]
    fn sum_of_histograms_has_the_buckets_of_all_samples(
        a in prop::collection::vec(sample(), 0..300),
        b in prop::collection::vec(sample(), 0..40),
    ) {
        let all: Vec<_> = a.iter().chain(&b).copied().collect();
        let (limited, whole) = (native_snapshot(&a).limited(), native_snapshot(&b));
        for (mut sum, more) in [(limited.clone(), whole.clone()), (whole, limited)] {
            sum.add(more);
            prop_assert_eq!(&sum, &native_of(&all, sum.schema));
        }
    }
}

/// A product of zero and infinity would be NaN.
#[test]
fn recording_a_value_no_times_changes_nothing() {
    let histogram = BucketHistogram::new(Arc::from([1.0]));
    histogram.record_many(f64::INFINITY, 0);
    histogram.record_many(f64::NAN, 0);
    histogram.record(0.5);
    let snapshot = histogram.snapshot();
    assert_eq!((snapshot.counts, snapshot.sum), (vec![1, 0], 0.5));
}

/// Protobuf has differences of counts as signed numbers, and the sum of all counts is one too.
#[test]
fn counts_of_samples_recorded_together_do_not_overflow() {
    let sum = |counts: &[u64]| counts.iter().try_fold(0_u64, |sum, count| sum.checked_add(*count)).unwrap();
    let bounds = [1.0, 2.0];
    for histogram in [BucketHistogram::new(Arc::from(bounds)), histogram(&bounds)] {
        for value in [0.5, 1.5, 2.5] {
            (0..3).for_each(|_| histogram.record_many(value, usize::MAX));
            histogram.record(value);
        }
        let snapshot = histogram.snapshot();
        assert_eq!(snapshot.counts, [(1 << 48) + 1; 3]);
        assert_eq!(snapshot.sum, 4.5 * ((1_u64 << 48) + 1) as f64);
    }
    let every_cell = histogram(&bounds);
    for exponent in 0..2_047_u64 {
        for mantissa in 0..32_u64 {
            let value = f64::from_bits(exponent << 52 | mantissa << 47);
            [value, -value].into_iter().for_each(|value| every_cell.record_many(value, usize::MAX));
        }
    }
    let snapshot = every_cell.snapshot();
    let count = i64::try_from(sum(&snapshot.counts)).unwrap();
    assert!(count > i64::MAX / 4, "{count}");
    let native = snapshot.native.unwrap().limited();
    assert_eq!(total(&native), count as u64);
}
