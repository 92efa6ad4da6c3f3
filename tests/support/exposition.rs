//! A strict parser of the text format 0.0.4, for assertions. It is stricter than the parser of Prometheus: text that a
//! gateway refuses, or that only a lenient parser accepts, is an error.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    pub name: String,
    pub kind: String,
    pub help: Option<String>,
    pub samples: Vec<Sample>,
}

/// A parsed exposition. Families and samples are in the order of the text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Exposition {
    pub families: Vec<Family>,
}

/// Parses an exposition. Panics with the invalid line.
#[track_caller]
pub fn parse(text: &str) -> Exposition {
    match try_parse(text) {
        Ok(exposition) => exposition,
        Err(err) => panic!("not a valid exposition: {err}\n--- the whole text:\n{text}"),
    }
}

/// Parses an exposition. The error has the line and the reason.
pub fn try_parse(text: &str) -> Result<Exposition, String> {
    if text.contains('\r') {
        return Err("a carriage return".to_owned());
    }
    if !text.is_empty() && !text.ends_with('\n') {
        return Err("no newline at the end".to_owned());
    }
    let mut parser = Parser::default();
    for (number, line) in text.lines().enumerate() {
        parser.line(line).map_err(|err| format!("line {}: {err}: {line:?}", number + 1))?;
    }
    parser.finish_family()?;
    Ok(Exposition { families: parser.families })
}

impl Exposition {
    pub fn family(&self, name: &str) -> Option<&Family> {
        self.families.iter().find(|family| family.name == name)
    }

    /// The samples with this name whose labels include these labels.
    pub fn matching(&self, name: &str, labels: &[(&str, &str)]) -> Vec<&Sample> {
        self.samples()
            .filter(|sample| sample.name == name)
            .filter(|sample| labels.iter().all(|(k, v)| sample.labels.get(*k).is_some_and(|value| value == v)))
            .collect()
    }

    /// The value of the series with exactly this name and these labels. Series of a histogram have their own names,
    /// such as `…_count`.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.matching(name, labels).iter().find(|sample| sample.labels.len() == labels.len()).map(|sample| sample.value)
    }

    /// The [`value`](Self::value) of a series. Panics with a list of the existing series if there is none.
    #[track_caller]
    pub fn expect(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        match self.value(name, labels) {
            Some(value) => value,
            None => panic!("no series {name}{labels:?}; there are:\n{}", self.listing(name)),
        }
    }

    /// Removes labels from all series, such as job and grouping in a text file. Panics if a series lacks one of them.
    #[track_caller]
    pub fn without(mut self, labels: &[(&str, &str)]) -> Self {
        for sample in self.families.iter_mut().flat_map(|family| &mut family.samples) {
            for (name, value) in labels {
                let removed = sample.labels.remove(*name);
                assert_eq!(removed.as_deref(), Some(*value), "the label {name} of {sample}");
            }
        }
        self
    }

    fn samples(&self) -> impl Iterator<Item = &Sample> {
        self.families.iter().flat_map(|family| &family.samples)
    }

    /// The series with this name, or the names of all families if there is none.
    fn listing(&self, name: &str) -> String {
        let series: Vec<String> = self.matching(name, &[]).iter().map(|sample| format!("  {sample}")).collect();
        if !series.is_empty() {
            return series.join("\n");
        }
        let names: Vec<String> = self.families.iter().map(|family| format!("  {}", family.name)).collect();
        if names.is_empty() { "  nothing at all".to_owned() } else { names.join("\n") }
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?} {}", self.name, self.labels, self.value)
    }
}

const KINDS: &[&str] = &["counter", "gauge", "histogram", "summary", "untyped"];

#[derive(Default)]
struct Parser {
    families: Vec<Family>,
    /// Name and text of a HELP line whose TYPE line has not been read.
    help: Option<(String, String)>,
    series: HashSet<(String, BTreeMap<String, String>)>,
}

impl Parser {
    fn line(&mut self, line: &str) -> Result<(), String> {
        if line.is_empty() {
            return Ok(());
        }
        if let Some(rest) = line.strip_prefix("# HELP ") {
            return self.help(rest);
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            return self.kind(rest);
        }
        if line.starts_with('#') {
            return Err("a comment that is neither HELP nor TYPE".to_owned());
        }
        self.sample(line)
    }

    fn help(&mut self, rest: &str) -> Result<(), String> {
        let (name, text) = rest.split_once(' ').ok_or("HELP without a text")?;
        if let Some((open, _)) = &self.help {
            return Err(format!("the HELP of {open} has no TYPE after it"));
        }
        self.help = Some((name.to_owned(), unescape(text, &[('\\', '\\'), ('n', '\n')])?));
        Ok(())
    }

    fn kind(&mut self, rest: &str) -> Result<(), String> {
        let (name, kind) = rest.split_once(' ').ok_or("TYPE without a type")?;
        check_name(name, true)?;
        if !KINDS.contains(&kind) {
            return Err(format!("no such type: {kind:?}"));
        }
        self.finish_family()?;
        if self.families.iter().any(|family| family.name == name) {
            return Err(format!("a second family {name}"));
        }
        let help = match self.help.take() {
            Some((help, _)) if help != name => return Err(format!("the HELP of {help} before the TYPE of {name}")),
            help => help.map(|(_, text)| text),
        };
        self.families.push(Family { name: name.to_owned(), kind: kind.to_owned(), help, samples: Vec::new() });
        Ok(())
    }

