//! Reads the text format, version 0.0.4, as foreign recorders write it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use super::families::{Bounds, Families, Family, Histogram, MetricKind, Number, Samples, Series, Summary};
use super::labels::{Labels, closing_quote, unescape};
use super::names::label_name;
use super::problem::{Owner, Problem, Problems, has_part, owner_of, split_part};

/// Lines that are not of the format.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Unreadable {
    /// The first of them, counted from one.
    pub(crate) line: usize,
    pub(crate) reason: &'static str,
    pub(crate) lines: usize,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, reason, lines } = self;
        match lines {
            1 => write!(f, "line {line} {reason}"),
            _ => write!(f, "line {line} {reason}, and so do {} more lines", lines - 1),
        }
    }
}

/// Reads a text. Values, timestamps, labels and the spelling of bounds are kept; comments and spacing are not.
///
/// A line that is not of the format is left out, as is a metric that cannot stand beside another one: a reader would
/// refuse the whole text for it. Either is a problem. `own` knows the metrics that keep their names whatever stands first.
///
/// # Errors
///
/// The first line that is not of the format, where no line is.
pub(crate) fn parse(
    text: &str,
    own: impl Fn(&str) -> Option<MetricKind>,
    problems: &mut Problems,
) -> std::result::Result<Families, Unreadable> {
    let mut reader = Reader::default();
    let mut unreadable: Option<Unreadable> = None;
    for (n, line) in text.lines().enumerate() {
        if let Err(reason) = reader.line(line.trim_matches(BLANKS)) {
            unreadable.get_or_insert(Unreadable { line: n + 1, reason, lines: 0 }).lines += 1;
        }
    }
    let families = reader.finish(own, problems);
    match unreadable {
        Some(unreadable) if families.is_empty() => return Err(unreadable),
        Some(unreadable) => problems.add(Problem::Unreadable(unreadable)),
        None => {}
    }
    Ok(families)
}

const BLANKS: [char; 2] = [' ', '\t'];

type Result<T> = std::result::Result<T, &'static str>;

#[derive(Default)]
struct Reader<'a> {
    families: Vec<FamilyReader<'a>>,
    /// The families by name, the last one of each.
    by_name: HashMap<&'a str, usize>,
    /// The family of the line before.
    current: usize,
    /// Reused from line to line.
    pairs: Vec<(&'a str, &'a str)>,
}

struct FamilyReader<'a> {
    name: &'a str,
    help: Option<Cow<'a, str>>,
    kind: Option<MetricKind>,
    numbers: Vec<Series<Number>>,
    parts: Vec<Series<Parts>>,
    /// Of the series that is being read, the last one in `parts`: its labels as they stand in the text, without the one
    /// that tells its lines apart, and the values of that one.
    block: Option<&'a str>,
    bounds: Vec<&'a str>,
    /// Whether a line was there before.
    is_repeated: bool,
}

/// A histogram or a summary, as far as its lines stand together.
struct Parts {
    bounds: Bounds,
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

/// A sample line, taken apart.
struct Sample<'a> {
    name: &'a str,
    /// What stands between the braces.
    block: &'a str,
    value: &'a str,
    timestamp: Option<i64>,
}

impl<'a> Reader<'a> {
    fn line(&mut self, line: &'a str) -> Result<()> {
        match line.strip_prefix('#') {
            Some(comment) => self.comment(comment),
            None if line.is_empty() => Ok(()),
            None => self.sample(Sample::split(line)?),
        }
    }

