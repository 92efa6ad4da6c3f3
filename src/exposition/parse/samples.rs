//! Single samples of a text: reading them by name without parsing the other metrics, and writing them.

use std::collections::BTreeMap;

use super::super::labels::{escape, push_label, unescape};
use super::line::{Sample, read_block};

/// Labels by name.
pub(crate) type LabelSet = BTreeMap<String, String>;

/// Returns the samples with one of these names, with their labels and values.
pub(crate) fn find<'a>(text: &'a str, names: &'a [String]) -> impl Iterator<Item = (&'a str, LabelSet, f64)> {
    let has_name = |line: &&str| {
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        names.iter().any(|other| other == name)
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
    let Sample { name, block, value, .. } = Sample::split(line).ok()?;
    let mut pairs = Vec::new();
    read_block(block, &mut pairs).ok()?;
    let labels = pairs.into_iter().map(|(name, value)| (name.to_owned(), unescape(value, true).into_owned()));
    Some((name, labels.collect(), value.parse().ok()?))
}

/// Writes a sample line.
pub(crate) fn write(text: &mut String, name: &str, labels: &LabelSet, value: f64) {
    let mut block = String::new();
    for (label, value) in labels {
        push_label(&mut block, label, |block| escape(block, value, true));
    }
    text.push_str(name);
    if !block.is_empty() {
        text.extend(["{", block.as_str(), "}"]);
    }
    text.push_str(&format!(" {value}\n"));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn samples_round_trip(
            labels in prop::collection::btree_map("[a-z_]{1,5}", "(?s).{0,8}", 0..4),
            value in -1e12..1e12,
        ) {
            let mut text = String::new();
            write(&mut text, "a_metric", &labels, value);
            prop_assert_eq!(parse(text.trim_end_matches('\n')), Some(("a_metric", labels, value)));
        }

        #[test]
        fn any_text_parses_without_a_panic(text in any::<String>()) {
            let _ = parse(&text);
            let _ = find(&text, &["a".to_owned()]).count();
        }
    }

    #[test]
    fn label_values_are_escaped_onto_one_line() {
        let mut text = String::new();
        write(&mut text, "a", &LabelSet::from([("x".to_owned(), "1\n2\\3\"".to_owned())]), 1.0);
        assert_eq!(text, "a{x=\"1\\n2\\\\3\\\"\"} 1\n");
    }

    #[test]
    fn names_are_exact() {
        let text = "# HELP a b\na 1\nprefix_a 2\na_suffix 3\na{x=\"y\"} 4\n";
        assert_eq!(value(text, "a"), Some(1.0));
        let names = ["a".to_owned()];
        let samples: Vec<_> = find(text, &names).map(|(_, labels, value)| (labels.len(), value)).collect();
        assert_eq!(samples, [(0, 1.0), (1, 4.0)]);
    }
}
