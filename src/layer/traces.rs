//! The trace a failed stage is in, as `tracing-opentelemetry` knows it.
//!
//! That layer can be asked for a span as long as the span is open to it. Where it is nearer to the registry than this
//! one, it has closed a span before this one hears of it, and to ask for a span that another thread may be closing
//! makes it panic. But there a span that is being entered is the current one of OpenTelemetry, which costs a look into
//! a thread-local. Where this layer is the nearer one, it can ask when the stage has closed and is known to have failed.
//! So which of the two it is, is found out with the first stages; nothing is asked for stages that go well after that.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, TraceContextExt};
use tracing::dispatcher::{self, Dispatch};
use tracing::span::Id;
use tracing_subscriber::Registry;
use tracing_subscriber::registry::LookupSpan;

use super::MetricsLayer;
use super::open::{Slot, SpanRef};
use super::outcome::{Facts, Outcome};
use super::series::Finished;
use super::sink::outward;
use super::stages::Stages;
use super::trace_id::TraceId;

/// When the trace of a stage is looked for.
#[derive(Default)]
pub(crate) struct Traces {
    way: AtomicU8,
    /// How often nobody answered while the way was looked for.
    silences: AtomicU8,
}

/// It is not known yet where the layer of the traces is: each stage is asked for when it is entered.
const UNKNOWN: u8 = 0;
/// It is told first: when a stage is entered, it is the current span of OpenTelemetry.
const AT_ENTER: u8 = 1;
/// It is told last: a stage that failed is asked for when it closes.
const AT_CLOSE: u8 = 2;
/// Nobody answers, or only for spans that are entered: a stage is asked for when it is left and looks failed by then.
const AT_EXIT: u8 = 3;

/// How often nobody may answer, before nobody is asked for stages that may go well. Stages can be hidden from the
/// traces by a filter.
const MAX_SILENCES: u8 = 64;

impl Traces {
    fn way(&self) -> u8 {
        self.way.load(Ordering::Relaxed)
    }

