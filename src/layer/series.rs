//! Label set -> metric handles, found by the numbers of their labels, and what the run's stages add up to.
//!
//! Three tables, one per set of labels: stages, pairs of stage and profile, and full sets. What shows only the latest
//! state (last duration, last success, totals) is kept here in atomics and given to the recorder when someone is
//! about to look, unless nobody says when that is. Handles are registered before a table's lock is taken: that runs
//! the recorder's code.

#[cfg(feature = "trace-id")]
use std::sync::atomic::AtomicBool;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};

use super::admission::{Admission, Overflow};
use super::index::{InsertOnly, Number, mix};
use super::labels::{Label, Labels};
use super::outcome::{Outcome, Reason};
use super::sink::{Sink, outward};
#[cfg(feature = "trace-id")]
use super::trace_id::TraceId;
use crate::{schema, unix_time};

/// A stage by its id: `quant_stage_total`, and the line of the run report.
#[repr(align(128))] // Two cache lines, fetched together: threads at different stages do not wait for each other.
pub(crate) struct StageSeries {
    pub(crate) stage: Label,
    success: Counter,
    failure: Counter,
    succeeded: AtomicU64,
    failed: AtomicU64,
    total_nanos: AtomicU64,
    slowest_nanos: AtomicU64,
    /// Its place in the order in which stages first finished; zero: none did.
    first_finished: AtomicU64,
    /// The trace of its last failure that has one.
    #[cfg(feature = "trace-id")]
    trace: Mutex<Option<TraceId>>,
    #[cfg(feature = "trace-id")]
    is_trace_told: AtomicBool,
}

/// What a stage's runs add up to.
#[cfg_attr(not(feature = "pushgateway"), allow(dead_code))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct StageTotals {
    pub(crate) succeeded: u64,
    pub(crate) failed: u64,
    pub(crate) total: Duration,
    pub(crate) slowest: Duration,
    pub(crate) first_finished: u64,
    #[cfg(feature = "trace-id")]
    pub(crate) trace: Option<TraceId>,
}

/// A stage in a profile: the gauges, and the failures by reason.
#[repr(align(128))]
pub(crate) struct PairSeries {
    stage: Label,
    profile: Label,
    active: Gauge,
    failures: [OnceLock<Counter>; Reason::COUNT],
    /// Bits of an `f64`; those of NaN: none yet.
    last_duration: AtomicU64,
    /// On the clock of the spans; zero: none yet.
    last_success: AtomicU64,
    /// The success that was published last, and its Unix time: found out once, so that the value stays.
    published_success: Mutex<(u64, f64)>,
    last_duration_gauge: OnceLock<Gauge>,
    last_success_gauge: OnceLock<Gauge>,
}

/// A full label set.
struct SetSeries {
    key: Key,
    duration: Histogram,
    /// Where its stage and pair are, since they follow from the key; none in an overflow set, which many share.
    within: Option<(Number, Number)>,
}

/// Stage, profile, run id.
type Key = [Label; 3];

/// One finished stage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Finished {
    pub(crate) stage: Label,
    pub(crate) profile: Label,
    pub(crate) run_id: Label,
    pub(crate) outcome: Outcome,
    pub(crate) nanos: u64,
    /// On the clock of the spans.
    pub(crate) ended: u64,
    /// Where it failed, and that is known.
    #[cfg(feature = "trace-id")]
    pub(crate) trace: Option<TraceId>,
}

pub(crate) struct Series {
    pub(crate) sink: Sink,
    clock: quanta::Clock,
    described: OnceLock<Counter>,
    admission: Admission,
    stages: InsertOnly<StageSeries>,
    pairs: InsertOnly<PairSeries>,
    sets: InsertOnly<SetSeries>,
    finished: AtomicU64,
}

