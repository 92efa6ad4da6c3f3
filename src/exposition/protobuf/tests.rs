use std::time::Duration;

use metrics::Unit;
use proptest::prelude::*;

use super::read;
use crate::exposition::values::Exemplar;
use crate::exposition::values::{Summary, WrittenBounds};
use crate::exposition::{Counter, Families, Family, Histogram, Labels, Number, Problems, Samples, Series, parse};
use crate::histogram::NativeBuckets;

fn of_text(text: &str) -> Families {
    parse(text, |_| None, &mut Problems::default()).unwrap()
}

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
    let series = prop::collection::btree_map(labels(), (value, prop::option::of(any::<i64>())), 1..5);
    series.prop_map(|series| {
        let series = series.into_iter();
        series.map(|(labels, (value, timestamp))| Series { labels, value, timestamp }).collect()
    })
}

fn family() -> impl Strategy<Value = Family> {
    let samples = prop_oneof![
        series(counter()).prop_map(Samples::Counter),
        series(number()).prop_map(Samples::Gauge),
        series(number()).prop_map(Samples::Unknown),
        series(histogram()).prop_map(Samples::Histogram),
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

fn families() -> impl Strategy<Value = Families> {
    prop::collection::btree_map("[a-z_]{1,4}", family(), 0..4).prop_map(|families| {
        let families = families.into_iter();
        Families::new(families.map(|(name, family)| Family { name: name.into(), ..family }).collect())
    })
}

proptest! {
    #[test]
    fn any_family_comes_back(families in families()) {
        let back = read(&families.to_protobuf(), |_| true).unwrap();
        // NaN is not equal to itself.
        prop_assert_eq!(format!("{back:?}"), format!("{families:?}"));
    }

    /// What text has comes back from text, and from protobuf between two texts.
    #[test]
    fn any_family_comes_back_from_text(families in families()) {
        let text = families.to_text();
        let families = of_text(&text);
        prop_assert_eq!(families.to_text(), text.as_str());
        let back = read(&families.to_protobuf(), |_| true).unwrap();
        prop_assert_eq!(back.to_text(), text);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = read(&bytes, |_| true);
    }

    #[test]
    fn damaged_bytes_are_read_without_a_panic(
        families in families(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = families.to_protobuf();
        if !bytes.is_empty() {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = read(&bytes, |_| true);
    }
}

#[test]
fn only_wanted_families_are_read() {
    let families = of_text("# TYPE a counter\na 1\nb 2\n# TYPE c gauge\nc{l=\"x\"} 3\n");
    let bytes = families.to_protobuf();
    assert_eq!(read(&bytes, |name| name == "c").unwrap().to_text(), "# TYPE c gauge\nc{l=\"x\"} 3\n");
    assert_eq!(read(&bytes, |_| false), Some(Families::default()));
    assert_eq!(read(&bytes[..bytes.len() - 1], |_| false), None, "though the family that is cut short is not wanted");
}

/// The bytes of `metrics.proto`, field by field.
#[test]
fn bytes_are_those_of_the_format() {
    let exemplar =
        Exemplar { labels: Labels::new([("t", "é")].into_iter()).0, value: 2.0, time: Some(Duration::new(3, 4)) };
    let native = NativeBuckets {
        schema: -1,
        zero_threshold: 0.5,
        zero_count: 1,
        positive: vec![(2, 3), (3, 1), (7, 2)],
        negative: vec![(-1, 4)],
    };
    let histogram = Histogram {
        bounds: WrittenBounds::of_values([f64::INFINITY].into_iter()),
        cumulative: vec![6],
        exemplars: vec![Some(exemplar)],
        native: Some(Box::new(native)),
        sum: Some(-1.5),
        count: Some(6),
        created: Some(Duration::new(7, 8)),
    };
    let mut series = Series::new(Labels::new([("a", "1\"")].into_iter()).0, histogram);
    series.timestamp = Some(-1);
    let (help, unit, samples) = (Some("H".into()), Some(Unit::Seconds), Samples::Histogram(vec![series]));
    let families = Families::new(vec![Family { name: "n".into(), help, unit, samples }]);

    let with_len = |part: Vec<u8>| {
        let len = part.len();
        let low = (len & 0x7f) as u8;
        let len = if len < 0x80 { vec![low] } else { vec![low | 0x80, (len >> 7) as u8] };
        [len, part].concat()
    };
    let message = |tag: u8, parts: &[&[u8]]| [vec![tag << 3 | 2], with_len(parts.concat())].concat();
    let double = |tag: u8, value: f64| [&[tag << 3 | 1][..], &value.to_le_bytes()].concat();
    let pair = |tag, name: &str, value: &str| {
        message(tag, &[&message(1, &[name.as_bytes()]), &message(2, &[value.as_bytes()])])
    };
    let time = |tag: u8, seconds: u8, nanos: u8| message(tag, &[&[1 << 3, seconds, 2 << 3, nanos]]);
    let exemplar = message(3, &[&pair(1, "t", "é"), &double(2, 2.0), &time(3, 3, 4)]);
    let bucket = message(3, &[&[1 << 3, 6], &double(2, f64::INFINITY), &exemplar]);
    // `sint`: 0, -1, 1, -2, 2 are 0, 1, 2, 3, 4.
    let histogram = message(
        7,
        &[
            &[1 << 3, 6],
            &double(2, -1.5),
            &bucket,
            &[5 << 3, 1],
            &double(6, 0.5),
            &[7 << 3, 1],
            &message(9, &[&[1 << 3, 1, 2 << 3, 1]]),
            &[10 << 3, 8],
            &message(12, &[&[1 << 3, 4, 2 << 3, 2]]),
            &message(12, &[&[1 << 3, 6, 2 << 3, 1]]),
            &[13 << 3, 6, 13 << 3, 3, 13 << 3, 2],
            &time(15, 7, 8),
        ],
    );
    let timestamp = [&[6 << 3][..], &[0xff; 9], &[1]].concat();
    let metric = message(4, &[&pair(1, "a", "1\""), &timestamp, &histogram]);
    let header = [message(1, &[b"n"]), message(2, &[b"H"]), vec![3 << 3, 4], message(5, &[b"seconds"])].concat();
    let expected = with_len([header, metric].concat());
    assert_eq!(families.to_protobuf(), expected);
    assert_eq!(read(&expected, |_| true), Some(families));
}

/// Else a reader could not tell it from one without native buckets.
#[test]
fn native_histogram_without_samples_has_an_empty_span() {
    let native = NativeBuckets { schema: 3, zero_threshold: 0.0, zero_count: 0, positive: vec![], negative: vec![] };
    let mut histogram = Histogram::new(WrittenBounds::default(), Default::default(), None);
    histogram.native = Some(Box::new(native));
    let samples = Samples::Histogram(vec![Series::new(Labels::default(), histogram)]);
    let families = Families::new(vec![Family { name: "n".into(), help: None, unit: None, samples }]);
    let bytes = families.to_protobuf();
    assert!(bytes.windows(6).any(|part| part == [12 << 3 | 2, 4, 1 << 3, 0, 2 << 3, 0]), "{bytes:?}");
    assert_eq!(read(&bytes, |_| true), Some(families));
}
