//! The series of all label sets, found by the ids of their labels.
//!
//! There are three tables: stages, pairs of stage and profile, and full label sets. The layer counts in atomics here. They
//! are published to the recorder before it is read or, if the time of reading is unknown, at once. A series registers its
//! handles before the lock of its table is taken, since a registration runs code of the recorder.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use metrics::{Counter, Histogram};

use super::append_only_map::{AppendOnlyMap, EntryId, splitmix64};
use super::cardinality::{CardinalityLimit, Overflow};
use super::durations::{DurationBounds, Durations, add_at, padded};
#[cfg(feature = "trace-id")]
use super::exemplars::{ExemplarBuckets, LastRuns};
use super::interner::{Interner, LabelId};
use super::outcome::{Outcome, Reason};
use super::stage_profile_series::{Publisher, StageProfileSeries};
use super::stage_series::StageSeries;
#[cfg(feature = "trace-id")]
use super::trace_id::TraceId;
#[cfg(feature = "trace-id")]
use crate::exposition::SeriesExemplars;
use crate::histogram::Snapshot;
use crate::recorder::{RecorderHandle, suppress_instrumentation};
use crate::schema;
use crate::unix_time;

mod totals;

/// The durations of a full label set. Beyond the limit on label sets there is one for each stage and pair that is counted
/// under these labels, so that the totals of the stage and the pair include it.
pub(crate) struct DurationSeries {
    labels: SetLabels,
    durations: Durations,
    /// By bucket, the last run in a sampled trace, if exemplars are kept.
    #[cfg(feature = "trace-id")]
    traced: LastRuns,
    /// The recorder's histogram, unless the durations are read from here.
    recorded: Option<Histogram>,
    stage: Arc<StageSeries>,
    stage_id: EntryId,
    pair: Arc<StageProfileSeries>,
    pair_id: EntryId,
    /// Whether its runs are beyond a limit: of its own labels, its stage or its pair.
    is_overflow: bool,
    /// The Unix time at which the series began.
    pub(crate) created: Duration,
}

/// The series of one label set, present after the first stage with these labels has ended.
pub(crate) type CachedSeries = OnceLock<Arc<DurationSeries>>;

/// Takes the labels and the nanoseconds of a new series.
pub(crate) type OnCpuTime = Box<dyn Fn([&str; 2], Arc<AtomicU64>) + Send + Sync>;

/// Stage, profile, run id.
type SetLabels = [LabelId; 3];

/// A finished stage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FinishedStage {
    pub(crate) stage: LabelId,
    pub(crate) profile: LabelId,
    pub(crate) run_id: LabelId,
    /// The label-cache entry of these labels, if there is one.
    pub(crate) cached: Option<EntryId>,
    pub(crate) outcome: Outcome,
    /// Whether no other stage encloses it. `false` if it succeeded, and the answer changes nothing.
    pub(crate) is_outermost: bool,
    pub(crate) nanos: u64,
    /// On the clock of the spans.
    pub(crate) ended: u64,
    /// The trace of a failure and, if exemplars are kept, of a success; if it is known and sampled.
    #[cfg(feature = "trace-id")]
    pub(crate) trace: Option<TraceId>,
}

pub(crate) struct SeriesTable {
    pub(crate) recorder: RecorderHandle,
    interner: Arc<Interner>,
    /// Takes the nanoseconds of each new series of CPU time, by its labels.
    pub(crate) on_cpu_time: Option<OnCpuTime>,
    clock: quanta::Clock,
    /// The counter of stages beyond a limit, once the metrics are described to the recorder.
    overflow: OnceLock<Counter>,
    limit: CardinalityLimit,
    /// The buckets of the durations, if they are read from here.
    bounds: Option<Arc<DurationBounds>>,
    /// Present if exemplars are kept.
    #[cfg(feature = "trace-id")]
    exemplar_buckets: Option<ExemplarBuckets>,
    stages: AppendOnlyMap<Arc<StageSeries>>,
    pairs: AppendOnlyMap<Arc<StageProfileSeries>>,
    sets: AppendOnlyMap<Arc<DurationSeries>>,
    /// The number of label sets of which a stage has ended.
    finished: AtomicU64,
}