impl Series {
    pub(crate) fn new(sink: Sink, max_series: usize, clock: quanta::Clock) -> Self {
        Self {
            sink,
            clock,
            described: OnceLock::new(),
            admission: Admission::new(max_series),
            stages: InsertOnly::new(),
            pairs: InsertOnly::new(),
            sets: InsertOnly::new(),
            finished: AtomicU64::new(0),
        }
    }

    /// Binds to the recorder, if that did not happen yet: describes the metrics and registers the overflow counter.
    pub(crate) fn bind(&self) -> &Counter {
        if let Some(overflow) = self.described.get() {
            return overflow;
        }
        self.sink.describe();
        let overflow = self.sink.counter(&schema::OVERFLOW_TOTAL, &[]);
        self.described.get_or_init(|| overflow)
    }

    /// Counts a finished stage. Returns what to warn of when this is the first one in an overflow series.
    pub(crate) fn finish(&self, labels: &Labels, end: Finished) -> Option<Overflow> {
        let key = [end.stage, end.profile, end.run_id];
        let place = self.place(labels, key);
        outward(|| place.set.duration.record(end.nanos as f64 / 1e9));
        place.stage.count(self, end);
        place.pair.count(self, labels, end);
        if self.sink.is_live() {
            outward(|| match end.outcome {
                Outcome::Success => place.stage.success.increment(1),
                Outcome::Failure(_) => place.stage.failure.increment(1),
            });
            place.pair.publish(self, labels);
        }
        if !place.overflowed {
            return None;
        }
        outward(|| self.bind().increment(1));
        self.admission.overflow_once(labels)
    }

    /// Whether a new run id can have a series of its own.
    #[inline]
    pub(crate) fn has_room_for_runs(&self) -> bool {
        !self.admission.sets_are_full()
    }

