//! The text format, version 0.0.4.

use std::collections::HashSet;
use std::fmt::{self, Display, Write};

use super::families::{Families, Family, Samples, Series};
use super::labels::{Labels, escape};
use super::values::{Number, WrittenBounds};

/// Typical length of a float in the text.
const FLOAT_LEN: usize = 20;

impl Families {
    /// Returns the text in a stable order: families by name, their series by labels.
    pub(crate) fn to_text(&self) -> String {
        self.to_text_with(&Labels::default())
    }

    /// Returns the text with further labels on every series. They take the place of labels of the same name that a series
    /// has itself, as those of a group do on a Pushgateway. Of series that become one the first stays.
    pub(crate) fn to_text_with(&self, further: &Labels) -> String {
        let mut text = String::with_capacity(self.iter().map(|family| len(family, further)).sum());
        for family in self.iter() {
            write_family(&mut text, family, further);
        }
        text
    }
}

fn write_family(text: &mut String, family: &Family, further: &Labels) {
    let Family { name, help, samples, .. } = family;
    if let Some(help) = help {
        push_all(text, &["# HELP ", name, " "]);
        escape(text, help, false);
        text.push('\n');
    }
    if let Some(kind) = samples.kind() {
        push_all(text, &["# TYPE ", name, " ", kind.as_str(), "\n"]);
    }
    match samples {
        Samples::Counter(series) => write_series(series, further, |labels, series| {
            Line { name, labels, series }.push(text, "", None, series.value.value);
        }),
        Samples::Gauge(series) | Samples::Unknown(series) => {
            write_series(series, further, |labels, series| {
                Line { name, labels, series }.push(text, "", None, series.value)
            });
        }
        Samples::Histogram(series) => write_series(series, further, |labels, series| {
            let (line, value) = (Line { name, labels, series }, &series.value);
            for (bound, count) in value.bounds.texts().zip(&value.cumulative) {
                line.push(text, "_bucket", Some(("le", bound)), count);
            }
            line.push_totals(text, value.sum, value.count);
        }),
        Samples::Summary(series) => write_series(series, further, |labels, series| {
            let (line, value) = (Line { name, labels, series }, &series.value);
            for (quantile, at) in value.quantiles.texts().zip(&value.values) {
                line.push(text, "", Some(("quantile", quantile)), Number::Float(*at));
            }
            line.push_totals(text, value.sum, value.count);
        }),
    }
}

/// Hands each series over with the labels it is written with.
fn write_series<T>(series: &[Series<T>], further: &Labels, mut write: impl FnMut(&str, &Series<T>)) {
    if further.is_empty() {
        return series.iter().for_each(|series| write(series.labels.as_str(), series));
    }
    let replaced = |name: &str| further.iter().any(|(other, _)| other == name);
    // Only what loses a label can become what another series is.
    let may_collide = series.iter().any(|series| series.labels.iter().any(|(name, _)| replaced(name)));
    let (mut labels, mut written) = (String::new(), HashSet::new());
    for series in series {
        labels.clear();
        labels.push_str(further.as_str());
        for (name, value) in series.labels.iter().filter(|(name, _)| !replaced(name)) {
            push_all(&mut labels, &[",", name, "=\"", value, "\""]);
        }
        if !may_collide || written.insert(labels.clone()) {
            write(&labels, series);
        }
    }
}

/// The lines of one series.
struct Line<'a, T> {
    name: &'a str,
    labels: &'a str,
    series: &'a Series<T>,
}

impl<T> Line<'_, T> {
    fn push(&self, text: &mut String, suffix: &str, bound: Option<(&str, &str)>, value: impl Display) {
        push_all(text, &[self.name, suffix]);
        match (self.labels, bound) {
            ("", None) => {}
            (labels, None) => push_all(text, &["{", labels, "}"]),
            ("", Some((label, bound))) => push_all(text, &["{", label, "=\"", bound, "\"}"]),
            (labels, Some((label, bound))) => push_all(text, &["{", labels, ",", label, "=\"", bound, "\"}"]),
        }
        // Writing into a string does not fail.
        let _ = match self.series.timestamp {
            None => writeln!(text, " {value}"),
            Some(timestamp) => writeln!(text, " {value} {timestamp}"),
        };
    }

    fn push_totals(&self, text: &mut String, sum: Option<f64>, count: Option<u64>) {
        if let Some(sum) = sum {
            self.push(text, "_sum", None, Number::Float(sum));
        }
        if let Some(count) = count {
            self.push(text, "_count", None, count);
        }
    }
}

