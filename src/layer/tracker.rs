//! The callbacks of `tracing`: a span opens, gets a late record, is entered, is left, closes.

use std::sync::atomic::{AtomicBool, Ordering};

use tracing::span::{Attributes, Id, Record};
use tracing::{Dispatch, Event, Metadata, Subscriber};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::callsite::{CallsiteKind, ErrorEvent, InstrumentEvent, instrument_event};
use super::fields::{HasError, SpanFields};
use super::labels::ResolvedLabels;
use super::missed::MissedCloses;
use super::outcome::FailurePolicy;
use super::parent::ParentFinder;
use super::span::flags::SpanFlags;
use super::span::state::{NewSpan, SlotRef, SpanRef};
use super::span::unwind;
use super::stages::{LayerSettings, Stages};
#[cfg(feature = "trace-id")]
use super::trace_context;
use super::warnings;
use crate::recorder::is_suppressed;
use crate::series::append_only_map::EntryId;
use crate::series::outcome::Outcome;
#[cfg(feature = "trace-id")]
use crate::series::trace_id::TraceId;

/// The stages of this process, shared by the layer and the guard.
pub(crate) struct StageTracker {
    stages: Stages,
    parents: ParentFinder,
    missed: MissedCloses,
    warned_after_end: AtomicBool,
}

impl StageTracker {
    pub(crate) fn new(settings: LayerSettings) -> Self {
        Self {
            stages: Stages::new(settings),
            parents: ParentFinder::default(),
            missed: MissedCloses::default(),
            warned_after_end: AtomicBool::new(false),
        }
    }

    /// The layer got a subscriber.
    pub(crate) fn attached(&self, subscriber: &Dispatch) {
        self.stages.diagnostics.attach(subscriber);
    }

    /// Returns the subscriber of the layer, unless the layer was hidden from it.
    pub(crate) fn subscriber(&self) -> Option<Dispatch> {
        self.stages.diagnostics.subscriber()
    }

    /// The layer was dropped.
    pub(crate) fn detached(&self) {
        self.missed.detached();
    }

    pub(crate) fn register(&self, meta: &'static Metadata<'static>) {
        // All callsites are registered once more when the layer is put back into a `reload::Layer`.
        if self.stages.callsites.has(meta) {
            self.missed.reattached();
        }
        self.stages.callsites.register(meta);
    }

