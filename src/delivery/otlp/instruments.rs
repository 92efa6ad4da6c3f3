//! The instruments of an application's meter: counters and gauges that callbacks read, and histograms.
//!
//! The SDK holds a lock while it collects, and takes the same lock to build an instrument. A callback of the
//! application that registers a metric would deadlock, and all other threads would wait for the lock of the registry
//! that it holds. So instruments are built on a thread of their own, without a lock of this crate, and a thread that
//! registers a metric waits only briefly. Samples that are recorded before are kept.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;

use super::series::{Description, OtlpFamily, Series, lock, seconds_of, ucum_code};
use crate::diagnostics::subscriber::without_subscriber;
use crate::schema::InstrumentKind;

/// Length of the longest name that the SDK accepts.
const MAX_NAME: usize = 255;

/// How long the registration of a metric waits for its instrument. Building it takes far less, unless the SDK collects.
const BUILD_TIMEOUT: Duration = Duration::from_millis(100);

/// Builds instruments of a meter and waits for them.
pub(crate) struct Instruments {
    meter: Meter,
    queue: Mutex<Queue>,
    is_waiting: AtomicBool,
    built: Condvar,
}

#[derive(Default)]
struct Queue {
    families: Vec<(Arc<OtlpFamily>, Description)>,
    /// Start of the thread that builds the instruments.
    building_since: Option<Instant>,
}

impl Instruments {
    pub(super) fn new(meter: Meter) -> Self {
        Self { meter, queue: Mutex::default(), is_waiting: AtomicBool::new(false), built: Condvar::new() }
    }

    /// Returns a name that the SDK accepts: an instrument with another name does nothing.
    pub(super) fn name(cleaned: &str) -> String {
        let mut name = cleaned.replace(':', "_");
        if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
            name.insert_str(0, "m_");
        }
        name.truncate(MAX_NAME);
        name
    }

    /// Adds a new metric to the queue.
    pub(super) fn add(&self, family: Arc<OtlpFamily>, description: Description) {
        lock(&self.queue).families.push((family, description));
        self.is_waiting.store(true, Ordering::Release);
    }

    /// Builds the instruments in the queue on another thread and waits for them, at most [`BUILD_TIMEOUT`]. The caller
    /// must hold no lock.
    pub(super) fn build_waiting(self: &Arc<Self>) {
        self.await_built(|building_since| building_since + BUILD_TIMEOUT);
    }

    /// Builds the instruments in the queue on another thread and waits for them until this time: the collection after
    /// that has the metrics registered before. The caller must hold no lock.
    pub(super) fn build_until(self: &Arc<Self>, end: Instant) {
        self.await_built(|_| end);
    }

    /// `end` takes the start of the thread that builds the instruments, and returns the end of the wait for it.
    fn await_built(self: &Arc<Self>, end: impl FnOnce(Instant) -> Instant) {
        if !self.is_waiting.load(Ordering::Acquire) {
            return;
        }
        let mut queue = lock(&self.queue);
        let since = match queue.building_since {
            Some(since) => since,
            None => {
                let instruments = Arc::clone(self);
                let thread = thread::Builder::new().name("metrics-instruments".to_owned());
                if thread.spawn(move || instruments.build()).is_err() {
                    // The next registration tries again.
                    return;
                }
                *queue.building_since.insert(Instant::now())
            }
        };
        let timeout = end(since).saturating_duration_since(Instant::now());
        let is_building = |queue: &mut Queue| queue.building_since.is_some();
        drop(self.built.wait_timeout_while(queue, timeout, is_building).unwrap_or_else(PoisonError::into_inner));
    }

    /// Builds the instruments in the queue on the current thread.
    pub(super) fn build(&self) {
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
                // A panic of the SDK does not prevent the other instruments.
                let _ = catch_unwind(AssertUnwindSafe(|| without_subscriber(|| self.build_one(&family, &description))));
            }
        }
    }

    fn build_one(&self, family: &Arc<OtlpFamily>, (unit, help): &Description) {
        let (name, unit, help) = (family.name.clone(), unit.map_or("", ucum_code), help.to_string());
        let read = Arc::clone(family);
        match family.kind {
            InstrumentKind::Counter => {
                let read = move |each: &mut dyn FnMut(u64, &[KeyValue])| {
                    if let Series::Counters(sets) = &mut *lock(&read.series) {
                        sets.for_each(|attributes, counter| each(counter.total(), attributes));
                    }
                };
                let builder = self.meter.u64_observable_counter(name).with_unit(unit).with_description(help);
                builder.with_callback(move |observer| read(&mut |value, at| observer.observe(value, at))).build();
            }
            InstrumentKind::Seconds => {
                let read = move |each: &mut dyn FnMut(f64, &[KeyValue])| {
                    if let Series::Seconds(sets) = &mut *lock(&read.series) {
                        sets.for_each(|attributes, counter| each(seconds_of(counter.total()), attributes));
                    }
                };
                let builder = self.meter.f64_observable_counter(name).with_unit(unit).with_description(help);
                builder.with_callback(move |observer| read(&mut |value, at| observer.observe(value, at))).build();
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
                builder.with_callback(move |observer| read(&mut |value, at| observer.observe(value, at))).build();
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
