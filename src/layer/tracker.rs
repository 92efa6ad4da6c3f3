//! The state of a stage: opened, recorded into, entered, left, closed, or cut off by the end of the run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::callsite::{Callsite, CallsiteKind, Callsites, ErrorEvent, InstrumentEvent, instrument_event};
use super::fields::{HasError, Inherited, SpanFields};
use super::outcome::FailurePolicy;
use super::span::flags::SpanFlags;
use super::span::inherit::{ContextLabels, Epoch, Inheritance, Origin};
use super::span::label_cache::{CacheKey, LabelCache};
use super::span::state::{NewSpan, SlotRef, SpanRef};
use super::span::table::OpenSpans;
use super::span::unwind;
#[cfg(feature = "trace-id")]
use super::trace_context::note_trace_at_enter;
use crate::diagnostics::Diagnostics;
use crate::recorder::{RecorderHandle, RecorderTarget, is_suppressed};
use crate::series::append_only_map::EntryId;
use crate::series::interner::{Interner, LabelId, Role, SpanLabels, ValueHashes};
use crate::series::outcome::{Outcome, Reason};
use crate::series::{FinishedStage, SeriesTable};

/// The settings of the layer.
pub(crate) struct TrackerSettings {
    pub(crate) namespace: String,
    pub(crate) policy: FailurePolicy,
    pub(crate) max_series: usize,
    /// Upper bounds of the buckets of the stage duration, if durations are read from the layer; otherwise each duration goes to
    /// the recorder.
    pub(crate) buckets: Option<Vec<f64>>,
    pub(crate) expected_stages: Vec<String>,
    /// The value of the label in the whole process, if it does not come from spans.
    pub(crate) profile: Option<String>,
    pub(crate) run_id: Option<String>,
    pub(crate) run_id_label: bool,
    pub(crate) target: RecorderTarget,
    pub(crate) clock: quanta::Clock,
    pub(crate) diagnostics: Arc<Diagnostics>,
}

/// The stages of this process, shared by the layer and the guard.
pub(crate) struct StageTracker {
    pub(crate) callsites: Callsites,
    pub(crate) labels: Arc<Interner>,
    pub(crate) open: OpenSpans,
    pub(crate) inheritance: Inheritance,
    label_cache: LabelCache,
    pub(crate) series: SeriesTable,
    pub(crate) policy: FailurePolicy,
    pub(crate) clock: quanta::Clock,
    pub(crate) diagnostics: Arc<Diagnostics>,
    pub(crate) expected: Vec<LabelId>,
    /// Whether a thread adds a slot for an untracked span, see `parent_slow`.
    leading: AtomicBool,
    /// Whether spans may have closed without a callback, while the layer was out of its subscriber.
    may_have_missed: AtomicBool,
    /// Whether the layer was dropped: open spans get no callback any more.
    is_detached: AtomicBool,
    warned_inert: AtomicBool,
    pub(crate) outermost_finished: AtomicBool,
    pub(crate) outermost_failed: AtomicBool,
}

/// The labels of a new span.
struct ResolvedLabels {
    values: SpanLabels,
    resolved: ContextLabels,
    /// The label-cache entry, if there is one.
    cached: Option<EntryId>,
}

impl StageTracker {
    pub(crate) fn new(settings: TrackerSettings) -> Self {
        let labels = Arc::new(Interner::new(settings.max_series));
        let fixed = |role, value: &Option<String>| {
            value.as_deref().map_or(Origin::Spans, |value| Origin::Fixed(labels.intern(role, value)))
        };
        let profile = fixed(Role::Profile, &settings.profile);
        let run_id =
            if settings.run_id_label { fixed(Role::RunId, &settings.run_id) } else { Origin::Fixed(LabelId::EMPTY) };
        let recorder = RecorderHandle::new(settings.target, settings.namespace, settings.run_id_label);
        let stages = Self {
            callsites: Callsites::new(Inherited { profile: profile.is_spans(), run_id: run_id.is_spans() }),
            open: OpenSpans::new(),
            inheritance: Inheritance::new(profile, run_id),
            label_cache: LabelCache::new(settings.max_series),
            series: SeriesTable::new(
                recorder,
                Arc::clone(&labels),
                settings.max_series,
                settings.buckets.as_deref(),
                settings.clock.clone(),
            ),
            policy: settings.policy,
            clock: settings.clock,
            diagnostics: settings.diagnostics,
            expected: settings.expected_stages.iter().map(|stage| labels.intern(Role::Stage, stage)).collect(),
            labels,
            leading: AtomicBool::new(false),
            may_have_missed: AtomicBool::new(false),
            is_detached: AtomicBool::new(false),
            warned_inert: AtomicBool::new(false),
            outermost_finished: AtomicBool::new(false),
            outermost_failed: AtomicBool::new(false),
        };
        for stage in &stages.expected {
            stages.series.stage(*stage);
        }
        stages
    }

