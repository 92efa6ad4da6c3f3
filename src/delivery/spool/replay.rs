//! Delivers the payloads that earlier runs left in the spool.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use reqwest::Method;
use tokio::time::{Instant, timeout_at};

use super::format::Payload;
use super::last_success;
use super::select::{Query, Scope};
use super::store::{Entry, Spool};
use crate::delivery::http::error::RequestError;
use crate::delivery::http::retry;
use crate::delivery::pushgateway::{GroupState, Pushgateway, STAGES_PUSHED, application_refused};
use crate::delivery::totals::{Decision, Shown, Totals, decide};
use crate::error::{Error, Kind};
use crate::exposition::Labels;
use crate::job_thread::JobThread;
use crate::schema::{METRICS, RUN_LAST_SUCCESS};

/// The result of a replay of the oldest group in the spool.
#[derive(Debug)]
pub(in crate::delivery) enum Replayed {
    /// The spool has no payload that is free.
    Nothing,
    /// The payloads are removed from the spool: delivered, or the gateway has a newer state.
    Done,
    /// The gateway refused a payload for good, or the application's part of it. The payload is quarantined, and there
    /// is a notice.
    Refused,
    /// The group stays in the spool for a later process. The next group may be delivered.
    Skipped,
    /// All groups stay in the spool: the gateway accepts none at the moment.
    Failed,
    /// A request had no response: the gateway may apply it at any time. The payload stays, and its lock is kept.
    Unanswered,
}

/// The fate of a payload that was tried.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum PayloadOutcome {
    Delivered,
    /// The gateway has a newer state of the group. The payload is removed.
    Outdated,
    /// The gateway refused the payload, or the application's part of it, and it is quarantined.
    Refused(String),
    /// The payload waits on, for this reason.
    Kept(String),
}

/// Takes the name and the outcome of each payload.
pub(super) type Observer<'a> = &'a (dyn Fn(&str, PayloadOutcome) + Sync);

/// Delivers the payloads of the oldest group in this scope, in their order. If the future is dropped, they stay in the
/// spool.
pub(in crate::delivery) async fn replay(
    gateway: &Pushgateway,
    spool: &Arc<Spool>,
    files: &JobThread,
    scope: Scope,
    deadline: Instant,
) -> Replayed {
    replay_observed(gateway, spool, files, scope, deadline, &|_, _| {}).await
}

/// Does what [`replay`] does, and calls `observe` with the outcome of each payload that it tried.
pub(super) async fn replay_observed(
    gateway: &Pushgateway,
    spool: &Arc<Spool>,
    files: &JobThread,
    scope: Scope,
    deadline: Instant,
    observe: Observer<'_>,
) -> Replayed {
    let query = Query::new(gateway, scope);
    let replay = Replay { gateway, spool, files, scope, query, observe, is_sending: AtomicBool::new(false) };
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
    scope: Scope,
    query: Query,
    observe: Observer<'a>,
    is_sending: AtomicBool,
}

/// The outcome of the delivery of one payload.
enum Outcome {
    Delivered,
    /// The gateway shows a later run.
    Outdated(GroupState),
    /// Another process ends a run of the group, and pushes a newer state. Or the increments of cumulative totals have to
    /// wait for the end of a run.
    Superseded,
    /// The state of the group on the gateway is unknown.
    Unknown(Error),
    Failed(RequestError),
}

/// Payloads of a group that a later run outdated.
#[derive(Default)]
struct Outdated {
    entries: Vec<Entry>,
    /// The last success in the payloads.
    last_success: Option<f64>,
    /// The last success that the gateway shows.
    shown_last_success: Option<f64>,
    /// The constant labels of the payloads with that last success.
    constant: Labels,
}