impl Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Integer(value) => Display::fmt(&value, f),
            Self::Float(f64::INFINITY) => f.write_str("+Inf"),
            Self::Float(f64::NEG_INFINITY) => f.write_str("-Inf"),
            Self::Float(value) => Display::fmt(&value, f),
        }
    }
}

fn push_all(text: &mut String, parts: &[&str]) {
    for part in parts {
        text.push_str(part);
    }
}

/// About how many bytes a family takes in the text: rather too many than too few, so that the text is allocated once.
fn len(family: &Family, further: &Labels) -> usize {
    fn sum<T>(series: &[Series<T>], line: usize, each: impl Fn(&Series<T>, usize) -> usize) -> usize {
        series.iter().map(|series| each(series, line + series.labels.as_str().len())).sum()
    }
    let head =
        2 * (family.name.len() + "# TYPE  histogram\n".len()) + family.help.as_ref().map_or(0, |help| help.len());
    let line = family.name.len() + further.as_str().len() + ",{} \n".len();
    let bounds = |bounds: &WrittenBounds, line: usize, label: &str| {
        bounds.texts().map(|bound| line + bound.len() + label.len()).sum::<usize>()
    };
    let totals = |line: usize| 2 * (line + "_count".len() + FLOAT_LEN);
    head + match &family.samples {
        Samples::Counter(series) => sum(series, line, |_, line| line + FLOAT_LEN),
        Samples::Gauge(series) | Samples::Unknown(series) => sum(series, line, |_, line| line + FLOAT_LEN),
        Samples::Histogram(series) => sum(series, line, |series, line| {
            let counts = series.value.cumulative.iter().map(|count| count.checked_ilog10().unwrap_or(0) as usize + 1);
            bounds(&series.value.bounds, line, "_bucket,le=\"\"") + counts.sum::<usize>() + totals(line)
        }),
        Samples::Summary(series) => sum(series, line, |series, line| {
            bounds(&series.value.quantiles, line + FLOAT_LEN, ",quantile=\"\"") + totals(line)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::problem::Problems;
    use super::*;
    use crate::exposition::parse;

    #[track_caller]
    fn assert_with_labels(text: &str, labels: &[(&str, &str)], expected: &str) {
        let families = parse(text, |_| None, &mut Problems::default()).unwrap();
        assert_eq!(families.to_text_with(&Labels::new(labels.iter().copied()).0), expected);
    }

    #[test]
    fn further_labels_stand_first_and_in_the_place_of_others() {
        let text = "# TYPE h histogram\nh_bucket{le=\"+Inf\"} 1\nh_sum{} 1\nh_count 1\n\
            # TYPE s summary\ns{a=\"1\",quantile=\"0.5\"} 2 7\nx{a=\"1\",job=\"other\",b=\"2\"} 3\nx 4\n";
        assert_with_labels(
            text,
            &[("job", "a \"job\""), ("team", "t")],
            "# TYPE h histogram\nh_bucket{job=\"a \\\"job\\\"\",team=\"t\",le=\"+Inf\"} 1\n\
             h_sum{job=\"a \\\"job\\\"\",team=\"t\"} 1\nh_count{job=\"a \\\"job\\\"\",team=\"t\"} 1\n\
             # TYPE s summary\ns{job=\"a \\\"job\\\"\",team=\"t\",a=\"1\",quantile=\"0.5\"} 2 7\n\
             x{job=\"a \\\"job\\\"\",team=\"t\"} 4\nx{job=\"a \\\"job\\\"\",team=\"t\",a=\"1\",b=\"2\"} 3\n",
        );
    }

    #[test]
    fn of_series_that_become_one_the_first_stays() {
        let text = "x{job=\"a\",l=\"1\"} 1\nx{job=\"b\",l=\"1\"} 2\nx{l=\"1\"} 3\nx{l=\"2\"} 4\n";
        assert_with_labels(text, &[("job", "j")], "x{job=\"j\",l=\"1\"} 1\nx{job=\"j\",l=\"2\"} 4\n");
    }
}
