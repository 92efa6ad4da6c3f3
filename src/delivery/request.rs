//! A request to deliver the present state, and the results that it waits for.

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::error::{Error, Kind};

/// Asks the delivery thread to deliver the present state to every destination.
pub(super) struct FlushRequest {
    pub(super) deadline: Instant,
    /// The thread ends after it.
    pub(super) is_final: bool,
    pub(super) reply: oneshot::Sender<Result<(), Error>>,
}

/// Waits for the next delivery to one destination.
pub(super) struct Waiter {
    pub(super) deadline: Instant,
    reply: oneshot::Sender<Result<(), Error>>,
}

impl Waiter {
    /// The second value receives the result.
    pub(super) fn new(deadline: Instant) -> (Self, oneshot::Receiver<Result<(), Error>>) {
        let (reply, result) = oneshot::channel();
        (Self { deadline, reply }, result)
    }

    pub(super) fn notify(self, result: Result<(), Error>) {
        // The caller may have stopped waiting.
        let _ = self.reply.send(result);
    }
}

/// Gives all waiters the same result. The first gets the error itself, the others a copy.
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

/// Both have to succeed. Of two errors the second is in the text of the first.
pub(super) fn merge_results(a: Result<(), Error>, b: Result<(), Error>) -> Result<(), Error> {
    match (a, b) {
        (Err(a), Err(b)) => Err(a.and(b)),
        (a, b) => a.and(b),
    }
}

/// The result of all destinations, once all of them have one.
pub(super) async fn merge_all(results: Vec<oneshot::Receiver<Result<(), Error>>>) -> Result<(), Error> {
    let mut merged = Ok(());
    for result in results {
        let gone = |_| Err(Error::new(Kind::Delivery, "the delivery thread is gone"));
        merged = merge_results(merged, result.await.unwrap_or_else(gone));
    }
    merged
}
