//! LabelId set -> series, found by the numbers of their labels, and what the run's stages add up to.
//!
//! Three tables, one per set of labels: stages, pairs of stage and profile, and full sets. What stages count and what
//! shows the latest state is kept here in atomics and given to the recorder when someone is about to look, unless nobody
//! says when that is. Handles are registered before a table's lock is taken: that runs the recorder's code.

use std::collections::HashMap;
#[cfg(feature = "trace-id")]
use std::sync::atomic::AtomicBool;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};

use crate::histogram::Snapshot;
use crate::recorder::{RecorderHandle, suppress_instrumentation};
use crate::series::append_only_map::{AppendOnlyMap, EntryId, splitmix64};
use crate::series::cardinality::{CardinalityLimit, Overflow};
use crate::series::durations::{DurationBounds, Durations, HistogramTotals};
use crate::series::interner::{Interner, LabelId};
use crate::series::outcome::{Outcome, Reason};
#[cfg(feature = "trace-id")]
use crate::series::trace_id::TraceId;
use crate::{schema, unix_time};

/// A stage by its id: `quant_stage_total`, and the line of the run report.
pub(crate) struct StageSeries {
    pub(crate) stage: LabelId,
    success: Counter,
    failure: Counter,
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
pub(crate) struct StageProfileSeries {
    stage: LabelId,
    profile: LabelId,
    active: Gauge,
    failures: [OnceLock<Counter>; Reason::COUNT],
    /// In nanoseconds.
    last_duration: AtomicU64,
    /// On the clock of the spans; zero: none yet.
    last_success: AtomicU64,
    /// The success that was published last, and its Unix time: found out once, so that the value stays.
    published_success: Mutex<(u64, f64)>,
    /// Where gauges are written at once: changes since a thread began to write them; zero: no thread is writing.
    changes: AtomicU32,
    last_duration_gauge: OnceLock<Gauge>,
    last_success_gauge: OnceLock<Gauge>,
}

/// No run has ended yet.
const NEVER: u64 = u64::MAX;

/// How often a thread writes the gauges of a pair for others whose stages close meanwhile, before it goes on and leaves
/// the rest to the next stage.
const MAX_ROUNDS: usize = 100;

/// A full label set. Beyond the limit one for each stage and pair whose runs are shown under its labels, so that what they
/// add up to follows from it as well.
pub(crate) struct DurationSeries {
    key: Key,
    durations: Durations,
    /// Where each duration goes as it comes, if nobody reads them here.
    recorded: Option<Histogram>,
    stage: Arc<StageSeries>,
    stage_number: EntryId,
    pair: Arc<StageProfileSeries>,
    pair_number: EntryId,
    /// Whether its runs count as beyond a limit: of its own labels, its stage or its pair.
    is_overflow: bool,
}

/// The series of one label set, once a stage of it ended.
pub(crate) type CachedSeries = OnceLock<Arc<DurationSeries>>;

/// Stage, profile, run id.
type Key = [LabelId; 3];

/// One finished stage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Finished {
    pub(crate) stage: LabelId,
    pub(crate) profile: LabelId,
    pub(crate) run_id: LabelId,
    /// Where all three are remembered, if they are.
    pub(crate) cached: Option<EntryId>,
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
    pub(crate) recorder: RecorderHandle,
    clock: quanta::Clock,
    described: OnceLock<Counter>,
    admission: CardinalityLimit,
    /// Of the durations that are read here.
    bounds: Option<Arc<DurationBounds>>,
    stages: AppendOnlyMap<Arc<StageSeries>>,
    pairs: AppendOnlyMap<Arc<StageProfileSeries>>,
    sets: AppendOnlyMap<Arc<DurationSeries>>,
    /// LabelId sets of which a stage has ended.
    finished: AtomicU64,
}

