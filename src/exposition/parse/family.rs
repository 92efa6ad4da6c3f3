//! The lines of one family.

use std::borrow::Cow;

use super::super::families::{Family, MetricKind, Samples, Series};
use super::super::problem::{Problem, Problems, has_part, split_part};
use super::super::values::{Counter, Histogram, Number, Summary, WrittenBound, WrittenBounds};
use super::line::{Result, Sample, bound, continues, count, float, labels, number, read_block, without_last};

/// A family as far as it is read.
pub(super) struct FamilyReader<'a> {
    pub(super) name: &'a str,
    pub(super) help: Option<Cow<'a, str>>,
    pub(super) kind: Option<MetricKind>,
    /// Of a family that is neither a histogram nor a summary.
    numbers: Vec<Series<Number>>,
    parts: Vec<Series<Parts>>,
    /// Of the series that is being read, the last one in `parts`: its labels as they stand in the text, without the one
    /// that tells its lines apart, and the values of that one.
    block: Option<&'a str>,
    bounds: Vec<(&'a str, f64)>,
    /// Whether a line was there before.
    is_repeated: bool,
}

/// A histogram or a summary, as far as its lines stand together.
struct Parts {
    bounds: WrittenBounds,
    /// At each bound: of a histogram the one, of a summary the other.
    counts: Vec<u64>,
    values: Vec<f64>,
    sum: Option<f64>,
    count: Option<u64>,
}

enum Part {
    Count(u64),
    Value(f64),
    SumOfAll(f64),
    CountOfAll(u64),
}

impl<'a> FamilyReader<'a> {
    pub(super) fn new(name: &'a str) -> Self {
        Self {
            name,
            help: None,
            kind: None,
            numbers: Vec::new(),
            parts: Vec::new(),
            block: None,
            bounds: Vec::new(),
            is_repeated: false,
        }
    }

    pub(super) fn has_numbers(&self) -> bool {
        !self.numbers.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.numbers.is_empty() && self.parts.is_empty()
    }