    pub(crate) fn register(&self, meta: &'static tracing::Metadata<'static>) {
        // All callsites are registered once more when the layer is put back into a `reload::Layer`.
        if self.callsites.has(meta) {
            self.may_have_missed.store(true, Ordering::Relaxed);
        }
        self.callsites.register(meta);
    }

    pub(crate) fn detach(&self) {
        self.is_detached.store(true, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn opened<S>(&self, attrs: &Attributes<'_>, id: &Id, ctx: Context<'_, S>)
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let tracked = self.callsites.of_span(attrs.metadata());
        if tracked.is_some() || self.open.may_have(id) {
            self.opened_slow(tracked, attrs, id, ctx);
        }
    }

    /// A span that tracked opened, or one with an id that may be in use.
    #[inline(never)]
    fn opened_slow<S>(&self, tracked: Option<EntryId>, attrs: &Attributes<'_>, id: &Id, ctx: Context<'_, S>)
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        if let Some(left) = self.open.find(id) {
            // An earlier span with this id, whose close this layer has missed.
            self.count_missed(left);
            self.open.release(left);
        }
        let Some((number, callsite)) = tracked.and_then(|number| Some((number, self.callsites.get(number)?))) else {
            return;
        };
        let flags = if callsite.kind == CallsiteKind::Stage { SpanFlags::STAGE } else { SpanFlags::default() };
        if is_suppressed() || self.is_inert(flags) {
            return;
        }
        let started = self.clock.raw();
        // SpanLabels are printed before the slot is taken: that runs the user's code.
        let mut fields = SpanFields::new(&callsite.positions);
        attrs.record(&mut fields);
        let flags = fields.status.map_or(flags, |status| flags.with_status(status, false));
        let parent = self.parent(attrs, id, &ctx);
        // The epoch is read before the values.
        let epoch = self.inheritance.epoch();
        let ResolvedLabels { values, resolved, cached } = self.labels_of(&fields, parent, epoch);
        // Cached labels are within the limits.
        let hashes = if cached.is_some() { None } else { self.hashes(&fields, values) };
        drop(fields);
        let enclosing = self.inheritance.nearest_stage(&self.open, parent, epoch);
        let is_same = |stage| self.inheritance.is_same_stage(&self.open, &self.labels, stage, values, hashes.as_ref());
        let is_nested = !values.stage.is_none() && enclosing.is_some_and(is_same);
        let flags = if is_nested { flags.with(SpanFlags::NESTED_SAME_STAGE) } else { flags };
        let enclosing_stage = enclosing.map_or(SlotRef::NONE, |stage| stage.reference());
        let resolved = resolved.pack(epoch);
        let span = NewSpan { callsite: number, parent, enclosing_stage, started, flags, values, cached, resolved };
        let Some(span) = self.open.claim(id, span) else { return };
        if let Some(hashes) = hashes {
            // No other thread has the id yet.
            span.set_hashes(values, hashes);
        }
        if self.series.recorder.updates_eagerly() {
            self.inc_active(span);
        }
    }