    fn comment(&mut self, comment: &'a str) -> Result<()> {
        let (keyword, rest) = token(comment);
        let (name, rest) = token(rest);
        match keyword {
            "HELP" => {
                let name = metric_name(name)?;
                let family = self.family(name);
                family.help.get_or_insert_with(|| unescape(rest, false));
            }
            "TYPE" => {
                let name = metric_name(name)?;
                let kind = match token(rest) {
                    ("counter", "") => Some(MetricKind::Counter),
                    ("gauge", "") => Some(MetricKind::Gauge),
                    ("histogram", "") => Some(MetricKind::Histogram),
                    ("summary", "") => Some(MetricKind::Summary),
                    ("untyped", "") => None,
                    _ => return Err("names a type that the format does not have"),
                };
                self.declare(name, kind)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn declare(&mut self, name: &'a str, kind: Option<MetricKind>) -> Result<()> {
        let family = self.family(name);
        if family.kind == kind {
            return Ok(());
        }
        if family.kind.is_none() && family.numbers.is_empty() {
            family.kind = kind;
            return Ok(());
        }
        if family.kind.is_none() || kind.is_none() {
            return Err("gives a type to a metric that has samples before it");
        }
        self.add(name).kind = kind;
        Ok(())
    }

    /// The family of this name, which is the current one from then on.
    fn family(&mut self, name: &'a str) -> &mut FamilyReader<'a> {
        match self.by_name.get(name) {
            Some(at) => {
                self.current = *at;
                &mut self.families[*at]
            }
            None => self.add(name),
        }
    }

    fn add(&mut self, name: &'a str) -> &mut FamilyReader<'a> {
        self.current = self.families.len();
        self.by_name.insert(name, self.current);
        self.families.push(FamilyReader {
            name,
            help: None,
            kind: None,
            numbers: Vec::new(),
            parts: Vec::new(),
            block: None,
            bounds: Vec::new(),
            is_repeated: false,
        });
        &mut self.families[self.current]
    }

    fn sample(&mut self, sample: Sample<'a>) -> Result<()> {
        let suffix = match self.families.get(self.current).and_then(|family| family.suffix(sample.name)) {
            Some(suffix) => suffix,
            None => self.find_family(sample.name)?,
        };
        let (Some(family), pairs) = (self.families.get_mut(self.current), &mut self.pairs) else { return Ok(()) };
        match family.kind {
            Some(MetricKind::Histogram) => family.add_part(&sample, suffix, "le", pairs),
            Some(MetricKind::Summary) => family.add_part(&sample, suffix, "quantile", pairs),
            _ => {
                read_block(sample.block, pairs)?;
                let series = Series {
                    labels: labels(Some(sample.block), pairs),
                    value: number(sample.value)?,
                    timestamp: sample.timestamp,
                };
                family.numbers.push(series);
                Ok(())
            }
        }
    }

    /// Makes the family of a sample the current one, and returns the suffix of the sample there.
    fn find_family(&mut self, name: &'a str) -> Result<&'static str> {
        let name = metric_name(name)?;
        if !self.by_name.contains_key(name)
            && let Some((base, suffix)) = split_part(name)
            && let Some(at) = self.by_name.get(base)
            && has_part(self.families[*at].kind, suffix)
        {
            self.current = *at;
            return Ok(suffix);
        }
        self.family(name);
        Ok("")
    }

    fn finish(self, own: impl Fn(&str) -> Option<MetricKind>, problems: &mut Problems) -> Families {
        let mut kinds: HashMap<&str, Option<MetricKind>> = HashMap::new();
        let mut families: Vec<Family> = Vec::with_capacity(self.families.len());
        for mut reader in self.families {
            reader.finish_series();
            if reader.numbers.is_empty() && reader.parts.is_empty() {
                continue;
            }
            // A text without types says nothing of the kinds of our own.
            let own = |name: &str| reader.kind.and(own(name));
            let kind_of = |name: &str| own(name).map(Some).or_else(|| kinds.get(name).copied());
            if let Some((metric, kind)) = owner_of(reader.name, reader.kind, kind_of) {
                let owner = Owner { is_own: own(&metric).is_some(), metric, kind };
                problems.add(Problem::NameTaken { metric: reader.name.to_owned(), kind: reader.kind, owner });
                continue;
            }
            kinds.insert(reader.name, reader.kind);
            families.push(reader.finish(problems));
        }
        Families::new(families)
    }
}

impl<'a> FamilyReader<'a> {
    /// The suffix of a sample of this name, where it is of this family.
    fn suffix(&self, name: &str) -> Option<&'static str> {
        let suffix = name.strip_prefix(self.name)?;
        if suffix.is_empty() {
            return Some("");
        }
        let (_, part) = split_part(suffix).filter(|(base, _)| base.is_empty())?;
        has_part(self.kind, part).then_some(part)
    }

    /// Adds a line of a histogram or a summary. `label`: the one that tells its lines apart.
    fn add_part(
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
        let bound = match continued {
            Some(bound) => bound,
            None => self.begin(sample, label, pairs)?,
        };
        let Some(series) = self.parts.last_mut() else { return Ok(()) };
        match part {
            Part::Count(count) => series.value.counts.push(count),
            Part::Value(value) => series.value.values.push(value),
            Part::SumOfAll(sum) => self.is_repeated |= is_set(&mut series.value.sum, sum),
            Part::CountOfAll(count) => self.is_repeated |= is_set(&mut series.value.count, count),
        }
        self.bounds.extend(bound);
        series.timestamp = sample.timestamp.or(series.timestamp);
        Ok(())
    }

    /// Goes on to the series of a line, and returns the value of the label that tells its lines apart.
    fn begin(
        &mut self,
        sample: &Sample<'a>,
        label: Option<&str>,
        pairs: &mut Vec<(&'a str, &'a str)>,
    ) -> Result<Option<&'a str>> {
        read_block(sample.block, pairs)?;
        let mut bound = None;
        let mut block = Some(sample.block);
        if let Some(label) = label {
            let at = pairs.iter().position(|(name, _)| *name == label);
            let at = at.ok_or("is a part of a metric, without the label that says which")?;
            block = (at + 1 == pairs.len()).then(|| without_last(sample.block, label)).flatten();
            bound = Some(pairs.remove(at).1);
        }
        let labels = labels(block, pairs);
        if self.parts.last().is_none_or(|last| last.labels != labels) {
            self.finish_series();
            let parts =
                Parts { bounds: Bounds::none(), counts: Vec::new(), values: Vec::new(), sum: None, count: None };
            self.parts.push(Series::new(labels, parts));
        }
        self.block = block;
        Ok(bound)
    }

    /// Gives the last series its bounds: those of the one before where they are the same.
    fn finish_series(&mut self) {
        let (last, before) = match &mut self.parts[..] {
            [.., before, last] => (last, Some(&before.value.bounds)),
            [first] => (first, None),
            [] => return,
        };
        let shared = before.filter(|before| before.iter().eq(self.bounds.iter().copied()));
        last.value.bounds = shared.cloned().unwrap_or_else(|| {
            let bounds = std::mem::take(&mut self.bounds);
            let is_first = |n: usize| !bounds[..n].contains(&bounds[n]);
            let first: Vec<_> = (0..bounds.len()).map(is_first).collect();
            self.is_repeated |= first.contains(&false);
            last.value.retain(&first);
            Bounds::spelled(bounds.iter().zip(&first).filter(|(_, first)| **first).map(|(bound, _)| *bound))
        });
        self.bounds.clear();
    }

    fn finish(mut self, problems: &mut Problems) -> Family {
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
        let histogram =
            |Parts { bounds, counts: cumulative, sum, count, .. }| Histogram { bounds, cumulative, sum, count };
        let summary = |Parts { bounds: quantiles, values, sum, count, .. }| Summary { quantiles, values, sum, count };
        let samples = match self.kind {
            Some(MetricKind::Counter) => Samples::Counter(self.numbers),
            Some(MetricKind::Gauge) => Samples::Gauge(self.numbers),
            Some(MetricKind::Histogram) => Samples::Histogram(with_values(self.parts, histogram)),
            Some(MetricKind::Summary) => Samples::Summary(with_values(self.parts, summary)),
            None => Samples::Unknown(self.numbers),
        };
        Family { name: name.into(), help: self.help.map(|help| help.into_owned().into()), samples }
    }
}

/// Gives a value to what has none. Whether it has one.
fn is_set<T>(to: &mut Option<T>, value: T) -> bool {
    let is_set = to.is_some();
    to.get_or_insert(value);
    is_set
}

fn with_values<T>(parts: Vec<Series<Parts>>, value: impl Fn(Parts) -> T) -> Vec<Series<T>> {
    let parts = parts.into_iter();
    parts.map(|Series { labels, value: parts, timestamp }| Series { labels, value: value(parts), timestamp }).collect()
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
        let is_new: Vec<_> = other.bounds.iter().map(|bound| self.bounds.iter().all(|known| known != bound)).collect();
        other.retain(&is_new);
        self.counts.append(&mut other.counts);
        self.values.append(&mut other.values);
        let new = other.bounds.iter().zip(&is_new).filter(|(_, is_new)| **is_new).map(|(bound, _)| bound);
        self.bounds = Bounds::spelled(self.bounds.iter().chain(new));
        let is_twice = is_new.contains(&false)
            || (self.sum.is_some() && other.sum.is_some())
            || (self.count.is_some() && other.count.is_some());
        self.sum = self.sum.or(other.sum);
        self.count = self.count.or(other.count);
        !is_twice
    }
}

impl<'a> Sample<'a> {
    fn split(line: &'a str) -> Result<Self> {
        let end = line.find(|c| c == '{' || BLANKS.contains(&c)).ok_or("has no value")?;
        let (name, rest) = line.split_at(end);
        let rest = rest.trim_start_matches(BLANKS);
        let (block, rest) = match rest.strip_prefix('{') {
            // No value has a brace.
            Some(rest) => rest.rsplit_once('}').ok_or("has labels without an end")?,
            None => ("", rest),
        };
        let (value, rest) = token(rest);
        let (timestamp, rest) = token(rest);
        if value.is_empty() {
            return Err("has no value");
        }
        if !rest.is_empty() {
            return Err("has more than a value and a timestamp");
        }
        let timestamp = match timestamp {
            "" => None,
            timestamp => Some(timestamp.parse().map_err(|_| "has a timestamp that is no whole number")?),
        };
        Ok(Self { name, block, value, timestamp })
    }
}

/// The first word of a text, and what follows the blanks behind it.
fn token(text: &str) -> (&str, &str) {
    let text = text.trim_start_matches(BLANKS);
    match text.split_once(BLANKS) {
        Some((token, rest)) => (token, rest.trim_start_matches(BLANKS)),
        None => (text, ""),
    }
}

fn metric_name(name: &str) -> Result<&str> {
    match super::names::metric_name(name) {
        Cow::Borrowed(same) if same == name => Ok(name),
        _ => Err("does not begin with the name of a metric"),
    }
}

/// Reads the labels between the braces: names, and values as they are escaped.
fn read_block<'a>(block: &'a str, pairs: &mut Vec<(&'a str, &'a str)>) -> Result<()> {
    pairs.clear();
    let mut rest = block.trim_start_matches(BLANKS);
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=').ok_or("has a label without a value")?;
        let value = after.trim_start_matches(BLANKS).strip_prefix('"').ok_or("has a label value without quotes")?;
        let end = closing_quote(value).ok_or("has a label value without an end")?;
        pairs.push((name.trim_end_matches(BLANKS), &value[..end]));
        let after = value[end + 1..].trim_start_matches(BLANKS);
        rest = match after.strip_prefix(',') {
            Some(after) => after.trim_start_matches(BLANKS),
            None if after.is_empty() => after,
            None => return Err("has no comma between labels"),
        };
    }
    Ok(())
}

/// Makes labels of `pairs`. `block`: where they stand in the text, if they stand together.
fn labels(block: Option<&str>, pairs: &[(&str, &str)]) -> Labels {
    // Where the text is in the form that is written here it can be taken as it is.
    if let Some(block) = block {
        let len: usize = pairs.iter().map(|(name, value)| name.len() + value.len() + r#"="","#.len()).sum();
        let is_clean = |(at, (name, value)): (usize, &(&str, &str))| {
            matches!(label_name(name), Cow::Borrowed(clean) if clean == *name)
                && !value.contains('\\')
                && pairs[..at].iter().all(|(other, _)| other != name)
        };
        if len.saturating_sub(1) == block.len() && pairs.iter().enumerate().all(is_clean) {
            return Labels::from_canonical(block);
        }
    }
    let plain: Vec<_> = pairs.iter().map(|(name, value)| (*name, unescape(value, true))).collect();
    Labels::new(plain.iter().map(|(name, value)| (*name, &**value))).0
}

/// The labels without the last one.
fn without_last<'a>(block: &'a str, label: &str) -> Option<&'a str> {
    let before = block.strip_suffix('"')?.rsplit_once('"')?.0.strip_suffix('=')?.strip_suffix(label)?;
    if before.is_empty() { Some(before) } else { before.strip_suffix(',') }
}

