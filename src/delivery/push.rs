//! One delivery to the gateway: the present state, or what an earlier run left in the spool.

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::Source;
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
    let text = std::str::from_utf8(&exposition).unwrap_or_default();
    let own = source.own_families(text);
    if own.is_empty() || own.len() == text.len() {
        return Err(refusal);
    }
    let outcome = match push_counted(gateway, source, Bytes::from(own), budget).await {
        Ok(()) => "the stages were pushed without them",
        Err(_) => "pushing the stages without them failed too",
    };
    let text = format!("gateway {} refused the application's own metrics; {outcome}", gateway.endpoint());
    Err(Error::new(Kind::Refused(400), text).with_source(refusal))
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
    /// The gateway refused it for good. It is set aside.
    Refused(Error),
    /// It stays where it is.
    Failed,
}

/// Delivers the oldest payload that an earlier run left, to its own group. Dropped half-way, it stays in the spool.
pub(crate) async fn replay(gateway: &Pushgateway, source: &dyn Source, spool: &Spool, deadline: Instant) -> Replayed {
    let Some(entry) = spool.next() else { return Replayed::Nothing };
    let done = |is_gone: bool| if is_gone { Replayed::Done } else { Replayed::Failed };
    if entry.group.identity() == gateway.grouping().identity() {
        // This run has pushed its own state there, which is newer.
        return done(entry.remove());
    }
    let gateway = gateway.for_group(entry.group.clone());
    let error = match timeout_at(deadline, deliver(&gateway, source, &entry.payload)).await {
        Ok(Ok(())) => return done(entry.remove()),
        Ok(Err(error)) => error,
        Err(_) => return Replayed::Failed,
    };
    // Other refusals speak of this client: its address, its password.
    if matches!(error.status(), Some(400 | 413 | 422)) {
        return if entry.refused() { Replayed::Refused(error) } else { Replayed::Failed };
    }
    if error.kind() != Kind::Unreachable {
        // It may be this payload alone that does not get through.
        spool.pass_over(&entry);
    }
    Replayed::Failed
}

async fn deliver(gateway: &Pushgateway, source: &dyn Source, payload: &Payload) -> Result<(), Error> {
    match gateway.last_push().await {
        Ok(in_place) if in_place.supersedes(payload) => return Ok(()),
        Ok(_) => {}
        // A proxy may let nothing through but pushes. What is not shown is not newer.
        Err(failure) if failure.error.is_refused() && !retry::may_help(&failure.error) => {}
        Err(failure) => return Err(failure.error),
    }
    let send = async |text: Bytes| gateway.send(reqwest::Method::POST, gateway.body(text)).await;
    match send(payload.exposition.clone()).await {
        Err(failure) if failure.error.status() == Some(400) => {
            let text = std::str::from_utf8(&payload.exposition).unwrap_or_default();
            let own = source.own_families(text);
            if own.is_empty() || own.len() == text.len() {
                return Err(failure.error);
            }
            Ok(send(Bytes::from(own)).await?)
        }
        other => Ok(other?),
    }
}
