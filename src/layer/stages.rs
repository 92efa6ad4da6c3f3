//! The life of a stage: opened, recorded into, entered, left, closed, or cut off by the end of the run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber, warn};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::admission::Overflow;
use super::callsite::{Callsite, Callsites, ErrorEvent, Inherited, Kind, OWN_TARGET, is_from_instrument};
use super::fields::{HasError, SpanFields};
use super::inherit::{Inheritance, Origin, stage_around};
use super::labels::{Label, Labels};
use super::open::{Found, NewSpan, OpenSpans, SlotRef};
use super::outcome::{Facts, FailurePolicy, Outcome, Reason};
use super::series::{Finished, Series, StageTotals};
use super::sink::{Sink, Target, is_outward, outward};
use super::unwinding;
use crate::schema::Metric;
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
    callsites: Callsites,
    labels: Labels,
    open: OpenSpans,
    inheritance: Inheritance,
    pub(crate) series: Series,
    policy: FailurePolicy,
    clock: quanta::Clock,
    pub(crate) voice: Arc<Voice>,
    expected: Vec<Label>,
    /// Whether some thread gives a slot to a span that has none of its own, see `parent_further`.
    leading: AtomicBool,
    ended: AtomicBool,
    warned_inert: AtomicBool,
    outermost_finished: AtomicBool,
    outermost_failed: AtomicBool,
}