impl Replay<'_> {
    async fn oldest_group(&self) -> Result<Replayed, Error> {
        let query = self.query.clone();
        let Some(first) = self.on_disk(move |spool| spool.next(&query)).await? else {
            return Ok(Replayed::Nothing);
        };
        let gateway = self.gateway.for_group(first.payload.group.clone());
        let mut outdated = Outdated::default();
        let mut next = Some(first);
        while let Some(mut entry) = next {
            let name = entry.name.clone();
            let constant = entry.payload.constant_labels();
            match self.deliver(&gateway, &mut entry, &constant).await? {
                Outcome::Delivered => {
                    outdated.shown_last_success = entry.payload.last_success(&constant).or(outdated.shown_last_success);
                    self.spool.set_delivered(&entry);
                    self.spool.settle(&entry.name);
                    (self.observe)(&name, PayloadOutcome::Delivered);
                    if !self.on_disk(move |spool| spool.remove_or_skip(&entry)).await? {
                        return Ok(Replayed::Skipped);
                    }
                }
                Outcome::Outdated(state) => {
                    // A run with other constant labels has a last success of its own, which the push would replace.
                    if !state.hides_run {
                        outdated.last_success = latest(outdated.last_success, entry.payload.last_success(&constant));
                        outdated.constant = constant;
                    }
                    outdated.shown_last_success = latest(outdated.shown_last_success, state.last_success);
                    // The lock is kept, and the body is not needed any more.
                    entry.payload.body = Bytes::new();
                    self.spool.settle(&entry.name);
                    outdated.entries.push(entry);
                }
                // Not tried, as a payload that another process has locked.
                Outcome::Superseded => return Ok(self.skip_group(&name)),
                Outcome::Unknown(error) => {
                    (self.observe)(&name, PayloadOutcome::Kept(format!("{error:?}")));
                    return Ok(Replayed::Failed);
                }
                Outcome::Failed(err) => return self.failed(vec![entry], err).await,
            }
            let query = self.query.clone();
            next = self.on_disk(move |spool| spool.next_behind(&name, &query)).await?;
        }
        self.remove_outdated(&gateway, outdated).await
    }

    /// Delivers one payload, unless the gateway shows a later run of its group. The payload is locked before this reads
    /// the state of the group: a run that ends later sees that an earlier payload may be in flight.
    async fn deliver(&self, gateway: &Pushgateway, entry: &mut Entry, constant: &Labels) -> Result<Outcome, Error> {
        let payload = &entry.payload;
        let state = match gateway.group_state(payload.namespace.as_deref(), constant).await {
            Ok(state) => state,
            // A proxy may let only pushes through. Then the payloads in this directory alone show whether a later run
            // exists.
            Err(err) if err.error.is_refused() && !retry::is_retryable(&err.error) => None,
            Err(err) => return Ok(Outcome::Unknown(err.error)),
        };
        let is_earlier = |start| payload.follows.contains(&start) || self.spool.has_delivered(&entry.name, start);
        let is_outdated = |state: &GroupState| payload.is_outdated_by(state, gateway.clock_offset(), is_earlier);
        let outdated = state.as_ref().is_some_and(is_outdated);
        if payload.increments.is_none() && outdated {
            return Ok(Outcome::Outdated(state.unwrap_or_default()));
        }
        let name = entry.name.clone();
        if self.on_disk(move |spool| spool.is_run_ending(&name)).await? {
            return Ok(Outcome::Superseded);
        }
        let decision = self.decide_on_totals(entry, state.as_ref()).await?;
        let totals = match &decision {
            Some(Decision::Wait) => return Ok(Outcome::Superseded),
            Some(Decision::Write(totals, _)) => Some(totals),
            Some(Decision::Keep | Decision::Drop) | None => None,
        };
        let delivered = |entry: &Entry| match &decision {
            Some(Decision::Write(totals, _)) => self.set_written(entry, totals),
            Some(Decision::Drop) => self.spool.drop_increments(entry),
            Some(Decision::Keep | Decision::Wait) | None => {}
        };
        if let Some(state) = state.filter(|_| outdated) {
            if let Some(totals) = totals {
                let format = gateway.format();
                let body = format.encode(&entry.payload.only_totals(totals));
                let entries = std::slice::from_ref(entry);
                if let Err(err) = self.send(gateway, entries, body, format.content_type()).await {
                    return Ok(Outcome::Failed(err));
                }
            }
            delivered(entry);
            return Ok(Outcome::Outdated(state));
        }
        if totals.is_none() && decision.is_some() {
            entry.payload.set_totals(None);
        }
        let (payload, entries) = (&entry.payload, std::slice::from_ref(entry));
        let refusal = match self.send(gateway, entries, payload.body.clone(), &payload.content_type).await {
            Ok(()) => {
                delivered(entry);
                return Ok(Outcome::Delivered);
            }
            Err(err) if err.error.status() == Some(400) => err,
            Err(err) => return Ok(Outcome::Failed(err)),
        };
        // A metric of the application must not cost the stages.
        let Some(own) = own_families(payload) else { return Ok(Outcome::Failed(refusal)) };
        Ok(Outcome::Failed(match self.send(gateway, entries, own, &payload.content_type).await {
            Ok(()) => application_refused(gateway, STAGES_PUSHED, refusal.error).into(),
            Err(err) => err,
        }))
    }

    /// Decides on the cumulative totals that the push of a payload carries; `None` if it has none. Before they are sent, the
    /// file of the payload has them.
    async fn decide_on_totals(&self, entry: &mut Entry, state: Option<&GroupState>) -> Result<Option<Decision>, Error> {
        let Some(spooled) = entry.payload.increments.clone() else { return Ok(None) };
        let Some((state, shown)) = state.and_then(|state| Some((state, state.totals.as_ref()?))) else {
            return Ok(Some(Decision::Drop));
        };
        let shown = Shown {
            totals: shown,
            is_same_run: state.run_start.is_some() && state.run_start == entry.payload.run_start,
            // A run that started before the payload's was killed: a group has one run at a time. The run of the own group
            // that is at work is this one, whose pushes have no totals yet.
            is_other_run_open: self.scope != Scope::OwnGroup
                && state.open_run.is_some_and(|start| Some(start) > entry.payload.run_start),
        };
        let known = entry.payload.totals();
        let decision = decide(&spooled, known.as_ref(), shown);
        if let Decision::Write(totals, sent) = &decision
            && (known.as_ref() != Some(totals) || *sent != spooled)
        {
            let mut payload = entry.payload.clone();
            payload.set_totals(Some(totals));
            payload.increments = Some(sent.clone());
            if !self.rewrite(entry, payload).await? {
                return Ok(Some(Decision::Wait));
            }
        }
        Ok(Some(decision))
    }

    /// Keeps the totals that the gateway has accepted, for the base of this run.
    fn set_written(&self, entry: &Entry, totals: &Totals) {
        if self.scope == Scope::OwnGroup {
            self.spool.set_written(entry, totals.clone());
        }
    }

    /// Replaces the file of a payload. Returns whether that succeeded.
    async fn rewrite(&self, entry: &mut Entry, payload: Payload) -> Result<bool, Error> {
        let name = entry.name.clone();
        let rewritten = self.on_disk(move |spool| spool.rewrite(&name, &payload).map(|file| (file, payload))).await?;
        Ok(match rewritten {
            Ok((file, payload)) => {
                (entry.file, entry.payload) = (file, payload);
                true
            }
            Err(_) => false,
        })
    }

    /// Removes outdated payloads. If their last success is later than the one on the gateway, it is pushed first and
    /// alone: the family has one series, so the push replaces only that time of the later run.
    async fn remove_outdated(&self, gateway: &Pushgateway, outdated: Outdated) -> Result<Replayed, Error> {
        let Outdated { entries, last_success, shown_last_success, constant } = outdated;
        let namespace = entries.last().and_then(|entry| entry.payload.namespace.clone());
        if let (Some(time), Some(namespace)) = (last_success, namespace)
            && shown_last_success.is_none_or(|shown| time > shown)
        {
            let format = gateway.format();
            let body = format.encode(&last_success::of_run(&RUN_LAST_SUCCESS.name(&namespace), constant, time));
            if let Err(err) = self.send(gateway, &entries, body, format.content_type()).await {
                return self.failed(entries, err).await;
            }
        }
        entries.iter().for_each(|entry| (self.observe)(&entry.name, PayloadOutcome::Outdated));
        let is_removed = self.on_disk(move |spool| entries.iter().all(|entry| spool.remove_or_skip(entry))).await?;
        Ok(if is_removed { Replayed::Done } else { Replayed::Skipped })
    }

    /// Sends a request for these payloads. Their locks are kept if it ends without a response, by an error, at the
    /// deadline or because the future is dropped: the gateway may still apply the request.
    async fn send(
        &self,
        gateway: &Pushgateway,
        entries: &[Entry],
        body: Bytes,
        content_type: &str,
    ) -> Result<(), RequestError> {
        let time = entries.first().map(|entry| entry.payload.gateway_time(gateway.clock_offset()));
        let kept: Vec<_> = entries.iter().filter(|entry| self.spool.keep_locked(entry)).collect();
        self.is_sending.store(true, Ordering::Relaxed);
        let result = gateway.send_as(Method::POST, gateway.body(body), content_type, time).await;
        self.is_sending.store(false, Ordering::Relaxed);
        if !result.as_ref().is_err_and(|err| err.may_have_arrived) {
            kept.into_iter().for_each(|entry| self.spool.release(entry));
        }
        result
    }

    /// Decides what happens to payloads that the gateway did not accept.
    async fn failed(&self, entries: Vec<Entry>, err: RequestError) -> Result<Replayed, Error> {
        let Some(name) = entries.last().map(|entry| entry.name.clone()) else { return Ok(Replayed::Failed) };
        let RequestError { error, retry_after, .. } = err;
        let (kind, text) = (error.kind(), format!("{error:?}"));
        let names: Vec<_> = entries.iter().map(|entry| entry.name.clone()).collect();
        let observe = |outcome: fn(String) -> PayloadOutcome| {
            names.iter().for_each(|name| (self.observe)(name, outcome(text.clone())));
        };
        if retry::is_payload_rejected(&error) && self.on_disk(move |spool| spool.refuse(&entries, &error)).await? {
            observe(PayloadOutcome::Refused);
            return Ok(Replayed::Refused);
        }
        observe(PayloadOutcome::Kept);
        Ok(match kind {
            Kind::Unreachable | Kind::Refused(429) => Replayed::Failed,
            _ if retry_after.is_some() => Replayed::Failed,
            // The gateway may accept other payloads.
            _ if self.spool.is_unanswered(&name) => {
                self.spool.skip_group(&name);
                Replayed::Unanswered
            }
            _ => self.skip_group(&name),
        })
    }

    fn skip_group(&self, name: &str) -> Replayed {
        self.spool.skip_group(name);
        Replayed::Skipped
    }

    async fn on_disk<T: Send + 'static>(&self, work: impl FnOnce(&Spool) -> T + Send + 'static) -> Result<T, Error> {
        let spool = Arc::clone(self.spool);
        self.files.run(move || spool.in_turn(work)).await
    }
}

fn latest(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    a.into_iter().chain(b).reduce(f64::max)
}

/// Returns the part of a payload that is this crate's own metrics; `None` if that is empty or the whole.
fn own_families(payload: &Payload) -> Option<Bytes> {
    let (format, namespace) = (payload.format()?, payload.namespace.as_deref()?);
    let names: Vec<_> = METRICS.iter().map(|metric| metric.name(namespace)).collect();
    let own = format.decode(&payload.body)?.part(|name| names.iter().any(|own| own == name))?;
    Some(format.encode(&own))
}
