//! The life of a stage: opened, recorded into, entered, left, closed, or cut off by the end of the run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::callsite::{Callsite, Callsites, ErrorEvent, Inherited, Kind, Returned, returned};
use super::fields::{HasError, SpanFields};
use super::index::Number;
use super::inherit::{Epoch, Inheritance, Origin, Resolved, nearest_stage};
use super::labels::{Label, Labels, Role, ValueHashes, Values};
use super::open::{Found, NewSpan, OpenSpans, SlotRef};
use super::outcome::{Facts, FailurePolicy, Outcome, Reason};
use super::remembered::{Given, Memory};
use super::series::{Finished, Series};
use super::sink::{Sink, Target, is_outward};
#[cfg(feature = "trace-id")]
use super::traces::note_trace_at_enter;
use super::unwinding;
use crate::diagnostics::Diagnostics;

/// How the layer is set up.
pub(crate) struct Settings {
    pub(crate) namespace: String,
    pub(crate) policy: FailurePolicy,
    pub(crate) max_series: usize,
    /// Upper bounds of the buckets of the stage duration, if who renders asks the layer for them; otherwise each
    /// duration goes to the recorder as it comes.
    pub(crate) buckets: Option<Vec<f64>>,
    pub(crate) expected_stages: Vec<String>,
    /// The value a label has in the whole process, where it does not come from spans.
    pub(crate) profile: Option<String>,
    pub(crate) run_id: Option<String>,
    pub(crate) run_id_label: bool,
    pub(crate) target: Target,
    pub(crate) clock: quanta::Clock,
    pub(crate) diagnostics: Arc<Diagnostics>,
}

/// The stages of this process: shared by the layer, which tells what happens, and the guard, which asks.
pub(crate) struct Stages {
    pub(super) callsites: Callsites,
    pub(super) labels: Labels,
    pub(super) open: OpenSpans,
    pub(super) inheritance: Inheritance,
    memory: Memory,
    pub(crate) series: Series,
    pub(super) policy: FailurePolicy,
    pub(super) clock: quanta::Clock,
    pub(crate) diagnostics: Arc<Diagnostics>,
    pub(super) expected: Vec<Label>,
    /// Whether some thread gives a slot to a span that has none of its own, see `parent_further`.
    leading: AtomicBool,
    /// Whether spans may have closed without this layer being told, since it was out of its subscriber.
    may_have_missed: AtomicBool,
    /// Whether the layer is gone: no span that is open will be closed any more.
    is_detached: AtomicBool,
    warned_inert: AtomicBool,
    pub(super) outermost_finished: AtomicBool,
    pub(super) outermost_failed: AtomicBool,
}

/// What there is to know of a new span's values.
struct Known {
    values: Values,
    resolved: Resolved,
    /// Where that is remembered.
    meaning: Option<Number>,
}

impl Stages {
    pub(crate) fn new(settings: Settings) -> Self {
        let labels = Labels::new(settings.max_series);
        let fixed = |role, value: &Option<String>| {
            value.as_deref().map_or(Origin::Spans, |value| Origin::Fixed(labels.intern(role, value)))
        };
        let profile = fixed(Role::Profile, &settings.profile);
        let run_id =
            if settings.run_id_label { fixed(Role::RunId, &settings.run_id) } else { Origin::Fixed(Label::EMPTY) };
        let sink = Sink::new(settings.target, settings.namespace, settings.run_id_label);
        let stages = Self {
            callsites: Callsites::new(Inherited { profile: profile.is_spans(), run_id: run_id.is_spans() }),
            open: OpenSpans::new(),
            inheritance: Inheritance::new(profile, run_id),
            memory: Memory::new(settings.max_series),
            series: Series::new(sink, settings.max_series, settings.buckets.as_deref(), settings.clock.clone()),
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
            stages.series.stage(&stages.labels, *stage);
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
        let matters = self.callsites.of_span(attrs.metadata());
        if matters.is_some() || self.open.may_have(id) {
            self.opened_further(matters, attrs, id, ctx);
        }
    }

    /// A span that matters opened, or one with an id that may be in use.
    #[inline(never)]
    fn opened_further<S>(&self, matters: Option<Number>, attrs: &Attributes<'_>, id: &Id, ctx: Context<'_, S>)
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        if let Some(left) = self.open.find(id) {
            // Of an earlier span with this id, whose end this layer was not told.
            self.count_missed(left);
            self.open.release(left);
        }
        let Some((number, callsite)) = matters.and_then(|number| Some((number, self.callsites.get(number)?))) else {
            return;
        };
        let facts = if callsite.kind == Kind::Stage { Facts::STAGE } else { Facts::default() };
        if is_outward() || self.is_inert(facts) {
            return;
        }
        let started = self.clock.raw();
        // Values are printed before the slot is taken: that runs the user's code.
        let mut fields = SpanFields::new(&callsite.positions);
        attrs.record(&mut fields);
        let facts = fields.declared.map_or(facts, |declared| facts.declared(declared, false));
        let parent = self.parent(attrs, id, &ctx);
        // Before values are read.
        let epoch = self.inheritance.epoch();
        let Known { values, resolved, meaning } = self.known(&fields, parent, epoch);
        // What is remembered is within the limits.
        let hashes = if meaning.is_some() { None } else { self.hashes(&fields, values) };
        drop(fields);
        let is_part = !values.stage.is_none()
            && parent != SlotRef::NONE
            && self.inheritance.repeated(&self.open, &self.labels, parent, values, hashes.as_ref()).is_some();
        let facts = if is_part { facts.with(Facts::PART_OF_STAGE) } else { facts };
        let resolved = resolved.pack(epoch);
        let span = NewSpan { callsite: number, parent, started, facts, values, meaning, resolved };
        let Some(found) = self.open.claim(id, span) else { return };
        if let Some(hashes) = hashes {
            // No other thread can have the id yet and ask for them.
            found.set_hashes(values, hashes);
        }
        if self.series.sink.is_live() {
            self.show(found);
        }
    }

