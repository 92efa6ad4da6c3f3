//! The crate's own `tracing` events, of the target `tracing_stage_metrics`: their subscriber and the time of emission.
//!
//! A subscriber is code of the application. It can block (standard output is locked), panic, or wait for a lock that a
//! callback of this layer holds (`reload`). So a thread of its own emits the events, and every wait for it has a deadline.
//! The layer alone ([`MetricsLayer::new`](crate::MetricsLayer::new)) has no thread: its events wait for the next callback in
//! which they can be emitted safely.

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
use super::subscriber::with_subscriber;
#[cfg(feature = "pushgateway")]
use crate::error::Error;
#[cfg(feature = "pushgateway")]
use crate::job_thread::JobThread;
use crate::schema::OWN_TARGET;

/// Maximum number of events that wait for a subscriber. A further event is dropped and counted.
const MAX_WAITING: usize = 1_024;

/// Emits events to the subscriber that contains the layer.
#[derive(Default)]
pub(crate) struct Diagnostics {
    subscriber: Mutex<Option<WeakDispatch>>,
    /// The default subscriber of a thread that opened a stage. Used if the layer does not know its own subscriber.
    #[cfg(feature = "pushgateway")]
    seen: Mutex<Option<WeakDispatch>>,
    /// Events that wait for a safe callback or for the end of the final flush.
    waiting: Mutex<VecDeque<WaitingEvent>>,
    /// Whether no event waits for [`emit_waiting`](Self::emit_waiting).
    is_idle: AtomicBool,
    dropped: AtomicU64,
    /// Present from `install()` to the final flush.
    #[cfg(feature = "pushgateway")]
    thread: Mutex<Option<Arc<JobThread>>>,
    /// Whether events wait for the final flush.
    #[cfg(feature = "pushgateway")]
    is_held: AtomicBool,
}

type Event = Box<dyn FnOnce() + Send>;

struct WaitingEvent {
    /// The default subscriber of the emitting thread if `None`.
    subscriber: Option<Dispatch>,
    event: Event,
}

impl Diagnostics {
    /// Starts the thread for events.
    #[cfg(feature = "pushgateway")]
    pub(crate) fn start_thread(&self) -> Result<(), Error> {
        // One more for the event that counts dropped ones, which must not displace one that waits.
        let thread = JobThread::start("metrics-events", MAX_WAITING + 1)?;
        *lock(&self.thread) = Some(Arc::new(thread));
        Ok(())
    }

    /// Ends the thread after its waiting events. Later events wait for a callback.
    #[cfg(feature = "pushgateway")]
    pub(crate) fn stop_thread(&self) {
        let thread = lock(&self.thread).take();
        drop(thread);
    }

    #[cfg(feature = "pushgateway")]
    fn thread(&self) -> Option<Arc<JobThread>> {
        lock(&self.thread).clone()
    }

    /// Sets the subscriber that contains the layer.
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
        // The subscriber owns the waiting events, which must not own the subscriber.
        self.wait(&mut lock(&self.waiting), WaitingEvent { subscriber: None, event });
        self.is_idle.store(false, Ordering::Release);
    }

    fn wait(&self, waiting: &mut VecDeque<WaitingEvent>, event: WaitingEvent) {
        // The last events tell how the delivery ended, so the oldest one is dropped.
        if waiting.len() >= MAX_WAITING && waiting.pop_front().is_some() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        waiting.push_back(event);
    }

    /// Posts events that waited for a subscriber to the present one.
    #[cfg(feature = "pushgateway")]
    fn post_waiting(&self, thread: &JobThread, waiting: &mut VecDeque<WaitingEvent>) {
        for WaitingEvent { subscriber, event } in waiting.drain(..) {
            let subscriber = subscriber.or_else(|| self.subscriber()).or_else(|| upgrade(&self.seen));
            self.post(thread, WaitingEvent { subscriber, event });
        }
    }

    /// Posts an event, and before it one that counts those dropped.
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

    /// Emits the waiting events. Called when a stage is entered or a span closes. In `on_new_span` and `on_event` an event
    /// would overwrite the state of per-layer filters for the current span or event.
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
            // A layer that `reload` adds does not learn its subscriber.
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

    /// Holds events back until [`release`](Self::release). The final flush delivers before it emits events, since a subscriber
    /// can end the process (a panic that aborts).
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
            // A full queue drops the job, so there is nothing to wait for.
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
        // A panic of the subscriber must not keep a stage from being counted.
        let _ = catch_unwind(AssertUnwindSafe(|| match subscriber {
            Some(subscriber) => dispatcher::with_default(&subscriber, event),
            None => event(),
        }));
    }
}

