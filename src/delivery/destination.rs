//! The destinations: the gateway, the text file and the collector.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, OnceCell};
use tokio::time::{Instant, timeout_at};

use super::replayer::{Replayer, SpoolThread};
use super::spool::{CarriedOver, Written};
use super::textfile::Textfile;
use super::{DeliveryEvent, ExpositionSource};
use crate::delivery::http::retry::RetryBudget;
#[cfg(feature = "otlp")]
use crate::delivery::otlp::Exporter;
use crate::delivery::pushgateway::Pushgateway;
use crate::delivery::pushgateway::push::{Doubt, Pushed, push_state};
use crate::error::{Error, Kind};
use crate::exposition::{Families, Labels};
use crate::job_thread::JobThread;

/// How long a delivery on the interval may take, however short the interval.
const SHORTEST_TIME: Duration = Duration::from_secs(2);

/// How long what earlier runs of the group left may hold up the first push.
const OWN_GROUP_TIME: Duration = Duration::from_secs(1);

/// How long the final flush waits, after its push has succeeded, for the disk to give the payload up again.
const SPOOL_CLEANUP_TIME: Duration = Duration::from_millis(500);

/// Writes of a text file that may wait for the disk.
const MAX_WAITING_WRITES: usize = 4;

/// One destination. Clones share it.
#[derive(Clone)]
pub(super) enum Destination {
    Gateway(Arc<GatewayDestination>),
    Textfile(Arc<TextfileDestination>),
    /// One export at a time.
    #[cfg(feature = "otlp")]
    Collector(Arc<tokio::sync::Mutex<Exporter>>),
}

/// The state of one moment, rendered for the first destination that asks and shared by all.
#[derive(Clone, Default)]
pub(super) struct Moment(Arc<OnceCell<Result<Arc<Families>, Error>>>);

impl Moment {
    /// Code of the application that renders gets half of the time.
    async fn families(&self, source: &Arc<dyn ExpositionSource>, deadline: Instant) -> Result<Arc<Families>, Error> {
        let now = Instant::now();
        let half = now + deadline.saturating_duration_since(now) / 2;
        let rendered = self.0.get_or_init(|| Arc::clone(source).exposition(half)).await;
        rendered.as_ref().map(Arc::clone).map_err(Error::copy)
    }

    /// The state in the text format.
    async fn text(&self, source: &Arc<dyn ExpositionSource>, deadline: Instant) -> Result<Bytes, Error> {
        Ok(self.families(source, deadline).await?.to_text().into())
    }
}

impl Destination {
    pub(super) fn gateway(gateway: Pushgateway, spool: Option<SpoolThread>, replayer: Option<&Replayer>) -> Self {
        let wake_replayer = replayer.map(Replayer::waker);
        Self::Gateway(Arc::new(GatewayDestination {
            gateway,
            spool,
            wake_replayer,
            is_in_doubt: AtomicBool::new(false),
            has_pushed: AtomicBool::new(false),
            carried: Mutex::default(),
        }))
    }

    /// `labels`: further labels of every series in the file.
    pub(super) fn textfile(textfile: Textfile, labels: &[(String, String)]) -> Result<Self, Error> {
        let files = JobThread::start("metrics-textfile", MAX_WAITING_WRITES)?;
        let labels = Labels::new(labels.iter().map(|(name, value)| (name.as_str(), value.as_str()))).0;
        Ok(Self::Textfile(Arc::new(TextfileDestination { textfile: Arc::new(textfile), labels, files })))
    }

    #[cfg(feature = "otlp")]
    pub(super) fn collector(collector: Exporter) -> Self {
        Self::Collector(Arc::new(tokio::sync::Mutex::new(collector)))
    }

    pub(super) fn is_gateway(&self) -> bool {
        matches!(self, Self::Gateway(_))
    }

    /// How long a delivery on the interval may take. An interval that is shorter than the answer does not cut it off: the
    /// request may have arrived, and would be taken for one that has not.
    pub(super) fn interval_time(&self, interval: Duration) -> Duration {
        match self {
            Self::Gateway(_) | Self::Textfile(_) => interval.max(SHORTEST_TIME),
            // An increment that is sent twice counts twice.
            #[cfg(feature = "otlp")]
            Self::Collector(_) => interval.max(super::DEFAULT_REQUEST_TIMEOUT),
        }
    }