impl SeriesTable {
    /// Creates an empty table. `bounds` has those of the stage duration if durations are read from here; without it each
    /// duration goes to the recorder's histogram. `exemplars` has the bounds of the buckets if they have exemplars.
    pub(crate) fn new(
        recorder: RecorderHandle,
        interner: Arc<Interner>,
        max_series: usize,
        bounds: Option<DurationBounds>,
        #[cfg(feature = "trace-id")] exemplars: Option<&[f64]>,
        clock: quanta::Clock,
    ) -> Self {
        Self {
            recorder,
            interner,
            on_cpu_time: None,
            clock,
            overflow: OnceLock::new(),
            limit: CardinalityLimit::new(max_series),
            bounds: bounds.map(Arc::new),
            #[cfg(feature = "trace-id")]
            exemplar_buckets: exemplars.map(ExemplarBuckets::new),
            stages: AppendOnlyMap::new(),
            pairs: AppendOnlyMap::new(),
            sets: AppendOnlyMap::new(),
            finished: AtomicU64::new(0),
        }
    }

    /// Holds all locks of this table.
    #[cfg(all(test, feature = "pushgateway"))]
    pub(crate) fn lock(&self) -> impl Sized {
        let pairs: Vec<_> = self.pairs.iter().map(|pair| pair.lock()).collect();
        let stages: Vec<_> = self.stages.iter().map(|stage| stage.lock()).collect();
        (self.limit.lock(), self.stages.lock(), self.pairs.lock(), self.sets.lock(), pairs, stages)
    }

    /// Returns the number of stages, pairs and label sets.
    #[cfg(all(test, feature = "pushgateway"))]
    pub(super) fn lens(&self) -> (usize, usize, usize) {
        (self.stages.len(), self.pairs.len(), self.sets.len())
    }

