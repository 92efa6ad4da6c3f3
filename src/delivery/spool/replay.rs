//! Delivers what earlier runs left in the spool.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use reqwest::Method;
use tokio::time::{Instant, timeout_at};

use super::format::Payload;
use super::group_state::GroupState;
use super::last_success;
use super::samples::{self, LabelSet};
use super::select::{Query, Scope, Selected};
use super::store::{Entry, Spool};
use crate::delivery::http::error::RequestError;
use crate::delivery::http::retry;
use crate::delivery::pushgateway::push::{PUSHED_WITHOUT, application_refused};
use crate::delivery::pushgateway::{Pushgateway, TEXT_FORMAT};
use crate::error::{Error, Kind};
use crate::exposition::{self, Problems};
use crate::job_thread::JobThread;
use crate::schema::{METRICS, RUN_LAST_SUCCESS};

/// What became of the oldest group in the spool.
#[derive(Debug)]
pub(crate) enum Replayed {
    /// There is none that no other process works with.
    Nothing,
    /// Its payloads are off the spool: delivered, or the gateway has something newer.
    Done,
    /// The gateway refused a payload for good, or the application's part of it. It is set aside, and there is a notice.
    Refused,
    /// It stays where it is, and is left to a later process: the next group may be delivered.
    PassedOver,
    /// It stays where it is, and so do all others: the gateway takes none at this moment.
    Failed,
    /// A payload was sent and there was no answer: the gateway may apply it at any time. It stays, and its lock is kept.
    Unanswered,
}

/// Delivers the payloads of the oldest group in this scope, in their order. Dropped half-way, they stay in the spool.
pub(crate) async fn replay(
    gateway: &Pushgateway,
    spool: &Arc<Spool>,
    files: &JobThread,
    scope: Scope,
    deadline: Instant,
) -> Replayed {
    let query = Query::new(gateway, scope);
    let replay = Replay { gateway, spool, files, query, is_sending: AtomicBool::new(false) };
    let result = timeout_at(deadline, replay.oldest_group()).await;
    match result {
        Ok(Ok(replayed)) => replayed,
        Err(_) if replay.is_sending.load(Ordering::Relaxed) => Replayed::Unanswered,
        // The disk or the gateway takes too long.
        Ok(Err(_)) | Err(_) => Replayed::Failed,
    }
}

struct Replay<'a> {
    gateway: &'a Pushgateway,
    spool: &'a Arc<Spool>,
    files: &'a JobThread,
    query: Query,
    is_sending: AtomicBool,
}

/// How the delivery of one payload went.
enum Outcome {
    Delivered,
    /// The gateway shows a later run.
    Outdated(GroupState),
    /// Another process ends a run of the group, and pushes something newer.
    Superseded,
    /// The gateway did not say what it has of the group.
    Unknown,
    Failed(RequestError),
}

/// Payloads of a group that a later run made out of date.
#[derive(Default)]
struct Outdated {
    entries: Vec<Entry>,
    /// Their last success.
    left: Option<f64>,
    /// The last success that the gateway shows.
    shown: Option<f64>,
}

