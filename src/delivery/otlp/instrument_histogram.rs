//! Histograms of the application's meter. Each is bound to its attributes once its instrument is built.

use std::collections::BTreeMap;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use opentelemetry::KeyValue;
use opentelemetry::metrics::{BoundHistogram, Histogram};

use crate::diagnostics::subscriber::without_subscriber;
use crate::histogram::Cells;

/// The histograms of one metric.
#[derive(Default)]
pub(super) struct InstrumentHistograms {
    /// `None` until the instrument is built.
    instrument: Option<Histogram<f64>>,
    /// Histograms that wait for the instrument.
    unbound: Vec<(Vec<KeyValue>, Arc<InstrumentHistogram>)>,
}

impl InstrumentHistograms {
    /// Adds the histogram of a label set. The SDK adds up histograms with equal attributes, and those beyond its limit.
    pub(super) fn add(&mut self, attributes: Vec<KeyValue>, bounds: Arc<[f64]>) -> Arc<InstrumentHistogram> {
        let new =
            Arc::new(InstrumentHistogram { bound: OnceLock::new(), early: Mutex::new(EarlySamples::new(bounds)) });
        match &self.instrument {
            Some(instrument) => new.bind(instrument, &attributes),
            None => self.unbound.push((attributes, Arc::clone(&new))),
        }
        new
    }

    /// Binds all histograms to the instrument, which is built now.
    pub(super) fn bind_all(&mut self, instrument: Histogram<f64>) {
        for (attributes, histogram) in self.unbound.drain(..) {
            histogram.bind(&instrument, &attributes);
        }
        self.instrument = Some(instrument);
    }
}

/// A histogram of the SDK. It keeps the samples until its instrument is built.
pub(super) struct InstrumentHistogram {
    bound: OnceLock<BoundHistogram<f64>>,
    early: Mutex<EarlySamples>,
}

impl InstrumentHistogram {
    pub(super) fn record_many(&self, value: f64, count: usize) {
        match self.bound.get() {
            Some(bound) => (0..count).for_each(|_| bound.record(value)),
            None => self.record_early(value, count),
        }
    }

    #[cold]
    fn record_early(&self, value: f64, count: usize) {
        let mut early = self.early();
        // `bind` takes the lock too, and may have run since.
        match self.bound.get() {
            Some(bound) => (0..count).for_each(|_| bound.record(value)),
            None => early.add(value, count),
        }
    }

    fn bind(&self, instrument: &Histogram<f64>, attributes: &[KeyValue]) {
        let mut early = self.early();
        let bound = self.bound.get_or_init(|| without_subscriber(|| instrument.bind(attributes)));
        early.take(|value| bound.record(value));
    }

    fn early(&self) -> MutexGuard<'_, EarlySamples> {
        self.early.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Samples before the instrument is built, by cell: a view of the provider may make the histogram an exponential one.
struct EarlySamples {
    bounds: Arc<[f64]>,
    cells: BTreeMap<usize, EarlyCell>,
}

struct EarlyCell {
    count: usize,
    sum: f64,
    min: f64,
    max: f64,
}

impl EarlySamples {
    fn new(bounds: Arc<[f64]>) -> Self {
        Self { bounds, cells: BTreeMap::new() }
    }

    fn add(&mut self, value: f64, count: usize) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        let cell = Cells::new(&self.bounds).of(value, bucket);
        let new = EarlyCell { count: 0, sum: 0.0, min: value, max: value };
        let cell = self.cells.entry(cell).or_insert(new);
        cell.count = cell.count.saturating_add(count);
        cell.sum += value * count as f64;
        cell.min = cell.min.min(value);
        cell.max = cell.max.max(value);
    }

    /// Calls `record` for each sample with the mean of its cell, which keeps the buckets of both kinds and the sum.
    fn take(&mut self, mut record: impl FnMut(f64)) {
        for EarlyCell { count, sum, min, max } in mem::take(&mut self.cells).into_values() {
            // Rounding must not move the mean beyond a bound.
            (0..count).for_each(|_| record((sum / count as f64).clamp(min, max)));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn early_samples_keep_their_buckets_and_their_sum(
            samples in prop::collection::vec((prop_oneof![-2.0..3.0_f64, Just(1.0), Just(0.5)], 1..4_usize), 0..40),
        ) {
            let bounds = [0.5, 1.0];
            let bucket = |value: f64| bounds.partition_point(|bound| *bound < value);
            let cells = Cells::new(&bounds);
            let (mut early, mut expected, mut sum) = (EarlySamples::new(bounds.into()), [0; 3], 0.0);
            let mut expected_cells = BTreeMap::<_, usize>::new();
            for (value, count) in samples {
                early.add(value, count);
                expected[bucket(value)] += count;
                *expected_cells.entry(cells.of(value, bucket(value))).or_default() += count;
                sum += value * count as f64;
            }
            let (mut counts, mut counts_by_cell, mut recorded_sum) = ([0; 3], BTreeMap::new(), 0.0);
            early.take(|value| {
                counts[bucket(value)] += 1;
                *counts_by_cell.entry(cells.of(value, bucket(value))).or_default() += 1;
                recorded_sum += value;
            });
            prop_assert_eq!(counts, expected);
            prop_assert_eq!(counts_by_cell, expected_cells);
            prop_assert!((recorded_sum - sum).abs() < 1e-9, "{} {}", recorded_sum, sum);
            early.take(|value| panic!("{value} once more"));
        }
    }
}