impl Series {
    /// `buckets`: those of the stage duration, where it is read here; otherwise each goes to the recorder as it comes.
    pub(crate) fn new(
        recorder: RecorderHandle,
        max_series: usize,
        buckets: Option<&[f64]>,
        clock: quanta::Clock,
    ) -> Self {
        Self {
            recorder,
            clock,
            described: OnceLock::new(),
            admission: CardinalityLimit::new(max_series),
            bounds: buckets.map(|buckets| Arc::new(DurationBounds::new(buckets))),
            stages: AppendOnlyMap::new(),
            pairs: AppendOnlyMap::new(),
            sets: AppendOnlyMap::new(),
            finished: AtomicU64::new(0),
        }
    }

    #[cfg(all(test, feature = "pushgateway"))]
    pub(crate) fn lock(&self) -> impl Sized {
        let published: Vec<_> = self
            .pairs
            .iter()
            .map(|pair| pair.published_success.lock().unwrap_or_else(PoisonError::into_inner))
            .collect();
        #[cfg(feature = "trace-id")]
        let traces: Vec<_> =
            self.stages.iter().map(|stage| stage.trace.lock().unwrap_or_else(PoisonError::into_inner)).collect();
        #[cfg(not(feature = "trace-id"))]
        let traces = ();
        (self.admission.lock(), self.stages.lock(), self.pairs.lock(), self.sets.lock(), published, traces)
    }

    /// Binds to the recorder, if that did not happen yet: describes the metrics and registers the overflow counter.
    pub(crate) fn bind(&self) -> &Counter {
        if let Some(overflow) = self.described.get() {
            return overflow;
        }
        self.recorder.describe();
        let overflow = self.recorder.counter(&schema::OVERFLOW_TOTAL, &[]);
        self.described.get_or_init(|| overflow)
    }

    /// Counts a finished stage. Returns what to warn of when this is the first one in an overflow series.
    /// `kept`: where the series of such a stage is kept for the next one.
    #[inline]
    pub(crate) fn finish(&self, labels: &Interner, end: Finished, kept: Option<&CachedSeries>) -> Option<Overflow> {
        if let Some(set) = kept.and_then(OnceLock::get) {
            self.count(labels, end, set);
            return None;
        }
        self.finish_slow(labels, end, kept)
    }

    /// Counts a finished stage whose series has to be found.
    #[cold]
    fn finish_slow(&self, labels: &Interner, end: Finished, kept: Option<&CachedSeries>) -> Option<Overflow> {
        let set = self.set(labels, [end.stage, end.profile, end.run_id]);
        self.count(labels, end, set);
        if !set.is_overflow {
            if let Some(kept) = kept {
                let _ = kept.set(Arc::clone(set));
            }
            return None;
        }
        if self.recorder.updates_eagerly() {
            suppress_instrumentation(|| self.bind().increment(1));
        }
        self.admission.overflow_once(labels)
    }

    #[inline]
    fn count(&self, labels: &Interner, end: Finished, set: &DurationSeries) {
        set.durations.add(end.nanos, end.outcome, &self.finished);
        if let Some(recorded) = &set.recorded {
            suppress_instrumentation(|| recorded.record(end.nanos as f64 / 1e9));
        }
        set.pair.last_duration.store(end.nanos, Ordering::Relaxed);
        if end.outcome == Outcome::Success {
            // A stage that was held open may close after one that ended later.
            set.pair.last_success.fetch_max(end.ended.max(1), Ordering::Relaxed);
        }
        #[cfg(feature = "trace-id")]
        set.stage.note_trace(end.trace);
        if self.recorder.updates_eagerly() {
            self.count_eagerly(labels, end, set);
        }
    }

    fn count_eagerly(&self, labels: &Interner, end: Finished, set: &DurationSeries) {
        suppress_instrumentation(|| match end.outcome {
            Outcome::Success => set.stage.success.increment(1),
            Outcome::Failure(reason) => {
                set.stage.failure.increment(1);
                set.pair.failures(self, labels, reason).increment(1);
            }
        });
        set.pair.publish_eagerly(self, labels);
    }

    /// Whether a new run id can have a series of its own.
    #[inline]
    pub(crate) fn has_room_for_runs(&self) -> bool {
        !self.admission.sets_are_full()
    }

