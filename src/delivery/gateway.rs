//! Delivery to the gateway: replays, pushes, and the final state with its file in the spool.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

use super::destination::SharedState;
use super::event::DeliveryEvent;
use super::gateway_totals::GatewayTotals;
use super::http::retry::{RetryBudget, half_time};
use super::pushgateway::{EncodedState, OutcomeGuard, Pushed, Pushgateway, push_state};
use super::replayer::SpoolThread;
use super::request::Trigger;
use super::source::ExpositionSource;
use super::spool::{CarriedOver, WriteState, Written};
use super::totals::{CumulativeTotals, OutgoingTotals};
use crate::error::{Error, Kind};

/// How long the payloads of earlier runs of the group may delay the first push, unless half of its time is shorter.
const OWN_GROUP_TIME: Duration = Duration::from_secs(1);

/// How long the final flush waits, after its push has succeeded, until the payload is removed from the disk.
const SPOOL_CLEANUP_TIME: Duration = Duration::from_millis(500);

/// How long after its deadline the final flush waits until the file of a payload says that no request has arrived.
const SPOOL_MARK_TIME: Duration = Duration::from_millis(25);

/// How long a gateway that answers gets to apply an earlier push that it has not answered. It may order the pushes of two
/// connections as it likes.
const EARLIER_PUSH_TIME: Duration = Duration::from_millis(250);

/// Returns the time until which the payloads of earlier runs of the group may delay a push.
fn own_group_deadline(deadline: Instant) -> Instant {
    half_time(deadline).min(Instant::now() + OWN_GROUP_TIME)
}

/// Returns the error of a final state that could not be sent again.
fn may_be_replaced(error: Error) -> Error {
    let text = "another process delivers an earlier state of this group, which may replace the final state";
    Error::new(error.kind(), text).with_source(error)
}

pub(super) struct GatewayDestination {
    gateway: Pushgateway,
    spool: Option<SpoolThread>,
    wake_replayer: Option<Arc<Notify>>,
    /// Whether a request of this process was abandoned without a response. The gateway may apply it later, over a newer
    /// state. Does not have those of `is_unanswered`.
    is_outcome_unknown: AtomicBool,
    /// Whether a push since the last answer was abandoned without a response.
    is_unanswered: AtomicBool,
    /// Whether a push of this run has arrived or may have arrived.
    has_pushed: AtomicBool,
    /// The last successes in undelivered payloads of earlier runs of the group.
    carried: Mutex<Option<CarriedOver>>,
    totals: Option<GatewayTotals>,
}

/// The state to push.
struct Outgoing {
    state: EncodedState,
    totals: OutgoingTotals,
}

impl GatewayDestination {
    pub(super) fn new(
        gateway: Pushgateway,
        spool: Option<SpoolThread>,
        wake_replayer: Option<Arc<Notify>>,
        totals: Option<Arc<CumulativeTotals>>,
    ) -> Self {
        Self {
            gateway,
            spool,
            wake_replayer,
            is_outcome_unknown: AtomicBool::new(false),
            is_unanswered: AtomicBool::new(false),
            has_pushed: AtomicBool::new(false),
            carried: Mutex::default(),
            totals: totals.map(GatewayTotals::new),
        }
    }

    pub(super) fn endpoint(&self) -> &str {
        self.gateway.endpoint()
    }

    pub(super) async fn deliver(
        &self,
        source: &Arc<dyn ExpositionSource>,
        state: &SharedState,
        budget: &RetryBudget,
        trigger: &Trigger,
    ) -> Result<(), Error> {
        let is_first = !self.has_pushed.load(Ordering::Acquire);
        if is_first {
            self.deliver_earlier_runs(source, budget.deadline).await;
        }
        self.read_base(source, !is_first, half_time(budget.deadline)).await;
        let outgoing = self.carrying_over(source, state, budget.deadline).await?;
        // After the rendering, which may be the last one that a recorder of the application makes.
        if trigger.is_replaced().await {
            return Ok(());
        }
        let pushed = self.push(source, &outgoing, budget).await?;
        if self.totals.as_ref().is_some_and(GatewayTotals::awaits_base) {
            // A gateway that was away takes the push and shows its state now.
            self.read_base(source, true, half_time(budget.deadline)).await;
            let outgoing = self.carrying_over(source, state, budget.deadline).await?;
            if outgoing.totals.totals.is_some() {
                return self.push(source, &outgoing, budget).await?.into_result();
            }
            self.report_missed_totals(source, &outgoing, false);
        }
        pushed.into_result()
    }