    fn sample(&mut self, line: &str) -> Result<(), String> {
        if let Some((open, _)) = &self.help {
            return Err(format!("a sample between the HELP and the TYPE of {open}"));
        }
        let sample = parse_sample(line)?;
        let family = self.families.last_mut().ok_or("a sample before any TYPE")?;
        check_belongs(family, &sample)?;
        if !self.series.insert((sample.name.clone(), sample.labels.clone())) {
            return Err("a duplicate series".to_owned());
        }
        family.samples.push(sample);
        Ok(())
    }

    /// Checks a family after its last sample.
    fn finish_family(&mut self) -> Result<(), String> {
        match self.families.last() {
            Some(family) if family.samples.is_empty() => Err(format!("family {} has no samples", family.name)),
            Some(family) if family.kind == "histogram" => check_histogram(family),
            _ => Ok(()),
        }
    }
}

fn check_belongs(family: &Family, sample: &Sample) -> Result<(), String> {
    let suffix = sample
        .name
        .strip_prefix(&family.name)
        .ok_or_else(|| format!("{} in the family {}", sample.name, family.name))?;
    let fits = match (family.kind.as_str(), suffix) {
        ("histogram", "_bucket") => sample.labels.contains_key("le"),
        ("summary", "") => sample.labels.contains_key("quantile"),
        ("histogram" | "summary", "_sum" | "_count") => true,
        ("histogram" | "summary", _) => false,
        ("counter", "") if sample.value.is_nan() || sample.value < 0.0 => return Err("a negative counter".to_owned()),
        (_, "") => true,
        _ => false,
    };
    if fits { Ok(()) } else { Err(format!("{} is no part of a {} {}", sample.name, family.kind, family.name)) }
}

/// Checks each label set of a histogram: the buckets ascend and are cumulative, and the last one is `+Inf` with the
/// count.
fn check_histogram(family: &Family) -> Result<(), String> {
    #[derive(Default)]
    struct Parts {
        buckets: Vec<(f64, f64)>,
        sum: Option<f64>,
        count: Option<f64>,
    }
    let mut sets: BTreeMap<BTreeMap<String, String>, Parts> = BTreeMap::new();
    for sample in &family.samples {
        let mut labels = sample.labels.clone();
        let bound = labels.remove("le");
        let parts = sets.entry(labels).or_default();
        match bound {
            Some(bound) => parts.buckets.push((parse_value(&bound)?, sample.value)),
            None if sample.name.ends_with("_sum") => parts.sum = Some(sample.value),
            None => parts.count = Some(sample.value),
        }
    }
    for (labels, parts) in sets {
        let name = format!("histogram {}{labels:?}", family.name);
        parts.sum.ok_or_else(|| format!("{name} has no sum"))?;
        let count = parts.count.ok_or_else(|| format!("{name} has no count"))?;
        if parts.buckets.windows(2).any(|pair| pair[0].0 >= pair[1].0 || pair[0].1 > pair[1].1) {
            return Err(format!("the buckets of {name} do not ascend: {:?}", parts.buckets));
        }
        if parts.buckets.last() != Some(&(f64::INFINITY, count)) {
            return Err(format!("the last bucket of {name} is not +Inf with the count {count}: {:?}", parts.buckets));
        }
    }
    Ok(())
}

fn parse_sample(line: &str) -> Result<Sample, String> {
    let end = line.find(['{', ' ']).ok_or("a sample without a value")?;
    let (name, mut rest) = line.split_at(end);
    check_name(name, true)?;
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = parse_labels(inner, &mut labels)?;
    }
    let value = rest.strip_prefix(' ').ok_or("no space before the value")?;
    if value.contains(' ') {
        return Err("more than a value (a timestamp?)".to_owned());
    }
    Ok(Sample { name: name.to_owned(), labels, value: parse_value(value)? })
}

/// Parses `a="b",c="d"}` and returns the rest of the line.
fn parse_labels<'a>(mut rest: &'a str, labels: &mut BTreeMap<String, String>) -> Result<&'a str, String> {
    loop {
        let (name, after) = rest.split_once("=\"").ok_or("a label without a value")?;
        check_name(name, false)?;
        let end = closing_quote(after).ok_or("a label value without an end")?;
        let value = unescape(&after[..end], &[('\\', '\\'), ('n', '\n'), ('"', '"')])?;
        if labels.insert(name.to_owned(), value).is_some() {
            return Err(format!("the label {name} twice"));
        }
        let after = &after[end + 1..];
        if let Some(after) = after.strip_prefix('}') {
            return Ok(after);
        }
        rest = after.strip_prefix(',').ok_or("neither a comma nor a brace after a label")?;
    }
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(at, c)| {
        let closes = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        closes.then_some(at)
    })
}

fn unescape(text: &str, escapes: &[(char, char)]) -> Result<String, String> {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            plain.push(c);
            continue;
        }
        let code = chars.next().ok_or("a backslash at the end")?;
        let escape = escapes.iter().find(|(escape, _)| *escape == code);
        let (_, plain_char) = escape.ok_or_else(|| format!("the escape \\{code}"))?;
        plain.push(*plain_char);
    }
    Ok(plain)
}

fn parse_value(text: &str) -> Result<f64, String> {
    match text {
        "+Inf" => Ok(f64::INFINITY),
        "-Inf" => Ok(f64::NEG_INFINITY),
        "NaN" => Ok(f64::NAN),
        // The standard library also parses spellings such as `inf`, which the format does not have.
        number if number.ends_with(|last: char| last.is_ascii_digit()) => {
            number.parse().map_err(|_| format!("not a number: {number:?}"))
        }
        other => Err(format!("not a number: {other:?}")),
    }
}

fn check_name(name: &str, colons: bool) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || (colons && c == ':');
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(fits) {
        return Err(format!("not a name: {name:?}"));
    }
    Ok(())
}
