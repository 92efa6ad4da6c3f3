//! The life of a stage: opened, recorded into, entered, left, closed, or cut off by the end of the run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::callsite::{Callsite, Callsites, ErrorEvent, Inherited, Kind, Returned, returned};
use super::fields::{HasError, SpanFields};
use super::inherit::{Inheritance, Origin, Resolved, stage_around};
use super::labels::{Label, Labels};
use super::open::{Found, NewSpan, OpenSpans, SlotRef};
use super::outcome::{Facts, FailurePolicy, Outcome, Reason};
use super::series::{Finished, Series};
use super::sink::{Sink, Target, is_outward};
#[cfg(feature = "trace-id")]
use super::trace_id::{Traces, await_release};
use super::unwinding;
use crate::voice::Voice;

/// How the layer is set up.
pub(crate) struct Settings {
    pub(crate) namespace: String,
    pub(crate) policy: FailurePolicy,
    pub(crate) max_series: usize,
    pub(crate) expected_stages: Vec<String>,
    /// The value a label has in the whole process, where it does not come from spans.
    pub(crate) profile: Option<String>,
    pub(crate) run_id: Option<String>,
    pub(crate) run_id_label: bool,
    pub(crate) target: Target,
    pub(crate) clock: quanta::Clock,
    pub(crate) voice: Arc<Voice>,
}

/// The stages of this process: shared by the layer, which tells what happens, and the guard, which asks.
pub(crate) struct Stages {
    pub(super) callsites: Callsites,
    pub(super) labels: Labels,
    pub(super) open: OpenSpans,
    pub(super) inheritance: Inheritance,
    pub(crate) series: Series,
    pub(super) policy: FailurePolicy,
    pub(super) clock: quanta::Clock,
    pub(crate) voice: Arc<Voice>,
    pub(super) expected: Vec<Label>,
    /// Whether some thread gives a slot to a span that has none of its own, see `parent_further`.
    leading: AtomicBool,
    pub(super) ended: AtomicBool,
    warned_inert: AtomicBool,
    pub(super) outermost_finished: AtomicBool,
    pub(super) outermost_failed: AtomicBool,
    #[cfg(feature = "trace-id")]
    pub(super) traces: Traces,
}

impl Stages {
    pub(crate) fn new(settings: Settings) -> Self {
        let labels = Labels::new();
        let fixed = |value: &Option<String>| {
            value.as_deref().map_or(Origin::Spans, |value| Origin::Fixed(labels.intern(value)))
        };
        let profile = fixed(&settings.profile);
        let run_id = if settings.run_id_label { fixed(&settings.run_id) } else { Origin::Fixed(Label::EMPTY) };
        let sink = Sink::new(settings.target, settings.namespace, settings.run_id_label);
        let stages = Self {
            callsites: Callsites::new(Inherited { profile: profile.is_spans(), run_id: run_id.is_spans() }),
            open: OpenSpans::new(),
            inheritance: Inheritance::new(profile, run_id),
            series: Series::new(sink, settings.max_series, settings.clock.clone()),
            policy: settings.policy,
            clock: settings.clock,
            voice: settings.voice,
            expected: settings.expected_stages.iter().map(|stage| labels.intern(stage)).collect(),
            labels,
            leading: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            warned_inert: AtomicBool::new(false),
            outermost_finished: AtomicBool::new(false),
            outermost_failed: AtomicBool::new(false),
            #[cfg(feature = "trace-id")]
            traces: Traces::default(),
        };
        for stage in &stages.expected {
            stages.series.stage(&stages.labels, *stage);
        }
        stages
    }

    pub(crate) fn register(&self, meta: &'static tracing::Metadata<'static>) {
        self.callsites.register(meta);
    }

