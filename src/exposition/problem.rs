//! Metrics that cannot be written as they were recorded.

use std::collections::HashSet;
use std::fmt;

use super::families::MetricKind;
use super::names::metric_name;

/// Maximum number of metrics with a reported problem.
const MAX_PROBLEMS: usize = 100;

/// Maximum length of a quoted line, in characters.
const MAX_QUOTED: usize = 200;

/// Why a metric is not written as it was recorded.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Problem {
    /// The name belongs to a metric of another kind. The metric is left out.
    NameTaken { metric: String, kind: Option<MetricKind>, owner: Owner },
    /// Several gauges are one series.
    SharedGauge { metric: String },
    /// Several labels of one series have one name.
    JoinedLabels { metric: String, label: String },
    /// A foreign text has a series twice, with the constant labels. The first is written.
    Repeated { metric: String },
    /// The application has a series of this crate. That of the crate is written.
    SeriesTaken { metric: String },
    /// A foreign text has lines that are not in the format. They are left out.
    Unreadable(Unreadable),
    /// There are problems that are not reported.
    More,
}

/// The metric that keeps a name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Owner {
    pub(crate) metric: String,
    pub(crate) kind: Option<MetricKind>,
    /// Whether it is one of this crate's own metrics.
    pub(crate) is_own: bool,
}

/// Lines that are not in the format.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Unreadable {
    /// The first of them, counted from one.
    pub(crate) line: usize,
    /// Its beginning.
    pub(crate) text: String,
    pub(crate) reason: &'static str,
    pub(crate) lines: usize,
}

impl Unreadable {
    /// Creates the first line, which counts as none yet.
    pub(super) fn new(line: usize, text: &str, reason: &'static str) -> Self {
        Self { line, text: text.chars().take(MAX_QUOTED).collect(), reason, lines: 0 }
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, text, reason, lines } = self;
        write!(f, "line {line}, {text:?}, {reason}")?;
        if *lines > 1 { write!(f, " (the first of {lines} such lines)") } else { Ok(()) }
    }
}

impl Problem {
    /// The metric, under the name it was recorded with. Empty where it is no single one.
    pub(crate) fn metric(&self) -> &str {
        match self {
            Self::NameTaken { metric, .. }
            | Self::SharedGauge { metric }
            | Self::JoinedLabels { metric, .. }
            | Self::Repeated { metric }
            | Self::SeriesTaken { metric } => metric,
            Self::Unreadable(_) | Self::More => "",
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NameTaken { metric, kind, owner } => {
                let whose = if owner.is_own { " of this crate" } else { "" };
                let (kind, other, owner) = (name_of(*kind), name_of(owner.kind), &owner.metric);
                write!(f, "{kind} `{metric}` is left out, because `{owner}` is a {other}{whose}")?;
                if metric_name(metric) != **owner {
                    f.write_str(" and the parts of a histogram are named `_bucket`, `_sum` and `_count`")?;
                }
                write!(f, ": give the {kind} another name")
            }
            Self::SharedGauge { metric } => write!(
                f,
                "several gauges become one series of `{metric}`, which shows the value that was set last: give them names or \
                 labels that differ in letters, digits or underscores"
            ),
            Self::JoinedLabels { metric, label } => write!(
                f,
                "several labels of `{metric}` have the name `{label}` after cleaning; `;` joins their values: rename all but one"
            ),
            Self::Repeated { metric } => write!(
                f,
                "the text of `with_exposition` has a series of `{metric}` more than once, with the constant labels if there \
                 are some; only the first is delivered: record it once"
            ),
            Self::SeriesTaken { metric } => write!(
                f,
                "the application records a series of `{metric}` with the labels of one of this crate; it is left out: give the \
                 metric another name"
            ),
            Self::Unreadable(lines) => write!(
                f,
                "the text of `with_exposition` has lines that are not in the text format 0.0.4; they are left out: {lines}"
            ),
            Self::More => write!(
                f,
                "more than {MAX_PROBLEMS} metrics cannot be written as they are recorded: no others are reported"
            ),
        }
    }
}

/// Problems that wait to be reported, one for each metric.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    seen: HashSet<String>,
    new: Vec<Problem>,
    are_all_seen: bool,
}

