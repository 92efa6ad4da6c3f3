//! One delivery to the gateway: the present state, or what an earlier run left in the spool.

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::Source;
use super::failure::Failure;
use super::pushgateway::Pushgateway;
use super::retry::{self, Budget};
use super::spool::{Payload, Spool};
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
    let Some(own) = own_alone(source, &exposition) else { return Err(refusal) };
    let outcome = match push_counted(gateway, source, own, budget).await {
        Ok(()) => PUSHED_WITHOUT,
        Err(_) => "pushing the stages without them failed too",
    };
    Err(applications_refused(gateway, outcome, refusal))
}

const PUSHED_WITHOUT: &str = "the stages were pushed without them";

fn applications_refused(gateway: &Pushgateway, outcome: &str, refusal: Error) -> Error {
    let text = format!("gateway {} refused the application's own metrics; {outcome}", gateway.endpoint());
    Error::new(Kind::Refused(400), text).with_source(refusal)
}

/// The crate's own part of an exposition; `None` where that is nothing or all of it.
fn own_alone(source: &dyn Source, exposition: &Bytes) -> Option<Bytes> {
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

/// What became of the oldest payload in the spool.
#[derive(Debug)]
pub(crate) enum Replayed {
    /// There is none that nobody else works with.
    Nothing,
    /// It is off the spool: delivered, or the gateway has something newer of its group, or this run writes that group.
    Done,
    /// The gateway refused it for good, or the application's part of it. It is set aside.
    Refused(Error),
    /// It stays where it is, and is left to a later process: what comes next is the one behind it.
    PassedOver,
    /// It stays where it is, and so do all others: the gateway takes none at this moment.
    Failed,
}

/// Delivers the oldest payload that an earlier run left, to its own group. Dropped half-way, it stays in the spool.
pub(crate) async fn replay(gateway: &Pushgateway, source: &dyn Source, spool: &Spool, deadline: Instant) -> Replayed {
    let Some(entry) = spool.next() else { return Replayed::Nothing };
    let pass_over = || {
        spool.pass_over(&entry);
        Replayed::PassedOver
    };
    // One that cannot be removed would be sent over and over.
    let remove = || if entry.remove() { Replayed::Done } else { pass_over() };
    if entry.group.identity() == gateway.grouping().identity() {
        // This run has pushed its own state there, which is newer.
        return remove();
    }
    let gateway = gateway.for_group(entry.group.clone());
    let failure = match timeout_at(deadline, deliver(&gateway, source, &entry.payload)).await {
        Ok(Ok(())) => return remove(),
        Ok(Err(failure)) => failure,
        Err(_) => return Replayed::Failed,
    };
    match failure.error.kind() {
        _ if retry::is_of_payload(&failure.error) && entry.refused() => Replayed::Refused(failure.error),
        Kind::Unreachable | Kind::Refused(429) => Replayed::Failed,
        _ if failure.retry_after.is_some() => Replayed::Failed,
        // It may be this payload alone that does not get through.
        _ => pass_over(),
    }
}

async fn deliver(gateway: &Pushgateway, source: &dyn Source, payload: &Payload) -> Result<(), Failure> {
    match gateway.last_push().await {
        Ok(in_place) if in_place.supersedes(payload) => return Ok(()),
        Ok(_) => {}
        // A proxy may let nothing through but pushes. What is not shown is not newer.
        Err(failure) if failure.error.is_refused() && !retry::may_help(&failure.error) => {}
        Err(failure) => return Err(failure),
    }
    let send = async |text: Bytes| gateway.send(reqwest::Method::POST, gateway.body(text)).await;
    let refusal = match send(payload.exposition.clone()).await {
        Err(failure) if failure.error.status() == Some(400) => failure,
        other => return other,
    };
    let Some(own) = own_alone(source, &payload.exposition) else { return Err(refusal) };
    send(own).await?;
    Err(applications_refused(gateway, PUSHED_WITHOUT, refusal.error).into())
}
