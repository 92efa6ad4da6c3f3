//! The crate's own `tracing` events, of the target `tracing_stage_metrics`: which subscriber gets them, and when.
//!
//! A subscriber is code of the application. It can block (standard output is locked), panic, or wait for a lock that a
//! callback of this layer holds (`reload`). So events are emitted on a thread of their own, which nobody waits for beyond
//! a deadline. The layer alone ([`MetricsLayer::new`](crate::MetricsLayer::new)) has no thread: its events wait for the
//! next callback in which it is safe to emit them.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
#[cfg(feature = "pushgateway")]
use std::{sync::Arc, time::Instant};

use tracing::dispatcher::{self, Dispatch, WeakDispatch};
#[cfg(feature = "pushgateway")]
use tracing::subscriber::NoSubscriber;
use tracing::warn;

#[cfg(feature = "pushgateway")]
use crate::diagnostics::suppress::lift;
#[cfg(feature = "pushgateway")]
use crate::error::Error;
#[cfg(feature = "pushgateway")]
use crate::job_thread::JobThread;
use crate::schema::OWN_TARGET;

/// Events that wait for a subscriber which does not take them. Beyond, an event is dropped and counted.
const MAX_WAITING: usize = 1_024;

/// Brings events to the subscriber that the layer is part of.
#[derive(Default)]
pub(crate) struct Diagnostics {
    subscriber: Mutex<Option<WeakDispatch>>,
    /// The default of a thread on which a stage was seen, for a layer that was never told its subscriber.
    #[cfg(feature = "pushgateway")]
    seen: Mutex<Option<WeakDispatch>>,
    /// Events that wait: for a safe callback, or for the final flush to be over.
    waiting: Mutex<VecDeque<WaitingEvent>>,
    /// Whether [`emit_waiting`](Self::emit_waiting) has something to do.
    is_idle: AtomicBool,
    dropped: AtomicU64,
    /// From `install()` to the final flush.
    #[cfg(feature = "pushgateway")]
    thread: Mutex<Option<Arc<JobThread>>>,
    /// Whether events wait for the final flush.
    #[cfg(feature = "pushgateway")]
    is_held: AtomicBool,
}

type Event = Box<dyn FnOnce() + Send>;

struct WaitingEvent {
    /// Where `None`, the default of the thread that emits.
    subscriber: Option<Dispatch>,
    event: Event,
}

impl Diagnostics {
    /// Emits on a thread of its own from now on.
    #[cfg(feature = "pushgateway")]
    pub(crate) fn start_thread(&self) -> Result<(), Error> {
        // And the event that counts those dropped: it must not take the place of one that waited.
        let thread = JobThread::start("metrics-events", MAX_WAITING + 1)?;
        *lock(&self.thread) = Some(Arc::new(thread));
        Ok(())
    }

    /// Ends the thread when it has emitted what waits for it. From now on events wait for a callback.
    #[cfg(feature = "pushgateway")]
    pub(crate) fn stop_thread(&self) {
        let thread = lock(&self.thread).take();
        drop(thread);
    }

    #[cfg(feature = "pushgateway")]
    fn thread(&self) -> Option<Arc<JobThread>> {
        lock(&self.thread).clone()
    }

    /// The layer is part of this subscriber.
    pub(crate) fn attach(&self, subscriber: &Dispatch) {
        *lock(&self.subscriber) = Some(subscriber.downgrade());
    }

    pub(crate) fn subscriber(&self) -> Option<Dispatch> {
        upgrade(&self.subscriber)
    }

    /// Emits an event: on the thread for events, or in the next callback that calls
    /// [`emit_waiting`](Self::emit_waiting). Returns at once.
    pub(crate) fn emit(&self, event: impl FnOnce() + Send + 'static) {
        let event: Event = Box::new(event);
        #[cfg(feature = "pushgateway")]
        if let Some(thread) = self.thread() {
            let subscriber = self.subscriber().or_else(current_subscriber).or_else(|| upgrade(&self.seen));
            let has_subscriber = subscriber.is_some();
            let event = WaitingEvent { subscriber, event };
            let mut waiting = lock(&self.waiting);
            if self.is_held.load(Ordering::Acquire) || !has_subscriber {
                self.wait(&mut waiting, event);
                self.is_idle.store(false, Ordering::Release);
            } else {
                self.post_waiting(&thread, &mut waiting);
                self.post(&thread, event);
            }
            return;
        }
        // The subscriber owns what waits here, and must not be owned by it.
        self.wait(&mut lock(&self.waiting), WaitingEvent { subscriber: None, event });
        self.is_idle.store(false, Ordering::Release);
    }

    fn wait(&self, waiting: &mut VecDeque<WaitingEvent>, event: WaitingEvent) {
        // The last ones say what became of the delivery.
        if waiting.len() >= MAX_WAITING && waiting.pop_front().is_some() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        waiting.push_back(event);
    }

