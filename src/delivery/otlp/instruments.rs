//! The instruments of an application's meter: counters and gauges that callbacks read, histograms that are bound to their
//! attributes.
//!
//! The SDK holds a lock while it collects, and takes it to build an instrument. A callback of the application that
//! registers a metric would wait for itself, and all other threads for the lock of the registry that it holds. So
//! instruments are built on a thread of their own, with no lock of this crate held, and a thread that registers a metric
//! waits for that for a moment only. What is recorded until then is kept.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use opentelemetry::KeyValue;
use opentelemetry::metrics::{BoundHistogram, Histogram, Meter};

use crate::delivery::otlp::families::{Description, OtlpFamily, Series, lock};
use crate::delivery::otlp::{silently, ucum};
use crate::schema::InstrumentKind;

/// What the SDK allows in a name.
const MAX_NAME: usize = 255;

/// How long the registration of a metric waits for its instrument. It takes far less, unless the SDK collects.
const PATIENCE: Duration = Duration::from_millis(100);

pub(crate) struct Instruments {
    meter: Meter,
    queue: Mutex<Queue>,
    is_waiting: AtomicBool,
    built: Condvar,
}

#[derive(Default)]
struct Queue {
    families: Vec<(Arc<OtlpFamily>, Description)>,
    /// Since when a thread builds them.
    building_since: Option<Instant>,
}

impl Instruments {
    pub(crate) fn new(meter: Meter) -> Self {
        Self { meter, queue: Mutex::default(), is_waiting: AtomicBool::new(false), built: Condvar::new() }
    }

    /// Returns a name that the SDK takes: an instrument of any other name does nothing.
    pub(crate) fn name(cleaned: &str) -> String {
        let mut name = cleaned.replace(':', "_");
        if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
            name.insert_str(0, "m_");
        }
        name.truncate(MAX_NAME);
        name
    }

    /// Puts a new metric in the queue.
    pub(crate) fn add(&self, family: Arc<OtlpFamily>, description: Description) {
        lock(&self.queue).families.push((family, description));
        self.is_waiting.store(true, Ordering::Release);
    }

    /// Has the instruments in the queue built, and waits for them unless the SDK is at work. To be called without a lock.
    pub(crate) fn build_waiting(self: &Arc<Self>) {
        if !self.is_waiting.load(Ordering::Acquire) {
            return;
        }
        let mut queue = lock(&self.queue);
        let since = match queue.building_since {
            Some(since) => since,
            None => {
                let instruments = Arc::clone(self);
                let thread = thread::Builder::new().name("stage-metrics-instruments".to_owned());
                if thread.spawn(move || instruments.build()).is_err() {
                    // The next registration tries again.
                    return;
                }
                *queue.building_since.insert(Instant::now())
            }
        };
        let patience = (since + PATIENCE).saturating_duration_since(Instant::now());
        let is_building = |queue: &mut Queue| queue.building_since.is_some();
        drop(self.built.wait_timeout_while(queue, patience, is_building).unwrap_or_else(PoisonError::into_inner));
    }

    /// Builds the instruments in the queue on this thread.
    pub(crate) fn build(&self) {
        loop {
            let families = {
                let mut queue = lock(&self.queue);
                if queue.families.is_empty() {
                    queue.building_since = None;
                    self.is_waiting.store(false, Ordering::Relaxed);
                    self.built.notify_all();
                    return;
                }
                mem::take(&mut queue.families)
            };
            for (family, description) in families {
                // After a panic of the SDK the others are built still.
                let _ = catch_unwind(AssertUnwindSafe(|| silently(|| self.build_one(&family, &description))));
            }
        }
    }

    fn build_one(&self, family: &Arc<OtlpFamily>, (unit, help): &Description) {
        let (name, unit, help) = (family.name.clone(), unit.map_or("", ucum), help.to_string());
        let read = Arc::clone(family);
        match family.kind {
            InstrumentKind::Counter => {
                let read = move |each: &mut dyn FnMut(u64, &[KeyValue])| {
                    if let Series::Counters(sets) = &mut *lock(&read.series) {
                        sets.for_each(|attributes, counter| each(counter.total(), attributes));
                    }
                };
                let builder = self.meter.u64_observable_counter(name).with_unit(unit).with_description(help);
                builder.with_callback(move |seen| read(&mut |value, at| seen.observe(value, at))).build();
            }
            InstrumentKind::Gauge => {
                let read = move |each: &mut dyn FnMut(f64, &[KeyValue])| {
                    if let Series::Gauges(sets) = &mut *lock(&read.series) {
                        sets.for_each(|attributes, gauge| {
                            each(f64::from_bits(gauge.load(Ordering::Relaxed)), attributes)
                        });
                    }
                };
                let builder = self.meter.f64_observable_gauge(name).with_unit(unit).with_description(help);
                builder.with_callback(move |seen| read(&mut |value, at| seen.observe(value, at))).build();
            }
            InstrumentKind::Histogram => {
                let builder = self.meter.f64_histogram(name).with_unit(unit).with_description(help);
                let instrument = builder.with_boundaries(family.bounds.to_vec()).build();
                if let Series::Instrument(histograms) = &mut *lock(&family.series) {
                    histograms.bind_all(instrument);
                }
            }
        }
    }
}