    /// Renders the state, with the last successes that the pushes of this run carry.
    async fn carrying_over(
        &self,
        source: &Arc<dyn ExpositionSource>,
        state: &SharedState,
        deadline: Instant,
    ) -> Result<Outgoing, Error> {
        let mut outgoing = self.outgoing(source, state, deadline).await?;
        outgoing.state = self.carried_over().complete(outgoing.state, self.gateway.format());
        Ok(outgoing)
    }

    /// Renders the state and encodes it.
    async fn outgoing(
        &self,
        source: &Arc<dyn ExpositionSource>,
        state: &SharedState,
        deadline: Instant,
    ) -> Result<Outgoing, Error> {
        let totals = self.totals.as_ref().map(|totals| &*totals.totals);
        let (families, totals) = state.with_totals(source, deadline, totals).await?;
        Ok(Outgoing { state: EncodedState::new(families, self.gateway.format()), totals })
    }

    /// Renders the final state. The base is known by now, or stays unknown.
    async fn final_outgoing(
        &self,
        source: &Arc<dyn ExpositionSource>,
        state: &SharedState,
        deadline: Instant,
    ) -> Result<Outgoing, Error> {
        if let Some(totals) = &self.totals {
            totals.totals.close();
        }
        self.outgoing(source, state, deadline).await
    }

    fn report_missed_totals(&self, source: &Arc<dyn ExpositionSource>, pushed: &Outgoing, is_final: bool) {
        if let Some(totals) = self.totals.as_ref().filter(|_| pushed.totals.totals.is_none()) {
            totals.report_missed(source, is_final);
        }
    }

    /// Reads the base of the totals, unless it is known. It stays unknown while a payload of the group waits: the totals
    /// on the gateway lack its increments. `replays`: such payloads are tried again first.
    async fn read_base(&self, source: &Arc<dyn ExpositionSource>, replays: bool, until: Instant) {
        let Some(totals) = self.totals.as_ref().filter(|totals| totals.totals.base().is_none()) else { return };
        if let Some(spool) = &self.spool {
            let has_increments = || async { spool.has_increments(&self.gateway).await.unwrap_or(true) };
            if replays && has_increments().await {
                let guard = OutcomeGuard::new(&self.is_outcome_unknown);
                guard.resolve(spool.retry_own_group(&self.gateway, until).await);
                let _ = timeout_at(until, spool.report_len(source)).await;
            }
            if has_increments().await {
                return totals.defer_base();
            }
        }
        let written = self.spool.as_ref().and_then(SpoolThread::written);
        totals.read_base(&self.gateway, written, source, until).await;
    }

    /// Returns whether the gateway may apply a push of this process later.
    fn is_outcome_unknown(&self) -> bool {
        self.is_outcome_unknown.load(Ordering::Acquire) || self.is_unanswered.load(Ordering::Acquire)
    }

    /// Delivers the payloads of earlier runs of the group before the first push of this run. The pushes of this run
    /// carry the last successes of payloads that cannot be delivered in time.
    async fn deliver_earlier_runs(&self, source: &Arc<dyn ExpositionSource>, deadline: Instant) {
        let Some(spool) = &self.spool else { return };
        // If this future is dropped, a request may be in flight.
        let guard = OutcomeGuard::new(&self.is_outcome_unknown);
        let until = own_group_deadline(deadline);
        guard.resolve(match self.totals {
            // The base is unknown while one of them waits.
            Some(_) => spool.retry_own_group(&self.gateway, until).await,
            None => spool.replay_own_group(&self.gateway, until).await,
        });
        let until = own_group_deadline(deadline);
        if let Ok(Ok(carried)) = timeout_at(until, spool.carry_over(&self.gateway)).await {
            *self.carried() = Some(carried);
        }
        // The first state contains the number.
        let _ = timeout_at(until, spool.report_len(source)).await;
    }

