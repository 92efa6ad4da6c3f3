//! The last run in a sampled trace, of each bucket of a duration and of each failure counter.
//!
//! A stage never waits: if another thread writes at the same moment, one of the two runs is kept. A reader repeats a read that a
//! writer has disturbed.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use metrics::Key;

use super::durations::DurationBounds;
use super::outcome::{Outcome, Reason};
use super::seqlock::Seqlock;
use super::table::FinishedStage;
use super::trace_id::TraceId;
use crate::exposition::{Exemplar, Labels, SeriesExemplars};
use crate::unix_time;

/// The label of an exemplar.
const TRACE_ID: &str = "trace_id";

/// How often a reader tries to read a run while stages end.
const MAX_READS: usize = 100;

/// The buckets of the stage duration, each with its exemplar.
pub(super) struct ExemplarBuckets(DurationBounds);

impl ExemplarBuckets {
    /// Converts ascending bounds in seconds.
    pub(super) fn new(bounds: &[f64]) -> Self {
        Self(DurationBounds::new(bounds, false))
    }

    /// Keeps a stage in a sampled trace as the last of its bucket and, if it failed, of its reason.
    pub(super) fn keep(&self, durations: &LastRuns, failures: &LastRuns, stage: FinishedStage, trace: TraceId) {
        let run = TracedRun { trace, nanos: stage.nanos, ended: stage.ended };
        durations.set(self.0.buckets(), self.0.bucket(stage.nanos), run);
        if let Outcome::Failure(reason) = stage.outcome {
            failures.set(Reason::COUNT, reason as usize, run);
        }
    }
}

/// A finished stage in a sampled trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TracedRun {
    trace: TraceId,
    nanos: u64,
    /// On the clock of the spans.
    ended: u64,
}

/// The last run for each of some values, such as buckets. The memory for a value is allocated at its first run: most series
/// use few buckets.
#[derive(Default)]
pub(super) struct LastRuns(OnceLock<Box<[OnceLock<Box<LastRun>>]>>);

impl LastRuns {
    /// Keeps a run for the value `at`. `values` is their number.
    fn set(&self, values: usize, at: usize, run: TracedRun) {
        let runs = self.0.get_or_init(|| (0..values).map(|_| OnceLock::new()).collect());
        if let Some(last) = runs.get(at) {
            last.get_or_init(Box::default).set(run);
        }
    }

    /// Returns the exemplars of a histogram, whose values are the durations. `None` if no bucket has one.
    pub(super) fn of_durations(&self, clock: &quanta::Clock, key: impl FnOnce() -> Key) -> Option<SeriesExemplars> {
        let exemplars = self.exemplars(clock, |seconds| seconds);
        (!exemplars.is_empty()).then(|| (key(), exemplars))
    }

    /// Returns the exemplars of the counters of failures, whose values are what a failure adds.
    pub(super) fn of_failures(
        &self,
        clock: &quanta::Clock,
        key: impl Fn(Reason) -> Key,
    ) -> impl Iterator<Item = SeriesExemplars> {
        let exemplars = Reason::ALL.into_iter().zip(self.exemplars(clock, |_| 1.0));
        exemplars.filter_map(move |(reason, exemplar)| exemplar.map(|exemplar| (key(reason), vec![Some(exemplar)])))
    }

    /// Returns an exemplar for each value; none if no value has one. `value_of` makes its value of a duration in seconds.
    fn exemplars(&self, clock: &quanta::Clock, value_of: fn(f64) -> f64) -> Vec<Option<Exemplar>> {
        let exemplar = |last: &OnceLock<Box<LastRun>>| {
            let (run, time) = last.get()?.published(clock)?;
            let labels = Labels::new([(TRACE_ID, run.trace.to_string().as_str())].into_iter()).0;
            Some(Exemplar { labels, value: value_of(run.nanos as f64 / 1e9), time: Some(time) })
        };
        self.0.get().into_iter().flatten().map(exemplar).collect()
    }
}

