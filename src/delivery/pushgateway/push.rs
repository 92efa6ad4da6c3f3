//! One delivery of the present state to the gateway.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use reqwest::Method;
use tokio::time::Instant;

use crate::delivery::ExpositionSource;
use crate::delivery::http::retry;
use crate::delivery::http::retry::RetryBudget;
use crate::delivery::pushgateway::Pushgateway;
use crate::delivery::pushgateway::conflict;
use crate::error::{Error, Kind};

/// What the gateway took of a push.
pub(crate) enum Pushed {
    Whole,
    /// It refused the application's own metrics, for this reason, and took the crate's. What it keeps of the run is
    /// delivered.
    OwnFamilies(Error),
}

impl Pushed {
    /// What a caller is told: metrics of the application are missing on the gateway.
    pub(crate) fn into_result(self) -> Result<(), Error> {
        match self {
            Self::Whole => Ok(()),
            Self::OwnFamilies(refusal) => Err(refusal),
        }
    }
}

/// Pushes the state and counts the push. What the gateway refuses as a bad request is pushed once more without the
/// application's own metrics: one of them must not take the stages down with it.
///
/// Sets `is_in_doubt` if a request got no answer and may have arrived.
pub(crate) async fn push_state(
    gateway: &Pushgateway,
    source: &Arc<dyn ExpositionSource>,
    exposition: Bytes,
    budget: &RetryBudget,
    is_in_doubt: &AtomicBool,
) -> Result<Pushed, Error> {
    let refusal = match push_counted(gateway, source, exposition.clone(), budget, is_in_doubt).await {
        Ok(()) => return Ok(Pushed::Whole),
        Err(error) if error.status() == Some(400) => error,
        Err(error) => return Err(error),
    };
    let own = own_families_only(&**source, &exposition).filter(|own| !conflict::is_within(&refusal, own));
    let Some(own) = own else { return Err(conflict::explain(gateway, refusal, budget.deadline).await) };
    let pushed = push_counted(gateway, source, own, budget, is_in_doubt).await;
    let refusal = conflict::explain(gateway, refusal, budget.deadline).await;
    match pushed {
        Ok(()) => Ok(Pushed::OwnFamilies(application_refused(gateway, PUSHED_WITHOUT, refusal))),
        Err(_) => Err(application_refused(gateway, "pushing the stages without them failed too", refusal)),
    }
}

pub(crate) const PUSHED_WITHOUT: &str = "the stages were pushed without them";

pub(crate) fn application_refused(gateway: &Pushgateway, outcome: &str, refusal: Error) -> Error {
    let text = format!("gateway {} refused the application's own metrics; {outcome}", gateway.endpoint());
    Error::new(Kind::Refused(400), text).with_source(refusal)
}

/// The crate's own part of an exposition; `None` where that is nothing or all of it.
pub(crate) fn own_families_only(source: &dyn ExpositionSource, exposition: &Bytes) -> Option<Bytes> {
    let text = std::str::from_utf8(exposition).unwrap_or_default();
    let own = source.own_families(text);
    (!own.is_empty() && own.len() != text.len()).then(|| Bytes::from(own))
}

async fn push_counted(
    gateway: &Pushgateway,
    source: &Arc<dyn ExpositionSource>,
    exposition: Bytes,
    budget: &RetryBudget,
    is_in_doubt: &AtomicBool,
) -> Result<(), Error> {
    let mut counted = Counted { source, start: Instant::now(), is_over: false };
    let body = &gateway.body(exposition);
    let attempt = move || async move {
        let doubt = Doubt::new(is_in_doubt);
        let result = gateway.send(Method::POST, body.clone()).await;
        doubt.settle(result.as_ref().is_err_and(|failure| failure.may_have_arrived));
        result
    };
    let result = retry::retry(&format!("gateway {}", gateway.endpoint()), budget, attempt).await;
    counted.is_over = true;
    Arc::clone(source).pushed(result.is_ok(), counted.start.elapsed());
    result
}

/// A request on its way: dropped before it is settled, it leaves a doubt whether the gateway has it.
pub(crate) struct Doubt<'a> {
    is_in_doubt: &'a AtomicBool,
    remains: bool,
}

impl<'a> Doubt<'a> {
    pub(crate) fn new(is_in_doubt: &'a AtomicBool) -> Self {
        Self { is_in_doubt, remains: true }
    }

    /// The request has ended. `remains`: without an answer.
    pub(crate) fn settle(mut self, remains: bool) {
        self.remains = remains;
    }
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        if self.remains {
            self.is_in_doubt.store(true, Ordering::Release);
        }
    }
}

/// Counts a push that is given up half-way as one that failed.
struct Counted<'a> {
    source: &'a Arc<dyn ExpositionSource>,
    start: Instant,
    is_over: bool,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            Arc::clone(self.source).pushed(false, self.start.elapsed());
        }
    }
}
