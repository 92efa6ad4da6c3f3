use std::time::Duration;

use metrics::Unit;
use proptest::prelude::*;

use super::read;
use crate::exposition::any_families::families;
use crate::exposition::values::{Exemplar, WrittenBounds};
use crate::exposition::{Counter, Families, Family, Histogram, Labels, Problems, Samples, Series, parse};
use crate::histogram::NativeBuckets;

fn of_text(text: &str) -> Families {
    parse(text, |_| None, &mut Problems::default()).unwrap()
}

proptest! {
    #[test]
    fn any_family_comes_back(families in families()) {
        let back = read(&families.to_protobuf(), |_| true).unwrap();
        let with_written_unit = |family: &Family| {
            let is_counter = matches!(family.samples, Samples::Counter(_));
            let name = family.name.strip_suffix("_total").filter(|_| is_counter).unwrap_or(&family.name);
            let unit = family.unit.filter(|unit| name.ends_with(&format!("_{}", unit.as_str())));
            Family { unit, ..family.clone() }
        };
        // NaN is not equal to itself.
        let expected = Families::new(families.iter().map(with_written_unit).collect());
        prop_assert_eq!(format!("{back:?}"), format!("{expected:?}"));
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
    let series = Series::new(Labels::new([("a", "1\"")].into_iter()).0, histogram);
    let (help, unit, samples) = (Some("H".into()), Some(Unit::Seconds), Samples::Histogram(vec![series]));
    let families = Families::new(vec![Family { name: "n_seconds".into(), help, unit, samples }]);

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
    let metric = message(4, &[&pair(1, "a", "1\""), &histogram]);
    let header =
        [message(1, &[b"n_seconds"]), message(2, &[b"H"]), vec![3 << 3, 4], message(5, &[b"seconds"])].concat();
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

/// Prometheus refused the whole scrape before 3.9.
#[test]
fn unit_is_written_only_where_the_name_ends_in_it() {
    let written = |name: &str, samples: Samples, unit| {
        let family = Family { name: name.into(), help: None, unit: Some(unit), samples };
        read(&Families::new(vec![family]).to_protobuf(), |_| true).unwrap().get(name).unwrap().unit
    };
    let gauge = || Samples::Gauge(vec![Series::new(Labels::default(), 1.0.into())]);
    let counter = || Samples::Counter(vec![Series::new(Labels::default(), Counter::new(1.0.into(), None))]);
    assert_eq!(written("a_seconds", gauge(), Unit::Seconds), Some(Unit::Seconds));
    assert_eq!(written("a_seconds_total", counter(), Unit::Seconds), Some(Unit::Seconds));
    assert_eq!(written("a_seconds", counter(), Unit::Seconds), Some(Unit::Seconds));
    for (name, samples, unit) in [
        ("a", gauge(), Unit::Seconds),
        ("aseconds", gauge(), Unit::Seconds),
        ("seconds", gauge(), Unit::Seconds),
        ("a_seconds_total", gauge(), Unit::Seconds),
        ("a_total", counter(), Unit::Count),
    ] {
        assert_eq!(written(name, samples, unit), None, "{name}");
    }
}