/// Whether a line has the labels of the one before and, where there is one, a last label: then the value of that.
fn continues<'a>(block: &'a str, before: &str, label: Option<&str>) -> Option<Option<&'a str>> {
    let rest = block.strip_prefix(before)?;
    let Some(label) = label else { return rest.is_empty().then_some(None) };
    let rest = if before.is_empty() { rest } else { rest.strip_prefix(',')? };
    let value = rest.strip_prefix(label)?.strip_prefix("=\"")?.strip_suffix('"')?;
    (!value.contains(['"', '\\'])).then_some(Some(value))
}

fn number(text: &str) -> Result<Number> {
    if text.bytes().all(|byte| byte.is_ascii_digit())
        && let Ok(integer) = text.parse()
    {
        return Ok(Number::Integer(integer));
    }
    float(text).map(Number::Float)
}

fn float(text: &str) -> Result<f64> {
    text.parse().map_err(|_| "has a value that is no number")
}

fn count(text: &str) -> Result<u64> {
    match number(text)? {
        Number::Integer(count) => Ok(count),
        // Exact: every integer that a float can be is.
        Number::Float(count) if count >= 0.0 && count.fract() == 0.0 && count < u64::MAX as f64 => Ok(count as u64),
        Number::Float(_) => Err("has a count that is no whole number"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Families, Vec<Problem>) {
        let mut problems = Problems::default();
        let own = |name: &str| (name == "own_total").then_some(MetricKind::Counter);
        let families = parse(text, own, &mut problems).unwrap();
        (families, problems.take())
    }

    #[track_caller]
    fn assert_becomes(text: &str, expected: &str) {
        let (families, problems) = read(text);
        assert_eq!((families.to_text().as_str(), problems), (expected, Vec::new()));
        assert_eq!(read(expected).0.to_text(), expected, "and comes back");
    }

    #[test]
    fn families_and_series_are_sorted_and_buckets_are_not() {
        let text = "# HELP b_seconds Help.\n# TYPE b_seconds histogram\n\
            b_seconds_bucket{s=\"y\",le=\"2\"} 1\nb_seconds_bucket{s=\"y\",le=\"10\"} 1\n\
            b_seconds_bucket{s=\"y\",le=\"+Inf\"} 1\nb_seconds_sum{s=\"y\"} 1.5\nb_seconds_count{s=\"y\"} 1\n\
            b_seconds_bucket{s=\"x\",le=\"2\"} 0\nb_seconds_bucket{s=\"x\",le=\"10\"} 1\n\
            b_seconds_bucket{s=\"x\",le=\"+Inf\"} 1\nb_seconds_sum{s=\"x\"} 3\nb_seconds_count{s=\"x\"} 1\n\n\
            # TYPE a counter\na{l=\"} 1\"} 2\na 1\n\n";
        let sorted = "# TYPE a counter\na 1\na{l=\"} 1\"} 2\n\
            # HELP b_seconds Help.\n# TYPE b_seconds histogram\n\
            b_seconds_bucket{s=\"x\",le=\"2\"} 0\nb_seconds_bucket{s=\"x\",le=\"10\"} 1\n\
            b_seconds_bucket{s=\"x\",le=\"+Inf\"} 1\nb_seconds_sum{s=\"x\"} 3\nb_seconds_count{s=\"x\"} 1\n\
            b_seconds_bucket{s=\"y\",le=\"2\"} 1\nb_seconds_bucket{s=\"y\",le=\"10\"} 1\n\
            b_seconds_bucket{s=\"y\",le=\"+Inf\"} 1\nb_seconds_sum{s=\"y\"} 1.5\nb_seconds_count{s=\"y\"} 1\n";
        assert_becomes(text, sorted);
        assert_becomes("", "");
    }

    #[test]
    fn families_are_retained_whole() {
        let text = "# TYPE x histogram\nx_bucket{le=\"+Inf\"} 1\nx_sum 1\nx_count 1\n\
            # TYPE x_count_total counter\nx_count_total 4\n";
        let only = |name: &str| {
            let mut families = read(text).0;
            families.retain(|other| other == name);
            families.to_text()
        };
        assert_eq!(only("x_count_total"), "# TYPE x_count_total counter\nx_count_total 4\n");
        assert_eq!(only("x") + &only("x_count_total"), text);
        assert_eq!(only("x_count"), "");
    }

    /// Odd spacing, a comment, no type, a line end of Windows, values and escapes of all kinds.
    #[test]
    fn odd_texts_are_read() {
        assert_becomes(
            "# a comment\n#\n\n  # \t HELP \tx \tA \\\\ and\\n a \\d.\r\n#TYPE x  gauge\n\
             x { a = \"1\" ,\tb=\"} 2\", } \t 1e+06 \t -1395066363000\n\
             x{a=\"q\\\"\\\\ \\n \\d\"} NaN\nx{} +Inf\nx{a=\"2\"} -Inf\nx{a=\"3\"} 0x\u{0}\n"
                .trim_end_matches("x{a=\"3\"} 0x\u{0}\n"),
            "# HELP x A \\\\ and\\n a \\\\d.\n# TYPE x gauge\nx +Inf\n\
             x{a=\"1\",b=\"} 2\"} 1000000 -1395066363000\nx{a=\"2\"} -Inf\n\
             x{a=\"q\\\"\\\\ \\n \\\\d\"} NaN\n",
        );
        assert_becomes("y 1\nz 2\ny{a=\"b\"} 18446744073709551615\n", "y 1\ny{a=\"b\"} 18446744073709551615\nz 2\n");
        assert_becomes("# TYPE x untyped\nx 1.5e-3\n", "x 0.0015\n");
        assert_becomes("x{a.b=\"1\",=\"2\",a_b=\"3\"} 4\n", "x{a_b=\"1;3\",_=\"2\"} 4\n");
    }

    #[test]
    fn histograms_and_summaries_are_read_in_any_order() {
        assert_becomes(
            "x_bucket{a=\"1\"} 7\n# TYPE x histogram\nx_count{a=\"1\"} 2\nx_bucket{le=\"1.0\",a=\"1\"} 1\n\
             x_sum{a=\"2\"} 5\nx_bucket{a=\"1\",le=\"+Inf\"} 2e0\n\
             # TYPE y summary\ny{quantile=\"0.5\"} NaN 7\ny{quantile=\"0.9\"} 3 7\ny_sum 3 7\ny_count 1 7\nx_sum{a=\"1\"} 4\n"
                .trim_start_matches("x_bucket{a=\"1\"} 7\n"),
            "# TYPE x histogram\nx_bucket{a=\"1\",le=\"1.0\"} 1\nx_bucket{a=\"1\",le=\"+Inf\"} 2\nx_sum{a=\"1\"} 4\n\
             x_count{a=\"1\"} 2\nx_sum{a=\"2\"} 5\n\
             # TYPE y summary\ny{quantile=\"0.5\"} NaN 7\ny{quantile=\"0.9\"} 3 7\ny_sum 3 7\ny_count 1 7\n",
        );
    }

    #[test]
    fn unreadable_lines_are_left_out_and_named() {
        let lines = [
            "x",
            "x{a=\"1\" 1",
            "x{a=\"1} 1",
            "x{a} 1",
            "x{a=1} 1",
            "x{a=\"1\" b=\"2\"} 1",
            "x 1 2 3",
            "x one",
            "x 1 one",
            "1x 1",
            "größe 1",
            "{\"x\"} 1",
            "# TYPE z info",
            "# TYPE a gauge",
            "h 1",
            "h_bucket 1",
            "h_count 1.5",
            "h_bucket{le=\"1\"} -1",
        ];
        for line in lines {
            let rest = "# TYPE h histogram\nh_sum 1\na 1\n";
            let (families, problems) = read(&format!("{rest}{line}\nb 2\n{line}\n"));
            assert_eq!(families.to_text(), "a 1\nb 2\n# TYPE h histogram\nh_sum 1\n", "{line}");
            let [Problem::Unreadable(Unreadable { line: 4, lines: 2, .. })] = problems[..] else {
                panic!("{line}: {problems:?}")
            };
        }
        let none = parse("<html>\n</html>\n", |_| None, &mut Problems::default()).unwrap_err();
        assert_eq!(none.to_string(), "line 1 has no value, and so do 1 more lines");
    }

    #[test]
    fn of_metrics_that_exclude_each_other_one_is_read() {
        let text = "# TYPE x counter\nx 1\n# TYPE x gauge\nx 2\n\
            # TYPE h_count counter\nh_count 5\n# TYPE h histogram\nh_sum 1\n\
            # TYPE own_total gauge\nown_total 3\n# TYPE own_total counter\nown_total 4\n";
        let (families, problems) = read(text);
        let expected =
            "# TYPE h_count counter\nh_count 5\n# TYPE own_total counter\nown_total 4\n# TYPE x counter\nx 1\n";
        assert_eq!(families.to_text(), expected);
        assert_eq!(read("# TYPE own_total gauge\nown_total 3\n").0, Families::default(), "though it is alone");
        assert_eq!(read("own_total 3\n").0.to_text(), "own_total 3\n");
        let said: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "gauge `x` is left out, because `x` is a counter: give the gauge another name",
                "histogram `h` is left out, because `h_count` is a counter and the parts of a histogram are named \
                 `_bucket`, `_sum` and `_count`: give the histogram another name",
                "gauge `own_total` is left out, because `own_total` is a counter of this crate: give the gauge another name",
            ]
        );
    }

    #[test]
    fn of_a_series_that_is_there_twice_the_first_is_read() {
        let text = "# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"1\"} 2\nh_sum 1\nx 1\nx 2\nh_sum 2\n";
        let (families, problems) = read(text);
        assert_eq!(families.to_text(), "# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_sum 1\nx 1\n");
        let metrics: Vec<_> = problems.iter().map(Problem::metric).collect();
        assert_eq!(metrics, ["h", "x"]);
    }
}
