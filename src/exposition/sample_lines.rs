//! The sample lines of a family, which the text formats have in common.

use std::collections::HashSet;
use std::fmt::{self, Display, Write};

use super::families::{Family, Samples, Series};
use super::labels::Labels;
use super::values::{Exemplar, Number, WrittenBound};

/// The differences between the sample lines of the text formats.
pub(super) trait Syntax {
    /// Returns whether the samples with this suffix are written.
    fn has(&self, _suffix: &str) -> bool {
        true
    }

    /// Writes the value of a label `le` or `quantile`.
    fn push_bound(&self, text: &mut String, bound: &WrittenBound);

    /// Writes an exemplar, which stands after the value of its sample.
    fn push_exemplar(&self, text: &mut String, exemplar: &Exemplar);
}

/// Writes the samples of a family, each series with further labels.
pub(super) fn write_samples(text: &mut String, family: &Family, further: &Labels, syntax: &impl Syntax) {
    let name = &*family.name;
    match &family.samples {
        Samples::Counter(series) => for_each_series(series, further, |labels, counter| {
            Line { name, labels, syntax }.push(text, "", None, counter.value, counter.exemplar.as_ref());
        }),
        Samples::Gauge(series) | Samples::Unknown(series) => for_each_series(series, further, |labels, value| {
            Line { name, labels, syntax }.push(text, "", None, value, None);
        }),
        Samples::Histogram(series) => for_each_series(series, further, |labels, value| {
            let line = Line { name, labels, syntax };
            for (n, (bound, count)) in value.bounds.iter().zip(&value.cumulative).enumerate() {
                let exemplar = value.exemplars.get(n).and_then(Option::as_ref);
                line.push(text, "_bucket", Some(("le", bound)), count, exemplar);
            }
            line.push_totals(text, value.sum, value.count);
        }),
        Samples::Summary(series) => for_each_series(series, further, |labels, value| {
            let line = Line { name, labels, syntax };
            for (quantile, at) in value.quantiles.iter().zip(&value.values) {
                line.push(text, "", Some(("quantile", quantile)), Number::Float(*at), None);
            }
            line.push_totals(text, value.sum, value.count);
        }),
    }
}

/// Hands each value over with the labels it is written with.
fn for_each_series<T>(series: &[Series<T>], further: &Labels, mut write: impl FnMut(&str, &T)) {
    if further.is_empty() {
        return series.iter().for_each(|series| write(series.labels.as_str(), &series.value));
    }
    let replaced = |name: &str| further.iter().any(|(other, _)| other == name);
    // Only what loses a label can become what another series is.
    let may_collide = series.iter().any(|series| series.labels.iter().any(|(name, _)| replaced(name)));
    let mut written = HashSet::new();
    for series in series {
        let labels = further.and(&series.labels);
        if !may_collide || written.insert(labels.clone()) {
            write(labels.as_str(), &series.value);
        }
    }
}

/// The lines of one series.
struct Line<'a, S> {
    name: &'a str,
    labels: &'a str,
    syntax: &'a S,
}

impl<S: Syntax> Line<'_, S> {
    fn push(
        &self,
        text: &mut String,
        suffix: &str,
        bound: Option<(&str, &WrittenBound)>,
        value: impl Display,
        exemplar: Option<&Exemplar>,
    ) {
        let Self { name, labels, syntax } = self;
        if !syntax.has(suffix) {
            return;
        }
        push_all(text, &[name, suffix]);
        if let Some((label, bound)) = bound {
            let comma = if labels.is_empty() { "" } else { "," };
            push_all(text, &["{", labels, comma, label, "=\""]);
            syntax.push_bound(text, bound);
            text.push_str("\"}");
        } else if !labels.is_empty() {
            push_all(text, &["{", labels, "}"]);
        }
        push(text, format_args!(" {value}"));
        if let Some(exemplar) = exemplar {
            syntax.push_exemplar(text, exemplar);
        }
        text.push('\n');
    }

    fn push_totals(&self, text: &mut String, sum: Option<f64>, count: Option<u64>) {
        if let Some(sum) = sum {
            self.push(text, "_sum", None, Number::Float(sum), None);
        }
        if let Some(count) = count {
            self.push(text, "_count", None, count, None);
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

pub(super) fn push_all(text: &mut String, parts: &[&str]) {
    for part in parts {
        text.push_str(part);
    }
}

/// Writes formatted values, which does not fail in a string.
pub(super) fn push(text: &mut String, arguments: fmt::Arguments<'_>) {
    let _ = text.write_fmt(arguments);
}
