//! Delivers what earlier runs left in the spool.

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::store::{Payload, Spool};
use crate::delivery::Source;
use crate::delivery::failure::Failure;
use crate::delivery::push::{PUSHED_WITHOUT, application_refused, own_families_only};
use crate::delivery::pushgateway::Pushgateway;
use crate::delivery::retry;
use crate::error::{Error, Kind};

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
    let Some(own) = own_families_only(source, &payload.exposition) else { return Err(refusal) };
    send(own).await?;
    Err(application_refused(gateway, PUSHED_WITHOUT, refusal.error).into())
}
