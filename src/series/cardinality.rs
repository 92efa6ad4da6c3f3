//! The limit on the label sets of a metric, and the labels of the sets beyond it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::interner::{Interner, LabelId};
use crate::schema::{PROFILE, RUN_ID, STAGE_ID};

/// Default limit on the label sets of a stage metric: 2 000. `MetricsLayerBuilder::with_max_series` changes it.
pub const DEFAULT_MAX_SERIES: usize = 2_000;

/// The highest limit. Each set may have a label value of its own, and the interner has room for
/// [`MAX_LABELS`](crate::series::interner::MAX_LABELS).
#[cfg_attr(not(feature = "pushgateway"), allow(dead_code))]
pub(crate) const MAX_MAX_SERIES: usize = 100_000;

/// Decides for each metric whether a new label set gets a series of its own.
///
/// A set beyond `max` is counted with `_overflow` as its run id if the metric has its stage and profile, as its profile and
/// run id if the metric has its stage, and as all three labels otherwise. So the number of series is bounded and every total
/// is exact.
pub(crate) struct CardinalityLimit {
    max: usize,
    sets: Mutex<Sets>,
    sets_are_full: AtomicBool,
    warned: AtomicBool,
}

/// The sets of each metric, by the number of labels.
#[derive(Default)]
struct Sets {
    stages: LimitedSets<1>,
    pairs: LimitedSets<2>,
    triples: LimitedSets<3>,
}

struct LimitedSets<const N: usize> {
    sets: HashSet<[LabelId; N]>,
    /// The prefixes of the sets, filled up with `NONE`.
    prefixes: HashSet<[LabelId; N]>,
}

impl<const N: usize> Default for LimitedSets<N> {
    fn default() -> Self {
        Self { sets: HashSet::new(), prefixes: HashSet::new() }
    }
}

impl<const N: usize> LimitedSets<N> {
    fn limit(&mut self, max: usize, set: [LabelId; N]) -> [LabelId; N] {
        if self.sets.contains(&set) {
            return set;
        }
        if self.sets.len() < max {
            self.sets.insert(set);
            self.prefixes.extend((1..N).map(|kept| prefix(set, kept, LabelId::NONE)));
            return set;
        }
        let kept = (1..N).rev().find(|kept| self.prefixes.contains(&prefix(set, *kept, LabelId::NONE)));
        prefix(set, kept.unwrap_or(0), LabelId::OVERFLOW)
    }
}

fn prefix<const N: usize>(mut set: [LabelId; N], kept: usize, rest: LabelId) -> [LabelId; N] {
    set[kept..].fill(rest);
    set
}

/// The facts for the warning about the first overflow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Overflow {
    pub(crate) max: usize,
    /// The label with the most values, and how many it has.
    pub(crate) label: &'static str,
    pub(crate) values: usize,
    /// One of its values.
    pub(crate) example: String,
}

impl CardinalityLimit {
    pub(crate) fn new(max: usize) -> Self {
        Self { max, sets: Mutex::default(), sets_are_full: AtomicBool::new(false), warned: AtomicBool::new(false) }
    }

    fn sets(&self) -> MutexGuard<'_, Sets> {
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(all(test, feature = "pushgateway"))]
    pub(crate) fn lock(&self) -> impl Sized {
        self.sets()
    }

    pub(crate) fn stage(&self, stage: LabelId) -> LabelId {
        self.sets().stages.limit(self.max, [stage])[0]
    }

    pub(crate) fn pair(&self, pair: [LabelId; 2]) -> [LabelId; 2] {
        self.sets().pairs.limit(self.max, pair)
    }

    pub(crate) fn set(&self, set: [LabelId; 3]) -> [LabelId; 3] {
        let mut sets = self.sets();
        let limited = sets.triples.limit(self.max, set);
        self.sets_are_full.store(sets.triples.sets.len() >= self.max, Ordering::Relaxed);
        limited
    }

    pub(crate) fn sets_are_full(&self) -> bool {
        self.sets_are_full.load(Ordering::Relaxed)
    }

    /// Returns the label with the most values, on the first call.
    pub(crate) fn overflow_once(&self, labels: &Interner) -> Option<Overflow> {
        if self.warned.swap(true, Ordering::Relaxed) {
            return None;
        }
        let sets = self.sets();
        let values = |at: usize| sets.triples.sets.iter().map(|set| set[at]).collect::<HashSet<_>>();
        let counted = [STAGE_ID, PROFILE, RUN_ID].into_iter().enumerate().map(|(at, label)| (label, values(at)));
        let (label, values) = counted.max_by_key(|(_, values)| values.len())?;
        let example = values.iter().next().map(|value| labels.text(*value)).unwrap_or_default();
        Some(Overflow { max: self.max, label, values: values.len(), example: example.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::series::interner::Role;

    const O: LabelId = LabelId::OVERFLOW;

    #[test]
    fn set_beyond_the_limit_keeps_its_known_prefix() {
        let labels = Interner::new(2_000);
        let label = |text| labels.intern(Role::Stage, text);
        let [a, b, p, q, r1, r2, r3] = ["a", "b", "p", "q", "r1", "r2", "r3"].map(label);
        let limit = CardinalityLimit::new(2);
        assert_eq!(limit.set([a, p, r1]), [a, p, r1]);
        assert!(!limit.sets_are_full());
        assert_eq!(limit.set([a, p, r2]), [a, p, r2]);
        assert!(limit.sets_are_full());
        assert_eq!(limit.set([a, p, r1]), [a, p, r1], "a set within the limit stays");
        assert_eq!(limit.set([a, p, r3]), [a, p, O]);
        assert_eq!(limit.set([a, q, r1]), [a, O, O]);
        assert_eq!(limit.set([b, p, r1]), [O, O, O]);
    }

    #[test]
    fn each_metric_has_its_own_limit() {
        let labels = Interner::new(2_000);
        let [a, b, c, p, q] = ["a", "b", "c", "p", "q"].map(|text| labels.intern(Role::Stage, text));
        let limit = CardinalityLimit::new(2);
        assert_eq!(limit.pair([a, p]), [a, p]);
        assert_eq!(limit.pair([a, q]), [a, q]);
        assert_eq!(limit.pair([a, b]), [a, O]);
        assert_eq!(limit.pair([b, p]), [O, O]);
        assert_eq!([a, b, c].map(|stage| limit.stage(stage)), [a, b, O]);
    }

    #[test]
    fn overflow_names_the_label_with_the_most_values_once() {
        let labels = Interner::new(2_000);
        let limit = CardinalityLimit::new(3);
        for n in 0..3 {
            limit.set([
                labels.intern(Role::Stage, "a"),
                labels.intern(Role::Stage, "p"),
                labels.intern(Role::Stage, &format!("run-{n}")),
            ]);
        }
        let overflow = limit.overflow_once(&labels).unwrap();
        assert_eq!((overflow.label, overflow.values, overflow.max), ("run_id", 3, 3));
        assert!(overflow.example.starts_with("run-"), "{overflow:?}");
        assert_eq!(limit.overflow_once(&labels), None);
    }
}
