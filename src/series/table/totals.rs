//! The totals of stages, their errors and their CPU time: what the run report, the success of the run and the metrics outside the
//! recorder come from.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{FinishedStage, SeriesTable};
use crate::series::durations::{HistogramTotals, add_at, padded};
use crate::series::interner::LabelId;
use crate::series::stage_profile_series::CpuTime;
use crate::series::stage_series::StageTotals;
use crate::unix_time;

impl SeriesTable {
    /// Iterates over all stages and their totals.
    pub(crate) fn totals(&self) -> impl Iterator<Item = (LabelId, StageTotals)> {
        let mut by_stage = Vec::new();
        for set in self.sets.iter() {
            add_at(&mut by_stage, set.stage_id, set.durations.totals());
        }
        self.stages.iter().zip(padded(by_stage)).map(|(series, totals)| (series.stage, series.totals(totals)))
    }

    /// Iterates over all stages in their profiles and their totals, in the order in which they first opened.
    pub(crate) fn pair_totals(&self) -> impl Iterator<Item = ([&str; 2], HistogramTotals)> {
        self.pairs.iter().zip(self.totals_by_pair()).map(|(pair, totals)| (self.texts(pair.labels), totals))
    }

    fn totals_by_pair(&self) -> impl Iterator<Item = HistogramTotals> {
        let mut by_pair = Vec::new();
        for set in self.sets.iter() {
            add_at(&mut by_pair, set.pair_id, set.durations.totals());
        }
        padded(by_pair)
    }

    /// Counts the CPU time of a finished stage.
    pub(crate) fn add_cpu_time(&self, stage: FinishedStage, nanos: u64) {
        let pair = self.pair(stage.stage, stage.profile).1;
        let cpu = pair.cpu.get_or_init(|| {
            let cpu = CpuTime { nanos: Arc::default(), created: unix_time::now() };
            if let Some(on_cpu_time) = &self.on_cpu_time {
                on_cpu_time(self.texts(pair.labels), Arc::clone(&cpu.nanos));
            }
            cpu
        });
        cpu.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Iterates over the CPU times by stage and profile, with the Unix time at which each series began.
    pub(crate) fn cpu_times(&self) -> impl Iterator<Item = ([&str; 2], Duration, Duration)> {
        self.pairs.iter().filter_map(|pair| {
            let cpu = pair.cpu.get()?;
            Some((self.texts(pair.labels), Duration::from_nanos(cpu.nanos.load(Ordering::Relaxed)), cpu.created))
        })
    }

    /// Keeps the text of the error by which a stage failed, which has been counted.
    pub(crate) fn set_last_error(&self, failed: FinishedStage, text: &str) {
        self.stage(failed.stage).1.last_error.set(text);
        self.pair(failed.stage, failed.profile).1.last_error.set(text);
    }

    /// Iterates over the stages by profile of which a run has failed as an outermost stage: stage, profile, totals and last error.
    pub(crate) fn failed_outermost(&self) -> impl Iterator<Item = ([LabelId; 2], HistogramTotals, Option<String>)> {
        let pairs = self.pairs.iter().map(|pair| &**pair).zip(self.totals_by_pair());
        let failed = pairs.filter(|(pair, _)| pair.failed_outermost.load(Ordering::Relaxed));
        failed.map(|(pair, totals)| (pair.labels, totals, pair.last_error.get()))
    }
}