/// A stage as the run report shows it.
#[cfg_attr(not(feature = "pushgateway"), allow(dead_code))]
pub(crate) struct StageState {
    pub(crate) stage: String,
    pub(crate) totals: StageTotals,
    pub(crate) open: u64,
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
        let mut fields = SpanFields::new(&self.labels, &callsite.positions);
        attrs.record(&mut fields);
        let facts = fields.declared.map_or(facts, |declared| facts.declared(declared));
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
            self.voice.defer(|| {
                warn!(
                    target: OWN_TARGET,
                    "a stage opened after the final flush and is not measured: keep the guard until the end of `main` \
                     (`let (layer, _guard) = …`; a bare `_` drops it at once)"
                );
            });
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
        let mut fields = SpanFields::new(&self.labels, &callsite.positions);
        values.record(&mut fields);
        if let Some(declared) = fields.declared {
            found.update_facts(|facts| facts.declared(declared));
        }
        found.set_values(fields.stage, fields.profile, fields.run_id);
        if !(fields.profile.is_none() && fields.run_id.is_none()) {
            self.inheritance.begin_epoch();
        }
        if !fields.stage.is_none() {
            self.inheritance.decide_part(&self.open, found.slot);
        }
        if self.series.sink.is_live() {
            self.open.iter().for_each(|open| self.show(open));
        }
    }

    #[inline]
    pub(crate) fn entered(&self, id: &Id) {
        self.voice.speak_deferred();
        if let Some(found) = self.open.find(id) {
            found.entered.fetch_add(1, Ordering::Relaxed);
            unwinding::entered(|| found.reference());
        }
    }

    #[inline]
    pub(crate) fn exited(&self, id: &Id) {
        if let Some(found) = self.open.find(id) {
            found.last_exit.store(self.clock.raw().max(1), Ordering::Relaxed);
            found.entered.fetch_sub(1, Ordering::Relaxed);
            if unwinding::exited(|| found.reference()) {
                found.add_fact(Facts::PANICKED);
            }
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
            let own = self.callsite(found).is_some_and(|callsite| is_from_instrument(event.metadata(), callsite.meta));
            match (is_error, own) {
                (true, true) => found.add_fact(Facts::ERROR_EVENT.with(Facts::RETURNED_ERROR)),
                (true, false) => found.add_fact(Facts::ERROR_EVENT),
                (false, true) => found.add_fact(Facts::RETURNED_VALUE),
                (false, false) => {}
            }
        } else if is_error && self.policy == FailurePolicy::ErrorsWithin {
            let around = span.scope().filter_map(|span| self.open.find(&span.id()));
            if let Some(stage) = around.into_iter().find(|found| found.facts().is_stage()) {
                stage.add_fact(Facts::ERROR_WITHIN);
            }
        }
    }

    pub(crate) fn closed(&self, id: &Id) {
        let Some(found) = self.open.find(id) else { return };
        if found.facts().has(Facts::STAGE) {
            self.ensure_stage_id(found);
            let (facts, reference) = (found.facts(), found.reference());
            if facts.is_stage() && found.settle(reference) {
                let outcome = self.policy.outcome(facts);
                let last_exit = Some(found.last_exit.load(Ordering::Relaxed)).filter(|exit| *exit != 0);
                // A look at the clock is a large part of what a span costs: only where it was never entered.
                let ended = last_exit.unwrap_or_else(|| self.clock.raw());
                self.count(found, outcome, ended);
                if outcome == Outcome::Failure(Reason::Cancelled) {
                    self.warn_cancelled(found);
                }
            }
            self.hide(found);
        }
        self.open.release(found);
    }

    fn callsite(&self, found: Found<'_>) -> Option<&Callsite> {
        self.callsites.get(found.callsite.load(Ordering::Relaxed))
    }

    /// A stage id that was declared and never recorded is the span's name.
    fn ensure_stage_id(&self, found: Found<'_>) {
        if found.stage().is_none()
            && let Some(callsite) = self.callsite(found)
        {
            let name = self.labels.intern(callsite.meta.name());
            found.set_values(name, Label::NONE, Label::NONE);
            self.inheritance.decide_part(&self.open, found.slot);
        }
    }

    /// Records a stage that ended. The caller has settled it.
    fn count(&self, found: Found<'_>, outcome: Outcome, ended: u64) {
        let resolved = self.inheritance.resolve(&self.open, found.slot);
        let nanos = self.clock.delta_as_nanos(found.started.load(Ordering::Relaxed), ended);
        let flag = match outcome {
            Outcome::Success => &self.outermost_finished,
            Outcome::Failure(_) => &self.outermost_failed,
        };
        if !flag.load(Ordering::Relaxed) && stage_around(&self.open, found.slot).is_none() {
            flag.store(true, Ordering::Relaxed);
        }
        let (profile, run_id) = (resolved.profile, resolved.run_id);
        let finished = Finished { stage: found.stage(), profile, run_id, outcome, nanos, ended };
        if let Some(overflow) = self.series.finish(&self.labels, finished) {
            self.warn_overflow(&overflow);
        }
    }

    #[cold]
    fn warn_overflow(&self, overflow: &Overflow) {
        let Overflow { max, label, values, example } = overflow;
        self.voice.speak(|| {
            warn!(
                target: OWN_TARGET,
                max_series = max,
                label,
                values,
                example,
                "more than {max} label sets: new ones are counted as \"_overflow\" from now on. `{label}` has the most \
                 values ({values}, one is {example:?}); leave the run id out with `without_run_id_label()`, take a \
                 value with fewer different ones, or raise `with_max_series`"
            );
        });
    }

    #[cold]
    fn warn_cancelled(&self, found: Found<'_>) {
        let Some(callsite) = self.callsite(found).filter(|callsite| callsite.warn_once()) else { return };
        let (stage_id, span) = (self.labels.text(found.stage()), callsite.meta.name());
        let (file, line) = (callsite.meta.file().unwrap_or("?"), callsite.meta.line().unwrap_or(0));
        self.voice.speak(|| {
            warn!(
                target: OWN_TARGET,
                stage_id,
                "stage {stage_id} (span {span} at {file}:{line}) closed without having returned and counts as \
                 cancelled; if it was not, its function needs `#[instrument(err, ret)]`, at levels that reach this \
                 layer, since the failure policy is ProvenSuccess"
            );
        });
    }

    /// Counts the stage in its active gauge, where gauges are written at once.
    fn show(&self, found: Found<'_>) {
        let facts = found.facts();
        if !found.is_open() || !facts.is_stage() || found.stage().is_none() {
            return self.hide(found);
        }
        let profile = self.inheritance.resolve(&self.open, found.slot).profile;
        self.series.stage(&self.labels, found.stage());
        let (pair, _) = self.series.pair(&self.labels, found.stage(), profile);
        let before = found.shown.swap(pair + 1, Ordering::Relaxed);
        if before != pair + 1 {
            self.series.move_active(pair, 1.0);
            self.unshow(before);
        }
    }

    fn hide(&self, found: Found<'_>) {
        if found.shown.load(Ordering::Relaxed) != 0 {
            self.unshow(found.shown.swap(0, Ordering::Relaxed));
        }
    }

    fn unshow(&self, shown: u32) {
        if let Some(pair) = shown.checked_sub(1) {
            self.series.move_active(pair, -1.0);
        }
    }
}