impl Problems {
    pub(crate) fn add(&mut self, problem: Problem) {
        if self.are_all_seen || self.seen.contains(problem.metric()) {
            return;
        }
        self.are_all_seen = self.seen.len() == MAX_PROBLEMS;
        if self.are_all_seen {
            self.new.push(Problem::More);
        } else {
            self.seen.insert(problem.metric().to_owned());
            self.new.push(problem);
        }
    }

    /// Returns the problems since the last call.
    pub(crate) fn take(&mut self) -> Vec<Problem> {
        std::mem::take(&mut self.new)
    }
}

fn name_of(kind: Option<MetricKind>) -> &'static str {
    kind.map_or("metric of unknown kind", MetricKind::as_str)
}

/// The suffixes of the parts of a histogram; a summary has the last two.
pub(super) const PARTS: [&str; 3] = ["_bucket", "_sum", "_count"];

fn parts(kind: Option<MetricKind>) -> &'static [&'static str] {
    match kind {
        Some(MetricKind::Histogram) => &PARTS,
        Some(MetricKind::Summary) => &PARTS[1..],
        _ => &[],
    }
}

/// Splits the name of a part of a histogram or summary into the name it belongs to and the suffix.
pub(super) fn split_part(name: &str) -> Option<(&str, &'static str)> {
    PARTS.iter().find_map(|part| Some((name.strip_suffix(part)?, *part)))
}

/// Whether a family of this kind writes parts with this suffix.
pub(super) fn has_part(kind: Option<MetricKind>, suffix: &str) -> bool {
    parts(kind).contains(&suffix)
}

/// Finds the metric that a new one of this name and kind cannot stand beside in one text. `kind_of` knows the metrics
/// that are there.
pub(crate) fn owner_of(
    name: &str,
    kind: Option<MetricKind>,
    kind_of: impl Fn(&str) -> Option<Option<MetricKind>>,
) -> Option<(String, Option<MetricKind>)> {
    match kind_of(name) {
        Some(other) if other != kind => return Some((name.to_owned(), other)),
        Some(_) => return None,
        None => {}
    }
    let part_of = split_part(name).and_then(|(base, suffix)| {
        let other = kind_of(base)?;
        has_part(other, suffix).then(|| (base.to_owned(), other))
    });
    part_of.or_else(|| {
        let part = |suffix: &&str| format!("{name}{suffix}");
        parts(kind).iter().map(part).find_map(|part| kind_of(&part).map(|other| (part, other)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use MetricKind::{Counter, Gauge, Histogram, Summary};

    #[test]
    fn each_metric_is_reported_once_and_not_without_end() {
        let mut problems = Problems::default();
        let gauge = |n: usize| Problem::SharedGauge { metric: format!("g{n}") };
        (0..MAX_PROBLEMS).flat_map(|n| [gauge(n), gauge(n)]).for_each(|problem| problems.add(problem));
        assert_eq!(problems.take(), (0..MAX_PROBLEMS).map(gauge).collect::<Vec<_>>());
        (0..MAX_PROBLEMS).for_each(|n| problems.add(gauge(n)));
        assert_eq!(problems.take(), []);
        (0..2 * MAX_PROBLEMS).for_each(|n| problems.add(gauge(n)));
        assert_eq!(problems.take(), [Problem::More]);
    }

    #[test]
    fn names_belong_to_one_kind_and_to_the_parts_of_histograms() {
        let there = [("c", Counter), ("h", Histogram), ("s", Summary), ("x_count", Gauge)];
        let kind_of = |name: &str| there.iter().find(|(other, _)| *other == name).map(|(_, kind)| Some(*kind));
        let owner = |name: &str, kind| owner_of(name, Some(kind), kind_of).map(|(owner, _)| owner);
        for (name, kind, expected) in [
            ("c", Counter, None),
            ("c", Gauge, Some("c")),
            ("h_bucket", Counter, Some("h")),
            ("h_sum", Counter, Some("h")),
            ("s_bucket", Counter, None),
            ("s_count", Counter, Some("s")),
            ("c_count", Counter, None),
            ("x", Histogram, Some("x_count")),
            ("x", Counter, None),
        ] {
            assert_eq!(owner(name, kind).as_deref(), expected, "{name}");
        }
    }
}
