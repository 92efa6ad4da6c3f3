//! The OpenMetrics text format, version 1.0.
//!
//! Samples have the names, labels and values of the text format 0.0.4, so that no series changes with the format, except that
//! bounds are always spelled as floats. What OpenMetrics does not allow as its kind is of the kind `unknown`.
//!
//! There are no `_created` samples, as by default in the client libraries for Go and Java: Prometheus would store each as one more
//! series, unless it ingests created timestamps, and then it asks for protobuf, which has them.

use super::families::{Families, Family, MetricKind, Samples};
use super::labels::{Labels, escape};
use super::problem::{PARTS, has_part, split_part};
use super::sample_lines::{Syntax, push, push_all, write_samples};
use super::values::{Exemplar, Histogram, Number, Summary, WrittenBound};

/// Limit of the label set of an exemplar: names and values, in characters.
const MAX_EXEMPLAR_LEN: usize = 128;

impl Families {
    /// Returns the families in OpenMetrics text, in a stable order.
    pub(crate) fn to_open_metrics(&self) -> String {
        let mut text = String::with_capacity(self.text_len(&Labels::default()));
        for family in self.iter() {
            match self.name_in_open_metrics(family) {
                Some(name) => {
                    let kind = family.samples.kind().map_or("unknown", MetricKind::as_str);
                    write_head(&mut text, family, name, kind);
                    write_samples(&mut text, family, &Labels::default(), &OpenMetrics { only: None });
                }
                None => write_unknown(&mut text, family),
            }
        }
        text.push_str("# EOF\n");
        text
    }

    /// Returns the name that a family has as its kind: that of a counter is without `_total`. `None` if OpenMetrics does not
    /// allow it as its kind, since a value is not allowed or a name could be one of another family.
    fn name_in_open_metrics<'a>(&self, family: &'a Family) -> Option<&'a str> {
        let name = &*family.name;
        match &family.samples {
            Samples::Gauge(_) | Samples::Unknown(_) => Some(name),
            Samples::Counter(series) => {
                let base = name.strip_suffix("_total").filter(|base| !base.is_empty())?;
                // The name of the created time, if that is what the base is.
                let is_created = base.strip_suffix("_created").is_some_and(|of| self.may_have_created(of));
                let is_free = !is_created && !self.has_sample(base) && !self.has_sample(&format!("{base}_created"));
                (is_free && series.iter().all(|series| is_count(series.value.value.as_f64()))).then_some(base)
            }
            Samples::Histogram(series) => {
                let is_allowed = series.iter().all(|series| is_histogram(&series.value));
                (is_allowed && !self.has_sample(&format!("{name}_created"))).then_some(name)
            }
            Samples::Summary(series) => {
                let is_allowed = series.iter().all(|series| is_summary(&series.value));
                (is_allowed && !self.has_sample(&format!("{name}_created"))).then_some(name)
            }
        }
    }

    /// Whether a family has this name or samples of this name.
    fn has_sample(&self, name: &str) -> bool {
        let has_part_of = |base, part| self.get(base).is_some_and(|family| has_part(family.samples.kind(), part));
        self.get(name).is_some() || split_part(name).is_some_and(|(base, part)| has_part_of(base, part))
    }

    /// Whether a family of this name has a kind whose series have a created time.
    fn may_have_created(&self, name: &str) -> bool {
        let kind = |name: &str| self.get(name).and_then(|family| family.samples.kind());
        matches!(kind(name), Some(MetricKind::Histogram | MetricKind::Summary))
            || kind(&format!("{name}_total")) == Some(MetricKind::Counter)
    }
}

fn write_head(text: &mut String, family: &Family, name: &str, kind: &str) {
    push_all(text, &["# TYPE ", name, " ", kind, "\n"]);
    if let Some(unit) = family.unit_in(name) {
        push_all(text, &["# UNIT ", name, " ", unit, "\n"]);
    }
    if let Some(help) = &family.help {
        push_all(text, &["# HELP ", name, " "]);
        escape(text, help, true);
        text.push('\n');
    }
}

/// Writes families of unknown kind, one for each name that the samples have.
fn write_unknown(text: &mut String, family: &Family) {
    for suffix in [""].into_iter().chain(PARTS) {
        let start = text.len();
        write_head(text, family, &format!("{}{suffix}", family.name), "unknown");
        let end_of_head = text.len();
        write_samples(text, family, &Labels::default(), &OpenMetrics { only: Some(suffix) });
        if text.len() == end_of_head {
            text.truncate(start);
        }
    }
}

/// Whether a counter, a sum or a number of events may have this value.
fn is_count(value: f64) -> bool {
    value >= 0.0
}

fn is_histogram(Histogram { bounds, cumulative, sum, count, .. }: &Histogram) -> bool {
    let totals_agree = match (sum, count) {
        (None, None) => true,
        // With buckets below zero the sum may decrease.
        (Some(sum), Some(_)) => is_count(*sum) && *count == cumulative.last().copied() && bounds.values().all(is_count),
        _ => false,
    };
    totals_agree
        && bounds.values().is_sorted_by(|a, b| a < b)
        && bounds.values().last() == Some(f64::INFINITY)
        && cumulative.is_sorted()
}

fn is_summary(Summary { quantiles, values, sum, .. }: &Summary) -> bool {
    quantiles.values().all(|quantile| (0.0..=1.0).contains(&quantile))
        && values.iter().all(|value| is_count(*value) || value.is_nan())
        && sum.is_none_or(is_count)
}

struct OpenMetrics {
    /// The suffix of the samples that are written, as a family of unknown kind; `None` if all are.
    only: Option<&'static str>,
}

impl Syntax for OpenMetrics {
    fn has(&self, suffix: &str) -> bool {
        self.only.is_none_or(|only| only == suffix)
    }

    fn push_bound(&self, text: &mut String, bound: &WrittenBound) {
        push_canonical(text, bound.value);
    }

    fn push_exemplar(&self, text: &mut String, Exemplar { labels, value, time }: &Exemplar) {
        let len = labels.values().map(|(name, value)| name.len() + value.chars().count()).sum::<usize>();
        if self.only.is_some() || len > MAX_EXEMPLAR_LEN {
            return;
        }
        push(text, format_args!(" # {{{}}} {}", labels.as_str(), Number::Float(*value)));
        if let Some(time) = time {
            push(text, format_args!(" {}.{:09}", time.as_secs(), time.subsec_nanos()));
        }
    }
}

/// Writes a number as Go does by default, with a fraction where there is neither that nor an exponent.
fn push_canonical(text: &mut String, value: f64) {
    if !value.is_finite() || value == 0.0 || (1e-4..1e6).contains(&value.abs()) {
        push(text, format_args!("{}", Number::Float(value)));
        if value.fract() == 0.0 {
            text.push_str(".0");
        }
        return;
    }
    let start = text.len();
    push(text, format_args!("{value:e}"));
    // The exponent has a sign and at least two digits.
    if let Some((mantissa, exponent)) = text[start..].split_once('e')
        && let Ok(exponent) = exponent.parse::<i32>()
    {
        let end = start + mantissa.len();
        text.truncate(end);
        push(text, format_args!("e{exponent:+03}"));
    }
}

#[cfg(test)]
mod tests;
