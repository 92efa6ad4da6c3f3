//! The durations of the runs of one label set, by bucket and outcome.
//!
//! The histogram, the totals and the failures by reason are computed from one row of bucket counters per outcome, so that
//! they agree in every reading. Durations are integers here, in nanoseconds.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::append_only_map::EntryId;
use super::outcome::{Outcome, Reason};
use crate::histogram::{BucketCounts, Cells, Snapshot};

/// The upper bounds of the buckets, in nanoseconds, and the cells of a native histogram.
#[derive(Debug, Default)]
pub(crate) struct DurationBounds {
    /// The longest duration within each bound that is not negative.
    longest: Box<[u64]>,
    below_zero: usize,
    cells: Option<Arc<Cells>>,
}

impl DurationBounds {
    /// Converts ascending bounds in seconds. `is_native` adds the buckets of a native histogram.
    pub(crate) fn new(seconds: &[f64], is_native: bool) -> Self {
        let below_zero = seconds.partition_point(|bound| *bound < 0.0);
        Self {
            longest: seconds.iter().skip(below_zero).map(|bound| bound_to_nanos(*bound)).collect(),
            below_zero,
            cells: is_native.then(|| Arc::new(Cells::of_zero_and(seconds_of(1), seconds_of(u64::MAX), seconds))),
        }
    }

    pub(super) fn buckets(&self) -> usize {
        self.below_zero + self.longest.len() + 1
    }

    #[inline]
    pub(super) fn bucket(&self, nanos: u64) -> usize {
        self.below_zero + self.longest.partition_point(|longest| *longest < nanos)
    }

    fn counts(&self) -> BucketCounts {
        match &self.cells {
            Some(cells) => BucketCounts::native(Arc::clone(cells)),
            None => BucketCounts::new(self.buckets()),
        }
    }
}

fn seconds_of(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// Returns the largest number of nanoseconds that is not above the bound in seconds, so that a comparison of nanoseconds
/// gives the result of a comparison of seconds.
fn bound_to_nanos(bound: f64) -> u64 {
    let is_within = |nanos: u64| seconds_of(nanos) <= bound;
    let mut nanos = (bound * 1e9) as u64;
    while nanos > 0 && !is_within(nanos) {
        nanos -= 1;
    }
    while nanos < u64::MAX && is_within(nanos + 1) {
        nanos += 1;
    }
    nanos
}

#[derive(Debug)]
#[repr(align(128))] // Threads at different label sets share no cache line.
pub(crate) struct Durations {
    bounds: Arc<DurationBounds>,
    succeeded: BucketCounts,
    /// By reason. A row is allocated at its first failure, since most label sets never fail.
    failed: [OnceLock<BucketCounts>; Reason::COUNT],
    total_nanos: AtomicU64,
    slowest_nanos: AtomicU64,
    /// The position of this label set in the order in which label sets first finished, from 1; zero if none of its runs
    /// finished.
    first_finished: AtomicU64,
}

/// The totals of a histogram at one moment, without its buckets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HistogramTotals {
    pub(crate) succeeded: u64,
    /// By reason.
    pub(crate) failed: [u64; Reason::COUNT],
    pub(crate) total_nanos: u64,
    pub(crate) slowest_nanos: u64,
    pub(crate) first_finished: u64,
}

impl HistogramTotals {
    pub(crate) fn failures(&self) -> u64 {
        self.failed.iter().sum()
    }
}

impl Durations {
    pub(crate) fn new(bounds: Arc<DurationBounds>) -> Self {
        Self {
            succeeded: bounds.counts(),
            failed: [const { OnceLock::new() }; Reason::COUNT],
            bounds,
            total_nanos: AtomicU64::new(0),
            slowest_nanos: AtomicU64::new(0),
            first_finished: AtomicU64::new(0),
        }
    }

    /// Counts a run. `finished` is the number of label sets of which a run has finished.
    #[inline]
    pub(crate) fn add(&self, nanos: u64, outcome: Outcome, finished: &AtomicU64) {
        if self.first_finished.load(Ordering::Relaxed) == 0 {
            self.set_first_finished(finished);
        }
        let row = match outcome {
            Outcome::Success => &self.succeeded,
            Outcome::Failure(reason) => self.failed[reason as usize].get_or_init(|| self.bounds.counts()),
        };
        row.add(self.bounds.bucket(nanos), || seconds_of(nanos), 1);
        self.total_nanos.fetch_add(nanos, Ordering::Relaxed);
        if self.slowest_nanos.load(Ordering::Relaxed) < nanos {
            self.slowest_nanos.fetch_max(nanos, Ordering::Relaxed);
        }
    }

    #[cold]
    fn set_first_finished(&self, finished: &AtomicU64) {
        let order = finished.fetch_add(1, Ordering::Relaxed) + 1;
        let _ = self.first_finished.compare_exchange(0, order, Ordering::Relaxed, Ordering::Relaxed);
    }

