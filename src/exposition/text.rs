//! The text format, version 0.0.4.

use super::families::{Families, Family, Samples, Series};
use super::labels::{Labels, escape};
use super::sample_lines::{Syntax, push_all, write_samples};
use super::values::{Exemplar, WrittenBound, WrittenBounds};

pub(crate) const TEXT_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

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
        let mut text = String::with_capacity(self.text_len(further));
        for family in self.iter() {
            write_family(&mut text, family, further);
        }
        text
    }

    /// Returns about how many bytes the text takes.
    pub(super) fn text_len(&self, further: &Labels) -> usize {
        self.iter().map(|family| len(family, further)).sum()
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
    write_samples(text, family, further, &Plain);
}

/// Samples without exemplars, which the format does not have, and bounds as they are spelled.
struct Plain;

impl Syntax for Plain {
    fn push_bound(&self, text: &mut String, bound: &WrittenBound) {
        text.push_str(&bound.text);
    }

    fn push_exemplar(&self, _text: &mut String, _exemplar: &Exemplar) {}
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
            # TYPE s summary\ns{a=\"1\",quantile=\"0.5\"} 2\nx{a=\"1\",job=\"other\",b=\"2\"} 3\nx 4\n";
        assert_with_labels(
            text,
            &[("job", "a \"job\""), ("team", "t")],
            "# TYPE h histogram\nh_bucket{job=\"a \\\"job\\\"\",team=\"t\",le=\"+Inf\"} 1\n\
             h_sum{job=\"a \\\"job\\\"\",team=\"t\"} 1\nh_count{job=\"a \\\"job\\\"\",team=\"t\"} 1\n\
             # TYPE s summary\ns{job=\"a \\\"job\\\"\",team=\"t\",a=\"1\",quantile=\"0.5\"} 2\n\
             x{job=\"a \\\"job\\\"\",team=\"t\"} 4\nx{job=\"a \\\"job\\\"\",team=\"t\",a=\"1\",b=\"2\"} 3\n",
        );
    }

    #[test]
    fn of_series_that_become_one_the_first_stays() {
        let text = "x{job=\"a\",l=\"1\"} 1\nx{job=\"b\",l=\"1\"} 2\nx{l=\"1\"} 3\nx{l=\"2\"} 4\n";
        assert_with_labels(text, &[("job", "j")], "x{job=\"j\",l=\"1\"} 1\nx{job=\"j\",l=\"2\"} 4\n");
    }
}
