//! Series as Prometheus stores them, and their notation in promtool's test files.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Sample {
    Value(f64),
    /// The scrape failed, or did not have the series any more.
    Stale,
    /// No scrape was made.
    Missing,
}

/// The ticks at which a series changed.
type Changes = Vec<(usize, Sample)>;

/// The samples of all series, one a tick.
#[derive(Default)]
pub(crate) struct SeriesStore {
    /// By source, a part of a scrape that has series of its own.
    sources: BTreeMap<String, BTreeMap<String, Changes>>,
}

impl SeriesStore {
    /// Stores what a scrape has of a source: its series, and staleness for those that an earlier one had.
    pub(crate) fn scrape(&mut self, source: &str, tick: usize, samples: &[(String, f64)]) {
        let series = self.sources.entry(source.to_owned()).or_default();
        for (name, value) in samples {
            match series.get_mut(name) {
                Some(changes) => push_change(changes, tick, Sample::Value(*value)),
                None => _ = series.insert(name.clone(), vec![(tick, Sample::Value(*value))]),
            }
        }
        if series.len() > samples.len() {
            let scraped: BTreeSet<&str> = samples.iter().map(|(name, _)| name.as_str()).collect();
            let gone = series.iter_mut().filter(|(name, _)| !scraped.contains(name.as_str()));
            gone.for_each(|(_, changes)| push_change(changes, tick, Sample::Stale));
        }
    }

    /// The sources of all scrapes.
    pub(crate) fn sources(&self) -> Vec<String> {
        self.sources.keys().cloned().collect()
    }

    /// Leaves out a scrape.
    pub(crate) fn skip(&mut self, tick: usize) {
        for changes in self.sources.values_mut().flat_map(BTreeMap::values_mut) {
            push_change(changes, tick, Sample::Missing);
        }
    }

    /// Returns each series with its values in promtool's notation.
    pub(crate) fn notation(&self, ticks: usize) -> impl Iterator<Item = (&str, String)> {
        self.sources.values().flatten().map(move |(name, changes)| (name.as_str(), values(changes, ticks)))
    }
}

fn push_change(changes: &mut Changes, tick: usize, sample: Sample) {
    let last = changes.last().map(|(_, last)| *last);
    // What went stale stays absent.
    if last != Some(sample) && !(last == Some(Sample::Stale) && sample == Sample::Missing) {
        changes.push((tick, sample));
    }
}

fn values(changes: &[(usize, Sample)], ticks: usize) -> String {
    let mut text = String::new();
    let first = changes.first().map_or(ticks, |(tick, _)| *tick);
    if first > 0 {
        write!(text, "_x{first} ").unwrap();
    }
    let length = |index: usize| changes.get(index + 1).map_or(ticks, |(tick, _)| *tick) - changes[index].0;
    let mut index = 0;
    while index < changes.len() {
        let count = length(index);
        match changes[index].1 {
            Sample::Value(value) => {
                let progression = progression(changes, index, length);
                match progression {
                    Some((step, samples)) => {
                        write!(text, "{value}{step:+}x{} ", samples - 1).unwrap();
                        index += samples;
                        continue;
                    }
                    None if count > 1 => write!(text, "{value}x{} ", count - 1).unwrap(),
                    None => write!(text, "{value} ").unwrap(),
                }
            }
            Sample::Stale if count > 1 => write!(text, "stale _x{} ", count - 1).unwrap(),
            Sample::Stale => text.push_str("stale "),
            Sample::Missing => write!(text, "_x{count} ").unwrap(),
        }
        index += 1;
    }
    text.truncate(text.trim_end().len());
    text
}

/// Step and number of at least three single samples in equal steps.
fn progression(changes: &[(usize, Sample)], first: usize, length: impl Fn(usize) -> usize) -> Option<(f64, usize)> {
    let value = |index: usize| match changes.get(index) {
        Some((_, Sample::Value(value))) if length(index) == 1 => Some(*value),
        _ => None,
    };
    let step = value(first + 1)? - value(first)?;
    let mut samples = 2;
    while let Some(next) = value(first + samples)
        && Some(next - step) == value(first + samples - 1)
    {
        samples += 1;
    }
    (samples > 2).then_some((step, samples))
}

#[test]
fn samples_become_the_shortest_notation() {
    let mut store = SeriesStore::default();
    let scrapes = [&[][..], &[1.0], &[1.0], &[1.0], &[3.0], &[5.0], &[7.0], &[], &[], &[2.0], &[9.0], &[9.0]];
    for (tick, scrape) in scrapes.iter().enumerate() {
        match tick {
            10 => store.skip(tick),
            _ => store.scrape("g", tick, &scrape.iter().map(|value| ("a".to_owned(), *value)).collect::<Vec<_>>()),
        }
    }
    let notation: Vec<_> = store.notation(13).collect();
    assert_eq!(notation, [("a", "_x1 1x2 3+2x2 stale _x1 2 _x1 9x1".to_owned())]);
}
