//! Delivery to the destinations: the gateway, the text file and the collector.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OnceCell};
use tokio::time::{Instant, timeout_at};

use super::event::DeliveryEvent;
use super::http::retry::RetryBudget;
#[cfg(feature = "otlp")]
use super::otlp::Exporter;
#[cfg(feature = "otlp")]
use super::pushgateway::DEFAULT_REQUEST_TIMEOUT;
use super::pushgateway::{EncodedState, OutcomeGuard, Pushed, Pushgateway, push_state};
use super::replayer::{Replayer, SpoolThread};
use super::request::Trigger;
use super::source::ExpositionSource;
use super::spool::{CarriedOver, WriteState, Written};
use super::textfile::Textfile;
use crate::error::{Error, Kind};
use crate::exposition::{Families, Labels};
use crate::job_thread::JobThread;

/// How long a delivery on the interval may take at least, even if the interval is shorter.
const MIN_INTERVAL_TIME: Duration = Duration::from_secs(2);

/// How long the payloads of earlier runs of the group may delay the first push, unless half of its time is shorter.
const OWN_GROUP_TIME: Duration = Duration::from_secs(1);

/// How long the final flush waits, after its push has succeeded, until the payload is removed from the disk.
const SPOOL_CLEANUP_TIME: Duration = Duration::from_millis(500);

/// Limit of the writes of a text file that wait for the disk.
const MAX_WAITING_WRITES: usize = 4;

/// A destination. Clones share it.
#[derive(Clone)]
pub(super) enum Destination {
    Gateway(Arc<GatewayDestination>),
    Textfile(Arc<TextfileDestination>),
    /// The lock serializes the exports.
    #[cfg(feature = "otlp")]
    Collector(Arc<tokio::sync::Mutex<Exporter>>),
}

/// The state of one moment, rendered at the first use and shared by all destinations.
#[derive(Clone, Default)]
pub(super) struct SharedState(Arc<OnceCell<Result<Arc<Families>, Error>>>);

impl SharedState {
    /// Returns the metric families. A recorder of the application may render for half of the time.
    async fn families(&self, source: &Arc<dyn ExpositionSource>, deadline: Instant) -> Result<Arc<Families>, Error> {
        let rendered = self.0.get_or_init(|| Arc::clone(source).exposition(half_time(deadline))).await;
        rendered.as_ref().map(Arc::clone).map_err(Error::copy)
    }

    /// Returns the state in the format of a gateway.
    async fn encoded(
        &self,
        source: &Arc<dyn ExpositionSource>,
        deadline: Instant,
        gateway: &Pushgateway,
    ) -> Result<EncodedState, Error> {
        Ok(EncodedState::new(self.families(source, deadline).await?, gateway.format()))
    }
}

/// Returns the middle of the time that is left: what comes before a request leaves time for the request.
pub(super) fn half_time(deadline: Instant) -> Instant {
    let now = Instant::now();
    now + deadline.saturating_duration_since(now) / 2
}

/// Returns the time until which the payloads of earlier runs of the group may delay a push.
fn own_group_deadline(deadline: Instant) -> Instant {
    half_time(deadline).min(Instant::now() + OWN_GROUP_TIME)
}

impl Destination {
    pub(super) fn gateway(gateway: Pushgateway, spool: Option<SpoolThread>, replayer: Option<&Replayer>) -> Self {
        let wake_replayer = replayer.map(Replayer::waker);
        Self::Gateway(Arc::new(GatewayDestination {
            gateway,
            spool,
            wake_replayer,
            is_outcome_unknown: AtomicBool::new(false),
            has_pushed: AtomicBool::new(false),
            carried: Mutex::default(),
        }))
    }

    /// Creates the text file destination. `labels` are added to every series in the file.
    pub(super) fn textfile(textfile: Textfile, labels: &[(String, String)]) -> Result<Self, Error> {
        let files = JobThread::start("metrics-textfile", MAX_WAITING_WRITES)?;
        let labels = Labels::new(labels.iter().map(|(name, value)| (name.as_str(), value.as_str()))).0;
        Ok(Self::Textfile(Arc::new(TextfileDestination { textfile: Arc::new(textfile), labels, files })))
    }

    #[cfg(feature = "otlp")]
    pub(super) fn collector(exporter: Exporter) -> Self {
        Self::Collector(Arc::new(tokio::sync::Mutex::new(exporter)))
    }

    pub(super) fn is_gateway(&self) -> bool {
        matches!(self, Self::Gateway(_))
    }

