//! Reads the text format, version 0.0.4, as foreign recorders write it.

mod family;
mod line;
pub(crate) mod samples;

use std::collections::HashMap;

use self::family::FamilyReader;
use self::line::{BLANKS, Result, Sample, metric_name, token};
use super::families::{Families, Family, MetricKind};
use super::labels::unescape;
use super::problem::{Owner, Problem, Problems, Unreadable, has_part, owner_of, split_part};

/// Reads a text. Values, labels and the spelling of bounds are kept; comments, spacing and timestamps, which a Pushgateway
/// refuses, are not.
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
    let mut reader = Parser::default();
    let mut unreadable: Option<Unreadable> = None;
    for (n, line) in text.lines().enumerate() {
        if let Err(reason) = reader.line(line.trim_matches(BLANKS)) {
            unreadable.get_or_insert_with(|| Unreadable::new(n + 1, line, reason)).lines += 1;
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

#[derive(Default)]
struct Parser<'a> {
    families: Vec<FamilyReader<'a>>,
    /// The families by name, the last one of each.
    by_name: HashMap<&'a str, usize>,
    /// The family of the line before.
    current: usize,
    /// Reused from line to line.
    pairs: Vec<(&'a str, &'a str)>,
}

impl<'a> Parser<'a> {
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
        if family.kind.is_none() && !family.has_numbers() {
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
        self.families.push(FamilyReader::new(name));
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
            _ => family.add_number(&sample, pairs),
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
            if reader.is_empty() {
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

#[cfg(test)]
mod tests;