    fn publisher(&self) -> Publisher<'_> {
        Publisher { recorder: &self.recorder, interner: &self.interner, clock: &self.clock }
    }

    /// Describes the metrics to the recorder and registers the overflow counter, on the first call.
    pub(crate) fn bind(&self) -> &Counter {
        if let Some(overflow) = self.overflow.get() {
            return overflow;
        }
        self.recorder.describe();
        let overflow = self.recorder.counter(&schema::OVERFLOW_TOTAL, &[]);
        self.overflow.get_or_init(|| overflow)
    }

    /// Counts a finished stage if its series is cached. Returns whether it is.
    #[inline]
    pub(crate) fn finish_cached(&self, stage: FinishedStage, cached: Option<&CachedSeries>) -> bool {
        cached.and_then(OnceLock::get).inspect(|set| self.count(stage, set)).is_some()
    }

    /// Counts a finished stage. Returns an overflow to warn of if this is the first stage beyond a limit. `cached` keeps the
    /// series for the next stage with these labels.
    #[cold]
    pub(crate) fn finish(&self, stage: FinishedStage, cached: Option<&CachedSeries>) -> Option<Overflow> {
        let set = self.set([stage.stage, stage.profile, stage.run_id]);
        self.count(stage, set);
        if !set.is_overflow {
            if let Some(cached) = cached {
                let _ = cached.set(Arc::clone(set));
            }
            return None;
        }
        if self.recorder.updates_eagerly() {
            suppress_instrumentation(|| self.bind().increment(1));
        }
        self.limit.overflow_once(&self.interner)
    }

    #[inline]
    fn count(&self, stage: FinishedStage, set: &DurationSeries) {
        set.durations.add(stage.nanos, stage.outcome, &self.finished);
        if let Some(recorded) = &set.recorded {
            suppress_instrumentation(|| recorded.record(stage.nanos as f64 / 1e9));
        }
        set.pair.set_last(&stage);
        if self.recorder.updates_eagerly() {
            self.count_eagerly(stage.outcome, set);
        }
        // After the counts: a reader of an exemplar finds its run counted.
        #[cfg(feature = "trace-id")]
        if let Some(trace) = stage.trace {
            set.stage.set_trace(trace, stage.outcome);
            if let Some(buckets) = &self.exemplar_buckets {
                buckets.keep(&set.traced, &set.pair.traced_failures, stage, trace);
            }
        }
    }

    fn count_eagerly(&self, outcome: Outcome, set: &DurationSeries) {
        suppress_instrumentation(|| match outcome {
            Outcome::Success => set.stage.success.increment(1),
            Outcome::Failure(reason) => {
                set.stage.failure.increment(1);
                set.pair.failures(self.publisher(), reason).increment(1);
            }
        });
        set.pair.publish_eagerly(self.publisher());
    }

    /// Whether a new run id can have a series of its own.
    #[inline]
    pub(crate) fn has_room_for_runs(&self) -> bool {
        !self.limit.sets_are_full()
    }

    fn set(&self, labels: SetLabels) -> &Arc<DurationSeries> {
        let own = self.sets.find(hash(labels), |set| set.labels == labels && !set.is_overflow);
        own.map_or_else(|| self.set_slow(labels), |(_, set)| set)
    }

    /// Finds or adds a label set that is new or beyond the limit.
    #[cold]
    fn set_slow(&self, labels: SetLabels) -> &Arc<DurationSeries> {
        self.bind();
        let [stage, profile, _] = labels;
        let (stage_id, stage_series) = self.stage(stage);
        let (pair_id, pair_series) = self.pair(stage, profile);
        let find = |labels: SetLabels| {
            let is = |set: &Arc<DurationSeries>| set.is_overflow && set.is(labels, stage_id, pair_id);
            self.sets.find(overflow_hash(labels, stage_id, pair_id), is).map(|(_, set)| set)
        };
        // Once the limit is reached, most new sets differ in the run id alone and share one series.
        let shared = Some([stage, profile, LabelId::OVERFLOW]).filter(|_| self.limit.sets_are_full()).and_then(find);
        shared.unwrap_or_else(|| {
            let limited = self.limit.set(labels);
            let is_overflow = limited != labels
                || labels.contains(&LabelId::OVERFLOW)
                || stage_series.stage == LabelId::OVERFLOW
                || pair_series.labels[1] == LabelId::OVERFLOW;
            find(limited).filter(|_| is_overflow).unwrap_or_else(|| {
                let recorded = match self.bounds {
                    Some(_) => None,
                    None => Some(self.recorder.histogram(&schema::STAGE_DURATION, &self.texts(limited))),
                };
                let set = DurationSeries {
                    labels: limited,
                    durations: Durations::new(self.bounds.clone().unwrap_or_default()),
                    #[cfg(feature = "trace-id")]
                    traced: LastRuns::default(),
                    recorded,
                    stage: Arc::clone(stage_series),
                    stage_id,
                    pair: Arc::clone(pair_series),
                    pair_id,
                    is_overflow,
                    created: unix_time::now(),
                };
                let hash = if is_overflow { overflow_hash(limited, stage_id, pair_id) } else { hash(limited) };
                let is =
                    |set: &Arc<DurationSeries>| set.is_overflow == is_overflow && set.is(limited, stage_id, pair_id);
                self.sets.find_or_insert(hash, is, || Arc::new(set)).1
            })
        })
    }

    fn texts<const N: usize>(&self, labels: [LabelId; N]) -> [&str; N] {
        labels.map(|label| self.interner.text(label))
    }

    /// Finds or adds the series of a stage, with a counter for each status.
    pub(crate) fn stage(&self, stage: LabelId) -> (EntryId, &Arc<StageSeries>) {
        let find = |stage: LabelId| self.stages.find(hash([stage; 3]), |series| series.stage == stage);
        if let Some(series) = find(stage) {
            return series;
        }
        self.bind();
        let stage = self.limit.stage(stage);
        find(stage).unwrap_or_else(|| {
            let series = StageSeries::new(stage, &self.interner, &self.recorder);
            self.stages.find_or_insert(hash([stage; 3]), |series| series.stage == stage, || Arc::new(series))
        })
    }

    /// Finds or adds the series of a stage in a profile.
    pub(crate) fn pair(&self, stage: LabelId, profile: LabelId) -> (EntryId, &Arc<StageProfileSeries>) {
        let pair_hash = |[stage, profile]: [LabelId; 2]| hash([stage, profile, LabelId::NONE]);
        let find = |labels| self.pairs.find(pair_hash(labels), |pair| pair.labels == labels);
        if let Some(pair) = find([stage, profile]) {
            return pair;
        }
        self.bind();
        let labels = self.limit.pair([stage, profile]);
        find(labels).unwrap_or_else(|| {
            let pair = StageProfileSeries::new(labels, self.publisher());
            self.pairs.find_or_insert(pair_hash(labels), |pair| pair.labels == labels, || Arc::new(pair))
        })
    }

    /// Moves the active gauge of a pair, in a recorder that is updated eagerly.
    pub(crate) fn move_active(&self, pair: EntryId, by: f64) {
        if let Some(pair) = self.pairs.get(pair) {
            pair.move_active(by);
        }
    }

    /// Publishes the latest state to the recorder and returns the histograms that are read from here, by label set. All
    /// counters are of the same moment as the histograms: they are set from the same counts. `active` returns the number of
    /// open stages of a pair.
    pub(crate) fn publish(&self, active: impl Fn(EntryId) -> u64) -> Vec<(&DurationSeries, Snapshot)> {
        let overflow = self.bind();
        let mut histograms = Vec::with_capacity(if self.bounds.is_some() { self.sets.len() } else { 0 });
        // Several overflow sets may have the same labels.
        let mut shared = HashMap::new();
        let (mut by_stage, mut by_pair, mut overflowed) = (Vec::new(), Vec::new(), 0);
        for set in self.sets.iter() {
            let (totals, histogram) = set.durations.read();
            add_at(&mut by_stage, set.stage_id, totals);
            add_at(&mut by_pair, set.pair_id, totals);
            if set.is_overflow {
                overflowed += totals.succeeded + totals.failures();
            }
            if set.recorded.is_some() {
                continue;
            }
            match shared.get(&set.labels).filter(|_| set.is_overflow).and_then(|at: &usize| histograms.get_mut(*at)) {
                Some((_, sum)) => *sum += histogram,
                None => {
                    if set.is_overflow {
                        shared.insert(set.labels, histograms.len());
                    }
                    histograms.push((&**set, histogram));
                }
            }
        }
        for (stage, totals) in self.stages.iter().zip(padded(by_stage)) {
            suppress_instrumentation(|| {
                stage.success.absolute(totals.succeeded);
                stage.failure.absolute(totals.failures());
            });
        }
        for ((id, pair), totals) in self.pairs.iter().enumerate().zip(padded(by_pair)) {
            for (reason, count) in Reason::ALL.into_iter().zip(totals.failed).filter(|(_, count)| *count > 0) {
                suppress_instrumentation(|| pair.failures(self.publisher(), reason).absolute(count));
            }
            pair.set_active(active(id as EntryId));
            pair.publish(self.publisher());
        }
        suppress_instrumentation(|| overflow.absolute(overflowed));
        histograms
    }

    /// Returns the exemplars by series. Call before [`publish`](Self::publish): then the counts include their runs.
    #[cfg(feature = "trace-id")]
    pub(crate) fn exemplars(&self) -> Vec<SeriesExemplars> {
        let of_set = |set: &DurationSeries| set.traced.of_durations(&self.clock, || self.key_of(set));
        let durations = self.sets.iter().filter_map(|set| of_set(set));
        durations.chain(self.pairs.iter().flat_map(|pair| pair.exemplars(self.publisher()))).collect()
    }

    /// Returns the key of the durations of a label set.
    pub(crate) fn key_of(&self, set: &DurationSeries) -> metrics::Key {
        self.recorder.key(&schema::STAGE_DURATION, &self.texts(set.labels))
    }
}

impl DurationSeries {
    fn is(&self, labels: SetLabels, stage: EntryId, pair: EntryId) -> bool {
        self.labels == labels && self.stage_id == stage && self.pair_id == pair
    }
}

fn hash(labels: SetLabels) -> u64 {
    let [stage, profile, run_id] = labels.map(|label| u64::from(label.bits()));
    splitmix64(stage << (2 * LabelId::BITS) | profile << LabelId::BITS | run_id)
}

/// Hashes an overflow set together with its stage and pair, since many have the same labels.
fn overflow_hash(labels: SetLabels, stage: EntryId, pair: EntryId) -> u64 {
    splitmix64(hash(labels) ^ (u64::from(stage) << 32 | u64::from(pair)))
}
