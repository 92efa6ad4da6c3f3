//! The text exposition format, as far as putting its families in order and picking some of them asks for.

mod names;

use std::collections::{BTreeMap, btree_map};
use std::iter::Peekable;

pub(crate) use names::{label_name, metric_name};

/// The same exposition in a stable order: families by name, their series by labels. The lines of one series (buckets,
/// sum, count) stay together and in their order.
pub(crate) fn in_order(text: &str) -> String {
    write(&families(text), text.len())
}

/// The families whose name is wanted, in a stable order.
pub(crate) fn only(text: &str, wanted: impl Fn(&str) -> bool) -> String {
    let mut families = families(text);
    families.retain(|name, _| wanted(name));
    write(&families, text.len())
}

/// An exposition to which families are added in the order of their names, so that it is in a stable order without another
/// copy of the text.
pub(crate) struct Merged<'a> {
    others: Peekable<btree_map::IntoIter<&'a str, Family<'a>>>,
    text: String,
}

impl<'a> Merged<'a> {
    /// `others`: the families that are there.
    pub(crate) fn new(others: &'a str) -> Self {
        Self { others: families(others).into_iter().peekable(), text: String::with_capacity(others.len()) }
    }

    /// Where a family of this name is to be written.
    pub(crate) fn text_from(&mut self, name: &str) -> &mut String {
        while let Some((_, family)) = self.others.next_if(|(other, _)| *other <= name) {
            family.write(&mut self.text);
        }
        &mut self.text
    }

    pub(crate) fn finish(mut self) -> String {
        for (_, family) in self.others {
            family.write(&mut self.text);
        }
        self.text
    }
}

#[derive(Default)]
struct Family<'a> {
    /// HELP and TYPE.
    head: Vec<&'a str>,
    samples: Vec<&'a str>,
}

fn families(text: &str) -> BTreeMap<&str, Family<'_>> {
    let mut families: BTreeMap<&str, Family<'_>> = BTreeMap::new();
    let mut current = "";
    for line in text.lines() {
        if let Some(name) = described(line) {
            current = name;
            families.entry(name).or_default().head.push(line);
        } else if !line.is_empty() && !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap_or(line);
            if !belongs(name, current) {
                current = name;
            }
            families.entry(current).or_default().samples.push(line);
        }
    }
    families
}

/// The name in a HELP or TYPE line.
fn described(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE "))?;
    rest.split(' ').next()
}

/// Whether a sample of this name is of that family.
fn belongs(sample: &str, family: &str) -> bool {
    sample.strip_prefix(family).is_some_and(|rest| matches!(rest, "" | "_bucket" | "_sum" | "_count"))
}

/// The labels of a sample, without the bound or quantile that the exporter puts last.
fn labels(sample: &str) -> &str {
    let Some((_, rest)) = sample.split_once('{') else { return "" };
    let labels = rest.rsplit_once("} ").map_or(rest, |(labels, _)| labels);
    for own in ["le=\"", "quantile=\""] {
        if let Some((before, value)) = labels.rsplit_once(own)
            && value.find('"') == Some(value.len() - 1)
            && (before.is_empty() || before.ends_with(','))
        {
            return before.strip_suffix(',').unwrap_or(before);
        }
    }
    labels
}

fn write(families: &BTreeMap<&str, Family<'_>>, size: usize) -> String {
    let mut text = String::with_capacity(size);
    families.values().for_each(|family| family.write(&mut text));
    text
}

impl Family<'_> {
    fn write(&self, text: &mut String) {
        let mut samples: Vec<_> = self.samples.iter().map(|sample| (labels(sample), *sample)).collect();
        samples.sort_by_key(|(labels, _)| *labels);
        for line in self.head.iter().chain(samples.iter().map(|(_, sample)| sample)) {
            text.push_str(line);
            text.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP b_seconds Help.\n# TYPE b_seconds histogram\n\
        b_seconds_bucket{s=\"y\",le=\"2\"} 1\nb_seconds_bucket{s=\"y\",le=\"10\"} 1\n\
        b_seconds_bucket{s=\"y\",le=\"+Inf\"} 1\nb_seconds_sum{s=\"y\"} 1.5\nb_seconds_count{s=\"y\"} 1\n\
        b_seconds_bucket{s=\"x\",le=\"2\"} 0\nb_seconds_bucket{s=\"x\",le=\"10\"} 1\n\
        b_seconds_bucket{s=\"x\",le=\"+Inf\"} 1\nb_seconds_sum{s=\"x\"} 3\nb_seconds_count{s=\"x\"} 1\n\n\
        # TYPE a counter\na{l=\"} 1\"} 2\na 1\n\n";

    const IN_ORDER: &str = "# TYPE a counter\na 1\na{l=\"} 1\"} 2\n\
        # HELP b_seconds Help.\n# TYPE b_seconds histogram\n\
        b_seconds_bucket{s=\"x\",le=\"2\"} 0\nb_seconds_bucket{s=\"x\",le=\"10\"} 1\n\
        b_seconds_bucket{s=\"x\",le=\"+Inf\"} 1\nb_seconds_sum{s=\"x\"} 3\nb_seconds_count{s=\"x\"} 1\n\
        b_seconds_bucket{s=\"y\",le=\"2\"} 1\nb_seconds_bucket{s=\"y\",le=\"10\"} 1\n\
        b_seconds_bucket{s=\"y\",le=\"+Inf\"} 1\nb_seconds_sum{s=\"y\"} 1.5\nb_seconds_count{s=\"y\"} 1\n";

    #[test]
    fn families_and_series_are_sorted_and_buckets_are_not() {
        assert_eq!(in_order(TEXT), IN_ORDER);
        assert_eq!(in_order(IN_ORDER), IN_ORDER);
        assert_eq!(in_order(""), "");
    }

    #[test]
    fn what_is_added_stands_in_its_place() {
        let mut merged = Merged::new("c 1\na 1\ne 2\n");
        merged.text_from("b").push_str("b 1\n");
        merged.text_from("d").push_str("d 1\n");
        assert_eq!(merged.finish(), "a 1\nb 1\nc 1\nd 1\ne 2\n");
    }

    #[test]
    fn picks_whole_families() {
        assert_eq!(only(TEXT, |name| name == "a"), "# TYPE a counter\na 1\na{l=\"} 1\"} 2\n");
        assert_eq!(only(TEXT, |name| name == "b"), "");
        assert_eq!(
            only(TEXT, |name| name == "b_seconds"),
            IN_ORDER.split_once("2\n# HELP").map(|(_, rest)| format!("# HELP{rest}")).unwrap()
        );
    }

    #[test]
    fn a_family_named_like_part_of_another_is_its_own() {
        let text = "# TYPE x histogram\nx_bucket{le=\"+Inf\"} 1\nx_sum 1\nx_count 1\n# TYPE x_count_total counter\nx_count_total 4\n";
        assert_eq!(only(text, |name| name == "x_count_total"), "# TYPE x_count_total counter\nx_count_total 4\n");
        let bare = "y 1\nz 2\n";
        assert_eq!(only(bare, |name| name == "z"), "z 2\n");
    }
}
