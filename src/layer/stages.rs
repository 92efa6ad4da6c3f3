//! The stages among the open spans: their ids, their end, and the series that count them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::Event;

use super::callsite::{Callsite, Callsites};
use super::error_text::ErrorTexts;
use super::fields::Inherited;
use super::labels::{LabelResolver, OnRunInfo, RunInfo};
use super::outcome::FailurePolicy;
use super::span::cpu::StageCpu;
use super::span::flags::SpanFlags;
use super::span::state::{SlotRef, SpanRef};
use super::span::tree::{ContextLabels, Origin, SpanTree};
#[cfg(feature = "trace-id")]
use super::trace_context::StageTraces;
use super::warnings::{self, FailedStage};
use crate::diagnostics::Diagnostics;
use crate::recorder::{RecorderHandle, RecorderTarget};
use crate::schema::DEFAULT_NAMESPACE;
use crate::series::interner::{Interner, LabelId, Role};
use crate::series::outcome::{Outcome, Reason};
use crate::series::{CachedSeries, DEFAULT_MAX_SERIES, DurationBounds, FinishedStage, OnCpuTime, SeriesTable};

/// The settings of the layer.
pub(crate) struct LayerSettings {
    pub(crate) namespace: String,
    pub(crate) policy: FailurePolicy,
    pub(crate) max_series: usize,
    /// Upper bounds of the buckets of the stage duration, if durations are read from the layer; otherwise each duration goes to
    /// the recorder.
    pub(crate) buckets: Option<Vec<f64>>,
    /// Whether durations that are read from the layer have native buckets too.
    pub(crate) native_histograms: bool,
    /// Upper bounds of the buckets of the stage duration, if they have exemplars.
    #[cfg(feature = "trace-id")]
    pub(crate) exemplars: Option<Vec<f64>>,
    pub(crate) expected_stages: Vec<String>,
    /// The value of the label in the whole process, if it does not come from spans.
    pub(crate) profile: Option<String>,
    pub(crate) run_id: Option<String>,
    pub(crate) run_id_label: bool,
    /// Whether the CPU time of stages is measured, where the system can.
    pub(crate) stage_cpu: bool,
    /// Takes the series of CPU time in place of a reader of the layer.
    pub(crate) on_cpu_time: Option<OnCpuTime>,
    /// Whether the texts of errors are kept for the run report.
    pub(crate) error_texts: bool,
    /// Takes the labels of `quant_run_info` in place of a reader of the layer.
    pub(crate) on_run_info: Option<OnRunInfo>,
    pub(crate) target: RecorderTarget,
    pub(crate) clock: quanta::Clock,
    pub(crate) diagnostics: Arc<Diagnostics>,
}

impl Default for LayerSettings {
    /// Those of a layer alone, which records into the recorder of the application.
    fn default() -> Self {
        Self {
            namespace: DEFAULT_NAMESPACE.to_owned(),
            policy: FailurePolicy::default(),
            max_series: DEFAULT_MAX_SERIES,
            buckets: None,
            native_histograms: false,
            #[cfg(feature = "trace-id")]
            exemplars: None,
            expected_stages: Vec::new(),
            profile: None,
            run_id: None,
            run_id_label: true,
            stage_cpu: false,
            on_cpu_time: None,
            error_texts: false,
            on_run_info: None,
            target: RecorderTarget::Global,
            clock: quanta::Clock::new(),
            diagnostics: Arc::default(),
        }
    }
}

/// The open spans, and the series in which a stage is counted when it ends.
pub(super) struct Stages {
    pub(super) callsites: Callsites,
    pub(super) spans: SpanTree,
    pub(super) labels: LabelResolver,
    pub(super) series: SeriesTable,
    pub(super) policy: FailurePolicy,
    pub(super) clock: quanta::Clock,
    pub(super) diagnostics: Arc<Diagnostics>,
    pub(super) expected: Vec<LabelId>,
    /// Unless the run id is no label.
    pub(super) run_info: Option<RunInfo>,
    /// Present if CPU time is measured.
    pub(super) cpu: Option<StageCpu>,
    /// Whether [`note_opened`](Self::note_opened) has anything to do.
    pub(super) notes_opened: bool,
    /// Present if a guard reports them.
    pub(super) error_texts: Option<ErrorTexts>,
    /// Whether an outermost stage has finished.
    outermost_finished: AtomicBool,
    #[cfg(feature = "trace-id")]
    pub(super) traces: StageTraces,
}

