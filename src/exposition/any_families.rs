//! Families of all kinds, for property tests of the formats.

use std::time::Duration;

use metrics::Unit;
use proptest::prelude::*;

use super::problem::owner_of;
use super::values::{Exemplar, Summary, WrittenBounds};
use super::{Counter, Families, Family, Histogram, Labels, Number, Samples, Series};
use crate::histogram::NativeBuckets;

/// Floats of all kinds, each the same bits after every format. Text has one NaN.
fn float() -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<f64>().prop_map(|value| if value.is_nan() { f64::NAN } else { value }),
        (0..1_u64 << 60).prop_map(|value| value as f64),
        prop::sample::select(vec![0.0, -0.0, 1.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 5e-324, f64::MAX]),
    ]
}

/// Counts that a float is exact for.
fn number() -> impl Strategy<Value = Number> {
    prop_oneof![float().prop_map(Number::from), (0..=1_u64 << 53).prop_map(Number::Integer)]
}

fn labels() -> impl Strategy<Value = Labels> {
    let pairs = prop::collection::btree_map("[a-k_][a-z_]{0,3}", "[\\\\\"\n,=}ab]{0,6}|(?s).{0,6}", 0..4);
    pairs.prop_map(|pairs| Labels::new(pairs.iter().map(|(name, value)| (name.as_str(), value.as_str()))).0)
}

fn time() -> impl Strategy<Value = Option<Duration>> {
    let time = (0..1_u64 << 40, 0..1_000_000_000_u32).prop_map(|(seconds, nanos)| Duration::new(seconds, nanos));
    prop::option::of(time)
}

fn exemplar() -> impl Strategy<Value = Option<Exemplar>> {
    prop::option::of((labels(), float(), time()).prop_map(|(labels, value, time)| Exemplar { labels, value, time }))
}

fn counter() -> impl Strategy<Value = Counter> {
    (number(), exemplar(), time()).prop_map(|(value, exemplar, created)| Counter { value, exemplar, created })
}

fn native_buckets() -> impl Strategy<Value = Vec<(i32, u64)>> {
    let index = prop_oneof![-20..20_i32, any::<i32>()];
    prop::collection::btree_map(index, any::<u64>(), 0..20).prop_map(Vec::from_iter)
}

fn native() -> impl Strategy<Value = Option<Box<NativeBuckets>>> {
    let buckets = (-4..=8_i32, float(), any::<u64>(), native_buckets(), native_buckets());
    prop::option::of(buckets.prop_map(|(schema, zero_threshold, zero_count, positive, negative)| {
        Box::new(NativeBuckets { schema, zero_threshold, zero_count, positive, negative })
    }))
}

fn histogram() -> impl Strategy<Value = Histogram> {
    let buckets = prop::collection::btree_map(-1000..1000_i32, (any::<u64>(), exemplar()), 0..6);
    let totals = (float(), prop::option::of(any::<u64>()));
    (buckets, native(), totals, time()).prop_map(|(buckets, native, (sum, count), created)| {
        let bounds: Vec<_> = buckets.keys().map(|bound| f64::from(*bound) / 8.0).collect();
        let (cumulative, mut exemplars): (Vec<_>, Vec<_>) = buckets.into_values().unzip();
        if exemplars.iter().all(Option::is_none) {
            exemplars.clear();
        }
        let bounds = WrittenBounds::of_values(bounds.into_iter());
        Histogram { bounds, cumulative, exemplars, native, sum: Some(sum), count, created }
    })
}

/// A histogram whose counts, sum and bounds agree.
fn consistent_histogram() -> impl Strategy<Value = Histogram> {
    (histogram(), 0..u64::MAX, exemplar()).prop_map(|(mut histogram, count, exemplar)| {
        let bounds: Vec<_> = histogram.bounds.values().filter(|bound| *bound >= 0.0).collect();
        histogram.cumulative = (0..=bounds.len() as u64).map(|n| count.saturating_add(n)).collect();
        histogram.count = histogram.cumulative.last().copied();
        histogram.sum = histogram.sum.map(|sum| if sum.is_nan() { 1.0 } else { sum.abs() });
        histogram.exemplars = if exemplar.is_some() { vec![exemplar; bounds.len() + 1] } else { Vec::new() };
        histogram.bounds = WrittenBounds::with_infinity(&bounds);
        histogram
    })
}

fn summary() -> impl Strategy<Value = Summary> {
    let quantiles = prop::collection::btree_map(0..=100_u32, float(), 0..4);
    let totals = (float(), prop::option::of(any::<u64>()));
    (quantiles, totals).prop_map(|(quantiles, (sum, count))| Summary {
        quantiles: WrittenBounds::of_values(quantiles.keys().map(|quantile| f64::from(*quantile) / 100.0)),
        values: quantiles.into_values().collect(),
        sum: Some(sum),
        count,
    })
}

fn series<T: std::fmt::Debug>(value: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<Series<T>>> {
    let series = prop::collection::btree_map(labels(), value, 1..5);
    series.prop_map(|series| series.into_iter().map(|(labels, value)| Series::new(labels, value)).collect())
}

fn family() -> impl Strategy<Value = Family> {
    let samples = prop_oneof![
        series(counter()).prop_map(Samples::Counter),
        series(number()).prop_map(Samples::Gauge),
        series(number()).prop_map(Samples::Unknown),
        series(histogram()).prop_map(Samples::Histogram),
        series(consistent_histogram()).prop_map(Samples::Histogram),
        series(summary()).prop_map(Samples::Summary),
    ];
    let unit = prop::sample::select(vec![None, Some(Unit::Seconds), Some(Unit::Bytes), Some(Unit::GigabitsPerSecond)]);
    // Text has no blanks at the ends.
    let help = prop::option::of("[^ \t\r]{0,8}");
    (help, unit, samples).prop_map(|(help, unit, samples)| Family {
        name: "".into(),
        help: help.map(Into::into),
        unit,
        samples,
    })
}

/// Names, many of them with suffixes of sample names.
fn name() -> impl Strategy<Value = String> {
    let suffix = prop::sample::select(vec!["", "_total", "_created", "_bucket", "_sum", "_count", "_seconds"]);
    prop_oneof!["[a-z_]{1,4}", ("n|n_seconds", suffix.clone(), suffix).prop_map(|(name, a, b)| format!("{name}{a}{b}")),]
}

/// Families whose samples have names of their own, as the recorder and the parser see to.
pub(super) fn families() -> impl Strategy<Value = Families> {
    prop::collection::btree_map(name(), family(), 0..6).prop_map(|families| {
        let mut kept: Vec<Family> = Vec::new();
        for (name, family) in families {
            let kind_of = |name: &str| kept.iter().find(|kept| &*kept.name == name).map(|kept| kept.samples.kind());
            if owner_of(&name, family.samples.kind(), kind_of).is_none() {
                kept.push(Family { name: name.into(), ..family });
            }
        }
        Families::new(kept)
    })
}
