//! The limit on label sets: which sets a metric may have, and where the others are counted.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::schema::{PROFILE, RUN_ID, STAGE_ID};
use crate::series::interner::{Interner, LabelId};

/// LabelId sets a metric may have unless `MetricsLayerBuilder::with_max_series` says otherwise.
pub const DEFAULT_MAX_SERIES: usize = 2_000;

/// The highest limit that can be asked for: each of so many sets may bring a label value of its own, and there is
/// room for [`MAX_LABELS`](crate::series::interner::MAX_LABELS).
#[cfg_attr(not(feature = "pushgateway"), allow(dead_code))]
pub(crate) const MAX_MAX_SERIES: usize = 100_000;

/// Decides, metric by metric, whether a new label set gets a series of its own.
///
/// When there are `max` a new one is counted with `_overflow` for its run id where its stage and profile are known in
/// that metric, else for its profile too where its stage is, else for all. That keeps the number of series bounded
/// and every total exact.
pub(crate) struct CardinalityLimit {
    max: usize,
    levels: Mutex<Levels>,
    sets_are_full: AtomicBool,
    warned: AtomicBool,
}

/// What the sets that were admitted have, one for each number of labels.
#[derive(Default)]
struct Levels {
    stages: Level<1>,
    pairs: Level<2>,
    sets: Level<3>,
}

struct Level<const N: usize> {
    admitted: HashSet<[LabelId; N]>,
    /// The beginnings of the admitted sets, filled up with `NONE`.
    known: HashSet<[LabelId; N]>,
}

impl<const N: usize> Default for Level<N> {
    fn default() -> Self {
        Self { admitted: HashSet::new(), known: HashSet::new() }
    }
}

impl<const N: usize> Level<N> {
    fn admit(&mut self, max: usize, set: [LabelId; N]) -> [LabelId; N] {
        if self.admitted.contains(&set) {
            return set;
        }
        if self.admitted.len() < max {
            self.admitted.insert(set);
            self.known.extend((1..N).map(|kept| beginning(set, kept, LabelId::NONE)));
            return set;
        }
        let kept = (1..N).rev().find(|kept| self.known.contains(&beginning(set, *kept, LabelId::NONE)));
        beginning(set, kept.unwrap_or(0), LabelId::OVERFLOW)
    }
}

fn beginning<const N: usize>(mut set: [LabelId; N], kept: usize, rest: LabelId) -> [LabelId; N] {
    set[kept..].fill(rest);
    set
}

/// What the warning about the first overflow says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Overflow {
    pub(crate) max: usize,
    /// The label with the most values, and how many it has.
    pub(crate) label: &'static str,
    pub(crate) values: usize,
    /// One of them.
    pub(crate) example: String,
}

impl CardinalityLimit {
    pub(crate) fn new(max: usize) -> Self {
        Self { max, levels: Mutex::default(), sets_are_full: AtomicBool::new(false), warned: AtomicBool::new(false) }
    }

    fn levels(&self) -> MutexGuard<'_, Levels> {
        self.levels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(all(test, feature = "pushgateway"))]
    pub(crate) fn lock(&self) -> impl Sized {
        self.levels()
    }

    pub(crate) fn stage(&self, stage: LabelId) -> LabelId {
        self.levels().stages.admit(self.max, [stage])[0]
    }

    pub(crate) fn pair(&self, pair: [LabelId; 2]) -> [LabelId; 2] {
        self.levels().pairs.admit(self.max, pair)
    }

    pub(crate) fn set(&self, set: [LabelId; 3]) -> [LabelId; 3] {
        let mut levels = self.levels();
        let admitted = levels.sets.admit(self.max, set);
        self.sets_are_full.store(levels.sets.admitted.len() >= self.max, Ordering::Relaxed);
        admitted
    }

    pub(crate) fn sets_are_full(&self) -> bool {
        self.sets_are_full.load(Ordering::Relaxed)
    }

    /// Which label is to blame; to the first who asks.
    pub(crate) fn overflow_once(&self, labels: &Interner) -> Option<Overflow> {
        if self.warned.swap(true, Ordering::Relaxed) {
            return None;
        }
        let levels = self.levels();
        let values = |at: usize| levels.sets.admitted.iter().map(|set| set[at]).collect::<HashSet<_>>();
        let counted = [STAGE_ID, PROFILE, RUN_ID].into_iter().enumerate().map(|(at, label)| (label, values(at)));
        let (label, values) = counted.max_by_key(|(_, values)| values.len())?;
        let example = values.iter().next().map(|value| labels.text(*value)).unwrap_or_default();
        Some(Overflow { max: self.max, label, values: values.len(), example: example.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use crate::series::cardinality::*;
    use crate::series::interner::Role;

    const O: LabelId = LabelId::OVERFLOW;

    #[test]
    fn beyond_the_limit_a_set_keeps_what_the_metric_knows_of_it() {
        let labels = Interner::new(2_000);
        let label = |text| labels.intern(Role::Stage, text);
        let [a, b, p, q, r1, r2, r3] = ["a", "b", "p", "q", "r1", "r2", "r3"].map(label);
        let admission = CardinalityLimit::new(2);
        assert_eq!(admission.set([a, p, r1]), [a, p, r1]);
        assert!(!admission.sets_are_full());
        assert_eq!(admission.set([a, p, r2]), [a, p, r2]);
        assert!(admission.sets_are_full());
        assert_eq!(admission.set([a, p, r1]), [a, p, r1], "a known set stays");
        assert_eq!(admission.set([a, p, r3]), [a, p, O]);
        assert_eq!(admission.set([a, q, r1]), [a, O, O]);
        assert_eq!(admission.set([b, p, r1]), [O, O, O]);
    }

    #[test]
    fn each_metric_has_its_own_limit() {
        let labels = Interner::new(2_000);
        let [a, b, c, p, q] = ["a", "b", "c", "p", "q"].map(|text| labels.intern(Role::Stage, text));
        let admission = CardinalityLimit::new(2);
        assert_eq!(admission.pair([a, p]), [a, p]);
        assert_eq!(admission.pair([a, q]), [a, q]);
        assert_eq!(admission.pair([a, b]), [a, O]);
        assert_eq!(admission.pair([b, p]), [O, O]);
        assert_eq!([a, b, c].map(|stage| admission.stage(stage)), [a, b, O]);
    }

    #[test]
    fn the_label_with_the_most_values_is_named_once() {
        let labels = Interner::new(2_000);
        let admission = CardinalityLimit::new(3);
        for n in 0..3 {
            admission.set([
                labels.intern(Role::Stage, "a"),
                labels.intern(Role::Stage, "p"),
                labels.intern(Role::Stage, &format!("run-{n}")),
            ]);
        }
        let overflow = admission.overflow_once(&labels).unwrap();
        assert_eq!((overflow.label, overflow.values, overflow.max), ("run_id", 3, 3));
        assert!(overflow.example.starts_with("run-"), "{overflow:?}");
        assert_eq!(admission.overflow_once(&labels), None);
    }
}
