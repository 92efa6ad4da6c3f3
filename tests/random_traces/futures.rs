//! Small futures that the programs are composed of.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

pub(crate) type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;
pub(crate) type Caught<T> = Result<T, Box<dyn Any + Send>>;

/// Catches a panic of the future.
pub(crate) async fn caught<T>(mut future: Boxed<T>) -> Caught<T> {
    std::future::poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(value)) => Poll::Ready(Ok(value)),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}

/// Drops the future after this many polls; `None` if it was not ready by then.
pub(crate) async fn dropped_after<T>(polls: Option<u8>, future: Boxed<T>) -> Option<T> {
    let mut left = polls;
    let mut future = Some(future);
    std::future::poll_fn(|cx| {
        if left == Some(0) {
            drop(future.take());
        }
        let Some(running) = &mut future else { return Poll::Ready(None) };
        left = left.map(|left| left - 1);
        running.as_mut().poll(cx).map(Some)
    })
    .await
}

/// Returns the result of a future that never waits.
pub(crate) fn now<T>(mut future: Boxed<T>) -> T {
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a future waits in synchronous code"),
    }
}
