//! Single samples of a text, read by name without parsing the other metrics.

use std::collections::BTreeMap;

use super::super::labels::{Labels, unescape};
use super::line::{Sample, labels, read_block};

/// Labels by name.
pub(crate) type LabelSet = BTreeMap<String, String>;

/// Returns the name of the metric of a sample line.
pub(crate) fn name(line: &str) -> &str {
    line.split(['{', ' ']).next().unwrap_or_default()
}

/// Returns the samples with one of these names, with their labels and values.
pub(crate) fn find<'a>(text: &'a str, names: &'a [String]) -> impl Iterator<Item = (&'a str, Labels, f64)> {
    let has_name = |line: &&str| names.iter().any(|other| other == name(line));
    let parse = |line: &'a str| {
        let (Sample { name, block, value }, pairs) = split(line)?;
        Some((name, labels(Some(block), &pairs), value.parse().ok()?))
    };
    text.lines().filter(has_name).filter_map(parse)
}

/// Returns the value of the sample that has this name and no labels.
pub(crate) fn value(text: &str, name: &str) -> Option<f64> {
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(value)
}

/// Parses the name, the labels and the value of a sample line. `None` if the line is no sample.
pub(crate) fn parse(line: &str) -> Option<(&str, LabelSet, f64)> {
    let (Sample { name, value, .. }, pairs) = split(line)?;
    let labels = pairs.into_iter().map(|(name, value)| (name.to_owned(), unescape(value, true).into_owned()));
    Some((name, labels.collect(), value.parse().ok()?))
}

/// Splits a sample line, and its labels into names and escaped values.
fn split(line: &str) -> Option<(Sample<'_>, Vec<(&str, &str)>)> {
    let sample = Sample::split(line).ok()?;
    let mut pairs = Vec::new();
    read_block(sample.block, &mut pairs).ok()?;
    Some((sample, pairs))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn samples_come_back_from_text(
            labels in prop::collection::btree_map("[a-z_]{1,5}", "(?s).{0,8}", 0..4),
            value in -1e12..1e12,
        ) {
            let written = Labels::new(labels.iter().map(|(name, value)| (name.as_str(), value.as_str()))).0;
            let line = format!("a_metric{{{}}} {value}", written.as_str());
            prop_assert_eq!(parse(&line), Some(("a_metric", labels, value)));
            let names = ["a_metric".to_owned()];
            prop_assert_eq!(Vec::from_iter(find(&line, &names)), [("a_metric", written, value)]);
        }

        #[test]
        fn any_text_parses_without_a_panic(text in any::<String>()) {
            let _ = parse(&text);
            let _ = find(&text, &["a".to_owned()]).count();
        }
    }

    #[test]
    fn names_are_exact() {
        let text = "# HELP a b\na 1\nprefix_a 2\na_suffix 3\na{x=\"y\"} 4\n";
        assert_eq!(value(text, "a"), Some(1.0));
        let names = ["a".to_owned()];
        let samples: Vec<_> = find(text, &names).map(|(_, labels, value)| (labels, value)).collect();
        let labelled = Labels::new([("x", "y")].into_iter()).0;
        assert_eq!(samples, [(Labels::default(), 1.0), (labelled, 4.0)]);
    }
}
