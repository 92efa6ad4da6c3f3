//! A histogram that counts each sample into its bucket when it is recorded.
//!
//! Two atomic updates a sample are exact and take no memory. Raw samples take memory until they are read, and `AtomicBucket`
//! of metrics-util 0.20 loses samples that a thread writes during a read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use metrics::HistogramFn;

use super::{BucketCounts, Cells, Snapshot};

/// Counts by upper bound or by cell, and the sum. Aligned, so that threads that record into different histograms share no cache line.
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

    fn add(&self, value: f64, count: u64) {
        // Upper bounds are inclusive. NaN is below no bound.
        let bucket =
            if value.is_nan() { self.bounds.len() } else { self.bounds.partition_point(|bound| *bound < value) };
        if count == 1 {
            // A reading that has the count has the sum too.
            self.add_to_sum(value);
            fence(Ordering::Release);
            self.counts.add(bucket, || value, 1);
            return;
        }
        let counted = self.counts.add(bucket, || value, count);
        // The product of zero and infinity would be NaN.
        if counted > 0 {
            self.add_to_sum(value * counted as f64);
        }
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
        snapshot.sum = f64::from_bits(self.sum.load(Ordering::Relaxed));
        snapshot
    }
}

impl HistogramFn for BucketHistogram {
    fn record(&self, value: f64) {
        self.add(value, 1);
    }

    fn record_many(&self, value: f64, count: usize) {
        self.add(value, count as u64);
    }
}