    /// The labels of a new span.
    #[inline]
    fn known(&self, fields: &SpanFields<'_>, parent: SlotRef, epoch: Epoch) -> Known {
        let inherited = if self.inheritance.is_needed(fields.profile().is_some(), fields.run_id().is_some()) {
            self.inheritance.around(&self.open, parent, epoch)
        } else {
            Resolved::default()
        };
        let given = fields.compared().map(|(text, shape)| Given { text, shape, inherited });
        if let Some((number, meaning)) = given.as_ref().and_then(|given| self.memory.find(given)) {
            return Known { values: meaning.values, resolved: meaning.resolved, meaning: Some(number) };
        }
        self.learn(fields, given.as_ref(), inherited)
    }

    #[cold]
    fn learn(&self, fields: &SpanFields<'_>, given: Option<&Given<'_>>, inherited: Resolved) -> Known {
        let values = self.values(fields);
        let resolved = self.inheritance.resolved(values, inherited);
        // What is beyond a limit now may have its place later.
        let all = [values.stage, values.profile, values.run_id, resolved.profile, resolved.run_id];
        let given = given.filter(|_| !all.contains(&Label::OVERFLOW));
        let meaning = given.and_then(|given| self.memory.add(given, values, resolved));
        Known { values, resolved, meaning }
    }

    fn values(&self, fields: &SpanFields<'_>) -> Values {
        let label = |role, value: Option<&str>| value.map_or(Label::NONE, |value| self.labels.intern(role, value));
        // A run id seen for the first time has no place once the metric that shows it has all its label sets.
        let run_id = match fields.run_id() {
            Some(run_id) if !self.series.has_room_for_runs() => self.labels.find(run_id).unwrap_or(Label::OVERFLOW),
            run_id => label(Role::RunId, run_id),
        };
        Values { stage: label(Role::Stage, fields.stage()), profile: label(Role::Profile, fields.profile()), run_id }
    }

    /// The hashes of what a span gives, if one of the values is beyond a limit.
    #[cold]
    fn hashes(&self, fields: &SpanFields<'_>, values: Values) -> Option<ValueHashes> {
        let hash = |value: Option<&str>| value.map_or(0, |value| self.labels.hash(value));
        values.contain(Label::OVERFLOW).then(|| ValueHashes {
            stage: hash(fields.stage()),
            profile: hash(fields.profile()),
            run_id: hash(fields.run_id()),
        })
    }

