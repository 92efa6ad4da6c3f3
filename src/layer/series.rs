//! Label set -> series, found by the numbers of their labels, and what the run's stages add up to.
//!
//! Three tables, one per set of labels: stages, pairs of stage and profile, and full sets. What every stage counts and
//! what shows the latest state is kept here in atomics and given to the recorder when someone is about to look, unless
//! nobody says when that is; failures by reason and overflows are counted there at once. Handles are registered before
//! a table's lock is taken: that runs the recorder's code.

#[cfg(feature = "trace-id")]
use std::sync::atomic::AtomicBool;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};

use super::admission::{Admission, Overflow};
use super::durations::{Bounds, Durations, Sums};
use super::index::{InsertOnly, Number, mix};
use super::labels::{Label, Labels};
use super::outcome::{Outcome, Reason};
use super::sink::{Sink, outward};
#[cfg(feature = "trace-id")]
use super::trace_id::TraceId;
use crate::buckets::Snapshot;
use crate::{schema, unix_time};

/// A stage by its id: `quant_stage_total`, and the line of the run report.
pub(crate) struct StageSeries {
    pub(crate) stage: Label,
    success: Counter,
    failure: Counter,
    /// What those of its runs add up to that are in a series many share, since there were too many label sets.
    in_overflow: OnceLock<Durations>,
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
    /// Its place in the order in which stages first finished; zero: none did.
    pub(crate) first_finished: u64,
    #[cfg(feature = "trace-id")]
    pub(crate) trace: Option<TraceId>,
}

/// A stage in a profile: the gauges, and the failures by reason.
#[repr(align(128))] // Two cache lines, fetched together: threads at different pairs do not wait for each other.
pub(crate) struct PairSeries {
    stage: Label,
    profile: Label,
    active: Gauge,
    failures: [OnceLock<Counter>; Reason::COUNT],
    /// In nanoseconds.
    last_duration: AtomicU64,
    /// On the clock of the spans; zero: none yet.
    last_success: AtomicU64,
    /// The success that was published last, and its Unix time: found out once, so that the value stays.
    published_success: Mutex<(u64, f64)>,
    last_duration_gauge: OnceLock<Gauge>,
    last_success_gauge: OnceLock<Gauge>,
}

/// No run has ended yet.
const NEVER: u64 = u64::MAX;

/// A full label set.
pub(crate) struct SetSeries {
    key: Key,
    durations: Durations,
    /// Where each duration goes as it comes, if nobody reads them here.
    recorded: Option<Histogram>,
    /// Its stage and its pair, since they follow from the key; none in an overflow set, which many share.
    within: Option<Within>,
}

struct Within {
    stage: Arc<StageSeries>,
    stage_number: Number,
    pair: Arc<PairSeries>,
    /// Whether one of them is an overflow series.
    is_overflow: bool,
}

/// The series of one label set, once a stage of it ended.
pub(crate) type KeptSeries = OnceLock<Arc<SetSeries>>;

/// Stage, profile, run id.
type Key = [Label; 3];

/// One finished stage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Finished {
    pub(crate) stage: Label,
    pub(crate) profile: Label,
    pub(crate) run_id: Label,
    /// Where all three are remembered, if they are.
    pub(crate) meaning: Option<Number>,
    pub(crate) outcome: Outcome,
    /// Whether no other stage is around it, where that matters.
    pub(crate) is_outermost: bool,
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
    /// Of the durations that are read here.
    bounds: Option<Arc<Bounds>>,
    stages: InsertOnly<Arc<StageSeries>>,
    pairs: InsertOnly<Arc<PairSeries>>,
    sets: InsertOnly<Arc<SetSeries>>,
    /// Label sets of which a stage has ended.
    finished: AtomicU64,
}

