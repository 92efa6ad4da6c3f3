//! Samples in the text format: `name{label="value"} 1`.

use std::collections::BTreeMap;

pub(super) type LabelSet = BTreeMap<String, String>;

/// The samples with one of these names, with their labels.
pub(super) fn find<'a>(text: &'a str, names: &'a [String]) -> impl Iterator<Item = (&'a str, LabelSet, f64)> {
    let wanted = |line: &&str| {
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        names.iter().any(|wanted| wanted == name)
    };
    text.lines().filter(wanted).filter_map(parse)
}

/// The sample without labels that has this name.
pub(super) fn value(text: &str, name: &str) -> Option<f64> {
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(value)
}

/// `None` where the line is no sample.
pub(super) fn parse(line: &str) -> Option<(&str, LabelSet, f64)> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = LabelSet::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (label, after) = rest.split_once("=\"")?;
            let mut value = String::new();
            let mut chars = after.chars();
            loop {
                match chars.next()? {
                    '"' => break,
                    '\\' => value.push(match chars.next()? {
                        'n' => '\n',
                        other => other,
                    }),
                    other => value.push(other),
                }
            }
            labels.insert(label.to_owned(), value);
            rest = chars.as_str().trim_start_matches(',');
        }
    }
    Some((name, labels, rest.trim().parse().ok()?))
}

/// Writes one sample, as a line.
pub(super) fn write(text: &mut String, name: &str, labels: &LabelSet, value: f64) {
    text.push_str(name);
    for (number, (label, value)) in labels.iter().enumerate() {
        text.push(if number == 0 { '{' } else { ',' });
        text.push_str(label);
        text.push_str("=\"");
        for c in value.chars() {
            match c {
                '\n' => text.push_str("\\n"),
                '\\' | '"' => text.extend(['\\', c]),
                _ => text.push(c),
            }
        }
        text.push('"');
    }
    if !labels.is_empty() {
        text.push('}');
    }
    text.push_str(&format!(" {value}\n"));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn samples_are_read_as_they_were_written(
            labels in prop::collection::btree_map("[a-z_]{1,5}", any::<String>(), 0..4),
            value in -1e12..1e12,
        ) {
            let mut text = String::new();
            write(&mut text, "a_metric", &labels, value);
            prop_assert_eq!(parse(text.trim_end_matches('\n')), Some(("a_metric", labels, value)));
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in any::<String>()) {
            let _ = parse(&text);
            let _ = find(&text, &["a".to_owned()]).count();
        }
    }

    #[test]
    fn names_are_exact() {
        let text = "# HELP a b\na 1\nprefix_a 2\na_suffix 3\na{x=\"y\"} 4\n";
        assert_eq!(value(text, "a"), Some(1.0));
        let names = ["a".to_owned()];
        let found: Vec<_> = find(text, &names).map(|(_, labels, value)| (labels.len(), value)).collect();
        assert_eq!(found, [(0, 1.0), (1, 4.0)]);
    }
}
