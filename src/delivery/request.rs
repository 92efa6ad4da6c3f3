//! Requests to deliver the current state, and their results.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::Instant;

use crate::error::{Error, Kind};

/// A request to deliver the current state to every destination.
pub(super) struct FlushRequest {
    pub(super) deadline: Instant,
    /// Whether the delivery thread ends after the request.
    pub(super) is_final: bool,
    pub(super) reply: oneshot::Sender<Result<(), Error>>,
}

/// The cause of a delivery.
pub(super) enum Trigger {
    /// The interval, or the start of the process. The flag is set when the final flush replaces the delivery.
    Interval(Arc<AtomicBool>),
    /// A request that waits for the result.
    Request,
}

impl Trigger {
    #[cfg(feature = "otlp")]
    pub(super) fn is_request(&self) -> bool {
        matches!(self, Self::Request)
    }

    /// Returns whether the final flush replaces the delivery, which has sent nothing yet. Yields first, so that the
    /// scheduler takes a request that is already there.
    pub(super) async fn is_replaced(&self) -> bool {
        let Self::Interval(is_replaced) = self else { return false };
        yield_now().await;
        is_replaced.load(Ordering::Relaxed)
    }
}

/// A request that waits for the next delivery to one destination.
pub(super) struct Waiter {
    pub(super) deadline: Instant,
    reply: oneshot::Sender<Result<(), Error>>,
}

impl Waiter {
    /// Creates a waiter and the receiver of its result.
    pub(super) fn new(deadline: Instant) -> (Self, oneshot::Receiver<Result<(), Error>>) {
        let (reply, result) = oneshot::channel();
        (Self { deadline, reply }, result)
    }

    /// Sends the result.
    pub(super) fn notify(self, result: Result<(), Error>) {
        // The caller may have stopped waiting.
        let _ = self.reply.send(result);
    }
}

/// Sends one result to all waiters. The first gets the error itself, the others a copy.
pub(super) fn notify_all(waiters: Vec<Waiter>, result: Result<(), Error>) {
    let mut waiters = waiters.into_iter();
    let first = waiters.next();
    for waiter in waiters {
        waiter.notify(result.as_ref().copied().map_err(Error::copy));
    }
    if let Some(first) = first {
        first.notify(result);
    }
}

/// Merges two results. Both must succeed; of two errors, the first contains the text of the second.
fn merge_results(a: Result<(), Error>, b: Result<(), Error>) -> Result<(), Error> {
    match (a, b) {
        (Err(a), Err(b)) => Err(a.and(b)),
        (a, b) => a.and(b),
    }
}

/// Waits for the results of all destinations and merges them.
pub(super) async fn merge_all(results: Vec<oneshot::Receiver<Result<(), Error>>>) -> Result<(), Error> {
    let mut merged = Ok(());
    for result in results {
        let gone = |_| Err(Error::new(Kind::Delivery, "the delivery thread is gone"));
        merged = merge_results(merged, result.await.unwrap_or_else(gone));
    }
    merged
}
