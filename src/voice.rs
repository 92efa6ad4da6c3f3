//! How the crate speaks: `tracing` events of its own target, given to the subscriber the layer is part of.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use tracing::dispatcher::{self, Dispatch, WeakDispatch};

/// Brings the crate's own events to the right subscriber at a moment when that is safe.
///
/// The delivery thread does not see a subscriber that is the default of one other thread only, and inside a
/// callback of the layer the default may be hidden. So the layer notes the subscriber it was made part of.
#[derive(Default)]
pub(crate) struct Voice {
    subscriber: Mutex<Option<WeakDispatch>>,
    deferred: Mutex<Vec<Say>>,
    any_deferred: AtomicBool,
}

type Say = Box<dyn FnOnce() + Send>;

impl Voice {
    /// The subscriber the layer is in now.
    pub(crate) fn attach(&self, subscriber: &Dispatch) {
        *self.subscriber.lock().unwrap_or_else(PoisonError::into_inner) = Some(subscriber.downgrade());
    }

    pub(crate) fn subscriber(&self) -> Option<Dispatch> {
        self.subscriber.lock().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(WeakDispatch::upgrade)
    }

    /// Emits now. Not from `on_new_span` and not from `on_event`: there an event of our own would disturb what the
    /// per-layer filters have noted for the span or event in hand.
    pub(crate) fn speak(&self, say: impl FnOnce()) {
        let subscriber = self.subscriber();
        // A subscriber that panics must not keep the stages from being counted, or end the delivery thread.
        let _ = catch_unwind(AssertUnwindSafe(|| match subscriber {
            Some(subscriber) => dispatcher::with_default(&subscriber, say),
            None => say(),
        }));
    }

    /// Emits at the next safe moment: when a stage is entered or any span closed, or at the final flush.
    pub(crate) fn defer(&self, say: impl FnOnce() + Send + 'static) {
        self.deferred.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(say));
        self.any_deferred.store(true, Ordering::Release);
    }

    /// Emits what was deferred, if anything was.
    #[inline]
    pub(crate) fn speak_deferred(&self) {
        if self.any_deferred.load(Ordering::Relaxed) {
            self.speak_all();
        }
    }

    #[cold]
    fn speak_all(&self) {
        self.any_deferred.store(false, Ordering::Relaxed);
        let deferred = std::mem::take(&mut *self.deferred.lock().unwrap_or_else(PoisonError::into_inner));
        for say in deferred {
            self.speak(say);
        }
    }
}