impl Stages {
    pub(super) fn new(settings: LayerSettings) -> Self {
        let interner = Arc::new(Interner::new(settings.max_series));
        let fixed = |role, value: &Option<String>| {
            value.as_deref().map_or(Origin::Spans, |value| Origin::Fixed(interner.intern(role, value)))
        };
        let profile = fixed(Role::Profile, &settings.profile);
        let run_id =
            if settings.run_id_label { fixed(Role::RunId, &settings.run_id) } else { Origin::Fixed(LabelId::EMPTY) };
        let run_info = settings.run_id_label.then(|| RunInfo::new(Arc::clone(&interner), settings.on_run_info));
        let mut stages = Self {
            run_info,
            cpu: if settings.stage_cpu { StageCpu::new() } else { None },
            error_texts: settings.error_texts.then(ErrorTexts::default),
            notes_opened: false,
            callsites: Callsites::new(Inherited { profile: profile.is_spans(), run_id: run_id.is_spans() }),
            spans: SpanTree::new(Arc::clone(&interner), profile, run_id),
            labels: LabelResolver::new(Arc::clone(&interner), settings.max_series),
            expected: settings.expected_stages.iter().map(|stage| interner.intern(Role::Stage, stage)).collect(),
            series: SeriesTable::new(
                RecorderHandle::new(settings.target, settings.namespace, settings.run_id_label),
                interner,
                settings.max_series,
                settings.buckets.as_deref().map(|bounds| DurationBounds::new(bounds, settings.native_histograms)),
                #[cfg(feature = "trace-id")]
                settings.exemplars.as_deref(),
                settings.clock.clone(),
            ),
            policy: settings.policy,
            clock: settings.clock,
            diagnostics: settings.diagnostics,
            outermost_finished: AtomicBool::new(false),
            #[cfg(feature = "trace-id")]
            traces: StageTraces::new(settings.exemplars.is_some()),
        };
        stages.series.on_cpu_time = settings.on_cpu_time;
        stages.notes_opened = stages.cpu.is_some() || stages.series.recorder.updates_eagerly();
        for stage in &stages.expected {
            stages.series.stage(*stage);
        }
        if let Some(run_info) = &stages.run_info {
            run_info.note([run_id, profile].map(Origin::fixed));
        }
        stages
    }

    pub(super) fn has_finished_outermost(&self) -> bool {
        self.outermost_finished.load(Ordering::Relaxed)
    }

    pub(super) fn callsite(&self, span: SpanRef<'_>) -> Option<&Callsite> {
        self.callsites.get(span.callsite.load(Ordering::Relaxed))
    }

    /// Sets the span's name as the stage id if the declared field was never recorded.
    #[inline]
    pub(super) fn ensure_stage_id(&self, span: SpanRef<'_>) {
        if span.stage().is_none()
            && let Some(callsite) = self.callsite(span)
        {
            let (values, hashes) = self.labels.stage(callsite.meta.name());
            span.set_values(values);
            span.set_hashes(values, hashes);
            self.spans.update_nested(span.slot);
        }
    }

    /// Collects the facts about a stage that ends.
    #[inline(always)]
    pub(super) fn finished(&self, span: SpanRef<'_>, outcome: Outcome, ended: u64) -> FinishedStage {
        // Before the cache entry is read: it is dropped here if it is of other labels.
        let ContextLabels { profile, run_id } = self.spans.resolve(span.slot);
        let nanos = self.clock.delta_as_nanos(span.started.load(Ordering::Relaxed), ended);
        FinishedStage {
            stage: span.stage(),
            profile,
            run_id,
            cached: span.cached(),
            outcome,
            is_outermost: !(outcome == Outcome::Success && self.has_finished_outermost())
                && self.spans.nearest_stage(span.parent(), self.spans.epoch()).is_none(),
            nanos,
            ended,
            #[cfg(feature = "trace-id")]
            trace: self.traces.of_finished(span, outcome),
        }
    }

    /// Counts a stage that the caller has finished.
    #[inline]
    pub(super) fn count(&self, span: SpanRef<'_>, ended: FinishedStage) {
        if ended.is_outermost {
            self.outermost_finished.store(true, Ordering::Relaxed);
        }
        let cached = ended.cached.and_then(|cached| self.labels.series(cached));
        if !self.series.finish_cached(ended, cached) {
            self.count_slow(span.started.load(Ordering::Relaxed), ended, cached);
        }
        if self.cpu.is_some() {
            self.count_cpu_time(span, ended);
        }
    }

    // These take the finished stage by value, so that it is in memory only where they are called.

    #[cold]
    fn count_cpu_time(&self, span: SpanRef<'_>, ended: FinishedStage) {
        if let Some(cpu) = &self.cpu {
            self.series.add_cpu_time(ended, cpu.take(span));
        }
    }

    /// Counts a stage whose series is not cached: labels that no stage had before are among these.
    #[cold]
    fn count_slow(&self, started: u64, ended: FinishedStage, cached: Option<&CachedSeries>) {
        if let Some(run_info) = &self.run_info {
            let labels = [ended.run_id, ended.profile];
            if run_info.is_news(labels) {
                let earlier = self.open_stages().take_while(|open| open.started < started);
                earlier.for_each(|open| self.note_run(open.labels));
                run_info.note(labels);
            }
        }
        if let Some(overflow) = self.series.finish(ended, cached) {
            warnings::overflow(&self.diagnostics, overflow);
        }
    }

    /// Keeps the labels of a stage for `quant_run_info` if no stage had such labels before.
    pub(super) fn note_run(&self, labels: ContextLabels) {
        if let Some(run_info) = &self.run_info {
            run_info.note([labels.run_id, labels.profile]);
        }
    }