    fn found(&self, way: u8) {
        // The first word stands.
        let _ = self.way.compare_exchange(UNKNOWN, way, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn silence(&self) {
        if self.silences.fetch_add(1, Ordering::Relaxed) >= MAX_SILENCES {
            self.silences.store(MAX_SILENCES, Ordering::Relaxed);
            self.found(AT_EXIT);
        }
    }
}

impl Stages {
    /// To call when a span is entered.
    #[inline]
    pub(super) fn note_trace_at_enter(&self, found: SpanRef<'_>, id: &Id) {
        let way = self.traces.way();
        if way <= AT_ENTER {
            let facts = found.facts();
            if facts.has(Facts::STAGE) && !facts.has(Facts::ASKED_FOR_TRACE) {
                if way == AT_ENTER {
                    found.set_trace(current(TraceId::of));
                } else {
                    self.find_way_at_enter(found, id);
                }
            }
        }
    }

    #[cold]
    fn find_way_at_enter(&self, found: SpanRef<'_>, id: &Id) {
        let context = self.ask(id);
        match &context {
            None => self.traces.silence(),
            Some(context) if current(SpanContext::span_id) == context.span_id() => self.traces.found(AT_ENTER),
            Some(_) => {}
        }
        found.set_trace(context.as_ref().and_then(TraceId::of));
    }

    /// To call when a span is left; `is_held`: whether another thread asks for it.
    #[inline]
    pub(super) fn note_trace_at_exit(&self, found: SpanRef<'_>, id: &Id, is_held: bool) {
        if found.facts().has(Facts::TROUBLE) {
            self.note_trace(found, id);
        }
        if is_held {
            await_release(found.slot);
        }
    }

    /// Keeps the trace of a stage that failed by what is known now.
    #[cold]
    fn note_trace(&self, found: SpanRef<'_>, id: &Id) {
        let facts = found.facts();
        if facts.is_stage() && !facts.has(Facts::ASKED_FOR_TRACE) && self.policy.outcome(facts) != Outcome::Success {
            found.set_trace(self.ask(id).as_ref().and_then(TraceId::of));
        }
    }

    /// What there is to count of a stage that closes, with its trace if it failed.
    #[inline]
    pub(super) fn with_trace(&self, mut ended: Finished, found: SpanRef<'_>, id: &Id) -> Finished {
        if self.traces.way() == UNKNOWN {
            self.find_way_at_close(id);
        }
        if ended.outcome != Outcome::Success {
            self.note_trace(found, id);
            ended.trace = found.trace();
        }
        ended
    }

    #[cold]
    fn find_way_at_close(&self, id: &Id) {
        if self.ask(id).is_some() { self.traces.found(AT_CLOSE) } else { self.traces.silence() }
    }

    /// The same of a stage that is open at the end of the run.
    pub(super) fn with_trace_of_open(&self, mut ended: Finished, found: SpanRef<'_>, held: Held<'_>) -> Finished {
        if ended.outcome != Outcome::Success {
            ended.trace = if found.facts().has(Facts::ASKED_FOR_TRACE) {
                found.trace()
            } else if held.entered || self.traces.way() == AT_CLOSE {
                // The other layer is not told that it closes before this one, which waits then.
                self.trace_of_open(found)
            } else {
                None
            };
        }
        ended
    }

    fn trace_of_open(&self, found: SpanRef<'_>) -> Option<TraceId> {
        let id = self.open.id_of(found)?;
        // Its end may not have been told to this layer: only a span that exists may be asked for.
        self.subscriber()?.downcast_ref::<Registry>()?.span_data(&id)?;
        TraceId::of(&self.ask(&id)?)
    }

    /// What the layer of the traces knows of an open span. To ask starts the span: its parent can not be set any more.
    fn ask(&self, id: &Id) -> Option<SpanContext> {
        let subscriber = self.subscriber()?;
        let ask = || {
            let context = tracing_opentelemetry::get_otel_context(id, &subscriber)?;
            let span = context.span().span_context().clone();
            span.is_valid().then_some(span)
        };
        // It panics where the SDK did before, with the span locked.
        outward(|| catch_unwind(AssertUnwindSafe(ask))).unwrap_or_default()
    }

    /// The subscriber this layer is in. An `Option` or a `Vec` around it keeps from it what that is: then it is the
    /// default, if this layer is in that.
    fn subscriber(&self) -> Option<Dispatch> {
        let is_this = |layer: &MetricsLayer| std::ptr::eq(&*layer.stages, self);
        self.diagnostics.subscriber().or_else(|| {
            dispatcher::get_default(|default| {
                default.downcast_ref::<MetricsLayer>().is_some_and(is_this).then(|| default.clone())
            })
        })
    }
}

/// Of OpenTelemetry's current span on this thread.
#[inline]
fn current<T>(read: impl FnOnce(&SpanContext) -> T) -> T {
    Context::map_current(|context| read(context.span().span_context()))
}

/// The longest a thread waits for another to ask for the span it is about to leave or to close.
const MAX_HOLD: Duration = Duration::from_millis(100);

/// A span whose id another thread uses: who leaves or closes it meanwhile waits, since to ask for a span that is no
/// more is a panic.
pub(super) struct Held<'a> {
    slot: &'a Slot,
    /// Whether a thread is in it, which waits when it leaves.
    entered: bool,
}

impl<'a> Held<'a> {
    /// To settle the span after: who closes it either settles it first, or sees that it is held.
    pub(super) fn new(slot: &'a Slot) -> Self {
        Self { slot, entered: slot.entered.hold() }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.slot.entered.release();
    }
}

#[cold]
pub(super) fn await_release(slot: &Slot) {
    let deadline = Instant::now() + MAX_HOLD;
    while slot.entered.is_held() && Instant::now() < deadline {
        std::thread::yield_now();
    }
}