#[cfg(feature = "pushgateway")]
/// Returns the subscriber of the current thread, on the delivery thread too. `None` without a subscriber, and inside a
/// callback that hides it.
fn current_subscriber() -> Option<Dispatch> {
    with_subscriber(|| dispatcher::get_default(|current| (!current.is::<NoSubscriber>()).then(|| current.clone())))
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

#[cfg(test)]
mod tests {
    use std::fmt::{Debug, Write};
    use std::sync::Arc;
    #[cfg(feature = "pushgateway")]
    use std::{sync::mpsc::channel, time::Duration};

    use tracing::Subscriber;
    use tracing::field::{Field, Visit};
    use tracing_subscriber::Registry;
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

    use super::*;

    /// Keeps the events without their messages.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<String>>>);

    impl Log {
        fn subscriber(&self) -> Dispatch {
            Registry::default().with(self.clone()).into()
        }

        fn events(&self) -> Vec<String> {
            lock(&self.0).clone()
        }
    }

    impl<S: Subscriber> Layer<S> for Log {
        fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
            let mut fields = Fields::default();
            event.record(&mut fields);
            lock(&self.0).push(fields.0);
        }
    }

    #[derive(Default)]
    struct Fields(String);

    impl Visit for Fields {
        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            if field.name() != "message" {
                write!(self.0, "{field} {value:?}").unwrap();
            }
        }
    }

    fn emit(diagnostics: &Diagnostics, numbers: std::ops::Range<usize>) {
        numbers.for_each(|number| diagnostics.emit(move || warn!(number)));
    }

    #[test]
    fn events_without_a_thread_wait_and_dropped_ones_are_counted() {
        let (log, other) = (Log::default(), Log::default());
        let (subscriber, diagnostics) = (log.subscriber(), Diagnostics::default());
        diagnostics.attach(&subscriber);
        emit(&diagnostics, 0..MAX_WAITING + 5);
        assert_eq!(log.events(), [""; 0]);
        // A callback may run on a thread with another default subscriber.
        dispatcher::with_default(&other.subscriber(), || diagnostics.emit_waiting());
        let mut expected: Vec<_> = (5..MAX_WAITING + 5).map(|number| format!("number {number}")).collect();
        expected.push("dropped 5".to_owned());
        assert_eq!(log.events(), expected);
        assert_eq!(other.events(), [""; 0]);
        emit(&diagnostics, 0..1);
        diagnostics.emit_waiting();
        assert_eq!(log.events()[expected.len()..], ["number 0"]);
    }

    #[cfg(feature = "pushgateway")]
    fn wait_idle(diagnostics: &Diagnostics) {
        diagnostics.wait_idle(Instant::now() + Duration::from_secs(60));
    }

    #[cfg(feature = "pushgateway")]
    #[test]
    fn count_of_dropped_events_displaces_no_event() {
        let (log, diagnostics) = (Log::default(), Diagnostics::default());
        let subscriber = log.subscriber();
        diagnostics.attach(&subscriber);
        diagnostics.start_thread().unwrap();
        let ((start, is_started), (end, is_ended)) = (channel(), channel::<()>());
        diagnostics.emit(move || {
            start.send(()).unwrap();
            is_ended.recv().unwrap();
        });
        is_started.recv().unwrap();
        diagnostics.hold();
        emit(&diagnostics, 0..MAX_WAITING + 5);
        diagnostics.release();
        end.send(()).unwrap();
        wait_idle(&diagnostics);
        let mut expected: Vec<_> = (5..MAX_WAITING + 5).map(|number| format!("number {number}")).collect();
        expected.insert(1, "dropped 5".to_owned());
        assert_eq!(log.events(), expected);
    }

    #[cfg(feature = "pushgateway")]
    #[test]
    fn callback_posts_waiting_events_unless_held() {
        let (log, diagnostics) = (Log::default(), Diagnostics::default());
        let subscriber = log.subscriber();
        let callback = || dispatcher::with_default(&subscriber, || diagnostics.emit_waiting());
        diagnostics.start_thread().unwrap();
        emit(&diagnostics, 0..1);
        callback();
        wait_idle(&diagnostics);
        assert_eq!(log.events(), ["number 0"]);
        diagnostics.hold();
        emit(&diagnostics, 1..2);
        callback();
        wait_idle(&diagnostics);
        assert_eq!(log.events(), ["number 0"]);
        diagnostics.release();
        wait_idle(&diagnostics);
        assert_eq!(log.events(), ["number 0", "number 1"]);
    }
    #[cfg(feature = "pushgateway")]
    #[tokio::test]
    async fn events_are_taken_when_the_subscriber_has_returned() {
        let (log, diagnostics) = (Log::default(), Diagnostics::default());
        let subscriber = log.subscriber();
        diagnostics.attach(&subscriber);
        diagnostics.start_thread().unwrap();
        diagnostics.emit(|| {
            std::thread::sleep(Duration::from_millis(50));
            warn!(number = 1);
        });
        diagnostics.taken().await;
        assert_eq!(log.events(), ["number 1"]);
    }
}