    /// After the guard is gone nothing is measured; a stage that opens then is told once.
    fn is_inert(&self, facts: Facts) -> bool {
        let ended = self.open.has_ended();
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
        if let Some(found) = self.open.find_whole(parent) {
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
        if let Some(found) = self.open.find_whole(&nearest.id()) {
            return found.reference();
        }
        let further = around.find_map(|span| self.open.find_whole(&span.id()));
        let further = further.map_or(SlotRef::NONE, |found| found.reference());
        // An id has one slot. Nobody waits: who comes second has what it came for, as long as it does not take a slot
        // that is being written for one that is there. The next one tries again.
        if self.leading.swap(true, Ordering::Acquire) {
            return further;
        }
        let found = self.open.find(&nearest.id()).or_else(|| {
            let callsite = self.callsites.find(nearest.metadata()).0;
            let epoch = self.inheritance.epoch();
            let resolved = self.inheritance.around(&self.open, further, epoch).pack(epoch);
            let span = NewSpan { callsite, parent: further, resolved, ..NewSpan::default() };
            self.open.claim(&nearest.id(), span)
        });
        self.leading.store(false, Ordering::Release);
        found.map_or(further, |found| found.reference())
    }

    pub(crate) fn recorded(&self, id: &Id, values: &Record<'_>) {
        let Some(found) = self.open.find_whole(id) else { return };
        let Some(callsite) = self.callsite(found) else { return };
        let mut fields = SpanFields::new(&callsite.positions);
        values.record(&mut fields);
        if let Some(declared) = fields.declared {
            let begun = found.was_entered();
            found.update_facts(|facts| facts.declared(declared, begun));
        }
        let given = self.values(&fields);
        let hashes = self.hashes(&fields, given);
        drop(fields);
        found.set_values(given);
        if let Some(hashes) = hashes {
            found.set_hashes(given, hashes);
        }
        if !(given.profile.is_none() && given.run_id.is_none()) {
            self.inheritance.begin_epoch();
        }
        if !given.stage.is_none() {
            self.inheritance.decide_part(&self.open, &self.labels, found.slot);
        }
        if self.series.sink.is_live() && !(given.stage.is_none() && given.profile.is_none()) {
            self.open.iter().for_each(|open| self.show(open));
        }
    }

    #[inline]
    pub(crate) fn entered<S>(&self, id: &Id, ctx: &Context<'_, S>)
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        if let Some(found) = self.open.find(id) {
            self.entered_further(found, ctx);
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
        for found in self.open.iter() {
            let reference = found.reference();
            let exists = self.open.id_of(found).is_none_or(|id| ctx.exists(&id));
            // The registry frees an id after the layers were told: a slot that is still that span's was not closed.
            if !exists && found.is_still(reference) {
                self.count_missed(found);
            }
        }
    }

    /// Counts a stage whose end this layer was not told, as the end of the run would.
    #[cold]
    fn count_missed(&self, found: Found<'_>) {
        if found.facts().has(Facts::STAGE) {
            let reference = found.reference();
            self.ensure_stage_id(found);
            let facts = found.facts();
            let outcome = self.policy.outcome_at_end(facts, found.entered.is_entered(), false);
            let last_exit = Some(found.last_exit.load(Ordering::Relaxed)).filter(|exit| *exit != 0);
            let ended = self.ended_stage(found, outcome, last_exit.unwrap_or_else(|| self.clock.raw()));
            if facts.is_stage() && found.settle(reference) {
                self.count(ended);
            }
            self.hide(found);
        }
    }

    /// Counts the stages that were open when the layer went away.
    pub(super) fn count_detached(&self) {
        if self.is_detached.swap(false, Ordering::Relaxed) {
            self.open.iter().for_each(|found| self.count_missed(found));
        }
    }

    /// A span that matters was entered.
    #[inline(never)]
    fn entered_further<S>(&self, found: Found<'_>, ctx: &Context<'_, S>)
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        if self.may_have_missed.load(Ordering::Relaxed) {
            self.count_all_missed(ctx);
        }
        self.diagnostics.emit_waiting();
        found.entered.enter();
        unwinding::entered(|| found.reference());
        #[cfg(feature = "trace-id")]
        note_trace_at_enter(found);
    }

    #[inline]
    pub(crate) fn exited(&self, id: &Id) {
        if let Some(found) = self.open.find(id) {
            self.exited_further(found, id);
        }
    }

    /// A span that matters was left.
    #[cfg_attr(not(feature = "trace-id"), allow(unused_variables))]
    #[inline(never)]
    fn exited_further(&self, found: Found<'_>, id: &Id) {
        #[cfg(feature = "trace-id")]
        let is_first = found.last_exit.load(Ordering::Relaxed) == 0;
        found.last_exit.store(self.clock.raw().max(1), Ordering::Relaxed);
        found.entered.exit();
        if unwinding::exited(|| found.reference()) {
            found.add_fact(Facts::PANICKED);
        }
        #[cfg(feature = "trace-id")]
        self.note_trace_at_exit(found, id, is_first);
    }

    #[inline]
    pub(crate) fn event<S>(&self, event: &Event<'_>, ctx: Context<'_, S>)
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        if self.callsites.may_decide(event.metadata()) {
            self.deciding_event(event, ctx);
        }
    }