/// What the guard asks and tells.
#[cfg_attr(not(feature = "pushgateway"), allow(dead_code))]
impl Stages {
    /// Gives the recorder the state of this moment. To be called before it is rendered.
    pub(crate) fn publish(&self) {
        if self.series.sink.is_live() {
            return;
        }
        let mut active = std::collections::HashMap::new();
        for found in self.open.iter().filter(|found| found.facts().is_stage() && !found.stage().is_none()) {
            let profile = self.inheritance.resolve(&self.open, found.slot).profile;
            self.series.stage(&self.labels, found.stage());
            let (pair, _) = self.series.pair(&self.labels, found.stage(), profile);
            *active.entry(pair).or_insert(0_u64) += 1;
        }
        self.series.publish(&self.labels, |pair| active.get(&pair).copied().unwrap_or(0));
    }

    /// The run is over: counts the stages that are still open, once, and measures nothing from now on.
    /// `cut_off`: the process ends by a signal, a panic or a non-zero exit.
    pub(crate) fn end(&self, cut_off: bool) {
        if self.ended.swap(true, Ordering::SeqCst) {
            return;
        }
        let now = self.clock.raw();
        for found in self.open.iter().filter(|found| found.facts().has(Facts::STAGE)) {
            // First, so that what is read below is of the span that is settled in the end.
            let reference = found.reference();
            self.ensure_stage_id(found);
            let facts = found.facts();
            let running = cut_off || found.entered.load(Ordering::Relaxed) > 0;
            let outcome = self.policy.outcome_at_end(facts, running);
            let last_exit = Some(found.last_exit.load(Ordering::Relaxed)).filter(|exit| *exit != 0 && !running);
            if facts.is_stage() && found.settle(reference) {
                self.count(found, outcome, last_exit.unwrap_or(now));
                self.hide(found);
                if let Outcome::Failure(reason) = outcome {
                    self.warn_open(found, reason);
                }
            }
        }
        self.voice.speak_deferred();
    }

    fn warn_open(&self, found: Found<'_>, reason: Reason) {
        let resolved = self.inheritance.resolve(&self.open, found.slot);
        let stage_id = self.labels.text(found.stage());
        let (profile, run_id) = (self.labels.text(resolved.profile), self.labels.text(resolved.run_id));
        let reason = reason.as_str();
        outward(|| {
            self.voice.speak(|| {
                warn!(
                    target: OWN_TARGET,
                    stage_id, profile, run_id, reason,
                    "stage {stage_id} was still open at the final flush and is counted as a failure ({reason})"
                );
            });
        });
    }

    /// Sets a gauge that has no labels.
    pub(crate) fn set_gauge(&self, metric: &Metric, value: f64) {
        let gauge = self.series.sink.gauge(metric, &[]);
        outward(|| gauge.set(value));
    }

    /// Whether the stages of this run allow to call it a success: at least one outermost stage finished, none failed,
    /// and every expected stage succeeded at least once.
    pub(crate) fn all_well(&self) -> bool {
        self.outermost_finished.load(Ordering::Relaxed)
            && !self.outermost_failed.load(Ordering::Relaxed)
            && self.expected.iter().all(|stage| self.series.stage(&self.labels, *stage).1.totals().succeeded > 0)
    }

    /// The stages in the order in which they first finished; those that have not, last.
    pub(crate) fn states(&self) -> Vec<StageState> {
        let mut open = std::collections::HashMap::new();
        for found in self.open.iter().filter(|found| found.facts().is_stage()) {
            let name =
                || self.callsite(found).map_or(Label::EMPTY, |callsite| self.labels.intern(callsite.meta.name()));
            let stage = Some(found.stage()).filter(|stage| !stage.is_none()).unwrap_or_else(name);
            let stage = self.series.stage(&self.labels, stage).1.stage;
            *open.entry(stage).or_insert(0_u64) += 1;
        }
        let mut states: Vec<_> = self.series.totals().collect();
        states.sort_by_key(|(_, totals)| totals.first_finished.wrapping_sub(1));
        states
            .into_iter()
            .map(|(stage, totals)| StageState {
                stage: self.labels.text(stage).to_owned(),
                totals,
                open: open.get(&stage).copied().unwrap_or(0),
            })
            .collect()
    }
}