    /// Keeps the text of an event by which a stage fails.
    pub(super) fn note_error(&self, stage: SlotRef, event: &Event<'_>) {
        if let Some(texts) = &self.error_texts {
            texts.keep(stage, event, |stage| self.spans.open.get(stage).is_some());
        }
    }

    /// A stage that has failed, and is counted, closed.
    #[cold]
    pub(super) fn closed_failed(&self, span: SpanRef<'_>, failed: FinishedStage, reason: Reason) {
        self.keep_error(span.reference(), failed);
        if reason == Reason::Cancelled
            && let Some(callsite) = self.callsite(span)
        {
            warnings::cancelled(&self.diagnostics, self.labels.text(failed.stage), callsite);
        }
    }

    /// Keeps the text of the error by which a stage failed as the last one of its series.
    fn keep_error(&self, reference: SlotRef, failed: FinishedStage) {
        if let Some(texts) = &self.error_texts {
            texts.take(reference, |text| self.series.set_last_error(failed, text));
        }
    }

    /// Counts a stage without a close. Returns `None` if another thread counts it. The caller has made `reference` before it read
    /// anything from the span: that thread may free the slot.
    pub(super) fn count_unclosed(
        &self,
        span: SpanRef<'_>,
        reference: SlotRef,
        outcome: Outcome,
        ended: u64,
    ) -> Option<FinishedStage> {
        let ended = self.finished(span, outcome, ended);
        if !span.try_finish(reference) {
            return None;
        }
        self.count(span, ended);
        if let Outcome::Failure(_) = outcome {
            self.keep_error(reference, ended);
        }
        self.dec_active(span);
        Some(ended)
    }

    /// Counts a stage whose close this layer has missed, by the rule for the end of the run. The slot may have another span
    /// than `reference` by now, which this leaves alone.
    #[cold]
    pub(super) fn count_missed(&self, span: SpanRef<'_>, reference: SlotRef) {
        if !span.flags().has(SpanFlags::STAGE) || !span.is_current(reference) {
            return;
        }
        self.ensure_stage_id(span);
        let flags = span.flags();
        if flags.is_stage() {
            let outcome = self.policy.outcome_at_end(flags, span.entered.is_entered(), false);
            self.count_unclosed(span, reference, outcome, span.last_exit().unwrap_or_else(|| self.clock.raw()));
        } else {
            self.dec_active(span);
        }
    }

    /// A span opened: its slot has no CPU time, and it is active in a recorder that is updated eagerly.
    #[cold]
    pub(super) fn note_opened(&self, span: SpanRef<'_>) {
        if let Some(cpu) = &self.cpu {
            cpu.opened(span);
        }
        if self.series.recorder.updates_eagerly() {
            self.inc_active(span);
        }
    }

    /// Increments the active gauge of the stage, in a recorder that is updated eagerly.
    pub(super) fn inc_active(&self, span: SpanRef<'_>) {
        let flags = span.flags();
        if !span.is_open() || !flags.is_stage() || span.stage().is_none() {
            return self.dec_active(span);
        }
        let (reference, stage) = (span.reference(), span.stage());
        let labels = self.spans.look(span.slot);
        if !span.is_current(reference) {
            return;
        }
        self.note_run(labels);
        self.series.stage(stage);
        let (pair, _) = self.series.pair(stage, labels.profile);
        let before = span.active_series.swap(pair + 1, Ordering::SeqCst);
        if before != pair + 1 {
            self.series.move_active(pair, 1.0);
            self.dec_series(before);
        }
        if !span.is_open() {
            // Its end came in between, and took back what was active_series before this.
            self.dec_active(span);
        }
    }

    #[inline]
    pub(super) fn dec_active(&self, span: SpanRef<'_>) {
        if span.active_series.load(Ordering::SeqCst) != 0 {
            self.dec_series(span.active_series.swap(0, Ordering::SeqCst));
        }
    }

    fn dec_series(&self, active_series: u32) {
        if let Some(pair) = active_series.checked_sub(1) {
            self.series.move_active(pair, -1.0);
        }
    }

    /// Warns of the first failure of each stage whose trace is known.
    #[cfg(feature = "trace-id")]
    #[inline]
    pub(super) fn warn_first_failure(&self, ended: FinishedStage) {
        if let Some(trace) = ended.trace
            && let Outcome::Failure(reason) = ended.outcome
            && self.series.stage(ended.stage).1.report_trace_once()
        {
            warnings::failed(&self.diagnostics, self.failed(&ended, reason), trace);
        }
    }

    /// Returns what a warning shows of a failed stage.
    pub(super) fn failed(&self, ended: &FinishedStage, reason: Reason) -> FailedStage {
        let [stage_id, profile, run_id] =
            [ended.stage, ended.profile, ended.run_id].map(|label| self.labels.text(label).to_owned());
        FailedStage {
            stage_id,
            profile,
            run_id,
            reason,
            #[cfg(feature = "trace-id")]
            trace: ended.trace,
        }
    }
}
