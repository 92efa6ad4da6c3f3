//! Stages whose close the layer does not see, since `reload` took it out of its subscriber or replaced it.

use std::sync::atomic::{AtomicBool, Ordering};

use tracing::Subscriber;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::stages::Stages;

#[derive(Default)]
pub(super) struct MissedCloses {
    /// Whether spans may have closed without a callback.
    may_have_missed: AtomicBool,
    /// Whether the layer was dropped: open spans get no callback any more.
    is_detached: AtomicBool,
}

impl MissedCloses {
    /// The layer is in its subscriber again.
    pub(super) fn reattached(&self) {
        self.may_have_missed.store(true, Ordering::Relaxed);
    }

    /// The layer was dropped.
    pub(super) fn detached(&self) {
        self.is_detached.store(true, Ordering::Relaxed);
    }

    /// Counts the stages that closed while the layer was out of its subscriber.
    #[inline]
    pub(super) fn count<S>(&self, stages: &Stages, ctx: &Context<'_, S>)
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        if self.may_have_missed.load(Ordering::Relaxed) {
            self.count_slow(stages, ctx);
        }
    }

    #[cold]
    fn count_slow<S>(&self, stages: &Stages, ctx: &Context<'_, S>)
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        if !self.may_have_missed.swap(false, Ordering::Relaxed) {
            return;
        }
        for span in stages.spans.open.iter() {
            let reference = span.reference();
            let exists = stages.spans.open.id_of(span).is_none_or(|id| ctx.exists(&id));
            // The registry frees an id after the callbacks of all layers: a slot that is still current was not closed.
            if !exists {
                stages.count_missed(span, reference);
            }
        }
    }

    /// Counts the stages that were open when the layer was dropped.
    pub(super) fn count_detached(&self, stages: &Stages) {
        if self.is_detached.swap(false, Ordering::Relaxed) {
            stages.spans.open.iter().for_each(|span| stages.count_missed(span, span.reference()));
        }
    }
}