    /// Returns how long a delivery on the interval may take. An interval that is shorter than the response does not cut
    /// the request off: a request that has arrived must not count as one that has not.
    pub(super) fn interval_time(&self, interval: Duration) -> Duration {
        match self {
            Self::Gateway(_) | Self::Textfile(_) => interval.max(MIN_INTERVAL_TIME),
            // An increment that is sent twice counts twice.
            #[cfg(feature = "otlp")]
            Self::Collector(_) => interval.max(DEFAULT_REQUEST_TIMEOUT),
        }
    }

    /// Delivers a state within the budget, unless the final flush comes before anything is sent.
    pub(super) async fn deliver(
        self,
        source: Arc<dyn ExpositionSource>,
        state: SharedState,
        budget: RetryBudget,
        trigger: Trigger,
    ) -> Result<(), Error> {
        match self {
            Self::Gateway(gateway) => gateway.deliver(&source, &state, &budget, &trigger).await,
            Self::Textfile(textfile) => textfile.deliver(&source, &state, budget.deadline, &trigger).await,
            #[cfg(feature = "otlp")]
            Self::Collector(_) if trigger.is_replaced().await => Ok(()),
            #[cfg(feature = "otlp")]
            Self::Collector(exporter) => {
                let publish = || Arc::clone(&source).publish();
                exporter.lock().await.export(&budget, trigger.is_request(), publish).await
            }
        }
    }

    /// Delivers the final state of the process. `previous` completes when no other delivery is in flight.
    pub(super) async fn deliver_finally(
        self,
        source: Arc<dyn ExpositionSource>,
        state: SharedState,
        deadline: Instant,
        previous: impl Future<Output = ()>,
    ) -> Result<(), Error> {
        let budget = RetryBudget { deadline, is_final: true, superseded: Arc::default() };
        match self {
            Self::Gateway(gateway) => gateway.deliver_finally(&source, &state, &budget, previous).await,
            other => {
                previous.await;
                other.deliver(source, state, budget, Trigger::Request).await
            }
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway(gateway) => write!(f, "gateway {}", gateway.gateway.endpoint()),
            Self::Textfile(textfile) => write!(f, "the text file {}", textfile.textfile.configured_path().display()),
            #[cfg(feature = "otlp")]
            Self::Collector(_) => f.write_str("the collector"),
        }
    }
}

pub(super) struct TextfileDestination {
    textfile: Arc<Textfile>,
    /// Job and grouping, which distinguish the series of two jobs on one node.
    labels: Labels,
    files: JobThread,
}

impl TextfileDestination {
    async fn deliver(
        &self,
        source: &Arc<dyn ExpositionSource>,
        state: &SharedState,
        deadline: Instant,
        trigger: &Trigger,
    ) -> Result<(), Error> {
        let families = state.families(source, deadline).await?;
        if trigger.is_replaced().await {
            return Ok(());
        }
        let text = families.to_text_with(&self.labels);
        let textfile = Arc::clone(&self.textfile);
        let write = self.files.run(move || textfile.write(&text));
        timeout_at(deadline, write).await.unwrap_or_else(|_| {
            let path = self.textfile.configured_path().display();
            Err(Error::new(Kind::Timeout, format!("the text file {path} was not written in the time allowed")))
        })?
    }
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
    /// state.
    is_outcome_unknown: AtomicBool,
    /// Whether a push of this run has arrived or may have arrived.
    has_pushed: AtomicBool,
    /// The last successes in undelivered payloads of earlier runs of the group.
    carried: Mutex<Option<CarriedOver>>,
}

impl GatewayDestination {
    async fn deliver(
        &self,
        source: &Arc<dyn ExpositionSource>,
        state: &SharedState,
        budget: &RetryBudget,
        trigger: &Trigger,
    ) -> Result<(), Error> {
        if !self.has_pushed.load(Ordering::Acquire) {
            self.deliver_earlier_runs(source, budget.deadline).await;
        }
        let state = state.encoded(source, budget.deadline, &self.gateway).await?;
        let state = self.carried_over().complete(state, self.gateway.format());
        // After the rendering, which may be the last one that a recorder of the application makes.
        if trigger.is_replaced().await {
            return Ok(());
        }
        self.push(source, &state, budget).await?.into_result()
    }

