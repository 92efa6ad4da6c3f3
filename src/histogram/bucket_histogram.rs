//! A histogram that counts each sample into its bucket when it is recorded.
//!
//! Two atomic updates a sample are exact and take no memory. Raw samples take memory until they are read, and `AtomicBucket`
//! of metrics-util 0.20 loses samples that a thread writes during a read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use metrics::HistogramFn;

use super::{BucketCounts, Cells, Snapshot};

/// Counts by upper bound or by cell, and the sum. Aligned, so that threads that record into different histograms share no cache
/// line.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct BucketHistogram {
    /// Ascending.
    bounds: Arc<[f64]>,
    counts: BucketCounts,
    /// Bits of an `f64`.
    sum: AtomicU64,
}

impl BucketHistogram {
    pub(crate) fn new(bounds: Arc<[f64]>) -> Self {
        Self::with_counts(BucketCounts::new(bounds.len() + 1), bounds)
    }

    /// Creates a histogram that has native buckets too. The cells are those of the bounds.
    pub(crate) fn native(bounds: Arc<[f64]>, cells: Arc<Cells>) -> Self {
        Self::with_counts(BucketCounts::native(cells), bounds)
    }

    fn with_counts(counts: BucketCounts, bounds: Arc<[f64]>) -> Self {
        Self { bounds, counts, sum: AtomicU64::new(0.0_f64.to_bits()) }
    }

    /// Upper bounds are inclusive. NaN is below no bound.
    fn bucket(&self, value: f64) -> usize {
        if value.is_nan() { self.bounds.len() } else { self.bounds.partition_point(|bound| *bound < value) }
    }

    fn add_to_sum(&self, added: f64) {
        let mut sum = self.sum.load(Ordering::Relaxed);
        while let Err(other) = self.sum.compare_exchange_weak(
            sum,
            (f64::from_bits(sum) + added).to_bits(),
            Ordering::Relaxed,
            Ordering::Relaxed,
        ) {
            sum = other;
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::empty(self.bounds.len() + 1);
        snapshot.add_counts(&self.counts);
        fence(Ordering::Acquire);
        // The counts make it NaN where one of them is of no number.
        snapshot.sum += f64::from_bits(self.sum.load(Ordering::Relaxed));
        snapshot
    }
}

impl HistogramFn for BucketHistogram {
    /// A reading that has the count has the sum too.
    fn record(&self, value: f64) {
        self.add_to_sum(value);
        fence(Ordering::Release);
        self.counts.add(self.bucket(value), || value, 1);
    }

    /// The counter limits the number of samples, so their sum follows. A reading in between gets it with the next count.
    fn record_many(&self, value: f64, count: usize) {
        if count == 1 {
            return self.record(value);
        }
        let counted = self.counts.add(self.bucket(value), || value, count as u64);
        // The product of zero and infinity would be NaN.
        if counted > 0 {
            self.add_to_sum(value * counted as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_between_the_count_and_the_sum_of_no_number_has_no_sum() {
        let histogram = BucketHistogram::native(Arc::from([1.0]), Arc::new(Cells::new(&[1.0])));
        histogram.record(0.5);
        histogram.counts.add(histogram.bucket(f64::NAN), || f64::NAN, 2);
        let snapshot = histogram.snapshot();
        assert_eq!(snapshot.counts, [1, 2]);
        assert!(snapshot.sum.is_nan());
    }
}