    #[inline]
    fn place(&self, labels: &Labels, key: Key) -> Place<'_> {
        if let Some((_, set)) = self.find_set(key)
            && let Some((stage, pair)) = set.within
            && let (Some(stage), Some(pair)) = (self.stages.get(stage), self.pairs.get(pair))
        {
            return Place { set, stage, pair, overflowed: false };
        }
        self.new_place(labels, key)
    }

    /// A label set seen for the first time, or one beyond the limit.
    #[cold]
    fn new_place(&self, labels: &Labels, key: Key) -> Place<'_> {
        self.bind();
        let [stage, profile, run_id] = key;
        let (stage_number, stage_series) = self.stage(labels, stage);
        let (pair_number, pair_series) = self.pair(labels, stage, profile);
        // Once the limit is reached most new sets differ in the run id alone, and go where the last one went.
        let shared = [stage, profile, Label::OVERFLOW];
        let (admitted, set) = match self.find_set(shared) {
            Some((_, set)) if self.admission.sets_are_full() => (shared, Some(set)),
            _ => {
                let admitted = self.admission.set([stage, profile, run_id]);
                (admitted, self.find_set(admitted).map(|(_, set)| set))
            }
        };
        let set = set.unwrap_or_else(|| {
            let [stage, profile, run_id] = admitted.map(|label| labels.text(label));
            let duration = self.sink.histogram(&schema::STAGE_DURATION, &[stage, profile, run_id]);
            let within = (admitted == key && !key.contains(&Label::OVERFLOW)).then_some((stage_number, pair_number));
            let set = SetSeries { key: admitted, duration, within };
            self.sets.find_or_insert(hash(admitted), |set| set.key == admitted, || set).1
        });
        let overflowed = admitted.contains(&Label::OVERFLOW)
            || stage_series.stage == Label::OVERFLOW
            || pair_series.profile == Label::OVERFLOW;
        Place { set, stage: stage_series, pair: pair_series, overflowed }
    }

    fn find_set(&self, key: Key) -> Option<(Number, &SetSeries)> {
        self.sets.find(hash(key), |set| set.key == key)
    }

    /// The series of this stage. From then on both statuses exist.
    pub(crate) fn stage(&self, labels: &Labels, stage: Label) -> (Number, &StageSeries) {
        let find = |stage: Label| self.stages.find(hash([stage; 3]), |series| series.stage == stage);
        if let Some(found) = find(stage) {
            return found;
        }
        self.bind();
        let stage = self.admission.stage(stage);
        find(stage).unwrap_or_else(|| {
            let id = labels.text(stage);
            let counter = |status| self.sink.counter(&schema::STAGE_TOTAL, &[id, status]);
            let series = StageSeries {
                stage,
                success: counter("success"),
                failure: counter("failure"),
                succeeded: AtomicU64::new(0),
                failed: AtomicU64::new(0),
                total_nanos: AtomicU64::new(0),
                slowest_nanos: AtomicU64::new(0),
                first_finished: AtomicU64::new(0),
                #[cfg(feature = "trace-id")]
                trace: Mutex::default(),
                #[cfg(feature = "trace-id")]
                is_trace_told: AtomicBool::new(false),
            };
            self.stages.find_or_insert(hash([stage; 3]), |series| series.stage == stage, || series)
        })
    }

    /// The series of this stage in this profile. From then on failures for the reason `error` exist.
    pub(crate) fn pair(&self, labels: &Labels, stage: Label, profile: Label) -> (Number, &PairSeries) {
        let find = |key: [Label; 2]| {
            self.pairs.find(hash([key[0], key[1], Label::NONE]), |pair| [pair.stage, pair.profile] == key)
        };
        if let Some(found) = find([stage, profile]) {
            return found;
        }
        self.bind();
        let key = self.admission.pair([stage, profile]);
        find(key).unwrap_or_else(|| {
            let pair = PairSeries {
                stage: key[0],
                profile: key[1],
                active: self.sink.gauge(&schema::STAGE_ACTIVE, &key.map(|label| labels.text(label))),
                failures: [const { OnceLock::new() }; Reason::COUNT],
                last_duration: AtomicU64::new(f64::NAN.to_bits()),
                last_success: AtomicU64::new(0),
                published_success: Mutex::default(),
                last_duration_gauge: OnceLock::new(),
                last_success_gauge: OnceLock::new(),
            };
            pair.failures(self, labels, Reason::Error);
            let is = |pair: &PairSeries| [pair.stage, pair.profile] == key;
            self.pairs.find_or_insert(hash([key[0], key[1], Label::NONE]), is, || pair)
        })
    }

    /// Moves the active gauge of a pair, where gauges are written at once.
    pub(crate) fn move_active(&self, pair: Number, by: f64) {
        if let Some(pair) = self.pairs.get(pair) {
            outward(|| pair.active.increment(by));
        }
    }

    /// Gives the recorder the latest state. `active`: how many stages run now, by the number of the pair.
    pub(crate) fn publish(&self, labels: &Labels, active: impl Fn(Number) -> u64) {
        self.bind();
        for stage in self.stages.iter() {
            outward(|| {
                stage.success.absolute(stage.succeeded.load(Ordering::Relaxed));
                stage.failure.absolute(stage.failed.load(Ordering::Relaxed));
            });
        }
        for (number, pair) in self.pairs.iter().enumerate() {
            outward(|| pair.active.set(active(number as Number) as f64));
            pair.publish(self, labels);
        }
    }

    /// The stages known so far, with what their runs add up to.
    pub(crate) fn totals(&self) -> impl Iterator<Item = (Label, StageTotals)> {
        self.stages.iter().map(|series| (series.stage, series.totals()))
    }
}

struct Place<'a> {
    set: &'a SetSeries,
    stage: &'a StageSeries,
    pair: &'a PairSeries,
    overflowed: bool,
}