    /// The series of this label set.
    fn set(&self, labels: &Interner, key: Key) -> &Arc<DurationSeries> {
        let own = self.sets.find(hash(key), |set| set.key == key && !set.is_overflow);
        own.map_or_else(|| self.new_set(labels, key), |(_, set)| set)
    }

    /// A label set seen for the first time, or one beyond the limit.
    #[cold]
    fn new_set(&self, labels: &Interner, key: Key) -> &Arc<DurationSeries> {
        self.bind();
        let [stage, profile, _] = key;
        let (stage_number, stage_series) = self.stage(labels, stage);
        let (pair_number, pair_series) = self.pair(labels, stage, profile);
        let find = |key: Key| {
            let is = |set: &Arc<DurationSeries>| set.is_overflow && set.is(key, stage_number, pair_number);
            self.sets.find(overflow_hash(key, stage_number, pair_number), is).map(|(_, set)| set)
        };
        // Once the limit is reached most new sets differ in the run id alone, and go where the last one went.
        let last = Some([stage, profile, LabelId::OVERFLOW]).filter(|_| self.admission.sets_are_full()).and_then(find);
        last.unwrap_or_else(|| {
            let admitted = self.admission.set(key);
            let is_overflow = admitted != key
                || key.contains(&LabelId::OVERFLOW)
                || stage_series.stage == LabelId::OVERFLOW
                || pair_series.profile == LabelId::OVERFLOW;
            find(admitted).filter(|_| is_overflow).unwrap_or_else(|| {
                let recorded = match self.bounds {
                    Some(_) => None,
                    None => Some(
                        self.recorder.histogram(&schema::STAGE_DURATION, &admitted.map(|label| labels.text(label))),
                    ),
                };
                let set = DurationSeries {
                    key: admitted,
                    durations: Durations::new(self.bounds.clone().unwrap_or_default()),
                    recorded,
                    stage: Arc::clone(stage_series),
                    stage_number,
                    pair: Arc::clone(pair_series),
                    pair_number,
                    is_overflow,
                };
                let hash =
                    if is_overflow { overflow_hash(admitted, stage_number, pair_number) } else { hash(admitted) };
                let is = |set: &Arc<DurationSeries>| {
                    set.is_overflow == is_overflow && set.is(admitted, stage_number, pair_number)
                };
                self.sets.find_or_insert(hash, is, || Arc::new(set)).1
            })
        })
    }

    /// The series of this stage. From then on both statuses exist.
    pub(crate) fn stage(&self, labels: &Interner, stage: LabelId) -> (EntryId, &Arc<StageSeries>) {
        let find = |stage: LabelId| self.stages.find(hash([stage; 3]), |series| series.stage == stage);
        if let Some(found) = find(stage) {
            return found;
        }
        self.bind();
        let stage = self.admission.stage(stage);
        find(stage).unwrap_or_else(|| {
            let id = labels.text(stage);
            let counter = |status| self.recorder.counter(&schema::STAGE_TOTAL, &[id, status]);
            let series = StageSeries {
                stage,
                success: counter("success"),
                failure: counter("failure"),
                #[cfg(feature = "trace-id")]
                trace: Mutex::default(),
                #[cfg(feature = "trace-id")]
                is_trace_told: AtomicBool::new(false),
            };
            self.stages.find_or_insert(hash([stage; 3]), |series| series.stage == stage, || Arc::new(series))
        })
    }

