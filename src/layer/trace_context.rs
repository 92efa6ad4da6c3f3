//! The trace of a failed stage, from `tracing-opentelemetry`.
//!
//! A layer nearer to the registry gets every callback first. If that is the layer of the traces, the span that is being
//! entered is the current one of OpenTelemetry here, and a span that closes is unknown there already. If it is this layer,
//! the span is the current one until it is left, and the traces still know it when it closes. So the slot keeps the
//! current trace at the first enter, or else at the first exit, each a look into a thread-local, and a stage that has
//! failed is looked up at its close. No stage is looked up from a thread that does not hold it: `tracing-opentelemetry`
//! panics for a span that is gone.

use std::panic::{AssertUnwindSafe, catch_unwind};

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, TraceContextExt};
use tracing::dispatcher::Dispatch;
use tracing::span::Id;

use super::span::flags::SpanFlags;
use super::span::state::{Slot, SpanRef};
use crate::recorder::suppress_instrumentation;
use crate::series::trace_id::TraceId;

/// Call at every enter.
#[inline]
pub(super) fn note_at_enter(span: SpanRef<'_>) {
    if span.last_exit().is_none() {
        note_current_trace(span.slot);
    }
}

/// Call at every exit. `is_first`: the span was not left before.
#[inline]
pub(super) fn note_at_exit(span: SpanRef<'_>, is_first: bool) {
    if is_first {
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
