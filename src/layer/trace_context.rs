//! The trace of a failed stage, from `tracing-opentelemetry`.
//!
//! A layer nearer to the registry gets every callback first. If that is the layer of the traces, the span that is being
//! entered is the current one of OpenTelemetry here, and a span that closes is unknown there already. If it is this layer,
//! the span is the current one until it is left, and the traces still know it when it closes. So the slot keeps the
//! current trace at the first enter, or else at the first exit, each a look into a thread-local, and a stage that has
//! failed is looked up at its close. No stage is looked up from a thread that does not hold it: `tracing-opentelemetry`
//! panics for a span that is gone.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, TraceContextExt};
use tracing::dispatcher::{self, Dispatch};
use tracing::span::Id;

use super::MetricsLayer;
use super::span::flags::SpanFlags;
use super::span::state::{Slot, SpanRef};
use super::tracker::StageTracker;
use crate::recorder::suppress_instrumentation;
use crate::series::FinishedStage;
use crate::series::outcome::Outcome;
use crate::series::trace_id::TraceId;

impl StageTracker {
    /// Call at every exit. `is_first`: the span was not left before.
    #[inline]
    pub(crate) fn note_trace_at_exit(&self, span: SpanRef<'_>, id: &Id, is_first: bool) {
        if is_first {
            note_current_trace(span.slot);
        }
        if span.flags().has(SpanFlags::TROUBLE) {
            self.note_trace_of_failing(span, id);
        }
    }

    /// Without context activation no span is ever the current one. One that has failed by now is looked up; others are
    /// not, since that starts the span in the trace, and its parent could not be set any more.
    #[cold]
    fn note_trace_of_failing(&self, span: SpanRef<'_>, id: &Id) {
        let flags = span.flags();
        if flags.is_stage() && !flags.has(SpanFlags::TRACE_KNOWN) && self.policy.outcome(flags) != Outcome::Success {
            span.set_trace(self.span_context(id).as_ref().and_then(TraceId::of));
        }
    }

    /// Call at the close. The span's own trace replaces what its slot has, which may be the trace around it.
    #[inline]
    pub(crate) fn with_own_trace(&self, mut ended: FinishedStage, id: &Id) -> FinishedStage {
        if ended.outcome != Outcome::Success
            && let Some(context) = self.span_context(id)
        {
            ended.trace = TraceId::of(&context);
        }
        ended
    }

    /// The span's context in the layer of the traces. This thread must hold the span, or be the one that closes it.
    #[cold]
    fn span_context(&self, id: &Id) -> Option<SpanContext> {
        let subscriber = self.subscriber()?;
        let look_up = || {
            let context = tracing_opentelemetry::get_otel_context(id, &subscriber)?;
            let span = context.span().span_context().clone();
            span.is_valid().then_some(span)
        };
        // It panics where the SDK did before, with the span locked.
        suppress_instrumentation(|| catch_unwind(AssertUnwindSafe(look_up))).unwrap_or_default()
    }

    /// The subscriber this layer is in. An `Option` or a `Vec` around the layer hides it from the layer; then it is the
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

/// Call at every enter.
#[inline]
pub(crate) fn note_trace_at_enter(span: SpanRef<'_>) {
    if span.last_exit.load(Ordering::Relaxed) == 0 {
        note_current_trace(span.slot);
    }
}

/// Keeps OpenTelemetry's current trace on this thread, unless the slot has one.
#[inline]
fn note_current_trace(slot: &Slot) {
    let flags = slot.flags();
    if flags.has(SpanFlags::STAGE) && !flags.has(SpanFlags::TRACE_KNOWN) {
        slot.set_trace(Context::map_current(|context| TraceId::of(context.span().span_context())));
    }
}
