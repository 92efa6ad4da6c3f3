//! The delivery in flight to one destination, and the requests that wait for the next one. No destination waits for
//! another.

use std::future::poll_fn;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, timeout_at};

use super::destination::{Destination, SharedState};
use super::event::DeliveryEvent;
use super::http::retry::{RetryBudget, half_time};
use super::request::{Trigger, Waiter, notify_all};
use super::source::ExpositionSource;
use crate::error::{Error, Kind};

/// One destination with its delivery in flight and its waiters.
pub(super) struct DestinationQueue {
    destination: Destination,
    in_flight: Option<InFlight>,
    waiting: Vec<Waiter>,
    /// Whether the interval requires a delivery.
    is_due: bool,
    /// Whether the last delivery failed.
    is_failing: bool,
}

/// A delivery in flight. It is a task of its own, so that a panic ends nothing else.
struct InFlight {
    task: JoinHandle<Result<(), Error>>,
    waiters: Vec<Waiter>,
    /// Notified when a newer state waits: there is no further request then.
    superseded: Arc<Notify>,
    /// Set by the final flush: a delivery on the interval that has sent nothing yet sends nothing then.
    is_replaced: Arc<AtomicBool>,
}

impl DestinationQueue {
    pub(super) fn new(destination: Destination) -> Self {
        Self { destination, in_flight: None, waiting: Vec::new(), is_due: false, is_failing: false }
    }

    /// Requests a delivery that begins after this call, and returns the receiver of its result.
    pub(super) fn wait(&mut self, deadline: Instant) -> oneshot::Receiver<Result<(), Error>> {
        let (waiter, result) = Waiter::new(deadline);
        self.waiting.push(waiter);
        self.supersede();
        result
    }

    /// Requests a delivery on the interval.
    pub(super) fn set_due(&mut self) {
        self.is_due = true;
        self.supersede();
    }

    /// Ends the delivery in flight after its current request, unless a request to flush waits for it.
    fn supersede(&self) {
        if let Some(in_flight) = self.in_flight.as_ref().filter(|in_flight| in_flight.waiters.is_empty()) {
            in_flight.superseded.notify_one();
        }
    }

    /// Starts the next delivery if one is requested and none is in flight. One delivery serves all waiters.
    pub(super) fn start_next(&mut self, source: &Arc<dyn ExpositionSource>, state: &SharedState, interval: Duration) {
        if self.in_flight.is_some() || (!self.is_due && self.waiting.is_empty()) {
            return;
        }
        let waiters = self.take_waiting();
        let deadline = waiters.iter().map(|waiter| waiter.deadline).max();
        if deadline.is_none() && !self.is_due {
            return;
        }
        self.is_due = false;
        let deadline = deadline.unwrap_or_else(|| Instant::now() + self.destination.interval_time(interval));
        let superseded = Arc::new(Notify::new());
        let budget = RetryBudget { deadline, is_final: false, superseded: Arc::clone(&superseded) };
        let is_replaced = Arc::new(AtomicBool::new(false));
        let trigger = if waiters.is_empty() { Trigger::Interval(Arc::clone(&is_replaced)) } else { Trigger::Request };
        let delivery = self.destination.clone().deliver(Arc::clone(source), state.clone(), budget, trigger);
        self.in_flight = Some(InFlight { task: tokio::spawn(delivery), waiters, superseded, is_replaced });
    }

    /// Takes the waiters whose deadline is not over, and notifies the others.
    fn take_waiting(&mut self) -> Vec<Waiter> {
        let now = Instant::now();
        let waiting = mem::take(&mut self.waiting).into_iter();
        let (in_time, late): (Vec<_>, Vec<_>) = waiting.partition(|waiter| waiter.deadline > now);
        for waiter in late {
            let text = format!("the previous delivery to {} took all the time allowed", self.destination);
            waiter.notify(Err(Error::new(Kind::Timeout, text)));
        }
        in_time
    }

    /// Polls the delivery in flight.
    fn poll_completed(&mut self, context: &mut std::task::Context<'_>) -> Poll<Result<(), Error>> {
        let Some(in_flight) = &mut self.in_flight else { return Poll::Pending };
        Pin::new(&mut in_flight.task).poll(context).map(|ended| flatten(&self.destination, ended))
    }

    /// Takes the result of the delivery in flight: reports a change, then notifies the waiters.
    pub(super) fn complete(&mut self, source: &dyn ExpositionSource, result: Result<(), Error>) {
        let waiters = self.in_flight.take().map(|in_flight| in_flight.waiters).unwrap_or_default();
        self.report(source, &result);
        notify_all(waiters, result);
    }

    /// Reports an event if the delivery begins to fail or works again.
    fn report(&mut self, source: &dyn ExpositionSource, result: &Result<(), Error>) {
        let destination = || (!self.destination.is_gateway()).then(|| self.destination.to_string());
        let event = match (result, self.is_failing) {
            (Err(error), false) => DeliveryEvent::Failing { destination: destination(), error: error.copy() },
            (Ok(()), true) => DeliveryEvent::Recovered { destination: destination() },
            _ => return,
        };
        self.is_failing = result.is_err();
        source.on_event(event);
    }

    /// Makes the final delivery. The call itself replaces a delivery on the interval that has sent nothing yet.
    pub(super) fn finish(
        mut self,
        source: Arc<dyn ExpositionSource>,
        state: SharedState,
        deadline: Instant,
    ) -> impl Future<Output = Result<(), Error>> {
        for waiter in self.waiting.drain(..) {
            waiter.notify(Err(Error::new(Kind::Delivery, "the final flush replaced this one")));
        }
        if let Some(in_flight) = &self.in_flight {
            in_flight.is_replaced.store(true, Ordering::Relaxed);
        }
        let destination = self.destination.clone();
        let previous = end_in_flight(self.destination, self.in_flight, deadline);
        let delivery = tokio::spawn(destination.clone().deliver_finally(source, state, deadline, previous));
        async move { flatten(&destination, delivery.await) }
    }
}

/// Waits for the delivery in flight, so that the destination gets the two in order, and aborts it after half of the time.
async fn end_in_flight(destination: Destination, in_flight: Option<InFlight>, deadline: Instant) {
    let Some(InFlight { mut task, waiters, superseded, .. }) = in_flight else { return };
    superseded.notify_one();
    let result = match timeout_at(half_time(deadline), &mut task).await {
        Ok(ended) => flatten(&destination, ended),
        Err(_) => {
            task.abort();
            // The task is dropped before the next request is sent.
            let _ = task.await;
            let text = format!("the delivery to {destination} was aborted by the final flush");
            Err(Error::new(Kind::Timeout, text))
        }
    };
    notify_all(waiters, result);
}

/// Waits for the next delivery that ends. Returns the index of its queue and its result.
pub(super) async fn next_completed(queues: &mut [DestinationQueue]) -> (usize, Result<(), Error>) {
    poll_fn(|context| {
        for (index, queue) in queues.iter_mut().enumerate() {
            if let Poll::Ready(result) = queue.poll_completed(context) {
                return Poll::Ready((index, result));
            }
        }
        Poll::Pending
    })
    .await
}

/// Returns the result of a delivery, with an error if it panicked.
fn flatten(destination: &Destination, ended: Result<Result<(), Error>, JoinError>) -> Result<(), Error> {
    ended.unwrap_or_else(|_| Err(Error::new(Kind::Delivery, format!("the delivery to {destination} panicked"))))
}