impl StageSeries {
    fn count(&self, series: &Series, end: Finished) {
        match end.outcome {
            Outcome::Success => self.succeeded.fetch_add(1, Ordering::Relaxed),
            Outcome::Failure(_) => self.failed.fetch_add(1, Ordering::Relaxed),
        };
        self.total_nanos.fetch_add(end.nanos, Ordering::Relaxed);
        if self.slowest_nanos.load(Ordering::Relaxed) < end.nanos {
            self.slowest_nanos.fetch_max(end.nanos, Ordering::Relaxed);
        }
        if self.first_finished.load(Ordering::Relaxed) == 0 {
            let order = series.finished.fetch_add(1, Ordering::Relaxed) + 1;
            let _ = self.first_finished.compare_exchange(0, order, Ordering::Relaxed, Ordering::Relaxed);
        }
        #[cfg(feature = "trace-id")]
        if end.trace.is_some() {
            *self.trace.lock().unwrap_or_else(PoisonError::into_inner) = end.trace;
        }
    }

    pub(crate) fn totals(&self) -> StageTotals {
        StageTotals {
            succeeded: self.succeeded.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            total: Duration::from_nanos(self.total_nanos.load(Ordering::Relaxed)),
            slowest: Duration::from_nanos(self.slowest_nanos.load(Ordering::Relaxed)),
            first_finished: self.first_finished.load(Ordering::Relaxed),
            #[cfg(feature = "trace-id")]
            trace: *self.trace.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// Whether this is the first call.
    #[cfg(feature = "trace-id")]
    pub(crate) fn tell_trace_once(&self) -> bool {
        !self.is_trace_told.swap(true, Ordering::Relaxed)
    }
}

impl PairSeries {
    fn count(&self, series: &Series, labels: &Labels, end: Finished) {
        self.last_duration.store((end.nanos as f64 / 1e9).to_bits(), Ordering::Relaxed);
        match end.outcome {
            Outcome::Success => self.last_success.store(end.ended.max(1), Ordering::Relaxed),
            Outcome::Failure(reason) => outward(|| self.failures(series, labels, reason).increment(1)),
        }
    }

    fn failures(&self, series: &Series, labels: &Labels, reason: Reason) -> &Counter {
        let counter = &self.failures[reason as usize];
        counter.get().unwrap_or_else(|| {
            let values = [labels.text(self.stage), labels.text(self.profile), reason.as_str()];
            let registered = series.sink.counter(&schema::STAGE_FAILURES, &values);
            counter.get_or_init(|| registered)
        })
    }

    fn publish(&self, series: &Series, labels: &Labels) {
        let duration = f64::from_bits(self.last_duration.load(Ordering::Relaxed));
        if !duration.is_nan() {
            self.set_gauge(&self.last_duration_gauge, &schema::STAGE_LAST_DURATION, series, labels, duration);
        }
        let success = self.last_success.load(Ordering::Relaxed);
        if success != 0 {
            let at = self.unix_time_of(success, &series.clock);
            self.set_gauge(&self.last_success_gauge, &schema::STAGE_LAST_SUCCESS, series, labels, at);
        }
    }

    fn unix_time_of(&self, success: u64, clock: &quanta::Clock) -> f64 {
        let mut published = self.published_success.lock().unwrap_or_else(PoisonError::into_inner);
        if published.0 != success {
            let age = clock.delta(success, clock.raw());
            let at = unix_time::now().saturating_sub(age);
            *published = (success, at.as_secs_f64());
        }
        published.1
    }

    fn set_gauge(
        &self,
        gauge: &OnceLock<Gauge>,
        metric: &schema::Metric,
        series: &Series,
        labels: &Labels,
        value: f64,
    ) {
        let gauge = gauge.get().unwrap_or_else(|| {
            let registered = series.sink.gauge(metric, &[labels.text(self.stage), labels.text(self.profile)]);
            gauge.get_or_init(|| registered)
        });
        outward(|| gauge.set(value));
    }
}

fn hash(key: Key) -> u64 {
    let [stage, profile, run_id] = key.map(|label| u64::from(label.bits()));
    mix(stage << (2 * Label::BITS) | profile << Label::BITS | run_id)
}