#[derive(Default)]
#[repr(align(128))] // Threads at different values share no cache line.
struct LastRun {
    /// The halves of the trace, the duration, and the end.
    run: Seqlock<4>,
    /// The last published run, with the Unix time of its end. The time is computed once: Prometheus stores an exemplar whose
    /// time has changed as another one.
    published: Mutex<Option<(TracedRun, Duration)>>,
}

impl LastRun {
    /// Keeps a run, unless one that ended later is there or another thread writes.
    #[inline]
    fn set(&self, TracedRun { trace, nanos, ended }: TracedRun) {
        let [high, low] = [trace.get() >> u64::BITS, trace.get()].map(|half| half as u64);
        self.run.set([high, low, nanos, ended], |[.., before]| before <= ended);
    }

    /// Returns the last run. `None` if there is none, or if writers disturb every read.
    fn get(&self) -> Option<TracedRun> {
        let [high, low, nanos, ended] = self.run.get(MAX_READS)?;
        let trace = TraceId::new(u128::from(high) << u64::BITS | u128::from(low))?;
        Some(TracedRun { trace, nanos, ended })
    }

    /// Returns the last run and the Unix time of its end; the run published last if the present one cannot be read.
    fn published(&self, clock: &quanta::Clock) -> Option<(TracedRun, Duration)> {
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(run) = self.get().filter(|run| published.is_none_or(|(last, _)| last != *run)) {
            let age = clock.delta(run.ended, clock.raw());
            *published = Some((run, unix_time::now().saturating_sub(age)));
        }
        *published
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(number: u64) -> TracedRun {
        let trace = TraceId::new(u128::from(number) << u64::BITS | u128::from(number)).unwrap();
        TracedRun { trace, nanos: number, ended: number }
    }

    #[test]
    fn run_that_ended_last_is_kept() {
        let last = LastRun::default();
        assert_eq!(last.get(), None);
        for (number, kept) in [(1, 1), (3, 3), (2, 3), (4, 4)] {
            last.set(run(number));
            assert_eq!(last.get(), Some(run(kept)));
        }
    }

    #[test]
    fn run_is_not_torn_by_writers() {
        let last = LastRun::default();
        std::thread::scope(|scope| {
            for first in [1, 2] {
                let last = &last;
                scope.spawn(move || (first..400_000).step_by(2).for_each(|number| last.set(run(number))));
            }
            let mut seen = 0;
            while seen < 300_000 {
                if let Some(found) = last.get() {
                    assert_eq!(found, run(found.nanos));
                    assert!(found.nanos >= seen, "{} follows {seen}", found.nanos);
                    seen = found.nanos;
                }
            }
        });
    }

    #[test]
    fn time_of_a_published_run_stays() {
        let (clock, mock) = quanta::Clock::mock();
        mock.increment(1_000_u64);
        let last = LastRun::default();
        assert_eq!(last.published(&clock), None);
        last.set(run(1_000));
        let published = last.published(&clock).unwrap();
        mock.increment(5_000_000_000_u64);
        assert_eq!(last.published(&clock), Some(published));
        last.set(run(1_001));
        let (found, later) = last.published(&clock).unwrap();
        assert_eq!(found, run(1_001));
        // It ended five seconds ago on the mocked clock.
        assert!(later < published.1, "{later:?} {published:?}");
    }

    #[test]
    fn values_without_a_run_have_no_exemplar() {
        let (clock, runs) = (quanta::Clock::new(), LastRuns::default());
        assert_eq!(runs.exemplars(&clock, |seconds| seconds), []);
        runs.set(3, 1, TracedRun { trace: TraceId::new(0xabc).unwrap(), nanos: 2_500_000_000, ended: clock.raw() });
        runs.set(3, 3, run(1));
        let exemplars = runs.exemplars(&clock, |seconds| seconds);
        let [None, Some(exemplar), None] = &exemplars[..] else { panic!("{exemplars:?}") };
        assert_eq!(exemplar.labels.as_str(), "trace_id=\"00000000000000000000000000000abc\"");
        assert_eq!(exemplar.value, 2.5);
        let age = unix_time::now().abs_diff(exemplar.time.unwrap());
        assert!(age < Duration::from_secs(10), "{age:?}");
    }
}