    pub(crate) fn opened<S>(&self, attrs: &Attributes<'_>, id: &Id, ctx: &Context<'_, S>)
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let (number, callsite) = self.callsites.find(attrs.metadata());
        if let Some(left) = self.open.find(id) {
            // Of an earlier span with this id, whose end this layer was not told.
            self.hide(left);
            self.open.release(left);
        }
        let facts = match callsite.kind {
            Kind::Stage => Facts::STAGE,
            Kind::Context => Facts::default(),
            _ => return,
        };
        if is_outward() || self.is_inert(facts) {
            return;
        }
        let started = self.clock.raw();
        // Values are printed before the slot is taken: that runs the user's code.
        let mut fields = SpanFields::new(&self.labels, &callsite.positions, self.series.has_room_for_runs());
        attrs.record(&mut fields);
        let facts = fields.declared.map_or(facts, |declared| facts.declared(declared, false));
        let parent = self.parent(attrs, id, ctx);
        let wanted = || !self.ended.load(Ordering::SeqCst);
        let (stage, profile, run_id) = (fields.stage, fields.profile, fields.run_id);
        let span = NewSpan { callsite: number, parent, started, facts, stage, profile, run_id };
        let found = self.open.claim(id, span, wanted, |slot| {
            self.inheritance.resolve(&self.open, slot);
            if !fields.stage.is_none() && parent != SlotRef::NONE {
                self.inheritance.decide_part(&self.open, slot);
            }
        });
        if let Some(found) = found
            && self.series.sink.is_live()
        {
            self.show(found);
        }
    }

    /// After the guard is gone nothing is measured; a stage that opens then is told once.
    fn is_inert(&self, facts: Facts) -> bool {
        let ended = self.ended.load(Ordering::Relaxed);
        if ended && facts.is_stage() && !self.warned_inert.swap(true, Ordering::Relaxed) {
            self.warn_inert();
        }
        ended
    }

    /// The slot of the nearest span around a new one.
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
        if let Some(found) = self.open.find(parent) {
            return found.reference();
        }
        self.parent_further(id, ctx)
    }

    /// The same where the nearest span is no stage and brings nothing: looks for one further out. The nearest span
    /// gets a slot that leads there, so that the next stage within it need not look again.
    fn parent_further<S>(&self, id: &Id, ctx: &Context<'_, S>) -> SlotRef
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let Some(span) = ctx.span(id) else { return SlotRef::NONE };
        // Without those that a filter hides from this layer: it is not told when they close.
        let mut around = span.scope().skip(1);
        let Some(nearest) = around.next() else { return SlotRef::NONE };
        if let Some(found) = self.open.find(&nearest.id()) {
            return found.reference();
        }
        let further = around.find_map(|span| self.open.find(&span.id()));
        let further = further.map_or(SlotRef::NONE, |found| found.reference());
        // An id has one slot. Nobody waits: who comes second has what it came for, the next one tries again.
        if self.leading.swap(true, Ordering::Acquire) {
            return further;
        }
        let found = self.open.find(&nearest.id()).or_else(|| {
            let callsite = self.callsites.find(nearest.metadata()).0;
            let span = NewSpan { callsite, parent: further, ..NewSpan::default() };
            let wanted = || !self.ended.load(Ordering::SeqCst);
            self.open.claim(&nearest.id(), span, wanted, |slot| {
                self.inheritance.resolve(&self.open, slot);
            })
        });
        self.leading.store(false, Ordering::Release);
        found.map_or(further, |found| found.reference())
    }

    pub(crate) fn recorded(&self, id: &Id, values: &Record<'_>) {
        let Some(found) = self.open.find(id) else { return };
        let Some(callsite) = self.callsite(found) else { return };
        let mut fields = SpanFields::new(&self.labels, &callsite.positions, self.series.has_room_for_runs());
        values.record(&mut fields);
        if let Some(declared) = fields.declared {
            let begun = found.was_entered();
            found.update_facts(|facts| facts.declared(declared, begun));
        }
        found.set_values(fields.stage, fields.profile, fields.run_id);
        if !(fields.profile.is_none() && fields.run_id.is_none()) {
            self.inheritance.begin_epoch();
        }
        if !fields.stage.is_none() {
            self.inheritance.decide_part(&self.open, found.slot);
        }
        if self.series.sink.is_live() && !(fields.stage.is_none() && fields.profile.is_none()) {
            self.open.iter().for_each(|open| self.show(open));
        }
    }

    #[inline]
    pub(crate) fn entered(&self, id: &Id) {
        self.voice.speak_deferred();
        if let Some(found) = self.open.find(id) {
            found.entered.fetch_add(1, Ordering::Relaxed);
            unwinding::entered(|| found.reference());
            #[cfg(feature = "trace-id")]
            self.note_trace_at_enter(found, id);
        }
    }

    #[inline]
    pub(crate) fn exited(&self, id: &Id) {
        if let Some(found) = self.open.find(id) {
            found.last_exit.store(self.clock.raw().max(1), Ordering::Relaxed);
            let _entered = found.entered.fetch_sub(1, Ordering::Relaxed);
            if unwinding::exited(|| found.reference()) {
                found.add_fact(Facts::PANICKED);
            }
            #[cfg(feature = "trace-id")]
            self.note_trace_at_exit(found, id, _entered);
        }
    }

    #[inline]
    pub(crate) fn event<S>(&self, event: &Event<'_>, ctx: &Context<'_, S>)
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        if self.callsites.may_decide(event.metadata()) && !is_outward() {
            self.deciding_event(event, ctx);
        }
    }

    #[cold]
    fn deciding_event<S>(&self, event: &Event<'_>, ctx: &Context<'_, S>)
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let is_error = match self.callsites.find(event.metadata()).1.kind {
            Kind::Error(ErrorEvent::Level) => true,
            Kind::Error(ErrorEvent::Field) => {
                let mut has_error = HasError::default();
                event.record(&mut has_error);
                has_error.0
            }
            Kind::Returned => false,
            _ => return,
        };
        let Some(span) = ctx.event_span(event) else { return };
        if let Some(found) = self.open.find(&span.id()).filter(|found| found.facts().is_stage()) {
            if is_error {
                found.add_fact(Facts::ERROR_EVENT);
            }
            match self.callsite(found).and_then(|callsite| returned(event.metadata(), callsite.meta)) {
                Some(Returned::Error) => found.add_fact(Facts::RETURNED_ERROR),
                Some(Returned::Value) => found.add_fact(Facts::RETURNED_VALUE),
                None => {}
            }
        } else if is_error && self.policy == FailurePolicy::ErrorsWithin {
            let around = span.scope().filter_map(|span| self.open.find(&span.id()));
            if let Some(stage) = around.into_iter().find(|found| found.facts().is_stage()) {
                stage.add_fact(Facts::ERROR_WITHIN);
            }
        }
    }

    pub(crate) fn closed(&self, id: &Id) {
        self.voice.speak_deferred();
        let Some(found) = self.open.find(id) else { return };
        if found.facts().has(Facts::STAGE) {
            self.ensure_stage_id(found);
            let (facts, reference) = (found.facts(), found.reference());
            let is_settled = facts.is_stage() && found.settle(reference);
            if is_settled {
                let outcome = self.policy.outcome(facts);
                let last_exit = Some(found.last_exit.load(Ordering::Relaxed)).filter(|exit| *exit != 0);
                // A look at the clock is a large part of what a span costs: only where it was never entered.
                let ended = last_exit.unwrap_or_else(|| self.clock.raw());
                let (ended, is_outermost) = self.ended_stage(found, outcome, ended);
                #[cfg(feature = "trace-id")]
                let ended = self.with_trace(ended, found, id);
                self.count(ended, is_outermost);
                if outcome == Outcome::Failure(Reason::Cancelled) {
                    self.warn_cancelled(found);
                }
                #[cfg(feature = "trace-id")]
                self.warn_first_failure(ended);
            }
            #[cfg(feature = "trace-id")]
            if !is_settled {
                await_release(found.slot);
            }
            self.hide(found);
        }
        self.open.release(found);
    }

    pub(super) fn callsite(&self, found: Found<'_>) -> Option<&Callsite> {
        self.callsites.get(found.callsite.load(Ordering::Relaxed))
    }

    /// A stage id that was declared and never recorded is the span's name.
    pub(super) fn ensure_stage_id(&self, found: Found<'_>) {
        if found.stage().is_none()
            && let Some(callsite) = self.callsite(found)
        {
            let name = self.labels.intern(callsite.meta.name());
            found.set_values(name, Label::NONE, Label::NONE);
            self.inheritance.decide_part(&self.open, found.slot);
        }
    }

    /// What there is to count of a stage that ends, and whether no other is around it.
    pub(super) fn ended_stage(&self, found: Found<'_>, outcome: Outcome, ended: u64) -> (Finished, bool) {
        let Resolved { profile, run_id } = self.inheritance.resolve(&self.open, found.slot);
        let nanos = self.clock.delta_as_nanos(found.started.load(Ordering::Relaxed), ended);
        let is_outermost = !self.is_known(outcome) && stage_around(&self.open, found.slot).is_none();
        let finished = Finished {
            stage: found.stage(),
            profile,
            run_id,
            outcome,
            nanos,
            ended,
            #[cfg(feature = "trace-id")]
            trace: None,
        };
        (finished, is_outermost)
    }

    /// Records a stage that ended. The caller has settled it.
    pub(super) fn count(&self, ended: Finished, is_outermost: bool) {
        if is_outermost {
            self.outermost(ended.outcome).store(true, Ordering::Relaxed);
        }
        if let Some(overflow) = self.series.finish(&self.labels, ended) {
            self.warn_overflow(&overflow);
        }
    }

    /// Whether an outermost stage ended so before.
    fn is_known(&self, outcome: Outcome) -> bool {
        self.outermost(outcome).load(Ordering::Relaxed)
    }

    fn outermost(&self, outcome: Outcome) -> &AtomicBool {
        match outcome {
            Outcome::Success => &self.outermost_finished,
            Outcome::Failure(_) => &self.outermost_failed,
        }
    }

    /// Counts the stage in its active gauge, where gauges are written at once.
    fn show(&self, found: Found<'_>) {
        let facts = found.facts();
        if !found.is_open() || !facts.is_stage() || found.stage().is_none() {
            return self.hide(found);
        }
        let (reference, stage) = (found.reference(), found.stage());
        let profile = self.inheritance.look(&self.open, found.slot).profile;
        if !found.is_still(reference) {
            return;
        }
        self.series.stage(&self.labels, stage);
        let (pair, _) = self.series.pair(&self.labels, stage, profile);
        let before = found.shown.swap(pair + 1, Ordering::SeqCst);
        if before != pair + 1 {
            self.series.move_active(pair, 1.0);
            self.unshow(before);
        }
        if !found.is_open() {
            // Its end came in between, and took back what was shown before this.
            self.hide(found);
        }
    }

    pub(super) fn hide(&self, found: Found<'_>) {
        if found.shown.load(Ordering::SeqCst) != 0 {
            self.unshow(found.shown.swap(0, Ordering::SeqCst));
        }
    }

    fn unshow(&self, shown: u32) {
        if let Some(pair) = shown.checked_sub(1) {
            self.series.move_active(pair, -1.0);
        }
    }
}
