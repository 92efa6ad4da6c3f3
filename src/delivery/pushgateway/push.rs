//! Pushes the current state to the gateway.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use reqwest::Method;
use tokio::time::Instant;

use super::client::Pushgateway;
use super::conflict::contains_conflict;
use super::conflicting_groups::explain;
use super::format::EncodedState;
#[cfg(feature = "cli")]
use super::format::PushFormat;
use crate::delivery::http::retry::{self, RetryBudget};
use crate::delivery::source::ExpositionSource;
use crate::error::{Error, Kind};

/// The result of a push that the gateway accepted.
pub(in crate::delivery) enum Pushed {
    /// The gateway accepted all metrics.
    All,
    /// The gateway refused the application's own metrics with this error, and accepted those of this crate.
    OwnFamilies(Error),
}

impl Pushed {
    /// Returns the error for the caller if metrics of the application are missing on the gateway.
    pub(in crate::delivery) fn into_result(self) -> Result<(), Error> {
        match self {
            Self::All => Ok(()),
            Self::OwnFamilies(refusal) => Err(refusal),
        }
    }
}

/// Pushes the state and counts the push. After a 400 it pushes the crate's own metrics alone, and counts that push too: a
/// metric of the application does not cost the stages.
///
/// Sets `is_outcome_unknown` if a request had no response and may have arrived.
pub(in crate::delivery) async fn push_state(
    gateway: &Pushgateway,
    source: &Arc<dyn ExpositionSource>,
    state: &EncodedState,
    budget: &RetryBudget,
    is_outcome_unknown: &AtomicBool,
) -> Result<Pushed, Error> {
    let refusal = match push_counted(gateway, source, state.body.clone(), budget, is_outcome_unknown).await {
        Ok(()) => return Ok(Pushed::All),
        Err(error) if error.status() == Some(400) => error,
        Err(error) => return Err(error),
    };
    let own = state.families.part(|name| source.is_own(name)).filter(|own| !contains_conflict(own, &refusal));
    let Some(own) = own else { return Err(explain(gateway, refusal, budget.deadline).await) };
    let own = gateway.format().encode(&own);
    let pushed = push_counted(gateway, source, own, budget, is_outcome_unknown).await;
    let refusal = explain(gateway, refusal, budget.deadline).await;
    match pushed {
        Ok(()) => Ok(Pushed::OwnFamilies(application_refused(gateway, STAGES_PUSHED, refusal))),
        Err(error) => {
            let outcome = format!("pushing the stages without them failed too: {error}");
            Err(application_refused(gateway, &outcome, refusal))
        }
    }
}

#[cfg(feature = "cli")]
impl Pushgateway {
    /// Pushes a text in the format of the layer's pushes, once.
    pub(crate) async fn push_in_format(&self, text: &str) -> Result<(), Error> {
        let format = self.format();
        let families = PushFormat::Text.decode(text.as_bytes()).unwrap_or_default();
        let body = self.body(format.encode(&families));
        Ok(self.send_as(Method::POST, body, format.content_type(), None).await?)
    }
}

/// Outcome of [`application_refused`] if the stages were pushed alone.
pub(in crate::delivery) const STAGES_PUSHED: &str = "the stages were pushed without them";

/// Returns the error for a gateway that refused the application's own metrics.
pub(in crate::delivery) fn application_refused(gateway: &Pushgateway, outcome: &str, refusal: Error) -> Error {
    let text = format!("gateway {} refused the application's own metrics; {outcome}", gateway.endpoint());
    Error::new(Kind::Refused(400), text).with_source(refusal)
}

async fn push_counted(
    gateway: &Pushgateway,
    source: &Arc<dyn ExpositionSource>,
    body: Bytes,
    budget: &RetryBudget,
    is_outcome_unknown: &AtomicBool,
) -> Result<(), Error> {
    let mut count = PushCount { source, start: Instant::now(), is_counted: false };
    let (body, content_type) = (&gateway.body(body), gateway.format().content_type());
    let attempt = move || async move {
        let guard = OutcomeGuard::new(is_outcome_unknown);
        let result = gateway.send_as(Method::POST, body.clone(), content_type, None).await;
        guard.resolve(result.as_ref().is_err_and(|err| err.may_have_arrived));
        result
    };
    let result = retry::retry(&format!("gateway {}", gateway.endpoint()), budget, attempt).await;
    count.is_counted = true;
    Arc::clone(source).pushed(result.is_ok(), count.start.elapsed());
    result
}

/// A request in flight. If it is dropped before [`resolve`](Self::resolve), its outcome is unknown.
pub(in crate::delivery) struct OutcomeGuard<'a> {
    is_outcome_unknown: &'a AtomicBool,
    is_unknown: bool,
}

impl<'a> OutcomeGuard<'a> {
    pub(in crate::delivery) fn new(is_outcome_unknown: &'a AtomicBool) -> Self {
        Self { is_outcome_unknown, is_unknown: true }
    }

    /// Ends the request. `is_unknown`: it had no response and may have arrived.
    pub(in crate::delivery) fn resolve(mut self, is_unknown: bool) {
        self.is_unknown = is_unknown;
    }
}

impl Drop for OutcomeGuard<'_> {
    fn drop(&mut self) {
        if self.is_unknown {
            self.is_outcome_unknown.store(true, Ordering::Release);
        }
    }
}

/// Counts a push that is dropped before its end as a failure.
struct PushCount<'a> {
    source: &'a Arc<dyn ExpositionSource>,
    start: Instant,
    is_counted: bool,
}

impl Drop for PushCount<'_> {
    fn drop(&mut self) {
        if !self.is_counted {
            Arc::clone(self.source).pushed(false, self.start.elapsed());
        }
    }
}
