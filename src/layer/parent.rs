//! The parent of a new span in the table of open spans.

use std::sync::atomic::{AtomicBool, Ordering};

use tracing::Subscriber;
use tracing::span::{Attributes, Id};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::callsite::Callsites;
use super::span::state::{NewSpan, SlotRef};
use super::span::tree::SpanTree;

/// Finds the nearest ancestor with a slot.
#[derive(Default)]
pub(super) struct ParentFinder {
    /// Whether a thread claims a slot for an untracked span.
    is_claiming: AtomicBool,
}

impl ParentFinder {
    /// Returns the slot of the nearest tracked ancestor of a new span.
    #[inline]
    pub(super) fn find<S>(
        &self,
        spans: &SpanTree,
        callsites: &Callsites,
        attrs: &Attributes<'_>,
        id: &Id,
        ctx: &Context<'_, S>,
    ) -> SlotRef
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
        if let Some(span) = spans.open.get_initialized(parent) {
            return span.reference();
        }
        self.find_slow(spans, callsites, id, ctx)
    }

    /// Finds the nearest tracked ancestor if the parent is untracked. The parent gets a slot that refers to it, so that the next
    /// stage within the parent needs no search.
    #[inline(never)]
    fn find_slow<S>(&self, spans: &SpanTree, callsites: &Callsites, id: &Id, ctx: &Context<'_, S>) -> SlotRef
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let Some(span) = ctx.span(id) else { return SlotRef::NONE };
        // The scope omits spans that a filter hides from this layer, which gets no callback when they close.
        let mut ancestors = span.scope().skip(1);
        let Some(nearest) = ancestors.next() else { return SlotRef::NONE };
        if let Some(span) = spans.open.get_initialized(&nearest.id()) {
            return span.reference();
        }
        let tracked = ancestors.find_map(|span| spans.open.get_initialized(&span.id()));
        let tracked = tracked.map_or(SlotRef::NONE, |span| span.reference());
        // An id has one slot. Non-blocking: the loser uses the ancestor it found; the next span tries again.
        if self.is_claiming.swap(true, Ordering::Acquire) {
            return tracked;
        }
        let span = spans.open.find(&nearest.id()).or_else(|| {
            let callsite = callsites.find(nearest.metadata()).0;
            let epoch = spans.epoch();
            let resolved = spans.inherited_from(tracked, epoch).pack(epoch);
            let enclosing = spans.nearest_stage(tracked, epoch);
            let enclosing_stage = enclosing.map_or(SlotRef::NONE, |stage| stage.reference());
            let span = NewSpan { callsite, parent: tracked, enclosing_stage, resolved, ..NewSpan::default() };
            spans.open.claim(&nearest.id(), span)
        });
        self.is_claiming.store(false, Ordering::Release);
        span.map_or(tracked, |span| span.reference())
    }
}