    /// Returns the labels of a new span.
    #[inline]
    fn labels_of(&self, fields: &SpanFields<'_>, parent: SlotRef, epoch: Epoch) -> ResolvedLabels {
        let inherited = if self.inheritance.is_needed(fields.profile().is_some(), fields.run_id().is_some()) {
            self.inheritance.around(&self.open, parent, epoch)
        } else {
            ContextLabels::default()
        };
        let given = fields.compared().map(|(text, offsets)| CacheKey { text, offsets, inherited });
        if let Some((number, cached)) = given.as_ref().and_then(|given| self.label_cache.find(given)) {
            return ResolvedLabels { values: cached.values, resolved: cached.resolved, cached: Some(number) };
        }
        self.insert_cached(fields, given.as_ref(), inherited)
    }

    #[cold]
    fn insert_cached(
        &self,
        fields: &SpanFields<'_>,
        given: Option<&CacheKey<'_>>,
        inherited: ContextLabels,
    ) -> ResolvedLabels {
        let values = self.values(fields);
        let resolved = self.inheritance.resolved(values, inherited);
        // Overflow results are not cached: capacity may appear later.
        let all = [values.stage, values.profile, values.run_id, resolved.profile, resolved.run_id];
        let given = given.filter(|_| !all.contains(&LabelId::OVERFLOW));
        let cached = given.and_then(|given| self.label_cache.add(given, values, resolved));
        ResolvedLabels { values, resolved, cached }
    }

    fn values(&self, fields: &SpanFields<'_>) -> SpanLabels {
        let label = |role, value: Option<&str>| value.map_or(LabelId::NONE, |value| self.labels.intern(role, value));
        // A new run id overflows once the metric with run ids has all its label sets.
        let run_id = match fields.run_id() {
            Some(run_id) if !self.series.has_room_for_runs() => self.labels.find(run_id).unwrap_or(LabelId::OVERFLOW),
            run_id => label(Role::RunId, run_id),
        };
        SpanLabels {
            stage: label(Role::Stage, fields.stage()),
            profile: label(Role::Profile, fields.profile()),
            run_id,
        }
    }

    /// Returns the hashes of the values of a span if one of them is beyond a limit.
    #[cold]
    fn hashes(&self, fields: &SpanFields<'_>, values: SpanLabels) -> Option<ValueHashes> {
        let hash = |value: Option<&str>| value.map_or(0, |value| self.labels.hash(value));
        values.contain(LabelId::OVERFLOW).then(|| ValueHashes {
            stage: hash(fields.stage()),
            profile: hash(fields.profile()),
            run_id: hash(fields.run_id()),
        })
    }

    /// Returns whether the run has ended, and warns once of a stage that opens then.
    fn is_inert(&self, flags: SpanFlags) -> bool {
        let ended = self.open.has_ended();
        if ended && flags.is_stage() && !self.warned_inert.swap(true, Ordering::Relaxed) {
            self.warn_inert();
        }
        ended
    }