    #[inline]
    pub(crate) fn opened<S>(&self, attrs: &Attributes<'_>, id: &Id, ctx: Context<'_, S>)
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let tracked = self.stages.callsites.of_span(attrs.metadata());
        if tracked.is_some() || self.stages.spans.open.may_have(id) {
            self.opened_slow(tracked, attrs, id, ctx);
        }
    }

    /// A tracked span opened, or one with an id that may be in use.
    #[inline(never)]
    fn opened_slow<S>(&self, tracked: Option<EntryId>, attrs: &Attributes<'_>, id: &Id, ctx: Context<'_, S>)
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let Stages { callsites, spans, labels, .. } = &self.stages;
        if let Some(left) = spans.open.find(id) {
            // An earlier span with this id, whose close this layer has missed.
            self.stages.count_missed(left, left.reference());
            spans.open.release(left);
        }
        let Some((number, callsite)) = tracked.and_then(|number| Some((number, callsites.get(number)?))) else {
            return;
        };
        let flags = if callsite.kind == CallsiteKind::Stage { SpanFlags::STAGE } else { SpanFlags::default() };
        if is_suppressed() || self.has_ended(flags) {
            return;
        }
        let started = self.stages.clock.raw();
        // The values are printed before the slot is taken: that runs the user's code.
        let mut fields = SpanFields::new(&callsite.positions);
        attrs.record(&mut fields);
        let flags = fields.status.map_or(flags, |status| flags.with_status(status, false));
        let parent = self.parents.find(spans, callsites, attrs, id, &ctx);
        // The epoch is read before the values.
        let epoch = spans.epoch();
        let ResolvedLabels { values, context, cached } =
            labels.resolve(&fields, spans, &self.stages.series, parent, epoch);
        // Cached labels are within the limits.
        let hashes = if cached.is_some() { None } else { labels.hashes(&fields, values) };
        drop(fields);
        let enclosing = spans.nearest_stage(parent, epoch);
        let is_same = |stage| spans.is_same_stage(stage, values, hashes.as_ref());
        let is_nested = !values.stage.is_none() && enclosing.is_some_and(is_same);
        let flags = if is_nested { flags.with(SpanFlags::NESTED_SAME_STAGE) } else { flags };
        let enclosing_stage = enclosing.map_or(SlotRef::NONE, |stage| stage.reference());
        let resolved = context.pack(epoch);
        let span = NewSpan { callsite: number, parent, enclosing_stage, started, flags, values, cached, resolved };
        let Some(span) = spans.open.claim(id, span) else { return };
        if let Some(hashes) = hashes {
            // No other thread has the id yet.
            span.set_hashes(values, hashes);
        }
        if self.stages.notes_opened {
            self.stages.note_opened(span);
        }
    }

    /// Returns whether the run has ended, and warns once of a stage that opens then.
    fn has_ended(&self, flags: SpanFlags) -> bool {
        let ended = self.stages.spans.open.has_ended();
        if ended && flags.is_stage() && !self.warned_after_end.swap(true, Ordering::Relaxed) {
            warnings::opened_after_end(&self.stages.diagnostics);
        }
        ended
    }

    pub(crate) fn recorded(&self, id: &Id, values: &Record<'_>) {
        let Stages { spans, labels, series, .. } = &self.stages;
        let Some(span) = spans.open.get_initialized(id) else { return };
        let Some(callsite) = self.stages.callsite(span) else { return };
        let mut fields = SpanFields::new(&callsite.positions);
        values.record(&mut fields);
        if let Some(status) = fields.status {
            let has_started = span.was_entered();
            span.update_flags(|flags| flags.with_status(status, has_started));
        }
        // Most late records are of other fields, such as a number of rows: the labels of the span so far hold.
        if !fields.has_labels() {
            return;
        }
        let given = labels.values(&fields, series);
        let hashes = labels.hashes(&fields, given);
        drop(fields);
        span.set_values(given);
        if let Some(hashes) = hashes {
            span.set_hashes(given, hashes);
        }
        if !(given.profile.is_none() && given.run_id.is_none()) {
            spans.begin_epoch();
        }
        if !given.stage.is_none() {
            spans.update_nested(span.slot);
        }
        if series.recorder.updates_eagerly() && !(given.stage.is_none() && given.profile.is_none()) {
            spans.open.iter().for_each(|open| self.stages.inc_active(open));
        }
    }

    #[inline]
    pub(crate) fn entered<S>(&self, id: &Id, ctx: &Context<'_, S>)
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        if let Some(span) = self.stages.spans.open.find(id) {
            self.entered_slow(span, ctx);
        }
    }

    /// A tracked span was entered.
    #[inline(never)]
    fn entered_slow<S>(&self, span: SpanRef<'_>, ctx: &Context<'_, S>)
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        self.missed.count(&self.stages, ctx);
        self.stages.diagnostics.emit_waiting();
        span.entered.enter();
        unwind::entered(|| span.reference());
        if let Some(cpu) = &self.stages.cpu {
            cpu.entered(span, &self.stages.spans);
        }
        #[cfg(feature = "trace-id")]
        self.stages.traces.note_at_enter(span);
    }

    /// `subscriber` returns the one that the layer is in.
    #[inline]
    pub(crate) fn exited(&self, id: &Id, subscriber: impl Fn() -> Option<Dispatch>) {
        if let Some(span) = self.stages.spans.open.find(id) {
            self.exited_slow(span, id, subscriber);
        }
    }

    /// A tracked span was left.
    #[cfg_attr(not(feature = "trace-id"), allow(unused_variables))]
    #[inline(never)]
    fn exited_slow(&self, span: SpanRef<'_>, id: &Id, subscriber: impl Fn() -> Option<Dispatch>) {
        if let Some(cpu) = &self.stages.cpu {
            cpu.exited(span, &self.stages.spans);
        }
        #[cfg(feature = "trace-id")]
        let is_first = span.last_exit().is_none();
        span.set_last_exit(self.stages.clock.raw());
        span.entered.exit();
        if unwind::exited(|| span.reference()) {
            span.set_flag(SpanFlags::PANICKED);
        }
        #[cfg(feature = "trace-id")]
        {
            self.stages.traces.note_at_exit(span, is_first, || trace_context::span_context(id, &subscriber));
            if span.flags().has(SpanFlags::TROUBLE) {
                self.note_trace_of_failing(span, id, subscriber);
            }
        }
    }

    /// Without context activation no span is ever the current one. One that has failed by now is looked up; others are not,
    /// since the lookup starts the span in the trace.
    #[cfg(feature = "trace-id")]
    #[cold]
    fn note_trace_of_failing(&self, span: SpanRef<'_>, id: &Id, subscriber: impl FnOnce() -> Option<Dispatch>) {
        let flags = span.flags();
        let is_unknown = flags.is_stage() && !flags.has(SpanFlags::TRACE_KNOWN);
        if is_unknown && self.stages.policy.outcome(flags) != Outcome::Success {
            span.set_trace(trace_context::span_context(id, subscriber).as_ref().and_then(TraceId::of));
        }
    }

    #[inline]
    pub(crate) fn event<S>(&self, event: &Event<'_>, ctx: Context<'_, S>)
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        if self.stages.callsites.may_affect_outcome(event.metadata()) {
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
        let Stages { callsites, spans, policy, .. } = &self.stages;
        let is_error = match callsites.find(event.metadata()).1.kind {
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
        if let Some(span) = spans.open.get_initialized(&span.id()).filter(|span| span.flags().is_stage()) {
            if is_error {
                span.set_flag(SpanFlags::ERROR_EVENT);
            }
            let reported = self.stages.callsite(span).and_then(|of| instrument_event(event.metadata(), of.meta));
            match reported {
                Some(InstrumentEvent::Error) => span.set_flag(SpanFlags::RETURNED_ERROR),
                Some(InstrumentEvent::Value) => span.set_flag(SpanFlags::RETURNED_VALUE),
                None => {}
            }
            if policy.fails_by(is_error, reported) && !span.flags().has(SpanFlags::DECLARED_OK) {
                self.stages.note_error(span.reference(), event);
            }
        } else if is_error && *policy == FailurePolicy::ErrorsWithin {
            let nearest = span.scope().find_map(|span| spans.open.get_initialized(&span.id()));
            let nearest = nearest.map_or(SlotRef::NONE, |span| span.reference());
            if let Some(stage) = spans.nearest_stage(nearest, spans.epoch()) {
                stage.set_flag(SpanFlags::ERROR_WITHIN);
                self.stages.note_error(stage.reference(), event);
            }
        }
    }

    /// `subscriber` returns the one that the layer is in.
    #[inline]
    pub(crate) fn closed(&self, id: &Id, subscriber: impl FnOnce() -> Option<Dispatch>) {
        if let Some(span) = self.stages.spans.open.find(id) {
            self.closed_slow(span, id, subscriber);
        }
        self.stages.diagnostics.emit_waiting();
    }

    /// A tracked span closed.
    #[cfg_attr(not(feature = "trace-id"), allow(unused_variables))]
    #[inline(never)]
    fn closed_slow(&self, span: SpanRef<'_>, id: &Id, subscriber: impl FnOnce() -> Option<Dispatch>) {
        let stages = &self.stages;
        if span.flags().has(SpanFlags::STAGE) {
            stages.ensure_stage_id(span);
            let flags = span.flags();
            if flags.is_stage() && span.try_finish_held() {
                let outcome = stages.policy.outcome(flags);
                // The clock is read only if the span was never entered: a reading is a large part of the cost of a span.
                let ended = span.last_exit().unwrap_or_else(|| stages.clock.raw());
                #[cfg_attr(not(feature = "trace-id"), allow(unused_mut))]
                let mut ended = stages.finished(span, outcome, ended);
                #[cfg(feature = "trace-id")]
                if outcome != Outcome::Success
                    && let Some(own) = trace_context::span_context(id, subscriber)
                {
                    // The trace in the slot may be that of an enclosing span.
                    ended.trace = TraceId::of(&own);
                }
                stages.count(span, ended);
                if let Outcome::Failure(reason) = outcome {
                    stages.closed_failed(span, ended, reason);
                }
                #[cfg(feature = "trace-id")]
                stages.warn_first_failure(ended);
            }
            stages.dec_active(span);
        }
        stages.spans.open.release(span);
    }
}

mod guard;
#[cfg(all(test, feature = "pushgateway"))]
mod tests;