impl Replay<'_> {
    async fn oldest_group(&self) -> Result<Replayed, Error> {
        let query = self.query.clone();
        let Selected::Entry(first) = self.on_disk(move |spool| spool.next(&query)).await? else {
            return Ok(Replayed::Nothing);
        };
        let gateway = self.gateway.for_group(first.payload.group.clone());
        let mut outdated = Outdated::default();
        let mut next = Some(*first);
        while let Some(mut entry) = next {
            let name = entry.name.clone();
            match self.deliver(&gateway, &entry).await? {
                Outcome::Delivered => {
                    outdated.shown = entry.payload.last_success().or(outdated.shown);
                    self.spool.set_delivered(&entry);
                    if !self.on_disk(move |spool| spool.remove(&entry)).await? {
                        // It would be sent over and over.
                        return Ok(self.skip_group(&name));
                    }
                }
                Outcome::Outdated(state) => {
                    outdated.left = later(outdated.left, entry.payload.last_success());
                    outdated.shown = later(outdated.shown, state.last_success);
                    // The lock is kept, the body is not needed any more.
                    entry.payload.body = Bytes::new();
                    outdated.entries.push(entry);
                }
                Outcome::Superseded => return Ok(self.skip_group(&name)),
                Outcome::Unknown => return Ok(Replayed::Failed),
                Outcome::Failed(failure) => return self.failed(vec![entry], failure).await,
            }
            let query = self.query.clone();
            next = match self.on_disk(move |spool| spool.next_behind(&name, &query)).await? {
                Selected::Entry(entry) => Some(*entry),
                Selected::Locked | Selected::Nothing => None,
            };
        }
        self.remove_outdated(&gateway, outdated).await
    }

    /// Delivers one payload, unless the gateway shows a later run of its group. The payload is locked before the gateway
    /// is asked: a run that ends after that sees that an earlier payload may be on its way.
    async fn deliver(&self, gateway: &Pushgateway, entry: &Entry) -> Result<Outcome, Error> {
        let payload = &entry.payload;
        match gateway.group_state(payload.namespace.as_deref()).await {
            Ok(state) => {
                let state = state.unwrap_or_default();
                let is_earlier =
                    |start| payload.follows.contains(&start) || self.spool.has_delivered(&entry.name, start);
                if state.is_newer_than(payload, gateway.clock_offset(), is_earlier) {
                    return Ok(Outcome::Outdated(state));
                }
            }
            // A proxy may let nothing through but pushes. What is not shown is not newer; what this directory knows of later
            // runs counts all the same.
            Err(failure) if failure.error.is_refused() && !retry::is_retryable(&failure.error) => {}
            Err(_) => return Ok(Outcome::Unknown),
        }
        let name = entry.name.clone();
        if self.on_disk(move |spool| spool.is_run_ending(&name)).await? {
            return Ok(Outcome::Superseded);
        }
        let entries = std::slice::from_ref(entry);
        let refusal = match self.send(gateway, entries, payload.body.clone()).await {
            Ok(()) => return Ok(Outcome::Delivered),
            Err(failure) if failure.error.status() == Some(400) => failure,
            Err(failure) => return Ok(Outcome::Failed(failure)),
        };
        // One of the application's metrics must not take the stages down with it.
        let Some(own) = own_families(payload) else { return Ok(Outcome::Failed(refusal)) };
        Ok(Outcome::Failed(match self.send(gateway, entries, own).await {
            Ok(()) => application_refused(gateway, PUSHED_WITHOUT, refusal.error).into(),
            Err(failure) => failure,
        }))
    }

    /// Removes payloads that are out of date. A last success that is later than the one at the gateway is pushed before,
    /// alone: the family has one series, so that nothing of the later run is replaced but the time.
    async fn remove_outdated(&self, gateway: &Pushgateway, outdated: Outdated) -> Result<Replayed, Error> {
        let Outdated { entries, left, shown } = outdated;
        let namespace = entries.last().and_then(|entry| entry.payload.namespace.clone());
        if let (Some(left), Some(namespace)) = (left, namespace)
            && shown.is_none_or(|shown| left > shown)
        {
            let name = RUN_LAST_SUCCESS.name(&namespace);
            let mut text = last_success::header(&name);
            samples::write(&mut text, &name, &LabelSet::new(), left);
            if let Err(failure) = self.send(gateway, &entries, text.into()).await {
                return self.failed(entries, failure).await;
            }
        }
        let last = entries.last().map(|entry| entry.name.clone());
        let removed = self.on_disk(move |spool| entries.iter().all(|entry| spool.remove(entry))).await?;
        Ok(match last {
            Some(name) if !removed => self.skip_group(&name),
            _ => Replayed::Done,
        })
    }

    /// Sends what these payloads have. Their locks are kept where that ends without an answer, by an error, by the time, or
    /// because nobody waits any more: the gateway may still apply the request.
    async fn send(&self, gateway: &Pushgateway, entries: &[Entry], body: Bytes) -> Result<(), RequestError> {
        let content_type = entries.first().map_or(TEXT_FORMAT, |entry| entry.payload.content_type.as_str());
        let kept: Vec<_> = entries.iter().filter(|entry| self.spool.keep_locked(entry)).collect();
        self.is_sending.store(true, Ordering::Relaxed);
        let result = gateway.send_as(Method::POST, gateway.body(body), content_type).await;
        self.is_sending.store(false, Ordering::Relaxed);
        if !result.as_ref().is_err_and(|failure| failure.may_have_arrived) {
            kept.into_iter().for_each(|entry| self.spool.release(entry));
        }
        result
    }

    async fn failed(&self, entries: Vec<Entry>, failure: RequestError) -> Result<Replayed, Error> {
        let Some(name) = entries.last().map(|entry| entry.name.clone()) else { return Ok(Replayed::Failed) };
        let RequestError { error, retry_after, .. } = failure;
        let kind = error.kind();
        if retry::is_payload_rejected(&error) && self.on_disk(move |spool| spool.refuse(&entries, &error)).await? {
            return Ok(Replayed::Refused);
        }
        Ok(match kind {
            Kind::Unreachable | Kind::Refused(429) => Replayed::Failed,
            _ if retry_after.is_some() => Replayed::Failed,
            // It may be this payload alone that does not get through.
            _ if self.spool.is_unanswered(&name) => {
                self.spool.skip_group(&name);
                Replayed::Unanswered
            }
            _ => self.skip_group(&name),
        })
    }

    fn skip_group(&self, name: &str) -> Replayed {
        self.spool.skip_group(name);
        Replayed::PassedOver
    }

    async fn on_disk<T: Send + 'static>(&self, work: impl FnOnce(&Spool) -> T + Send + 'static) -> Result<T, Error> {
        let spool = Arc::clone(self.spool);
        self.files.run(move || work(&spool)).await
    }
}

fn later(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    a.into_iter().chain(b).reduce(f64::max)
}

/// This crate's own part of a payload, whatever its namespace; `None` where that is nothing or all of it.
fn own_families(payload: &Payload) -> Option<Bytes> {
    let (text, namespace) = (payload.text()?, payload.namespace.as_deref()?);
    let names: Vec<_> = METRICS.iter().map(|metric| metric.name(namespace)).collect();
    let mut families = exposition::parse(text, |_| None, &mut Problems::default()).ok()?;
    families.retain(|name| names.iter().any(|own| own == name));
    let own = families.to_text();
    (!own.is_empty() && own.len() != text.len()).then(|| Bytes::from(own))
}