    /// The series of this stage in this profile. From then on failures for the reason `error` exist.
    pub(crate) fn pair(
        &self,
        labels: &Interner,
        stage: LabelId,
        profile: LabelId,
    ) -> (EntryId, &Arc<StageProfileSeries>) {
        let find = |key: [LabelId; 2]| {
            self.pairs.find(hash([key[0], key[1], LabelId::NONE]), |pair| [pair.stage, pair.profile] == key)
        };
        if let Some(found) = find([stage, profile]) {
            return found;
        }
        self.bind();
        let key = self.admission.pair([stage, profile]);
        find(key).unwrap_or_else(|| {
            let pair = StageProfileSeries {
                stage: key[0],
                profile: key[1],
                active: self.recorder.gauge(&schema::STAGE_ACTIVE, &key.map(|label| labels.text(label))),
                failures: [const { OnceLock::new() }; Reason::COUNT],
                last_duration: AtomicU64::new(NEVER),
                last_success: AtomicU64::new(0),
                published_success: Mutex::default(),
                changes: AtomicU32::new(0),
                last_duration_gauge: OnceLock::new(),
                last_success_gauge: OnceLock::new(),
            };
            pair.failures(self, labels, Reason::Error);
            let is = |pair: &Arc<StageProfileSeries>| [pair.stage, pair.profile] == key;
            self.pairs.find_or_insert(hash([key[0], key[1], LabelId::NONE]), is, || Arc::new(pair))
        })
    }

    /// Moves the active gauge of a pair, where gauges are written at once.
    pub(crate) fn move_active(&self, pair: EntryId, by: f64) {
        if let Some(pair) = self.pairs.get(pair) {
            suppress_instrumentation(|| pair.active.increment(by));
        }
    }

    /// Gives the recorder the latest state, and returns the histograms that are read here, by label set. The counters are
    /// of the same moment: all are set from the counts that the histograms are made of. `active`: how many stages run now,
    /// by the number of the pair.
    pub(crate) fn publish(
        &self,
        active: impl Fn(EntryId) -> u64,
        labels: &Interner,
    ) -> Vec<(&DurationSeries, Snapshot)> {
        let overflow = self.bind();
        let mut histograms = Vec::with_capacity(if self.bounds.is_some() { self.sets.len() } else { 0 });
        // Several overflow sets may be shown under the same labels.
        let mut shared = HashMap::new();
        let (mut by_stage, mut by_pair, mut overflowed) = (Vec::new(), Vec::new(), 0);
        for set in self.sets.iter() {
            let (sums, histogram) = set.durations.read();
            add_at(&mut by_stage, set.stage_number, sums);
            add_at(&mut by_pair, set.pair_number, sums);
            if set.is_overflow {
                overflowed += sums.succeeded + sums.failures();
            }
            if set.recorded.is_some() {
                continue;
            }
            match shared.get(&set.key).filter(|_| set.is_overflow).and_then(|at: &usize| histograms.get_mut(*at)) {
                Some((_, sum)) => *sum += histogram,
                None => {
                    if set.is_overflow {
                        shared.insert(set.key, histograms.len());
                    }
                    histograms.push((&**set, histogram));
                }
            }
        }
        for (stage, sums) in self.stages.iter().zip(with_none(by_stage)) {
            suppress_instrumentation(|| {
                stage.success.absolute(sums.succeeded);
                stage.failure.absolute(sums.failures());
            });
        }
        for ((number, pair), sums) in self.pairs.iter().enumerate().zip(with_none(by_pair)) {
            for (reason, count) in Reason::ALL.into_iter().zip(sums.failed).filter(|(_, count)| *count > 0) {
                suppress_instrumentation(|| pair.failures(self, labels, reason).absolute(count));
            }
            suppress_instrumentation(|| pair.active.set(active(number as EntryId) as f64));
            pair.publish(self, labels);
        }
        suppress_instrumentation(|| overflow.absolute(overflowed));
        histograms
    }

    /// The key under which the durations of a label set are shown.
    pub(crate) fn key_of(&self, set: &DurationSeries, labels: &Interner) -> metrics::Key {
        self.recorder.key(&schema::STAGE_DURATION, &set.key.map(|label| labels.text(label)))
    }

    /// The stages known so far, with what their runs add up to.
    pub(crate) fn totals(&self) -> impl Iterator<Item = (LabelId, StageTotals)> {
        let mut by_stage = Vec::new();
        for set in self.sets.iter() {
            add_at(&mut by_stage, set.stage_number, set.durations.sums());
        }
        self.stages.iter().zip(with_none(by_stage)).map(|(series, sums)| (series.stage, series.totals(sums)))
    }
}