    pub(crate) fn totals(&self) -> HistogramTotals {
        self.sum_rows(BucketCounts::total)
    }

    /// Returns the totals and the histogram of one moment: both have the same number of runs.
    pub(crate) fn read(&self) -> (HistogramTotals, Snapshot) {
        let mut snapshot = Snapshot::empty(self.bounds.buckets());
        // Each counter is read once, for the histogram and for the totals.
        let totals = self.sum_rows(|row| snapshot.add_counts(row));
        snapshot.sum = seconds_of(totals.total_nanos);
        (totals, snapshot)
    }

    fn sum_rows(&self, mut sum: impl FnMut(&BucketCounts) -> u64) -> HistogramTotals {
        HistogramTotals {
            succeeded: sum(&self.succeeded),
            failed: self.failed.each_ref().map(|row| row.get().map_or(0, &mut sum)),
            total_nanos: self.total_nanos.load(Ordering::Relaxed),
            slowest_nanos: self.slowest_nanos.load(Ordering::Relaxed),
            first_finished: self.first_finished.load(Ordering::Relaxed),
        }
    }
}

impl std::ops::AddAssign for HistogramTotals {
    fn add_assign(&mut self, other: Self) {
        self.succeeded += other.succeeded;
        self.failed.iter_mut().zip(other.failed).for_each(|(sum, more)| *sum += more);
        self.total_nanos = self.total_nanos.saturating_add(other.total_nanos);
        self.slowest_nanos = self.slowest_nanos.max(other.slowest_nanos);
        // Zero, which means none, wraps to the largest value.
        let earlier = self.first_finished.wrapping_sub(1).min(other.first_finished.wrapping_sub(1));
        self.first_finished = earlier.wrapping_add(1);
    }
}

/// Adds to the totals of an entry.
pub(super) fn add_at(totals: &mut Vec<HistogramTotals>, id: EntryId, more: HistogramTotals) {
    let at = id as usize;
    totals.resize(totals.len().max(at + 1), HistogramTotals::default());
    totals[at] += more;
}