    /// Delivers the payloads of earlier runs of the group before the first push of this run. The pushes of this run
    /// carry the last successes of payloads that cannot be delivered in time.
    async fn deliver_earlier_runs(&self, source: &Arc<dyn ExpositionSource>, deadline: Instant) {
        let Some(spool) = &self.spool else { return };
        // If this future is dropped, a request may be in flight.
        let guard = OutcomeGuard::new(&self.is_outcome_unknown);
        let is_unanswered = spool.replay_own_group(&self.gateway, own_group_deadline(deadline)).await;
        guard.resolve(is_unanswered);
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
        state: &EncodedState,
        budget: &RetryBudget,
    ) -> Result<Pushed, Error> {
        let pushed = push_state(&self.gateway, source, state, budget, &self.is_outcome_unknown).await;
        if pushed.is_ok() || self.is_outcome_unknown.load(Ordering::Acquire) {
            self.has_pushed.store(true, Ordering::Release);
        }
        if let (Ok(_), Some(wake)) = (&pushed, &self.wake_replayer) {
            wake.notify_one();
        }
        pushed
    }

    /// Writes the payload to the spool and pushes it at the same time: a slow disk does not delay the push, and a slow
    /// gateway does not delay the file. Only the push waits for `previous`.
    async fn deliver_finally(
        &self,
        source: &Arc<dyn ExpositionSource>,
        state: &SharedState,
        budget: &RetryBudget,
        previous: impl Future<Output = ()>,
    ) -> Result<(), Error> {
        let deadline = budget.deadline;
        let Some(spool) = &self.spool else {
            previous.await;
            let state = state.encoded(source, deadline, &self.gateway).await?;
            return self.push_final(source, &state, budget).await?.into_result();
        };
        spool.evict_oldest(source, deadline).await;
        let state = state.encoded(source, deadline, &self.gateway).await?;
        let write_state = Arc::new(WriteState::default());
        let payload = spool.payload(&self.gateway, state.clone());
        let mut write = tokio::spawn(spool.clone().write(payload, Arc::clone(&write_state)));
        // The push follows the check for other processes: a delivery that ends between the two would replace the final
        // state unseen.
        let is_checked = timeout_at(own_group_deadline(deadline), write_state.group_in_use.wait());
        let _ = tokio::join!(previous, self.carry_over(spool, deadline), is_checked);
        let carried = self.carried_over();
        let state = carried.complete(state, self.gateway.format());
        let late = || Error::new(Kind::Timeout, "the payload was not written to the spool in the time allowed");
        match self.push_final(source, &state, budget).await {
            Ok(pushed) => {
                write_state.is_delivered.store(true, Ordering::Release);
                let until = deadline.min(Instant::now() + SPOOL_CLEANUP_TIME);
                let mut written = timeout_at(until, &mut write).await;
                let group_in_use = write_state.group_in_use.get().is_some_and(|in_use| *in_use);
                if written.is_err() && group_in_use {
                    // The final state is sent again when the file is complete.
                    written = timeout_at(deadline, &mut write).await;
                }
                match written {
                    Ok(Ok(Ok(written))) => {
                        self.clean_up(source, spool, written, carried, &state, budget).await?;
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
                if let Err(error) = written.unwrap_or_else(|_| Err(late())) {
                    source.on_event(DeliveryEvent::NotSpooled(error));
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
        carried: CarriedOver,
        state: &EncodedState,
        budget: &RetryBudget,
    ) -> Result<(), Error> {
        let Written { entry, group_in_use } = written;
        let entry = entry.map(Arc::new);
        if let Some(entry) = entry.as_ref().filter(|_| group_in_use) {
            let free = timeout_at(budget.deadline, spool.wait_group_free(entry)).await;
            let late = |_| Err(Error::new(Kind::Timeout, "its delivery did not end in the time allowed"));
            let repeated = match free.unwrap_or_else(late) {
                Ok(()) => self.push(source, state, budget).await.map(|_| ()),
                Err(error) => Err(error),
            };
            repeated.map_err(may_be_replaced)?;
        }
        let until = budget.deadline.min(Instant::now() + SPOOL_CLEANUP_TIME);
        // A later run removes a payload that is not removed in time.
        let _ = timeout_at(until, spool.remove(entry, carried)).await;
        Ok(())
    }

    /// Pushes the final state. If an earlier push was abandoned without a response, the gateway may apply it after this
    /// one, so the final state is sent a second time after its response.
    async fn push_final(
        &self,
        source: &Arc<dyn ExpositionSource>,
        state: &EncodedState,
        budget: &RetryBudget,
    ) -> Result<Pushed, Error> {
        let is_outcome_unknown = self.is_outcome_unknown.load(Ordering::Acquire);
        let pushed = self.push(source, state, budget).await?;
        if !is_outcome_unknown {
            return Ok(pushed);
        }
        self.push(source, state, budget).await.map_err(|error| {
            let text = "an earlier push got no answer and may replace the final state, which could not be sent again";
            Error::new(error.kind(), text).with_source(error)
        })
    }
}
