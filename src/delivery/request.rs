//! Requests to deliver the current state, and their results.

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::error::{Error, Kind};

/// A request to deliver the current state to every destination.
pub(super) struct FlushRequest {
    pub(super) deadline: Instant,
    /// Whether the delivery thread ends after the request.
    pub(super) is_final: bool,
    pub(super) reply: oneshot::Sender<Result<(), Error>>,
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