    /// Returns the slot of the nearest tracked ancestor of a new span.
    fn parent<S>(&self, attrs: &Attributes<'_>, id: &Id, ctx: &Context<'_, S>) -> SlotRef
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let current = ctx.current_span();
        let parent = match attrs.parent() {
            Some(parent) => Some(parent),
            None if attrs.is_contextual() => current.id(),
            None => None,
        };
        let Some(parent) = parent else { return SlotRef::NONE };
        if let Some(span) = self.open.get_initialized(parent) {
            return span.reference();
        }
        self.parent_slow(id, ctx)
    }

    /// Finds the nearest tracked ancestor if the parent is untracked. The parent gets a slot that refers to it, so that the next
    /// stage within the parent needs no search.
    fn parent_slow<S>(&self, id: &Id, ctx: &Context<'_, S>) -> SlotRef
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let Some(span) = ctx.span(id) else { return SlotRef::NONE };
        // The scope omits spans that a filter hides from this layer, which gets no callback when they close.
        let mut around = span.scope().skip(1);
        let Some(nearest) = around.next() else { return SlotRef::NONE };
        if let Some(span) = self.open.get_initialized(&nearest.id()) {
            return span.reference();
        }
        let further = around.find_map(|span| self.open.get_initialized(&span.id()));
        let further = further.map_or(SlotRef::NONE, |span| span.reference());
        // An id has one slot. Non-blocking: the loser uses the ancestor it found; the next span tries again.
        if self.leading.swap(true, Ordering::Acquire) {
            return further;
        }
        let span = self.open.find(&nearest.id()).or_else(|| {
            let callsite = self.callsites.find(nearest.metadata()).0;
            let epoch = self.inheritance.epoch();
            let resolved = self.inheritance.around(&self.open, further, epoch).pack(epoch);
            let enclosing = self.inheritance.nearest_stage(&self.open, further, epoch);
            let enclosing_stage = enclosing.map_or(SlotRef::NONE, |stage| stage.reference());
            let span = NewSpan { callsite, parent: further, enclosing_stage, resolved, ..NewSpan::default() };
            self.open.claim(&nearest.id(), span)
        });
        self.leading.store(false, Ordering::Release);
        span.map_or(further, |span| span.reference())
    }

    pub(crate) fn recorded(&self, id: &Id, values: &Record<'_>) {
        let Some(span) = self.open.get_initialized(id) else { return };
        let Some(callsite) = self.callsite(span) else { return };
        let mut fields = SpanFields::new(&callsite.positions);
        values.record(&mut fields);
        if let Some(status) = fields.status {
            let has_started = span.was_entered();
            span.update_flags(|flags| flags.with_status(status, has_started));
        }
        // Most late records are of other fields, such as a number of rows: the labels span so far hold.
        if !fields.has_labels() {
            return;
        }
        let given = self.values(&fields);
        let hashes = self.hashes(&fields, given);
        drop(fields);
        span.set_values(given);
        if let Some(hashes) = hashes {
            span.set_hashes(given, hashes);
        }
        if !(given.profile.is_none() && given.run_id.is_none()) {
            self.inheritance.begin_epoch();
        }
        if !given.stage.is_none() {
            self.inheritance.update_nested(&self.open, &self.labels, span.slot);
        }
        if self.series.recorder.updates_eagerly() && !(given.stage.is_none() && given.profile.is_none()) {
            self.open.iter().for_each(|open| self.inc_active(open));
        }
    }

    #[inline]
    pub(crate) fn entered<S>(&self, id: &Id, ctx: &Context<'_, S>)
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        if let Some(span) = self.open.find(id) {
            self.entered_slow(span, ctx);
        }
    }

    /// Counts the stages that closed while this layer was out of its subscriber.
    #[cold]
    fn count_all_missed<S>(&self, ctx: &Context<'_, S>)
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        if !self.may_have_missed.swap(false, Ordering::Relaxed) {
            return;
        }
        for span in self.open.iter() {
            let reference = span.reference();
            let exists = self.open.id_of(span).is_none_or(|id| ctx.exists(&id));
            // The registry frees an id after the callbacks of all layers: a slot that is still current was not closed.
            if !exists && span.is_current(reference) {
                self.count_missed(span);
            }
        }
    }

    /// Counts a stage whose close this layer has missed, by the rule for the end of the run.
    #[cold]
    fn count_missed(&self, span: SpanRef<'_>) {
        if span.flags().has(SpanFlags::STAGE) {
            let reference = span.reference();
            self.ensure_stage_id(span);
            let flags = span.flags();
            let outcome = self.policy.outcome_at_end(flags, span.entered.is_entered(), false);
            let last_exit = Some(span.last_exit.load(Ordering::Relaxed)).filter(|exit| *exit != 0);
            let ended = self.ended_stage(span, outcome, last_exit.unwrap_or_else(|| self.clock.raw()));
            if flags.is_stage() && span.try_finish(reference) {
                self.count(ended);
            }
            self.dec_active(span);
        }
    }

    /// Counts the stages that were open when the layer was dropped.
    pub(crate) fn count_detached(&self) {
        if self.is_detached.swap(false, Ordering::Relaxed) {
            self.open.iter().for_each(|span| self.count_missed(span));
        }
    }

    /// A span that tracked was entered.
    #[inline(never)]
    fn entered_slow<S>(&self, span: SpanRef<'_>, ctx: &Context<'_, S>)
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        if self.may_have_missed.load(Ordering::Relaxed) {
            self.count_all_missed(ctx);
        }
        self.diagnostics.emit_waiting();
        span.entered.enter();
        unwind::entered(|| span.reference());
        #[cfg(feature = "trace-id")]
        note_trace_at_enter(span);
    }

    #[inline]
    pub(crate) fn exited(&self, id: &Id) {
        if let Some(span) = self.open.find(id) {
            self.exited_slow(span, id);
        }
    }

    /// A span that tracked was left.
    #[cfg_attr(not(feature = "trace-id"), allow(unused_variables))]
    #[inline(never)]
    fn exited_slow(&self, span: SpanRef<'_>, id: &Id) {
        #[cfg(feature = "trace-id")]
        let is_first = span.last_exit.load(Ordering::Relaxed) == 0;
        span.last_exit.store(self.clock.raw().max(1), Ordering::Relaxed);
        span.entered.exit();
        if unwind::exited(|| span.reference()) {
            span.set_flag(SpanFlags::PANICKED);
        }
        #[cfg(feature = "trace-id")]
        self.note_trace_at_exit(span, id, is_first);
    }

    #[inline]
    pub(crate) fn event<S>(&self, event: &Event<'_>, ctx: Context<'_, S>)
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        if self.callsites.may_affect_outcome(event.metadata()) {
            self.outcome_event(event, ctx);
        }
    }

    #[cold]
    #[inline(never)]
    fn outcome_event<S>(&self, event: &Event<'_>, ctx: Context<'_, S>)
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        if is_suppressed() {
            return;
        }
        let is_error = match self.callsites.find(event.metadata()).1.kind {
            CallsiteKind::Error(ErrorEvent::Level) => true,
            CallsiteKind::Error(ErrorEvent::Field) => {
                let mut has_error = HasError::default();
                event.record(&mut has_error);
                has_error.0
            }
            CallsiteKind::Returned => false,
            _ => return,
        };
        let Some(span) = ctx.event_span(event) else { return };
        if let Some(span) = self.open.get_initialized(&span.id()).filter(|span| span.flags().is_stage()) {
            if is_error {
                span.set_flag(SpanFlags::ERROR_EVENT);
            }
            match self.callsite(span).and_then(|callsite| instrument_event(event.metadata(), callsite.meta)) {
                Some(InstrumentEvent::Error) => span.set_flag(SpanFlags::RETURNED_ERROR),
                Some(InstrumentEvent::Value) => span.set_flag(SpanFlags::RETURNED_VALUE),
                None => {}
            }
        } else if is_error && self.policy == FailurePolicy::ErrorsWithin {
            let nearest = span.scope().find_map(|span| self.open.get_initialized(&span.id()));
            let nearest = nearest.map_or(SlotRef::NONE, |span| span.reference());
            if let Some(stage) = self.inheritance.nearest_stage(&self.open, nearest, self.inheritance.epoch()) {
                stage.set_flag(SpanFlags::ERROR_WITHIN);
            }
        }
    }

    #[inline]
    pub(crate) fn closed(&self, id: &Id) {
        if let Some(span) = self.open.find(id) {
            self.closed_slow(span, id);
        }
        self.diagnostics.emit_waiting();
    }

    /// A span that tracked closed.
    #[cfg_attr(not(feature = "trace-id"), allow(unused_variables))]
    #[inline(never)]
    fn closed_slow(&self, span: SpanRef<'_>, id: &Id) {
        if span.flags().has(SpanFlags::STAGE) {
            self.ensure_stage_id(span);
            let (flags, reference) = (span.flags(), span.reference());
            if flags.is_stage() && span.try_finish(reference) {
                let outcome = self.policy.outcome(flags);
                let last_exit = Some(span.last_exit.load(Ordering::Relaxed)).filter(|exit| *exit != 0);
                // The clock is read only if the span was never entered: a reading is a large part of the cost of a span.
                let ended = last_exit.unwrap_or_else(|| self.clock.raw());
                let ended = self.ended_stage(span, outcome, ended);
                #[cfg(feature = "trace-id")]
                let ended = self.with_own_trace(ended, id);
                self.count(ended);
                if outcome == Outcome::Failure(Reason::Cancelled) {
                    self.warn_cancelled(span);
                }
                #[cfg(feature = "trace-id")]
                self.warn_first_failure(ended);
            }
            self.dec_active(span);
        }
        self.open.release(span);
    }

    pub(crate) fn callsite(&self, span: SpanRef<'_>) -> Option<&Callsite> {
        self.callsites.get(span.callsite.load(Ordering::Relaxed))
    }

    /// Sets the span's name as the stage id if the declared field was never recorded.
    pub(crate) fn ensure_stage_id(&self, span: SpanRef<'_>) {
        if span.stage().is_none()
            && let Some(callsite) = self.callsite(span)
        {
            let name = callsite.meta.name();
            let values = SpanLabels { stage: self.labels.intern(Role::Stage, name), ..SpanLabels::default() };
            span.set_values(values);
            span.set_hashes(values, ValueHashes { stage: self.labels.hash(name), ..ValueHashes::default() });
            self.inheritance.update_nested(&self.open, &self.labels, span.slot);
        }
    }

    /// Collects the facts about a stage that ends.
    #[inline(always)]
    pub(crate) fn ended_stage(&self, span: SpanRef<'_>, outcome: Outcome, ended: u64) -> FinishedStage {
        // Before the cache entry is read: it is dropped here if it is of other labels.
        let ContextLabels { profile, run_id } = self.inheritance.resolve(&self.open, span.slot);
        let nanos = self.clock.delta_as_nanos(span.started.load(Ordering::Relaxed), ended);
        FinishedStage {
            stage: span.stage(),
            profile,
            run_id,
            cached: span.cached(),
            outcome,
            is_outermost: !self.has_outermost(outcome)
                && self.inheritance.nearest_stage(&self.open, span.parent(), self.inheritance.epoch()).is_none(),
            nanos,
            ended,
            #[cfg(feature = "trace-id")]
            trace: if outcome == Outcome::Success { None } else { span.trace() },
        }
    }

    /// Counts a stage that the caller has finished.
    #[inline]
    pub(crate) fn count(&self, ended: FinishedStage) {
        if ended.is_outermost {
            self.outermost(ended.outcome).store(true, Ordering::Relaxed);
        }
        let cached = ended.cached.and_then(|cached| self.label_cache.get(cached));
        if let Some(overflow) = self.series.finish(ended, cached.map(|cached| &cached.series)) {
            self.warn_overflow(overflow);
        }
    }

    /// Returns whether an outermost stage has ended with this outcome.
    fn has_outermost(&self, outcome: Outcome) -> bool {
        self.outermost(outcome).load(Ordering::Relaxed)
    }

    fn outermost(&self, outcome: Outcome) -> &AtomicBool {
        match outcome {
            Outcome::Success => &self.outermost_finished,
            Outcome::Failure(_) => &self.outermost_failed,
        }
    }

    /// Increments the active gauge of the stage, in a recorder that is updated eagerly.
    fn inc_active(&self, span: SpanRef<'_>) {
        let flags = span.flags();
        if !span.is_open() || !flags.is_stage() || span.stage().is_none() {
            return self.dec_active(span);
        }
        let (reference, stage) = (span.reference(), span.stage());
        let profile = self.inheritance.look(&self.open, span.slot).profile;
        if !span.is_current(reference) {
            return;
        }
        self.series.stage(stage);
        let (pair, _) = self.series.pair(stage, profile);
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

    pub(crate) fn dec_active(&self, span: SpanRef<'_>) {
        if span.active_series.load(Ordering::SeqCst) != 0 {
            self.dec_series(span.active_series.swap(0, Ordering::SeqCst));
        }
    }

    fn dec_series(&self, active_series: u32) {
        if let Some(pair) = active_series.checked_sub(1) {
            self.series.move_active(pair, -1.0);
        }
    }
}