    /// Delivers the state of a moment within the budget. `is_requested`: somebody waits for it; it is not the interval.
    #[cfg_attr(not(feature = "otlp"), allow(unused_variables))]
    pub(super) async fn deliver(
        self,
        source: Arc<dyn ExpositionSource>,
        moment: Moment,
        budget: RetryBudget,
        is_requested: bool,
    ) -> Result<(), Error> {
        match self {
            Self::Gateway(gateway) => gateway.deliver(&source, &moment, &budget).await,
            Self::Textfile(textfile) => textfile.deliver(&source, &moment, budget.deadline).await,
            #[cfg(feature = "otlp")]
            Self::Collector(collector) => {
                let publish = || Arc::clone(&source).publish();
                collector.lock().await.export(&budget, is_requested, publish).await
            }
        }
    }

    /// Delivers the last state of the process. `earlier`: completes when no other delivery is on its way.
    pub(super) async fn deliver_finally(
        self,
        source: Arc<dyn ExpositionSource>,
        moment: Moment,
        deadline: Instant,
        earlier: impl Future<Output = ()>,
    ) -> Result<(), Error> {
        let budget = RetryBudget { deadline, is_final: true, superseded: Arc::default() };
        match self {
            Self::Gateway(gateway) => gateway.deliver_finally(&source, &moment, &budget, earlier).await,
            other => {
                earlier.await;
                other.deliver(source, moment, budget, true).await
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
    /// Job and grouping, so that the series of two jobs on one node differ.
    labels: Labels,
    files: JobThread,
}

impl TextfileDestination {
    async fn deliver(
        &self,
        source: &Arc<dyn ExpositionSource>,
        moment: &Moment,
        deadline: Instant,
    ) -> Result<(), Error> {
        let text = moment.families(source, deadline).await?.to_text_with(&self.labels);
        let textfile = Arc::clone(&self.textfile);
        let write = self.files.run(move || textfile.write(&text));
        timeout_at(deadline, write).await.unwrap_or_else(|_| {
            let path = self.textfile.configured_path().display();
            Err(Error::new(Kind::Timeout, format!("the text file {path} was not written in the time allowed")))
        })?
    }
}

pub(super) struct GatewayDestination {
    gateway: Pushgateway,
    spool: Option<SpoolThread>,
    wake_replayer: Option<Arc<Notify>>,
    /// A request of this process was given up without an answer. The gateway may apply it later, over a newer state.
    is_in_doubt: AtomicBool,
    /// A push of this run has arrived, or may have.
    has_pushed: AtomicBool,
    /// The last successes of earlier runs of the group that were not delivered.
    carried: Mutex<Option<CarriedOver>>,
}

impl GatewayDestination {
    async fn deliver(
        &self,
        source: &Arc<dyn ExpositionSource>,
        moment: &Moment,
        budget: &RetryBudget,
    ) -> Result<(), Error> {
        if !self.has_pushed.load(Ordering::Acquire) {
            self.deliver_earlier_runs(source, budget.deadline).await;
        }
        let exposition = self.carried_over().complete(moment.text(source, budget.deadline).await?);
        self.push(source, exposition, budget).await?.into_result()
    }

    /// What earlier runs of the group left comes before the first push of this one. The last success of what cannot be
    /// delivered in time is part of the pushes of this run, so that it is not lost.
    async fn deliver_earlier_runs(&self, source: &Arc<dyn ExpositionSource>, deadline: Instant) {
        let Some(spool) = &self.spool else { return };
        // Dropped half-way, a request may be on its way.
        let doubt = Doubt::new(&self.is_in_doubt);
        let is_unanswered = spool.replay_own_group(&self.gateway, deadline.min(Instant::now() + OWN_GROUP_TIME)).await;
        doubt.settle(is_unanswered);
        let until = deadline.min(Instant::now() + OWN_GROUP_TIME);
        if let Ok(Ok(carried)) = timeout_at(until, spool.carry_over(&self.gateway)).await {
            *self.carried.lock().unwrap_or_else(PoisonError::into_inner) = Some(carried);
        }
        // The first state shows it.
        let _ = timeout_at(until, spool.look(source)).await;
    }

    fn carried_over(&self) -> CarriedOver {
        self.carried.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_default()
    }

    async fn push(
        &self,
        source: &Arc<dyn ExpositionSource>,
        exposition: Bytes,
        budget: &RetryBudget,
    ) -> Result<Pushed, Error> {
        let pushed = push_state(&self.gateway, source, exposition, budget, &self.is_in_doubt).await;
        if pushed.is_ok() || self.is_in_doubt.load(Ordering::Acquire) {
            self.has_pushed.store(true, Ordering::Release);
        }
        if let (Ok(_), Some(wake)) = (&pushed, &self.wake_replayer) {
            wake.notify_one();
        }
        pushed
    }

    /// The payload is written to the spool and pushed at the same time: a slow disk does not cost the push, and a slow
    /// gateway does not cost the file. `earlier` is waited for by the push alone.
    async fn deliver_finally(
        &self,
        source: &Arc<dyn ExpositionSource>,
        moment: &Moment,
        budget: &RetryBudget,
        earlier: impl Future<Output = ()>,
    ) -> Result<(), Error> {
        let deadline = budget.deadline;
        let Some(spool) = &self.spool else {
            earlier.await;
            let exposition = moment.text(source, deadline).await?;
            return self.push_last(source, exposition, budget).await?.into_result();
        };
        spool.evict_oldest(source, deadline).await;
        let exposition = moment.text(source, deadline).await?;
        let is_delivered = Arc::new(AtomicBool::new(false));
        let payload = spool.payload(&self.gateway, exposition.clone());
        let mut write = tokio::spawn(spool.clone().write(payload, Arc::clone(&is_delivered)));
        earlier.await;
        let carried = self.carry_over(spool, deadline).await;
        let exposition = carried.complete(exposition);
        match self.push_last(source, exposition.clone(), budget).await {
            Ok(pushed) => {
                is_delivered.store(true, Ordering::Release);
                let until = deadline.min(Instant::now() + SPOOL_CLEANUP_TIME);
                match timeout_at(until, &mut write).await {
                    Ok(Ok(Ok(written))) => {
                        self.clean_up(source, spool, written, carried, exposition, budget).await?;
                    }
                    Ok(Ok(Err(error))) => source.on_event(DeliveryEvent::NotSpooled(error)),
                    // The disk is slow. The gateway has the state, and the file is given up when it is ready.
                    Ok(Err(_)) | Err(_) => {}
                }
                pushed.into_result()
            }
            Err(error) => {
                let late = || Error::new(Kind::Timeout, "the spool did not take the payload in the time allowed");
                let gone = |_| Err(Error::new(Kind::Delivery, "the write to the spool panicked"));
                let written = timeout_at(deadline, &mut write).await.map(|ended| ended.unwrap_or_else(gone));
                if let Err(error) = written.unwrap_or_else(|_| Err(late())) {
                    source.on_event(DeliveryEvent::NotSpooled(error));
                }
                Err(error)
            }
        }
    }

    async fn carry_over(&self, spool: &SpoolThread, deadline: Instant) -> CarriedOver {
        let known = self.carried.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(carried) = known {
            return carried;
        }
        let until = deadline.min(Instant::now() + OWN_GROUP_TIME);
        let carried = timeout_at(until, spool.carry_over(&self.gateway)).await;
        carried.ok().and_then(Result::ok).unwrap_or_default()
    }

    /// Removes what the gateway has. If another process was delivering an earlier payload of the group meanwhile, that may
    /// replace the last state, which is therefore sent again when the other process is done.
    async fn clean_up(
        &self,
        source: &Arc<dyn ExpositionSource>,
        spool: &SpoolThread,
        written: Written,
        carried: CarriedOver,
        exposition: Bytes,
        budget: &RetryBudget,
    ) -> Result<(), Error> {
        let Written { entry, group_in_use } = written;
        let entry = entry.map(Arc::new);
        if let Some(entry) = entry.as_ref().filter(|_| group_in_use) {
            let free = timeout_at(budget.deadline, spool.wait_group_free(entry)).await;
            let late = |_| Err(Error::new(Kind::Timeout, "the process has not ended it in the time allowed"));
            let sent_again = match free.unwrap_or_else(late) {
                Ok(()) => self.push(source, exposition, budget).await.map(|_| ()),
                Err(error) => Err(error),
            };
            sent_again.map_err(|error| {
                let text = "another process delivers an earlier state of this group, which may replace the last one";
                Error::new(error.kind(), text).with_source(error)
            })?;
        }
        let until = budget.deadline.min(Instant::now() + SPOOL_CLEANUP_TIME);
        // What is not removed in time, a later run removes.
        let _ = timeout_at(until, spool.remove(entry, carried)).await;
        Ok(())
    }

    /// Pushes the last state. If an earlier push was given up without an answer, the gateway may apply it after this one,
    /// so the last state is sent a second time after its answer.
    async fn push_last(
        &self,
        source: &Arc<dyn ExpositionSource>,
        exposition: Bytes,
        budget: &RetryBudget,
    ) -> Result<Pushed, Error> {
        let is_in_doubt = self.is_in_doubt.load(Ordering::Acquire);
        let pushed = self.push(source, exposition.clone(), budget).await?;
        if !is_in_doubt {
            return Ok(pushed);
        }
        self.push(source, exposition, budget).await.map_err(|error| {
            let text = "an earlier push got no answer and may replace the last state, which could not be sent again";
            Error::new(error.kind(), text).with_source(error)
        })
    }
}