    /// The suffix of a sample of this name, where it is of this family.
    pub(super) fn suffix(&self, name: &str) -> Option<&'static str> {
        let suffix = name.strip_prefix(self.name)?;
        if suffix.is_empty() {
            return Some("");
        }
        let (_, part) = split_part(suffix).filter(|(base, _)| base.is_empty())?;
        has_part(self.kind, part).then_some(part)
    }

    /// Adds the one line of a series. `pairs` is room for its labels.
    pub(super) fn add_number(&mut self, sample: &Sample<'a>, pairs: &mut Vec<(&'a str, &'a str)>) -> Result<()> {
        read_block(sample.block, pairs)?;
        let labels = labels(Some(sample.block), pairs);
        self.numbers.push(Series::new(labels, number(sample.value)?));
        Ok(())
    }

    /// Adds a line of a histogram or a summary. `label`: the one that tells its lines apart.
    pub(super) fn add_part(
        &mut self,
        sample: &Sample<'a>,
        suffix: &str,
        label: &str,
        pairs: &mut Vec<(&'a str, &'a str)>,
    ) -> Result<()> {
        let (part, label) = match suffix {
            "_sum" => (Part::SumOfAll(float(sample.value)?), None),
            "_count" => (Part::CountOfAll(count(sample.value)?), None),
            "_bucket" => (Part::Count(count(sample.value)?), Some(label)),
            _ if label == "quantile" => (Part::Value(float(sample.value)?), Some(label)),
            _ => return Err("is no part of a histogram"),
        };
        // Most lines differ from the one before in that label alone.
        let continued = self.block.and_then(|block| continues(sample.block, block, label));
        let next = match continued {
            Some(Some(text)) => Some((text, self.bound_value(text)?)),
            Some(None) => None,
            None => self.begin(sample, label, pairs)?,
        };
        let Some(series) = self.parts.last_mut() else { return Ok(()) };
        match part {
            Part::Count(count) => series.value.counts.push(count),
            Part::Value(value) => series.value.values.push(value),
            Part::SumOfAll(sum) => self.is_repeated |= is_set(&mut series.value.sum, sum),
            Part::CountOfAll(count) => self.is_repeated |= is_set(&mut series.value.count, count),
        }
        self.bounds.extend(next);
        Ok(())
    }

    /// The number of the next bound of a series. Most have the bounds of the series before.
    fn bound_value(&self, text: &str) -> Result<f64> {
        let before = self.parts.iter().rev().nth(1).and_then(|before| before.value.bounds.get(self.bounds.len()));
        before.filter(|bound| *bound.text == *text).map_or_else(|| bound(text), |bound| Ok(bound.value))
    }

    /// Goes on to the series of a line, and returns the value of the label that tells its lines apart.
    fn begin(
        &mut self,
        sample: &Sample<'a>,
        label: Option<&str>,
        pairs: &mut Vec<(&'a str, &'a str)>,
    ) -> Result<Option<(&'a str, f64)>> {
        read_block(sample.block, pairs)?;
        let mut value = None;
        let mut block = Some(sample.block);
        if let Some(label) = label {
            let at = pairs.iter().position(|(name, _)| *name == label);
            let at = at.ok_or("is a part of a metric, without the label that says which")?;
            block = (at + 1 == pairs.len()).then(|| without_last(sample.block, label)).flatten();
            let text = pairs.remove(at).1;
            value = Some((text, bound(text)?));
        }
        let labels = labels(block, pairs);
        if self.parts.last().is_none_or(|last| last.labels != labels) {
            self.finish_series();
            let parts = Parts {
                bounds: WrittenBounds::default(),
                counts: Vec::new(),
                values: Vec::new(),
                sum: None,
                count: None,
            };
            self.parts.push(Series::new(labels, parts));
        }
        self.block = block;
        Ok(value)
    }

    /// Gives the last series its bounds: those of the one before where they are the same.
    pub(super) fn finish_series(&mut self) {
        let (last, before) = match &mut self.parts[..] {
            [.., before, last] => (last, Some(&before.value.bounds)),
            [first] => (first, None),
            [] => return,
        };
        let shared = before.filter(|before| before.texts().eq(self.bounds.iter().map(|(text, _)| *text)));
        last.value.bounds = shared.cloned().unwrap_or_else(|| {
            let bounds = std::mem::take(&mut self.bounds);
            let is_first = |n: usize| bounds[..n].iter().all(|(other, _)| *other != bounds[n].0);
            let first: Vec<_> = (0..bounds.len()).map(is_first).collect();
            self.is_repeated |= first.contains(&false);
            last.value.retain(&first);
            let first = bounds.into_iter().zip(first).filter(|(_, is_first)| *is_first);
            first.map(|((text, value), _)| WrittenBound { text: text.into(), value }).collect()
        });
        self.bounds.clear();
    }

    pub(super) fn finish(mut self, problems: &mut Problems) -> Family {
        self.numbers.sort_by(|a, b| a.labels.cmp(&b.labels));
        self.parts.sort_by(|a, b| a.labels.cmp(&b.labels));
        let mut is_repeated = self.is_repeated;
        self.numbers.dedup_by(|b, a| {
            let is_same = a.labels == b.labels;
            is_repeated |= is_same;
            is_same
        });
        self.parts.dedup_by(|b, a| {
            let is_same = a.labels == b.labels;
            if is_same {
                is_repeated |= !a.value.merge(&mut b.value);
            }
            is_same
        });
        let name = self.name;
        if is_repeated {
            problems.add(Problem::Repeated { metric: name.to_owned() });
        }
        let counter = |value| Counter::new(value, None);
        let histogram = |Parts { bounds, counts: cumulative, sum, count, .. }| {
            let (exemplars, native, created) = (Vec::new(), None, None);
            Histogram { bounds, cumulative, exemplars, native, sum, count, created }
        };
        let summary = |Parts { bounds: quantiles, values, sum, count, .. }| Summary { quantiles, values, sum, count };
        let samples = match self.kind {
            Some(MetricKind::Counter) => Samples::Counter(with_values(self.numbers, counter)),
            Some(MetricKind::Gauge) => Samples::Gauge(self.numbers),
            Some(MetricKind::Histogram) => Samples::Histogram(with_values(self.parts, histogram)),
            Some(MetricKind::Summary) => Samples::Summary(with_values(self.parts, summary)),
            None => Samples::Unknown(self.numbers),
        };
        Family { name: name.into(), help: self.help.map(|help| help.into_owned().into()), unit: None, samples }
    }
}

/// Gives a value to what has none. Whether it has one.
fn is_set<T>(to: &mut Option<T>, value: T) -> bool {
    let is_set = to.is_some();
    to.get_or_insert(value);
    is_set
}

fn with_values<P, T>(series: Vec<Series<P>>, to: impl Fn(P) -> T) -> Vec<Series<T>> {
    series.into_iter().map(|Series { labels, value }| Series::new(labels, to(value))).collect()
}

impl Parts {
    /// Keeps the values of some of the bounds.
    fn retain(&mut self, is_kept: &[bool]) {
        fn retain<T>(values: &mut Vec<T>, is_kept: &[bool]) {
            let mut is_kept = is_kept.iter();
            values.retain(|_| is_kept.next().copied().unwrap_or(true));
        }
        retain(&mut self.counts, is_kept);
        retain(&mut self.values, is_kept);
    }

    /// Adds lines of the same series that stand elsewhere. Whether no line is there twice.
    fn merge(&mut self, other: &mut Self) -> bool {
        let is_new: Vec<_> = other.bounds.texts().map(|text| self.bounds.texts().all(|known| known != text)).collect();
        other.retain(&is_new);
        self.counts.append(&mut other.counts);
        self.values.append(&mut other.values);
        let new = other.bounds.iter().zip(&is_new).filter(|(_, is_new)| **is_new).map(|(bound, _)| bound);
        self.bounds = self.bounds.iter().chain(new).cloned().collect();
        let is_twice = is_new.contains(&false)
            || (self.sum.is_some() && other.sum.is_some())
            || (self.count.is_some() && other.count.is_some());
        self.sum = self.sum.or(other.sum);
        self.count = self.count.or(other.count);
        !is_twice
    }
}