fn add_at(sums: &mut Vec<HistogramTotals>, number: EntryId, more: HistogramTotals) {
    let at = number as usize;
    sums.resize(sums.len().max(at + 1), HistogramTotals::default());
    sums[at] += more;
}

/// The sums in the order of their numbers, and none for those that have not ended yet.
fn with_none(sums: Vec<HistogramTotals>) -> impl Iterator<Item = HistogramTotals> {
    sums.into_iter().chain(std::iter::repeat(HistogramTotals::default()))
}

impl DurationSeries {
    fn is(&self, key: Key, stage: EntryId, pair: EntryId) -> bool {
        self.key == key && self.stage_number == stage && self.pair_number == pair
    }
}

impl StageSeries {
    #[cfg(feature = "trace-id")]
    #[inline]
    fn note_trace(&self, trace: Option<TraceId>) {
        if trace.is_some() {
            *self.trace.lock().unwrap_or_else(PoisonError::into_inner) = trace;
        }
    }

    fn totals(&self, sums: HistogramTotals) -> StageTotals {
        StageTotals {
            succeeded: sums.succeeded,
            failed: sums.failures(),
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

impl StageProfileSeries {
    fn failures(&self, series: &Series, labels: &Interner, reason: Reason) -> &Counter {
        let counter = &self.failures[reason as usize];
        counter.get().unwrap_or_else(|| {
            let values = [labels.text(self.stage), labels.text(self.profile), reason.as_str()];
            let registered = series.recorder.counter(&schema::STAGE_FAILURES, &values);
            counter.get_or_init(|| registered)
        })
    }

    fn publish(&self, series: &Series, labels: &Interner) {
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

    /// Publishes after a change, from any thread. One thread at a time writes, so that an older value never follows a
    /// newer one; the others leave their change to that thread. It holds no lock, since the recorder may wait for another
    /// thread that closes a stage.
    fn publish_eagerly(&self, series: &Series, labels: &Interner) {
        if self.changes.fetch_add(1, Ordering::AcqRel) != 0 {
            return;
        }
        /// Lets the next thread write, where the recorder panics too.
        struct Writing<'a>(&'a AtomicU32);
        impl Drop for Writing<'_> {
            fn drop(&mut self) {
                self.0.store(0, Ordering::Release);
            }
        }
        let writing = Writing(&self.changes);
        let mut seen = 1;
        for _ in 0..MAX_ROUNDS {
            self.publish(series, labels);
            match self.changes.compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return std::mem::forget(writing),
                Err(more) => seen = more,
            }
        }
    }

    fn unix_time_of(&self, success: u64, clock: &quanta::Clock) -> f64 {
        let mut published = self.published_success.lock().unwrap_or_else(PoisonError::into_inner);
        if published.0 != success {
            let age = clock.delta(success, clock.raw());
            let at = unix_time::now().saturating_sub(age).as_secs_f64();
            // The system's clock may have been set back.
            *published = (success, at.max(published.1));
        }
        published.1
    }

    fn set_gauge(
        &self,
        gauge: &OnceLock<Gauge>,
        metric: &schema::Metric,
        series: &Series,
        labels: &Interner,
        value: f64,
    ) {
        let gauge = gauge.get().unwrap_or_else(|| {
            let registered = series.recorder.gauge(metric, &[labels.text(self.stage), labels.text(self.profile)]);
            gauge.get_or_init(|| registered)
        });
        suppress_instrumentation(|| gauge.set(value));
    }
}

fn hash(key: Key) -> u64 {
    let [stage, profile, run_id] = key.map(|label| u64::from(label.bits()));
    splitmix64(stage << (2 * LabelId::BITS) | profile << LabelId::BITS | run_id)
}

/// Of an overflow set. Many may have the same key.
fn overflow_hash(key: Key, stage: EntryId, pair: EntryId) -> u64 {
    splitmix64(hash(key) ^ (u64::from(stage) << 32 | u64::from(pair)))
}