    #[cold]
    #[inline(never)]
    fn deciding_event<S>(&self, event: &Event<'_>, ctx: Context<'_, S>)
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        if is_outward() {
            return;
        }
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
        if let Some(found) = self.open.find_whole(&span.id()).filter(|found| found.facts().is_stage()) {
            if is_error {
                found.add_fact(Facts::ERROR_EVENT);
            }
            match self.callsite(found).and_then(|callsite| returned(event.metadata(), callsite.meta)) {
                Some(Returned::Error) => found.add_fact(Facts::RETURNED_ERROR),
                Some(Returned::Value) => found.add_fact(Facts::RETURNED_VALUE),
                None => {}
            }
        } else if is_error && self.policy == FailurePolicy::ErrorsWithin {
            let around = span.scope().filter_map(|span| self.open.find_whole(&span.id()));
            if let Some(stage) = around.into_iter().find(|found| found.facts().is_stage()) {
                stage.add_fact(Facts::ERROR_WITHIN);
            }
        }
    }

    #[inline]
    pub(crate) fn closed(&self, id: &Id) {
        if let Some(found) = self.open.find(id) {
            self.closed_further(found, id);
        }
        self.diagnostics.emit_waiting();
    }

    /// A span that matters closed.
    #[cfg_attr(not(feature = "trace-id"), allow(unused_variables))]
    #[inline(never)]
    fn closed_further(&self, found: Found<'_>, id: &Id) {
        if found.facts().has(Facts::STAGE) {
            self.ensure_stage_id(found);
            let (facts, reference) = (found.facts(), found.reference());
            if facts.is_stage() && found.settle(reference) {
                let outcome = self.policy.outcome(facts);
                let last_exit = Some(found.last_exit.load(Ordering::Relaxed)).filter(|exit| *exit != 0);
                // A look at the clock is a large part of what a span costs: only where it was never entered.
                let ended = last_exit.unwrap_or_else(|| self.clock.raw());
                let ended = self.ended_stage(found, outcome, ended);
                #[cfg(feature = "trace-id")]
                let ended = self.with_own_trace(ended, id);
                self.count(ended);
                if outcome == Outcome::Failure(Reason::Cancelled) {
                    self.warn_cancelled(found);
                }
                #[cfg(feature = "trace-id")]
                self.warn_first_failure(ended);
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
            let name = callsite.meta.name();
            let values = Values { stage: self.labels.intern(Role::Stage, name), ..Values::default() };
            found.set_values(values);
            found.set_hashes(values, ValueHashes { stage: self.labels.hash(name), ..ValueHashes::default() });
            self.inheritance.decide_part(&self.open, &self.labels, found.slot);
        }
    }

    /// What there is to count of a stage that ends.
    #[inline(always)]
    pub(super) fn ended_stage(&self, found: Found<'_>, outcome: Outcome, ended: u64) -> Finished {
        // What the values come to holds as long as nothing was recorded late.
        let (Resolved { profile, run_id }, meaning) = match self.inheritance.known(found.slot) {
            Some(known) => (known, found.meaning()),
            None => (self.inheritance.resolve(&self.open, found.slot), None),
        };
        let nanos = self.clock.delta_as_nanos(found.started.load(Ordering::Relaxed), ended);
        Finished {
            stage: found.stage(),
            profile,
            run_id,
            meaning,
            outcome,
            is_outermost: !self.is_known(outcome) && nearest_stage(&self.open, found.parent()).is_none(),
            nanos,
            ended,
            #[cfg(feature = "trace-id")]
            trace: if outcome == Outcome::Success { None } else { found.trace() },
        }
    }

    /// Records a stage that ended. The caller has settled it.
    #[inline]
    pub(super) fn count(&self, ended: Finished) {
        if ended.is_outermost {
            self.outermost(ended.outcome).store(true, Ordering::Relaxed);
        }
        let meaning = ended.meaning.and_then(|meaning| self.memory.get(meaning));
        if let Some(overflow) = self.series.finish(&self.labels, ended, meaning.map(|meaning| &meaning.series)) {
            self.warn_overflow(overflow);
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
    use crate::recorder::StageRecorder;

    /// Stages of all kinds, whose values are known after the first time.
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

    /// Every lock of the layer is held while another thread runs stages.
    #[test]
    fn no_lock_is_taken_for_a_stage_that_goes_well() {
        let recorder = Arc::new(StageRecorder::new([], []));
        let layer_of = Arc::new(Stages::new(Settings {
            namespace: "quant".to_owned(),
            policy: FailurePolicy::default(),
            max_series: 100,
            buckets: Some(vec![1.0]),
            expected_stages: Vec::new(),
            profile: None,
            run_id: None,
            run_id_label: true,
            target: Target::Own(recorder),
            clock: quanta::Clock::new(),
            diagnostics: Arc::default(),
        }));
        let dispatch = Dispatch::new(Registry::default().with(MetricsLayer::over(Arc::clone(&layer_of))));
        let run = move || dispatcher::with_default(&dispatch, || (0..100).for_each(|_| stages()));
        run();
        let locks = (
            layer_of.callsites.lock(),
            layer_of.labels.lock(),
            layer_of.memory.lock(),
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
