//! One delivery of the present state to the gateway.

use bytes::Bytes;
use tokio::time::Instant;

use super::pushgateway::Pushgateway;
use super::retry::{self, Budget};
use super::{Source, conflict};
use crate::error::{Error, Kind};

/// Pushes the state and counts it. What the gateway refuses as a bad request is pushed once more without the
/// application's own metrics: one of them must not take the stages down with it.
pub(crate) async fn push_state(
    gateway: &Pushgateway,
    source: &dyn Source,
    exposition: Bytes,
    budget: &Budget,
) -> Result<(), Error> {
    let refusal = match push_counted(gateway, source, exposition.clone(), budget).await {
        Err(error) if error.status() == Some(400) => error,
        other => return other,
    };
    let own = own_alone(source, &exposition).filter(|own| !conflict::is_within(&refusal, own));
    let Some(own) = own else { return Err(conflict::explain(gateway, refusal, budget.deadline).await) };
    let outcome = match push_counted(gateway, source, own, budget).await {
        Ok(()) => PUSHED_WITHOUT,
        Err(_) => "pushing the stages without them failed too",
    };
    let refusal = conflict::explain(gateway, refusal, budget.deadline).await;
    Err(applications_refused(gateway, outcome, refusal))
}

pub(super) const PUSHED_WITHOUT: &str = "the stages were pushed without them";

pub(super) fn applications_refused(gateway: &Pushgateway, outcome: &str, refusal: Error) -> Error {
    let text = format!("gateway {} refused the application's own metrics; {outcome}", gateway.endpoint());
    Error::new(Kind::Refused(400), text).with_source(refusal)
}

/// The crate's own part of an exposition; `None` where that is nothing or all of it.
pub(super) fn own_alone(source: &dyn Source, exposition: &Bytes) -> Option<Bytes> {
    let text = std::str::from_utf8(exposition).unwrap_or_default();
    let own = source.own_families(text);
    (!own.is_empty() && own.len() != text.len()).then(|| Bytes::from(own))
}

async fn push_counted(
    gateway: &Pushgateway,
    source: &dyn Source,
    exposition: Bytes,
    budget: &Budget,
) -> Result<(), Error> {
    let mut counted = Counted { source, begun: Instant::now(), is_over: false };
    let result = retry::push(gateway, gateway.body(exposition), budget).await;
    counted.is_over = true;
    source.pushed(&result, counted.begun.elapsed());
    result
}

/// Counts a push that is given up half-way: whether it arrives nobody will know.
struct Counted<'a> {
    source: &'a dyn Source,
    begun: Instant,
    is_over: bool,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.source.pushed(&Err(Error::new(Kind::Timeout, "the push was given up")), self.begun.elapsed());
        }
    }
}