    fn carried_over(&self) -> CarriedOver {
        self.carried().clone().unwrap_or_default()
    }

    fn carried(&self) -> MutexGuard<'_, Option<CarriedOver>> {
        self.carried.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn push(
        &self,
        source: &Arc<dyn ExpositionSource>,
        outgoing: &Outgoing,
        budget: &RetryBudget,
    ) -> Result<Pushed, Error> {
        let pushed = push_state(&self.gateway, source, &outgoing.state, budget, &self.is_unanswered).await;
        if pushed.is_ok() {
            self.is_outcome_unknown.fetch_or(self.is_unanswered.swap(false, Ordering::AcqRel), Ordering::AcqRel);
            if let Some(totals) = &self.totals {
                totals.ledger().confirm(&outgoing.totals);
            }
        }
        if pushed.is_ok() || self.is_outcome_unknown() {
            self.has_pushed.store(true, Ordering::Release);
        }
        if let (Ok(_), Some(wake)) = (&pushed, &self.wake_replayer) {
            wake.notify_one();
        }
        pushed
    }

    /// Writes the payload to the spool and pushes it at the same time: a slow disk does not delay the push, and a slow
    /// gateway does not delay the file. Only the push waits for `previous`.
    pub(super) async fn deliver_finally(
        &self,
        source: &Arc<dyn ExpositionSource>,
        state: &SharedState,
        budget: &RetryBudget,
        previous: impl Future<Output = ()>,
    ) -> Result<(), Error> {
        let deadline = budget.deadline;
        let Some(spool) = &self.spool else {
            previous.await;
            self.read_base(source, false, own_group_deadline(deadline)).await;
            let outgoing = self.final_outgoing(source, state, deadline).await?;
            let pushed = self.push_final(source, &outgoing, budget).await?;
            self.report_missed_totals(source, &outgoing, true);
            return pushed.into_result();
        };
        spool.evict_oldest(source, deadline).await;
        let (mut previous, mut is_over) = (pin!(previous), false);
        if self.totals.as_ref().is_some_and(|totals| totals.totals.base().is_none()) {
            // The delivery in flight reads the base. The file and the push have the same totals or none.
            is_over = timeout_at(own_group_deadline(deadline), &mut previous).await.is_ok();
        }
        if is_over {
            self.read_base(source, false, own_group_deadline(deadline)).await;
        }
        let mut outgoing = self.final_outgoing(source, state, deadline).await?;
        let write_state = Arc::new(WriteState::default());
        let mut payload = spool.payload(&self.gateway, outgoing.state.clone());
        let increments = || self.totals.as_ref().map(|totals| totals.spooled(&outgoing.totals));
        payload.increments = increments();
        // The gateway has everything once it has this push, or no later run could add the rest either.
        let is_complete =
            outgoing.totals.totals.is_some() || !self.totals.as_ref().is_some_and(GatewayTotals::awaits_base);
        let mut write = tokio::spawn(spool.clone().write(payload, Arc::clone(&write_state)));
        // The push follows the check for other processes: a delivery that ends between the two would replace the final
        // state unseen.
        let is_checked = timeout_at(own_group_deadline(deadline), write_state.group_in_use.wait());
        let previous = async {
            if !is_over {
                previous.await;
            }
        };
        let _ = tokio::join!(previous, self.carry_over(spool, deadline), is_checked);
        let carried = self.carried_over();
        outgoing.state = carried.complete(outgoing.state, self.gateway.format());
        let late = || Error::new(Kind::Timeout, "the payload was not written to the spool in the time allowed");
        match self.push_final(source, &outgoing, budget).await {
            Ok(pushed) => {
                write_state.is_delivered.store(is_complete, Ordering::Release);
                self.report_missed_totals(source, &outgoing, true);
                let until = deadline.min(Instant::now() + SPOOL_CLEANUP_TIME);
                let mut written = timeout_at(until, &mut write).await;
                let group_in_use = write_state.group_in_use.get().is_some_and(|in_use| *in_use);
                if written.is_err() && group_in_use {
                    // The final state is sent again when the file is complete.
                    written = timeout_at(deadline, &mut write).await;
                }
                match written {
                    Ok(Ok(Ok(written))) => {
                        self.clean_up(source, spool, written, is_complete, &outgoing, budget).await?;
                    }
                    Ok(Ok(Err(error))) => source.on_event(DeliveryEvent::NotSpooled(error)),
                    Err(_) if group_in_use => return Err(may_be_replaced(late())),
                    // The disk is slow. The gateway has the state, and the file is dropped when it is complete.
                    Ok(Err(_)) | Err(_) => {}
                }
                pushed.into_result()
            }
            Err(error) => {
                let gone = |_| Err(Error::new(Kind::Delivery, "the write to the spool panicked"));
                let written = timeout_at(deadline, &mut write).await.map(|ended| ended.unwrap_or_else(gone));
                match written.unwrap_or_else(|_| Err(late())) {
                    // A later run may add the increments, whatever the gateway shows by then.
                    Ok(Written { entry: Some(entry), .. }) if !self.is_unanswered.load(Ordering::Acquire) => {
                        let until = deadline + SPOOL_MARK_TIME;
                        // Less, if an earlier push was answered after the file was written.
                        let _ = timeout_at(until, spool.mark_not_sent(entry, increments())).await;
                    }
                    Ok(_) => {}
                    Err(error) => source.on_event(DeliveryEvent::NotSpooled(error)),
                }
                Err(error)
            }
        }
    }