/// The histograms of one metric.
#[derive(Default)]
pub(crate) struct InstrumentHistograms {
    /// `None` until it is built.
    instrument: Option<Histogram<f64>>,
    /// Those that wait for it.
    unbound: Vec<(Vec<KeyValue>, Arc<InstrumentHistogram>)>,
}

impl InstrumentHistograms {
    /// Adds the histogram of a label set. The SDK adds up those with equal attributes, and those beyond its limit.
    pub(crate) fn add(&mut self, attributes: Vec<KeyValue>, bounds: Arc<[f64]>) -> Arc<InstrumentHistogram> {
        let new = Arc::new(InstrumentHistogram { bound: OnceLock::new(), early: Mutex::new(Early::new(bounds)) });
        match &self.instrument {
            Some(instrument) => new.bind(instrument, &attributes),
            None => self.unbound.push((attributes, Arc::clone(&new))),
        }
        new
    }

    fn bind_all(&mut self, instrument: Histogram<f64>) {
        for (attributes, histogram) in self.unbound.drain(..) {
            histogram.bind(&instrument, &attributes);
        }
        self.instrument = Some(instrument);
    }
}

/// A histogram that the SDK keeps. Until its instrument is built, it keeps the samples itself.
pub(crate) struct InstrumentHistogram {
    bound: OnceLock<BoundHistogram<f64>>,
    early: Mutex<Early>,
}

impl InstrumentHistogram {
    pub(crate) fn record_many(&self, value: f64, count: usize) {
        match self.bound.get() {
            Some(bound) => (0..count).for_each(|_| bound.record(value)),
            None => self.record_early(value, count),
        }
    }

    #[cold]
    fn record_early(&self, value: f64, count: usize) {
        let mut early = lock(&self.early);
        // It may have been bound meanwhile, which takes the lock too.
        match self.bound.get() {
            Some(bound) => (0..count).for_each(|_| bound.record(value)),
            None => early.add(value, count),
        }
    }

    fn bind(&self, instrument: &Histogram<f64>, attributes: &[KeyValue]) {
        let mut early = lock(&self.early);
        let bound = self.bound.get_or_init(|| silently(|| instrument.bind(attributes)));
        early.take(|value| bound.record(value));
    }
}

/// Samples by bucket: how many, and their sum.
struct Early {
    bounds: Arc<[f64]>,
    buckets: Vec<(usize, f64)>,
}

impl Early {
    fn new(bounds: Arc<[f64]>) -> Self {
        Self { bounds, buckets: Vec::new() }
    }

    fn add(&mut self, value: f64, count: usize) {
        self.buckets.resize(self.bounds.len() + 1, (0, 0.0));
        let at = self.bounds.partition_point(|bound| *bound < value);
        if let Some((samples, sum)) = self.buckets.get_mut(at) {
            *samples += count;
            *sum += value * count as f64;
        }
    }

    /// Calls `record` with as many samples of the same buckets and the same sum: each is the mean of its bucket.
    fn take(&mut self, mut record: impl FnMut(f64)) {
        for (at, (samples, sum)) in mem::take(&mut self.buckets).into_iter().enumerate() {
            // Rounding must not move the mean over a bound.
            let upper = self.bounds.get(at).copied().unwrap_or(f64::MAX);
            let lower =
                at.checked_sub(1).and_then(|below| self.bounds.get(below)).map_or(f64::MIN, |bound| bound.next_up());
            (0..samples).for_each(|_| record((sum / samples as f64).clamp(lower, upper)));
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::delivery::otlp::instruments::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn samples_kept_for_later_stay_in_their_buckets(
            samples in prop::collection::vec((prop_oneof![-2.0..3.0_f64, Just(1.0), Just(0.5)], 1..4_usize), 0..40),
        ) {
            let bounds = [0.5, 1.0];
            let bucket = |value: f64| bounds.partition_point(|bound| *bound < value);
            let (mut early, mut expected, mut sum) = (Early::new(bounds.into()), [0; 3], 0.0);
            for (value, count) in samples {
                early.add(value, count);
                expected[bucket(value)] += count;
                sum += value * count as f64;
            }
            let (mut found, mut found_sum) = ([0; 3], 0.0);
            early.take(|value| {
                found[bucket(value)] += 1;
                found_sum += value;
            });
            prop_assert_eq!(found, expected);
            prop_assert!((found_sum - sum).abs() < 1e-9, "{} {}", found_sum, sum);
            early.take(|value| panic!("{value} once more"));
        }
    }
}
