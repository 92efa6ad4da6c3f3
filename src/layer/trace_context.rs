//! The trace of a failed stage and, for exemplars, of every stage, from `tracing-opentelemetry`.
//!
//! A layer nearer to the registry gets every callback first. If that is the layer of the traces, the span that is being
//! entered is the current one of OpenTelemetry here, and a span that closes is unknown there already. If it is this layer,
//! the span is the current one until it is left, and the traces still know it when it closes. So the slot keeps the
//! current trace at the first enter, or else at the first exit, each a look into a thread-local, and a stage that has
//! failed is looked up at its close. No stage is looked up from a thread that does not hold it: `tracing-opentelemetry`
//! panics for a span that is gone.
//!
//! For exemplars a successful stage needs its own trace, not the one around it. The two differ in few stages. The first of
//! them is looked up once, which tells the order of the layers.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, TraceContextExt};
use tracing::dispatcher::Dispatch;
use tracing::span::Id;

use super::span::flags::SpanFlags;
use super::span::state::{Slot, SpanRef};
use crate::recorder::suppress_instrumentation;
use crate::series::outcome::Outcome;
use crate::series::trace_id::TraceId;

/// The layer that gets every callback first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    Traces,
    Metrics,
}

/// How the slots get the traces of their spans.
#[derive(Debug, Default)]
pub(super) struct StageTraces {
    /// Whether successful stages need their trace too.
    has_exemplars: bool,
    /// Known after the first stage whose trace is another one than the trace around it.
    first: OnceLock<First>,
}

impl StageTraces {
    pub(super) fn new(has_exemplars: bool) -> Self {
        Self { has_exemplars, first: OnceLock::new() }
    }

    /// Call at every enter.
    #[inline]
    pub(super) fn note_at_enter(&self, span: SpanRef<'_>) {
        if span.last_exit().is_none() {
            note_current_trace(span.slot);
        }
    }

    /// Call at every exit. `is_first`: the span was not left before. `look_up` does what [`span_context`] does.
    #[inline]
    pub(super) fn note_at_exit(
        &self,
        span: SpanRef<'_>,
        is_first: bool,
        look_up: impl FnOnce() -> Option<SpanContext>,
    ) {
        if !is_first || !span.flags().has(SpanFlags::STAGE) {
            return;
        }
        if !self.has_exemplars {
            return note_current_trace(span.slot);
        }
        let first = self.first.get();
        if first == Some(&First::Traces) {
            return;
        }
        let (at_enter, at_exit) = (span.trace(), current_trace());
        if at_enter == at_exit {
            return;
        }
        match first {
            Some(_) => span.replace_trace(at_exit),
            None => self.find_first(span, at_enter, at_exit, look_up),
        }
    }

    /// Finds out which layer is the first, from a stage with another trace at its first exit than at its first enter. Sets
    /// the trace of the stage.
    #[cold]
    fn find_first(
        &self,
        span: SpanRef<'_>,
        at_enter: Option<TraceId>,
        at_exit: Option<TraceId>,
        look_up: impl FnOnce() -> Option<SpanContext>,
    ) {
        // The traces have started the span when it was entered.
        let Some(own) = look_up() else { return span.set_trace(at_exit) };
        let own_trace = TraceId::of(&own);
        let current = Context::map_current(|context| context.span().span_context().span_id());
        if own.span_id() == current {
            let _ = self.first.set(First::Metrics);
        } else if own_trace == at_enter {
            let _ = self.first.set(First::Traces);
        }
        if own_trace != at_enter {
            span.replace_trace(own_trace);
        }
    }

    /// Returns the trace of a stage that ends, for what is counted of it.
    #[inline]
    pub(super) fn of_finished(&self, span: SpanRef<'_>, outcome: Outcome) -> Option<TraceId> {
        if self.has_exemplars || outcome != Outcome::Success { span.trace() } else { None }
    }
}

/// Keeps OpenTelemetry's current trace on this thread, unless the slot has one.
#[inline]
fn note_current_trace(slot: &Slot) {
    let flags = slot.flags();
    if flags.has(SpanFlags::STAGE) && !flags.has(SpanFlags::TRACE_KNOWN) {
        slot.set_trace(current_trace());
    }
}

#[inline]
fn current_trace() -> Option<TraceId> {
    Context::map_current(|context| TraceId::of(context.span().span_context()))
}

/// Looks up a span in the layer of the traces. This thread must hold the span, or be the one that closes it. The lookup starts
/// the span in the trace: its parent cannot be set any more. `subscriber` returns the one that both layers are in.
#[cold]
pub(super) fn span_context(id: &Id, subscriber: impl FnOnce() -> Option<Dispatch>) -> Option<SpanContext> {
    let subscriber = subscriber()?;
    let look_up = || {
        let context = tracing_opentelemetry::get_otel_context(id, &subscriber)?;
        let span = context.span().span_context().clone();
        span.is_valid().then_some(span)
    };
    // It panics where the SDK did before, with the span locked.
    suppress_instrumentation(|| catch_unwind(AssertUnwindSafe(look_up))).unwrap_or_default()
}