/// Adds empty totals for the entries of which no run has ended.
pub(super) fn padded(totals: Vec<HistogramTotals>) -> impl Iterator<Item = HistogramTotals> {
    totals.into_iter().chain(std::iter::repeat(HistogramTotals::default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `docs/cost.md` has the figures.
    #[test]
    fn memory_of_native_counts_is_bounded() {
        let bounds: Vec<_> = (1..=14).map(f64::from).collect();
        let durations = Durations::new(Arc::new(DurationBounds::new(&bounds, true)));
        let finished = AtomicU64::new(0);
        let add =
            |nanos| allocation_counter::measure(|| durations.add(nanos, Outcome::Success, &finished)).bytes_current;
        assert_eq!(add(1_000_000), 512 + 128, "a page and a line");
        assert_eq!(add(1_000_000) + add(1_000_001), 0);
        let all: i64 = (0..=64).map(|bits| add(u64::MAX.checked_shr(64 - bits).unwrap_or(0))).sum();
        assert!(all > 3_000 && all + 640 + 32 <= 5_400, "{all}");
        let again: i64 = (0..=64).map(|bits| add(u64::MAX.checked_shr(64 - bits).unwrap_or(0))).sum();
        assert_eq!(again, 0);
    }

    /// The count, the totals and the buckets of both kinds are read while threads count.
    #[test]
    fn native_buckets_agree_with_the_totals_in_every_reading() {
        let durations = Durations::new(Arc::new(DurationBounds::new(&[-1.0, 0.0, 1e-6, 1.0, 1e30], true)));
        let (finished, counted) = (AtomicU64::new(0), AtomicU64::new(0));
        let native_count = |snapshot: &Snapshot| {
            let native = snapshot.native.as_ref().unwrap();
            assert_eq!(native.negative, []);
            native.zero_count + native.positive.iter().map(|(_, count)| count).sum::<u64>()
        };
        std::thread::scope(|scope| {
            for reason in [Reason::Error, Reason::Panic] {
                let (durations, finished, counted) = (&durations, &finished, &counted);
                scope.spawn(move || {
                    for n in 0..50_000_u64 {
                        let outcome = if n % 3 == 0 { Outcome::Failure(reason) } else { Outcome::Success };
                        // Zero, and every length.
                        durations.add(u64::MAX.checked_shr((n % 65) as u32).unwrap_or(0), outcome, finished);
                    }
                    counted.fetch_add(1, Ordering::Release);
                });
            }
            let mut is_last = false;
            while !is_last {
                is_last = counted.load(Ordering::Acquire) == 2;
                let (totals, snapshot) = durations.read();
                let count = totals.succeeded + totals.failures();
                assert_eq!(snapshot.counts.iter().sum::<u64>(), count);
                assert_eq!(native_count(&snapshot), count);
            }
        });
        let (totals, snapshot) = durations.read();
        assert_eq!((totals.succeeded + totals.failures(), native_count(&snapshot)), (100_000, 100_000));
        assert_eq!(snapshot.counts[..2], [0, snapshot.native.unwrap().zero_count], "zero alone is within zero");
    }

    fn durations(seconds: &[f64]) -> Durations {
        Durations::new(Arc::new(DurationBounds::new(seconds, false)))
    }

    #[test]
    fn upper_bounds_are_inclusive() {
        let (durations, finished) = (durations(&[-1.0, 0.0, 0.001, 1.0]), AtomicU64::new(4));
        let [error, panic] = [Reason::Error, Reason::Panic].map(Outcome::Failure);
        let success = Outcome::Success;
        let longest = u64::MAX / 2;
        for (nanos, outcome) in
            [(0, success), (1, success), (1_000_000, error), (1_000_001, success), (1_000_002, error), (longest, panic)]
        {
            durations.add(nanos, outcome, &finished);
        }
        assert_eq!(durations.read().1.counts, [0, 1, 2, 2, 1]);
        let total_nanos = 3_000_004 + longest;
        let failed = [2, 1, 0, 0, 0];
        let totals = HistogramTotals { succeeded: 3, failed, total_nanos, slowest_nanos: longest, first_finished: 5 };
        assert_eq!(totals.failures(), 3);
        assert_eq!((durations.totals(), durations.read().0), (totals, totals));
        assert_eq!(durations.read().1.sum, total_nanos as f64 / 1e9);
    }

    /// The product of the bound and 1e9 is rounded down below, or up to, the number of nanoseconds.
    #[test]
    fn bound_is_exact_where_the_product_is_rounded() {
        for (bound, nanos) in [(1.5e-8, 15), (2.8999999999999998e-8, 28), (1e-20, 0), (1.0, 1_000_000_000)] {
            assert_eq!(bound_to_nanos(bound), nanos, "{bound}");
        }
        assert_eq!(bound_to_nanos(f64::INFINITY), u64::MAX);
    }

    #[test]
    fn buckets_may_exceed_a_cache_line() {
        let bounds: Vec<_> = (1..=40).map(f64::from).collect();
        let (durations, finished) = (durations(&bounds), AtomicU64::new(0));
        for second in 0..=40 {
            let outcome = if second % 2 == 0 { Outcome::Failure(Reason::Error) } else { Outcome::Success };
            durations.add(second * 1_000_000_000 + 1, outcome, &finished);
        }
        assert_eq!(durations.read().1.counts, [1; 41]);
        assert_eq!((durations.totals().succeeded, durations.totals().failures()), (20, 21));
    }

    #[test]
    fn sum_keeps_the_earlier_first_finish() {
        let order = |first_finished| HistogramTotals { first_finished, ..HistogramTotals::default() };
        for (a, b, first) in [(0, 0, 0), (0, 3, 3), (3, 0, 3), (7, 3, 3)] {
            let mut sum = order(a);
            sum += order(b);
            assert_eq!(sum.first_finished, first);
        }
    }

    proptest! {
        #[test]
        fn nanoseconds_are_in_the_bucket_of_their_seconds(
            mut seconds in prop::collection::vec(prop_oneof![-1e3..1e3_f64, 0.0..1e-6_f64, 0.0..1e12_f64], 1..20),
            nanos in prop_oneof![any::<u64>(), 0..10_000_000_000_u64, 0..2_000_u64],
            near in any::<prop::sample::Index>(),
            off in -2..=2_i64,
        ) {
            seconds.sort_by(f64::total_cmp);
            let at_bound = (seconds[near.index(seconds.len())] * 1e9) as u64;
            let bounds = Arc::new(DurationBounds::new(&seconds, true));
            for nanos in [nanos, at_bound.saturating_add_signed(off)] {
                let expected = seconds.partition_point(|bound| *bound < nanos as f64 / 1e9);
                prop_assert_eq!(bounds.bucket(nanos), expected);
                // With native buckets it is the same, and they have the bucket of the seconds.
                let durations = Durations::new(Arc::clone(&bounds));
                durations.add(nanos, Outcome::Success, &AtomicU64::new(0));
                let snapshot = durations.read().1;
                prop_assert_eq!(snapshot.counts.iter().position(|count| *count == 1), Some(expected));
                let native = snapshot.native.unwrap();
                let exponential = (nanos as f64 / 1e9).log2() * 8.0;
                match native.positive[..] {
                    [] => prop_assert_eq!((native.zero_count, nanos), (1, 0)),
                    [(index, 1)] => prop_assert!((exponential - 1e-9..exponential + 1.0 + 1e-9).contains(&f64::from(index))),
                    _ => prop_assert!(false, "{:?}", native),
                }
            }
        }
    }
}
