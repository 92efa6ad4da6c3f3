//! A strict reader of what the tests write.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use metrics::Unit;

use crate::exposition::labels::{Labels, closing_quote};
use crate::exposition::values::Exemplar;
use crate::exposition::{Families, Family, Problems, Samples, parse};

/// The part of a family before its samples.
#[derive(Default)]
struct Head<'a> {
    name: &'a str,
    kind: &'a str,
    unit: Option<Unit>,
}

impl Head<'_> {
    /// The suffixes that a reader keeps for the family, whether samples have them or not.
    fn suffixes(&self) -> &'static [&'static str] {
        match self.kind {
            "counter" => &["_total", "_created"],
            "histogram" => &["_bucket", "_sum", "_count", "_created"],
            "summary" => &["", "_sum", "_count", "_created"],
            "gauge" | "unknown" => &[""],
            kind => panic!("a kind {kind:?}"),
        }
    }

    /// The name in the text format.
    fn plain_name(&self) -> String {
        format!("{}{}", self.name, if self.kind == "counter" { "_total" } else { "" })
    }
}

/// Reads a text. Each family is translated to the text format, whose reader then has the rest of the rules.
///
/// # Panics
///
/// If a rule of OpenMetrics is broken.
pub(super) fn read(text: &str) -> Families {
    let text = text.strip_suffix("# EOF\n").expect("the end");
    let (mut plain, mut exemplars, mut names) = (String::new(), HashMap::new(), HashSet::new());
    let mut heads: Vec<Head<'_>> = Vec::new();
    // The lines that may still come in the head of a family, in their order.
    let mut allowed: &[&str] = &[];
    for line in text.split_terminator('\n') {
        if let Some(comment) = line.strip_prefix("# ") {
            let [keyword, name, rest] = comment.splitn(3, ' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            if keyword == "TYPE" {
                let head = Head { name, kind: rest, unit: None };
                let claimed: HashSet<_> =
                    head.suffixes().iter().chain(&[""]).map(|part| format!("{name}{part}")).collect();
                for name in claimed {
                    assert!(names.insert(name), "a clash of names: {line}\n{text}");
                }
                let kind = if rest == "unknown" { "untyped" } else { rest };
                plain.push_str(&format!("# TYPE {} {kind}\n", head.plain_name()));
                heads.push(head);
                allowed = &["UNIT", "HELP"];
                continue;
            }
            let at = allowed.iter().position(|allowed| *allowed == keyword).expect(line);
            allowed = &allowed[at + 1..];
            let head = heads.last_mut().unwrap();
            assert_eq!(head.name, name, "{line}");
            if keyword == "UNIT" {
                assert!(name.ends_with(&format!("_{rest}")), "{line}");
                head.unit = Unit::from_string(rest);
            } else {
                plain.push_str(&format!("# HELP {} {}\n", head.plain_name(), rest.replace("\\\"", "\"")));
            }
            continue;
        }
        allowed = &[];
        let head = heads.last().expect(line);
        let (series, value) = split_series(line);
        let suffix = series.split('{').next().unwrap().strip_prefix(head.name).expect(line);
        assert!(head.suffixes().contains(&suffix) && suffix != "_created", "{line}");
        let value = match value.split_once(" # ") {
            Some((value, exemplar)) => {
                assert!(matches!((head.kind, suffix), ("counter", "_total") | ("histogram", "_bucket")), "{line}");
                exemplars.insert(series.to_owned(), read_exemplar(exemplar));
                value
            }
            None => value,
        };
        plain.push_str(&format!("{series} {value}\n"));
    }
    let mut problems = Problems::default();
    let families = parse(&plain, |_| None, &mut problems).unwrap_or_default();
    assert_eq!(problems.take(), [], "{text}");
    let units: HashMap<_, _> = heads.iter().map(|head| (head.plain_name(), head.unit)).collect();
    Families::new(
        families.iter().map(|family| with_exemplars(family.clone(), &exemplars, units[&*family.name])).collect(),
    )
}

/// Splits a line after the labels.
fn split_series(line: &str) -> (&str, &str) {
    let mut end = line.find(['{', ' ']).expect(line);
    if line[end..].starts_with('{') {
        end += 1 + end_of_labels(&line[end + 1..]);
    }
    (&line[..end], line[end..].strip_prefix(' ').expect(line))
}

/// Where a text continues after labels and their brace.
fn end_of_labels(text: &str) -> usize {
    let mut end = 0;
    loop {
        match text[end..].find(['"', '}']).map(|at| (end + at, text.as_bytes()[end + at])) {
            Some((at, b'}')) => return at + 1,
            Some((at, _)) => end = at + 2 + closing_quote(&text[at + 1..]).expect(text),
            None => panic!("no end of the labels: {text}"),
        }
    }
}

fn read_exemplar(text: &str) -> Exemplar {
    let text = text.strip_prefix('{').expect(text);
    let (labels, rest) = text.split_at(end_of_labels(text));
    let labels = Labels::from_canonical(&labels[..labels.len() - 1]);
    let len: usize = labels.values().map(|(name, value)| name.len() + value.chars().count()).sum();
    assert!(len <= 128, "{text}");
    let mut numbers = rest.strip_prefix(' ').expect(text).split(' ');
    let value = numbers.next().unwrap().parse().expect(text);
    let time = numbers.next().map(|time| {
        let (seconds, nanos) = time.split_once('.').expect(text);
        assert_eq!(nanos.len(), 9);
        Duration::new(seconds.parse().expect(text), nanos.parse().expect(text))
    });
    Exemplar { labels, value, time }
}

/// Puts the exemplars of a text into its family. `exemplars`: by series, as they stand in the text.
fn with_exemplars(mut family: Family, exemplars: &HashMap<String, Exemplar>, unit: Option<Unit>) -> Family {
    family.unit = unit;
    let of = |suffix: &str, labels: &str, bound: &str| {
        let labels: Vec<_> = [labels, bound].into_iter().filter(|part| !part.is_empty()).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        exemplars.get(&format!("{}{suffix}{labels}", family.name)).cloned()
    };
    match &mut family.samples {
        Samples::Counter(series) => {
            for series in series {
                series.value.exemplar = of("", series.labels.as_str(), "");
            }
        }
        Samples::Histogram(series) => {
            for series in series {
                let of_bound = |bound| of("_bucket", series.labels.as_str(), &format!("le=\"{bound}\""));
                let exemplars: Vec<_> = series.value.bounds.texts().map(of_bound).collect();
                series.value.exemplars = if exemplars.iter().any(Option::is_some) { exemplars } else { Vec::new() };
            }
        }
        _ => {}
    }
    family
}
