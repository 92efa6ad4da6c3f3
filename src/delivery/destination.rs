//! Delivery to the destinations: the gateway, the text file and the collector.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout_at};

use super::event::DeliveryEvent;
use super::gateway::GatewayDestination;
use super::http::retry::{RetryBudget, half_time};
#[cfg(feature = "otlp")]
use super::otlp::Exporter;
#[cfg(feature = "otlp")]
use super::pushgateway::DEFAULT_REQUEST_TIMEOUT;
use super::pushgateway::Pushgateway;
use super::replayer::{Replayer, SpoolThread};
use super::request::Trigger;
use super::source::ExpositionSource;
use super::textfile::Textfile;
use super::totals::{Base, CumulativeTotals, OutgoingTotals, StageCounts, StageKey};
use crate::error::{Error, Kind};
use crate::exposition::{Families, Labels};
use crate::job_thread::JobThread;

/// How long a delivery on the interval may take at least, even if the interval is shorter.
const MIN_INTERVAL_TIME: Duration = Duration::from_secs(2);

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
pub(super) struct SharedState(Arc<OnceCell<Result<Rendered, Error>>>);

struct Rendered {
    families: Arc<Families>,
    /// Of the same moment or shortly after it; of the final state, the same.
    stages: Vec<(StageKey, StageCounts)>,
}

impl SharedState {
    /// Returns the metric families. A recorder of the application may render for half of the time.
    async fn rendered(&self, source: &Arc<dyn ExpositionSource>, deadline: Instant) -> Result<&Rendered, Error> {
        let render = || async {
            let families = Arc::clone(source).exposition(half_time(deadline)).await?;
            Ok(Rendered { families, stages: source.stage_counts() })
        };
        self.0.get_or_init(render).await.as_ref().map_err(Error::copy)
    }

    /// Returns the state, with cumulative totals where their base is known.
    pub(super) async fn with_totals(
        &self,
        source: &Arc<dyn ExpositionSource>,
        deadline: Instant,
        totals: Option<&CumulativeTotals>,
    ) -> Result<(Arc<Families>, OutgoingTotals), Error> {
        let Rendered { families, stages } = self.rendered(source, deadline).await?;
        Ok(match totals {
            Some(totals) => totals.complete(families, stages.clone()),
            None => (Arc::clone(families), OutgoingTotals::default()),
        })
    }
}

impl Destination {
    pub(super) fn gateway(
        gateway: Pushgateway,
        spool: Option<SpoolThread>,
        replayer: Option<&Replayer>,
        totals: Option<Arc<CumulativeTotals>>,
    ) -> Self {
        Self::Gateway(Arc::new(GatewayDestination::new(gateway, spool, replayer.map(Replayer::waker), totals)))
    }

    /// Creates the text file destination. `labels` are added to every series in the file. `has_base`: the totals continue
    /// those of the file.
    pub(super) fn textfile(
        textfile: Textfile,
        labels: &[(String, String)],
        totals: Option<Arc<CumulativeTotals>>,
        has_base: bool,
    ) -> Result<Self, Error> {
        let files = JobThread::start("metrics-textfile", MAX_WAITING_WRITES)?;
        let labels = Labels::new(labels.iter().map(|(name, value)| (name.as_str(), value.as_str()))).0;
        let textfile = TextfileDestination { textfile: Arc::new(textfile), labels, files, totals, has_base };
        Ok(Self::Textfile(Arc::new(textfile)))
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
            Self::Gateway(gateway) => write!(f, "gateway {}", gateway.endpoint()),
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
    totals: Option<Arc<CumulativeTotals>>,
    /// Whether the totals continue those of the file, since no gateway has them.
    has_base: bool,
}

impl TextfileDestination {
    async fn deliver(
        &self,
        source: &Arc<dyn ExpositionSource>,
        state: &SharedState,
        deadline: Instant,
        trigger: &Trigger,
    ) -> Result<(), Error> {
        self.read_base(source, deadline).await?;
        let (families, _) = state.with_totals(source, deadline, self.totals.as_deref()).await?;
        if trigger.is_replaced().await {
            return Ok(());
        }
        let text = families.to_text_with(&self.labels);
        let textfile = Arc::clone(&self.textfile);
        let write = self.files.run(move || textfile.write(&text));
        timeout_at(deadline, write).await.unwrap_or_else(|_| Err(self.late("written")))?
    }

    /// Reads the totals that this run continues, before the first write.
    async fn read_base(&self, source: &Arc<dyn ExpositionSource>, deadline: Instant) -> Result<(), Error> {
        let Some(totals) = self.totals.as_ref().filter(|totals| self.has_base && totals.base().is_none()) else {
            return Ok(());
        };
        let textfile = Arc::clone(&self.textfile);
        let read = timeout_at(deadline, self.files.run(move || textfile.read())).await;
        let read = read.unwrap_or_else(|_| Err(self.late("read")))?;
        let base = read.and_then(|text| totals.base_of_text(text.as_deref(), self.textfile.configured_path()));
        totals.set_base(base.unwrap_or_else(|error| {
            // The write replaces the file, whatever is in it.
            source.on_event(DeliveryEvent::TotalsIncomplete(error));
            Base::default()
        }));
        Ok(())
    }

    fn late(&self, done: &str) -> Error {
        let path = self.textfile.configured_path().display();
        Error::new(Kind::Timeout, format!("the text file {path} was not {done} in the time allowed"))
    }
}