#[cfg(all(test, feature = "pushgateway"))]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use tracing::field::Empty;
    use tracing::{Dispatch, dispatcher, error, info_span};
    use tracing_subscriber::Registry;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::layer::MetricsLayer;
    use crate::layer::span::state::Slot;
    use crate::recorder::StageRecorder;

    /// StageTracker of all kinds, whose values are known after the first time.
    fn stages() {
        let _root = info_span!("pipeline", profile = "p", run_id = "r").entered();
        info_span!("x", stage_id = "a").in_scope(|| info_span!("helper", stage_id = "a").in_scope(|| ()));
        info_span!("plain").in_scope(|| info_span!("x", stage_id = "b", run_id = 7).in_scope(|| ()));
        let late = info_span!("x", stage_id = Empty, profile = Empty);
        late.record("stage_id", "c");
        late.record("profile", "q");
        late.in_scope(|| ());
        drop(info_span!("x", stage_id = "never entered"));
        error!("of no stage");
    }

    /// A tracker as `build()` makes it, without a guard.
    fn tracker() -> Arc<StageTracker> {
        Arc::new(StageTracker::new(TrackerSettings {
            namespace: "quant".to_owned(),
            policy: FailurePolicy::default(),
            max_series: 100,
            buckets: Some(vec![1.0]),
            expected_stages: Vec::new(),
            profile: None,
            run_id: None,
            run_id_label: true,
            target: RecorderTarget::Own(Arc::new(StageRecorder::new([], []))),
            clock: quanta::Clock::new(),
            diagnostics: Arc::default(),
        }))
    }

    fn dispatch(tracker: &Arc<StageTracker>) -> Dispatch {
        Dispatch::new(Registry::default().with(MetricsLayer::over(Arc::clone(tracker))))
    }

    fn slot<'a>(tracker: &'a StageTracker, span: &tracing::Span) -> Option<&'a Slot> {
        Some(tracker.open.find(&span.id()?)?.slot)
    }

    #[test]
    fn late_record_of_a_field_that_is_no_label_keeps_the_cache() {
        let tracker = tracker();
        let _default = dispatcher::set_default(&dispatch(&tracker));
        let span = info_span!("x", stage_id = "a", profile = Empty, rows = Empty, otel.status_code = Empty);
        let (slot, epoch) = (slot(&tracker, &span).unwrap(), tracker.inheritance.epoch());
        let cached = slot.cached();
        assert!(cached.is_some());
        span.record("rows", 17);
        span.record("otel.status_code", "error");
        assert_eq!((slot.cached(), tracker.inheritance.epoch()), (cached, epoch));
        assert!(slot.flags().has(SpanFlags::DECLARED_ERROR));
        span.record("profile", "p");
        assert_eq!(slot.cached(), None);
        assert_ne!(tracker.inheritance.epoch(), epoch);
    }

    #[test]
    fn late_record_of_a_label_keeps_the_cache_of_spans_that_do_not_inherit_it() {
        let tracker = tracker();
        let _default = dispatcher::set_default(&dispatch(&tracker));
        let root = info_span!("pipeline", profile = Empty);
        let child = root.in_scope(|| info_span!("x", stage_id = "a"));
        let other = info_span!("x", stage_id = "a");
        let [child, other] = [&child, &other].map(|span| slot(&tracker, span).unwrap());
        let cached = other.cached();
        assert_eq!((cached.is_some(), child.cached()), (true, cached));
        root.record("profile", "late");
        let profiles = [child, other]
            .map(|slot| tracker.labels.text(tracker.inheritance.resolve(&tracker.open, slot).profile).to_owned());
        assert_eq!(profiles, ["late", ""]);
        assert_eq!((child.cached(), other.cached()), (None, cached));
    }

    /// Every lock of the layer is held while another thread runs stages.
    #[test]
    fn no_lock_is_taken_for_a_stage_that_goes_well() {
        let layer_of = tracker();
        let dispatch = dispatch(&layer_of);
        let run = move || dispatcher::with_default(&dispatch, || (0..100).for_each(|_| stages()));
        run();
        let locks = (
            layer_of.callsites.lock(),
            layer_of.labels.lock(),
            layer_of.label_cache.lock(),
            layer_of.open.lock(),
            layer_of.series.lock(),
        );
        let (done, is_done) = channel();
        let thread = std::thread::spawn(move || {
            run();
            done.send(()).unwrap();
        });
        let result = is_done.recv_timeout(Duration::from_secs(30));
        drop(locks);
        thread.join().unwrap();
        assert_eq!(result, Ok(()), "it waited for a lock");
        let succeeded: u64 = layer_of.series.totals().map(|(_, totals)| totals.succeeded).sum();
        assert_eq!(succeeded, 2 * 100 * 4);
    }
}