impl Series {
    /// `buckets`: those of the stage duration, where it is read here; otherwise each goes to the recorder as it comes.
    pub(crate) fn new(sink: Sink, max_series: usize, buckets: Option<&[f64]>, clock: quanta::Clock) -> Self {
        Self {
            sink,
            clock,
            described: OnceLock::new(),
            admission: Admission::new(max_series),
            bounds: buckets.map(|buckets| Arc::new(Bounds::new(buckets))),
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
    /// `kept`: where the series of such a stage is kept for the next one.
    #[inline]
    pub(crate) fn finish(&self, labels: &Labels, end: Finished, kept: Option<&KeptSeries>) -> Option<Overflow> {
        if let Some(set) = kept.and_then(OnceLock::get)
            && let Some(within) = &set.within
        {
            self.count(labels, end, set, &within.stage, &within.pair);
            return None;
        }
        self.finish_further(labels, end, kept)
    }

    /// The same where the series has to be found.
    #[cold]
    fn finish_further(&self, labels: &Labels, end: Finished, kept: Option<&KeptSeries>) -> Option<Overflow> {
        let place = self.place(labels, [end.stage, end.profile, end.run_id]);
        let is_overflow = match &place.set.within {
            Some(within) => within.is_overflow,
            None => {
                let durations = place.stage.in_overflow.get_or_init(|| Durations::new(Arc::default()));
                durations.add(end.nanos, end.outcome != Outcome::Success, &self.finished);
                true
            }
        };
        if let Some(kept) = kept
            && !is_overflow
        {
            let _ = kept.set(Arc::clone(place.set));
        }
        self.count(labels, end, place.set, place.stage, place.pair);
        if !is_overflow {
            return None;
        }
        outward(|| self.bind().increment(1));
        self.admission.overflow_once(labels)
    }

    #[inline]
    fn count(&self, labels: &Labels, end: Finished, set: &SetSeries, stage: &StageSeries, pair: &PairSeries) {
        set.durations.add(end.nanos, end.outcome != Outcome::Success, &self.finished);
        if let Some(recorded) = &set.recorded {
            outward(|| recorded.record(end.nanos as f64 / 1e9));
        }
        pair.last_duration.store(end.nanos, Ordering::Relaxed);
        match end.outcome {
            Outcome::Success => pair.last_success.store(end.ended.max(1), Ordering::Relaxed),
            Outcome::Failure(reason) => outward(|| pair.failures(self, labels, reason).increment(1)),
        }
        #[cfg(feature = "trace-id")]
        stage.note_trace(end.trace);
        if self.sink.is_live() {
            outward(|| match end.outcome {
                Outcome::Success => stage.success.increment(1),
                Outcome::Failure(_) => stage.failure.increment(1),
            });
            pair.publish(self, labels);
        }
    }

    /// Whether a new run id can have a series of its own.
    #[inline]
    pub(crate) fn has_room_for_runs(&self) -> bool {
        !self.admission.sets_are_full()
    }

    fn place(&self, labels: &Labels, key: Key) -> Place<'_> {
        if let Some(set) = self.find_set(key)
            && let Some(Within { stage, pair, .. }) = &set.within
        {
            return Place { set, stage, pair };
        }
        self.new_place(labels, key)
    }

    /// A label set seen for the first time, or one beyond the limit.
    #[cold]
    fn new_place(&self, labels: &Labels, key: Key) -> Place<'_> {
        self.bind();
        let [stage, profile, _] = key;
        let (stage_number, stage_series) = self.stage(labels, stage);
        let (_, pair_series) = self.pair(labels, stage, profile);
        // Once the limit is reached most new sets differ in the run id alone, and go where the last one went.
        let shared = [stage, profile, Label::OVERFLOW];
        let (admitted, set) = match self.find_set(shared) {
            Some(set) if self.admission.sets_are_full() => (shared, Some(set)),
            _ => {
                let admitted = self.admission.set(key);
                (admitted, self.find_set(admitted))
            }
        };
        let set = set.unwrap_or_else(|| {
            let within = (admitted == key && !key.contains(&Label::OVERFLOW)).then(|| Within {
                stage: Arc::clone(stage_series),
                stage_number,
                pair: Arc::clone(pair_series),
                is_overflow: stage_series.stage == Label::OVERFLOW || pair_series.profile == Label::OVERFLOW,
            });
            let recorded = match self.bounds {
                Some(_) => None,
                None => Some(self.sink.histogram(&schema::STAGE_DURATION, &admitted.map(|label| labels.text(label)))),
            };
            let durations = Durations::new(self.bounds.clone().unwrap_or_default());
            let set = Arc::new(SetSeries { key: admitted, durations, recorded, within });
            self.sets.find_or_insert(hash(admitted), |set| set.key == admitted, || set).1
        });
        Place { set, stage: stage_series, pair: pair_series }
    }

    fn find_set(&self, key: Key) -> Option<&Arc<SetSeries>> {
        self.sets.find(hash(key), |set| set.key == key).map(|(_, set)| set)
    }

