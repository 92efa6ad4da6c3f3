//! The interface of the delivery to the run: the state to deliver, and the reports about its delivery.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::event::DeliveryEvent;
use super::totals::{StageCounts, StageKey};
use crate::error::Error;
use crate::exposition::Families;
#[cfg(feature = "otlp")]
use crate::exposition::SeriesExemplars;

pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The state that the delivery thread reads, and the receiver of its reports. No method blocks: code of the application
/// runs on threads of its own.
pub(crate) trait ExpositionSource: Send + Sync {
    /// Returns the current state. If a recorder of the application panics or does not render by the deadline, returns its
    /// last rendering.
    fn exposition(self: Arc<Self>, deadline: Instant) -> BoxFuture<'static, Result<Arc<Families>, Error>>;

    /// Returns the counts of all stages for cumulative totals, in the order in which the stages first opened.
    fn stage_counts(&self) -> Vec<(StageKey, StageCounts)> {
        Vec::new()
    }

    /// Updates the recorder for a reader that does not render. Returns the exemplars, whose stages it has then counted.
    #[cfg(feature = "otlp")]
    fn publish(self: Arc<Self>) -> Vec<SeriesExemplars>;

    /// Returns whether a metric of this name is one of this crate.
    fn is_own(&self, name: &str) -> bool;

    /// Samples the resource usage of the process.
    fn sample(self: Arc<Self>);

    /// Counts a push to the gateway that ended. `elapsed` includes its retries.
    fn pushed(self: Arc<Self>, is_success: bool, elapsed: Duration);

    /// Sets the number of payloads in the spool, and of those that this process dropped from it.
    fn spooled(self: Arc<Self>, files: usize, dropped: u64);

    /// Reports an event to the user.
    fn on_event(&self, event: DeliveryEvent);

    /// Completes when the application's subscriber has received the events reported before.
    fn events_taken(&self) -> BoxFuture<'_, ()>;
}