    /// Events from before there was a subscriber go to the one that there is now.
    #[cfg(feature = "pushgateway")]
    fn post_waiting(&self, thread: &JobThread, waiting: &mut VecDeque<WaitingEvent>) {
        for WaitingEvent { subscriber, event } in waiting.drain(..) {
            let subscriber = subscriber.or_else(|| self.subscriber()).or_else(|| upgrade(&self.seen));
            self.post(thread, WaitingEvent { subscriber, event });
        }
    }

    /// Events that were dropped are reported with the next one that is not.
    #[cfg(feature = "pushgateway")]
    fn post(&self, thread: &JobThread, event: WaitingEvent) {
        let subscriber = event.subscriber.clone();
        if !thread.post(|| event.emit()) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 && !thread.post(move || WaitingEvent { subscriber, event: dropped_events(dropped) }.emit()) {
            self.dropped.fetch_add(dropped, Ordering::Relaxed);
        }
    }

    /// To call in a callback in which an event of this crate disturbs nobody: when a stage is entered or a span closes. In
    /// `on_new_span` and `on_event` it would overwrite what per-layer filters noted for the span or event in hand.
    #[inline]
    pub(crate) fn emit_waiting(&self) {
        if !self.is_idle.load(Ordering::Relaxed) {
            self.emit_waiting_slow();
        }
    }

    #[cold]
    fn emit_waiting_slow(&self) {
        self.is_idle.store(true, Ordering::Relaxed);
        #[cfg(feature = "pushgateway")]
        if let Some(thread) = self.thread() {
            // A layer that came into its subscriber late, by `reload`, was not told which it is.
            if let Some(current) = current_subscriber() {
                *lock(&self.seen) = Some(current.downgrade());
            }
            if !self.is_held.load(Ordering::Acquire) {
                self.post_waiting(&thread, &mut lock(&self.waiting));
            }
            return;
        }
        let mut waiting = std::mem::take(&mut *lock(&self.waiting));
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            waiting.push_back(WaitingEvent { subscriber: None, event: dropped_events(dropped) });
        }
        let subscriber = self.subscriber();
        waiting.into_iter().for_each(|event| WaitingEvent { subscriber: subscriber.clone(), ..event }.emit());
    }

    /// Keeps events back until [`release`](Self::release): the final flush delivers first and speaks afterwards, since a
    /// subscriber can end the process (a panic that aborts).
    #[cfg(feature = "pushgateway")]
    pub(crate) fn hold(&self) {
        self.is_held.store(true, Ordering::Release);
    }

    #[cfg(feature = "pushgateway")]
    pub(crate) fn release(&self) {
        let mut waiting = lock(&self.waiting);
        self.is_held.store(false, Ordering::Release);
        if let Some(thread) = self.thread() {
            self.post_waiting(&thread, &mut waiting);
        }
    }

    /// Waits until the subscriber has taken all events, or the deadline comes.
    #[cfg(feature = "pushgateway")]
    pub(crate) fn wait_idle(&self, deadline: Instant) {
        if let Some(thread) = self.thread() {
            thread.wait_idle(deadline);
        }
    }

    /// Completes when the subscriber has taken the events that were emitted before.
    #[cfg(feature = "pushgateway")]
    pub(crate) async fn taken(&self) {
        if let Some(thread) = self.thread() {
            // A full queue has nothing to wait for.
            let _ = thread.run(|| ()).await;
        }
    }

    /// Whether the caller is the thread for events.
    #[cfg(feature = "pushgateway")]
    pub(crate) fn is_current_thread(&self) -> bool {
        self.thread().is_some_and(|thread| thread.is_current())
    }
}

impl WaitingEvent {
    fn emit(self) {
        let Self { subscriber, event } = self;
        // A subscriber that panics must not keep a stage from being counted.
        let _ = catch_unwind(AssertUnwindSafe(|| match subscriber {
            Some(subscriber) => dispatcher::with_default(&subscriber, event),
            None => event(),
        }));
    }
}

#[cfg(feature = "pushgateway")]
/// The subscriber of the current thread, of the delivery thread too. `None` where there is none, and inside a callback that
/// hides it.
fn current_subscriber() -> Option<Dispatch> {
    lift(|| dispatcher::get_default(|current| (!current.is::<NoSubscriber>()).then(|| current.clone())))
}

fn dropped_events(dropped: u64) -> Event {
    Box::new(move || {
        warn!(
            target: OWN_TARGET,
            dropped, "events of this crate were dropped: the subscriber did not take them, and {MAX_WAITING} may wait"
        );
    })
}

fn upgrade(subscriber: &Mutex<Option<WeakDispatch>>) -> Option<Dispatch> {
    lock(subscriber).as_ref().and_then(WeakDispatch::upgrade)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