    /// Reads the last successes of earlier runs, if that was not possible before.
    async fn carry_over(&self, spool: &SpoolThread, deadline: Instant) {
        if self.carried().is_some() {
            return;
        }
        if let Ok(Ok(carried)) = timeout_at(own_group_deadline(deadline), spool.carry_over(&self.gateway)).await {
            *self.carried() = Some(carried);
        }
    }

    /// Removes the payloads that the gateway has. If another process was delivering an earlier payload of the group,
    /// which may replace the final state, this sends the final state again when the other process has ended the
    /// delivery.
    async fn clean_up(
        &self,
        source: &Arc<dyn ExpositionSource>,
        spool: &SpoolThread,
        written: Written,
        is_complete: bool,
        outgoing: &Outgoing,
        budget: &RetryBudget,
    ) -> Result<(), Error> {
        let Written { entry, group_in_use } = written;
        let entry = entry.map(Arc::new);
        if let Some(entry) = entry.as_ref().filter(|_| group_in_use) {
            let free = timeout_at(budget.deadline, spool.wait_group_free(entry)).await;
            let late = |_| Err(Error::new(Kind::Timeout, "its delivery did not end in the time allowed"));
            let repeated = match free.unwrap_or_else(late) {
                Ok(()) => self.push_again(source, outgoing, budget).await.map(|_| ()),
                Err(error) => Err(error),
            };
            repeated.map_err(may_be_replaced)?;
        }
        let until = budget.deadline.min(Instant::now() + SPOOL_CLEANUP_TIME);
        // A later run removes a payload that is not removed in time.
        let entry = entry.filter(|_| is_complete);
        let _ = timeout_at(until, spool.remove(entry, self.carried_over())).await;
        Ok(())
    }

    /// Sends the final state a second time, after the gateway had time to apply an earlier push.
    async fn push_again(
        &self,
        source: &Arc<dyn ExpositionSource>,
        outgoing: &Outgoing,
        budget: &RetryBudget,
    ) -> Result<Pushed, Error> {
        let left = budget.deadline.saturating_duration_since(Instant::now());
        sleep(EARLIER_PUSH_TIME.min(left / 4)).await;
        self.push(source, outgoing, budget).await
    }

    /// Pushes the final state. If an earlier push was abandoned without a response, the gateway may apply it after this
    /// one, so the final state is sent a second time after its response.
    async fn push_final(
        &self,
        source: &Arc<dyn ExpositionSource>,
        outgoing: &Outgoing,
        budget: &RetryBudget,
    ) -> Result<Pushed, Error> {
        let is_outcome_unknown = self.is_outcome_unknown();
        let pushed = self.push(source, outgoing, budget).await?;
        if !is_outcome_unknown {
            return Ok(pushed);
        }
        self.push_again(source, outgoing, budget).await.map_err(|error| {
            let text = "an earlier push got no answer and may replace the final state, which could not be sent again";
            Error::new(error.kind(), text).with_source(error)
        })
    }
}