    /// The series of this stage. From then on both statuses exist.
    pub(crate) fn stage(&self, labels: &Labels, stage: Label) -> (Number, &Arc<StageSeries>) {
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
                in_overflow: OnceLock::new(),
                #[cfg(feature = "trace-id")]
                trace: Mutex::default(),
                #[cfg(feature = "trace-id")]
                is_trace_told: AtomicBool::new(false),
            };
            self.stages.find_or_insert(hash([stage; 3]), |series| series.stage == stage, || Arc::new(series))
        })
    }

    /// The series of this stage in this profile. From then on failures for the reason `error` exist.
    pub(crate) fn pair(&self, labels: &Labels, stage: Label, profile: Label) -> (Number, &Arc<PairSeries>) {
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
                last_duration: AtomicU64::new(NEVER),
                last_success: AtomicU64::new(0),
                published_success: Mutex::default(),
                last_duration_gauge: OnceLock::new(),
                last_success_gauge: OnceLock::new(),
            };
            pair.failures(self, labels, Reason::Error);
            let is = |pair: &Arc<PairSeries>| [pair.stage, pair.profile] == key;
            self.pairs.find_or_insert(hash([key[0], key[1], Label::NONE]), is, || Arc::new(pair))
        })
    }

    /// Moves the active gauge of a pair, where gauges are written at once.
    pub(crate) fn move_active(&self, pair: Number, by: f64) {
        if let Some(pair) = self.pairs.get(pair) {
            outward(|| pair.active.increment(by));
        }
    }

    /// Gives the recorder the latest state, and returns the histograms that are read here, of the same moment. `active`:
    /// how many stages run now, by the number of the pair.
    pub(crate) fn publish(&self, active: impl Fn(Number) -> u64, labels: &Labels) -> Vec<(&SetSeries, Snapshot)> {
        self.bind();
        let mut histograms = Vec::with_capacity(if self.bounds.is_some() { self.sets.len() } else { 0 });
        let read = self.sets.iter().map(|set| {
            let (sums, histogram) = set.durations.read();
            if set.recorded.is_none() {
                histograms.push((&**set, histogram));
            }
            (&**set, sums)
        });
        for (stage, sums) in self.by_stage(read) {
            outward(|| {
                stage.success.absolute(sums.succeeded);
                stage.failure.absolute(sums.failed);
            });
        }
        for (number, pair) in self.pairs.iter().enumerate() {
            outward(|| pair.active.set(active(number as Number) as f64));
            pair.publish(self, labels);
        }
        histograms
    }

    /// The key under which the durations of a label set are shown.
    pub(crate) fn key_of(&self, set: &SetSeries, labels: &Labels) -> metrics::Key {
        self.sink.key(&schema::STAGE_DURATION, &set.key.map(|label| labels.text(label)))
    }

    /// The stages known so far, with what their runs add up to.
    pub(crate) fn totals(&self) -> impl Iterator<Item = (Label, StageTotals)> {
        let sums = self.sets.iter().map(|set| (&**set, set.durations.sums()));
        self.by_stage(sums).map(|(series, sums)| (series.stage, series.totals(sums)))
    }

    /// The stages, and what the sums of their label sets add up to.
    fn by_stage<'a>(
        &'a self,
        by_set: impl Iterator<Item = (&'a SetSeries, Sums)>,
    ) -> impl Iterator<Item = (&'a StageSeries, Sums)> {
        let mut sums: Vec<Sums> = Vec::new();
        for (set, of_set) in by_set {
            if let Some(Within { stage_number, .. }) = set.within {
                let at = stage_number as usize;
                sums.resize(sums.len().max(at + 1), Sums::default());
                sums[at] += of_set;
            }
        }
        self.stages.iter().zip(sums.into_iter().chain(std::iter::repeat(Sums::default()))).map(|(stage, mut sums)| {
            if let Some(beyond) = stage.in_overflow.get() {
                sums += beyond.sums();
            }
            (&**stage, sums)
        })
    }
}

struct Place<'a> {
    set: &'a Arc<SetSeries>,
    stage: &'a Arc<StageSeries>,
    pair: &'a Arc<PairSeries>,
}

impl StageSeries {
    #[cfg(feature = "trace-id")]
    #[inline]
    fn note_trace(&self, trace: Option<TraceId>) {
        if trace.is_some() {
            *self.trace.lock().unwrap_or_else(PoisonError::into_inner) = trace;
        }
    }

    fn totals(&self, sums: Sums) -> StageTotals {
        StageTotals {
            succeeded: sums.succeeded,
            failed: sums.failed,
            total: Duration::from_nanos(sums.total_nanos),
            slowest: Duration::from_nanos(sums.slowest_nanos),
            first_finished: sums.first_finished,
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
    fn failures(&self, series: &Series, labels: &Labels, reason: Reason) -> &Counter {
        let counter = &self.failures[reason as usize];
        counter.get().unwrap_or_else(|| {
            let values = [labels.text(self.stage), labels.text(self.profile), reason.as_str()];
            let registered = series.sink.counter(&schema::STAGE_FAILURES, &values);
            counter.get_or_init(|| registered)
        })
    }

    fn publish(&self, series: &Series, labels: &Labels) {
        let nanos = self.last_duration.load(Ordering::Relaxed);
        if nanos != NEVER {
            let duration = nanos as f64 / 1e9;
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
