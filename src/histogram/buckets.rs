//! The counts of the buckets of a histogram.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters that share no cache line with those of another histogram.
#[derive(Debug)]
pub(crate) struct BucketCounts(Box<[Line]>);

#[derive(Debug, Default)]
#[repr(align(128))] // Two cache lines, which are fetched together.
struct Line([AtomicU64; COUNTS_PER_LINE]);

const COUNTS_PER_LINE: usize = 16;

impl BucketCounts {
    pub(crate) fn new(counts: usize) -> Self {
        Self((0..counts.div_ceil(COUNTS_PER_LINE)).map(|_| Line::default()).collect())
    }

    #[inline]
    pub(crate) fn add(&self, at: usize, count: u64) {
        if let Some(line) = self.0.get(at / COUNTS_PER_LINE) {
            line.0[at % COUNTS_PER_LINE].fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Iterates over all counts, followed by zeros up to the end of a cache line.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u64> {
        self.0.iter().flat_map(|line| &line.0).map(|count| count.load(Ordering::Relaxed))
    }
}

/// A histogram at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Snapshot {
    /// One count for each bound, not cumulative, and one for samples above all bounds.
    pub(crate) counts: Vec<u64>,
    pub(crate) sum: f64,
}

impl std::ops::AddAssign for Snapshot {
    fn add_assign(&mut self, other: Self) {
        self.counts.iter_mut().zip(other.counts).for_each(|(sum, count)| *sum += count);
        self.sum += other.sum;
    }
}
