//! ExporterConfig and sending, whenever the delivery thread asks for it.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::{SdkMeterProvider, Temporality};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use crate::delivery::http::retry::{RetryBudget, is_payload_rejected, retry};
use crate::delivery::otlp::client::{Answer, Client};
use crate::delivery::otlp::collection::{Collection, Origin, Part, parts};
use crate::delivery::otlp::families::OtlpFamilies;
use crate::delivery::otlp::settings::OtlpSettings;
use crate::error::{Error, Kind};
use crate::process;

/// How many bytes of metrics go into one request. Half of what a collector takes over gRPC by default.
const MAX_REQUEST: usize = 2 << 20;

/// To how many bytes a collector that takes less can bring that down for good.
const MIN_REQUEST: usize = 64 << 10;

/// No collector takes less than this in a request.
const SMALLEST_LIMIT: usize = 4 << 10;

/// Set up, and not yet on the runtime that it needs.
pub(crate) enum ExporterConfig {
    Owned(Box<OwnedConfig>),
    External(SdkMeterProvider),
}

/// What an [`OwnedExporter`] is made of.
pub(crate) struct OwnedConfig {
    settings: OtlpSettings,
    families: Arc<OtlpFamilies>,
    origin: Origin,
}

/// Sends what there is to send.
pub(crate) enum Exporter {
    Owned(Box<OwnedExporter>),
    /// The application's provider, which is asked to flush.
    External(ExternalExporter),
}

impl ExporterConfig {
    /// `service`: where the environment names none.
    pub(crate) fn new(mut settings: OtlpSettings, service: String, families: Arc<OtlpFamilies>) -> Self {
        let mut attributes = std::mem::take(&mut settings.resource);
        let mut default = |name: &str, value| {
            attributes.entry(name.to_owned()).or_insert(value);
        };
        default("service.name", service);
        if settings.temporality != Temporality::Delta {
            // Totals of two processes are two series. Increments add up to one, and are to.
            default("service.instance.id", process::instance());
        }
        default("telemetry.sdk.language", "rust".to_owned());
        default("telemetry.sdk.name", env!("CARGO_PKG_NAME").to_owned());
        default("telemetry.sdk.version", env!("CARGO_PKG_VERSION").to_owned());
        Self::Owned(Box::new(OwnedConfig { settings, families, origin: Origin::new(attributes) }))
    }

    /// To be called within the runtime on which it will send.
    pub(crate) fn start(self) -> Result<Exporter, Error> {
        Ok(match self {
            Self::Owned(unstarted) => Exporter::Owned(Box::new(OwnedExporter::new(*unstarted)?)),
            Self::External(provider) => Exporter::External(ExternalExporter { provider, stuck: None }),
        })
    }
}

impl Exporter {
    /// Sends everything up to now, within the budget. `publish` brings the metrics up to date. `is_asked_for`: somebody
    /// waits for it; it is not the interval, after which an export takes as long as a request may.
    ///
    /// A panic, of `publish` or of a dependency, is an error, and the next call begins anew.
    pub(crate) async fn export(
        &mut self,
        budget: &RetryBudget,
        is_asked_for: bool,
        publish: impl FnOnce(),
    ) -> Result<(), Error> {
        let exported = catch_panic(async {
            match &mut *self {
                Self::Owned(exporter) if is_asked_for => exporter.export(budget, publish).await,
                Self::Owned(exporter) => exporter.export(&exporter.of_interval(budget), publish).await,
                Self::External(theirs) if is_asked_for => theirs.flush(budget.deadline).await,
                Self::External(_) => Ok(()),
            }
        });
        if let Some(result) = exported.await {
            return result;
        }
        if let Self::Owned(exporter) = self {
            exporter.restart()?;
        }
        Err(Error::new(Kind::Delivery, "the export to the collector panicked; it begins anew with the next one"))
    }
}

/// `None` where it panicked.
async fn catch_panic<T>(work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
        Ok(poll) => poll.map(Some),
        Err(_) => Poll::Ready(None),
    })
    .await
}

pub(crate) struct ExternalExporter {
    provider: SdkMeterProvider,
    /// A flush that took longer than it was allowed.
    stuck: Option<JoinHandle<OTelSdkResult>>,
}

impl ExternalExporter {
    /// Flushes the provider, which takes the time it takes: on a thread of its own, and never on two.
    async fn flush(&mut self, deadline: Instant) -> Result<(), Error> {
        let of = |kind, what: &str| Error::new(kind, format!("the meter provider of the application {what}"));
        let late = || of(Kind::Timeout, "did not flush its metrics in the time allowed");
        if let Some(stuck) = &mut self.stuck {
            // Whatever came of it, the state of now is not in it.
            let _ = timeout_at(deadline, stuck).await.map_err(|_| late())?;
            self.stuck = None;
        }
        let provider = self.provider.clone();
        let flushed = self.stuck.insert(tokio::task::spawn_blocking(move || provider.force_flush()));
        let flushed = timeout_at(deadline, flushed).await.map_err(|_| late())?;
        self.stuck = None;
        match flushed {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(of(Kind::Delivery, "did not flush its metrics").with_source(error)),
            Err(_) => Err(of(Kind::Delivery, "panicked while it flushed its metrics")),
        }
    }
}

pub(crate) struct OwnedExporter {
    settings: OtlpSettings,
    origin: Origin,
    client: Client,
    collection: Collection,
    /// What was collected and has not arrived, in order. Nothing else is collected before it is gone: no later collection
    /// has its increments.
    pending: VecDeque<Part>,
    /// How many bytes of metrics go into one request, as far as the collector took them.
    max_request: usize,
    dropped: Dropped,
}

/// Data points whose increments never arrive.
#[derive(Default)]
struct Dropped {
    points: usize,
    /// Why the first of them were dropped.
    cause: Option<Error>,
}

impl OwnedExporter {
    fn new(OwnedConfig { settings, families, origin }: OwnedConfig) -> Result<Self, Error> {
        Ok(Self {
            client: Client::new(&settings)?,
            collection: Collection::new(families, settings.temporality),
            settings,
            origin,
            pending: VecDeque::new(),
            max_request: MAX_REQUEST,
            dropped: Dropped::default(),
        })
    }

    /// After a panic. What was collected is still there.
    fn restart(&mut self) -> Result<(), Error> {
        self.client = Client::new(&self.settings)?;
        Ok(())
    }

    /// An export on the interval has the time of a request, even if the interval is shorter: a request that is cut off may
    /// have arrived.
    fn of_interval(&self, budget: &RetryBudget) -> RetryBudget {
        let deadline = budget.deadline.max(Instant::now() + self.settings.timeout);
        RetryBudget { deadline, ..budget.clone() }
    }

    async fn export(&mut self, budget: &RetryBudget, publish: impl FnOnce()) -> Result<(), Error> {
        if !self.collection.has_increments() {
            // The next values have all that is in these.
            self.pending.clear();
        }
        let earlier = self.send(budget).await;
        if !self.pending.is_empty() {
            return earlier;
        }
        publish();
        self.pending = parts(self.collection.collect(), self.max_request);
        let sent = self.send(budget).await;
        let last = if budget.is_final { self.dropped.at_the_end() } else { Ok(()) };
        earlier.and(sent).and(last)
    }

    /// Sends what is pending, in order. What was dropped meanwhile is an error as well.
    async fn send(&mut self, budget: &RetryBudget) -> Result<(), Error> {
        let mut result = Ok(());
        while let Some(part) = self.pending.front() {
            let points = part.points();
            match self.deliver(part, budget).await {
                Ok(answer) => {
                    // It has arrived, whatever the collector says of it.
                    self.pending.pop_front();
                    if let Some(rejected) = self.client.rejected(answer, budget.deadline).await {
                        result = result.and(self.lost(rejected.points, rejected.error));
                    }
                }
                Err(error) if error.status() == Some(413) && points > 1 => self.divide(),
                Err(error) if error.status() == Some(413) && part.bytes < SMALLEST_LIMIT => {
                    // It is not the size that the collector does not take.
                    let points = std::mem::take(&mut self.pending).iter().map(Part::points).sum();
                    result = result.and(self.lost(points, error));
                }
                Err(error) if is_payload_rejected(&error) => {
                    self.pending.pop_front();
                    result = result.and(self.lost(points, error));
                }
                Err(error) => {
                    self.client.reconnect();
                    return result.and(Err(error));
                }
            }
        }
        result
    }

    /// Sends one request until it arrives, is refused for good, or the time is over.
    async fn deliver(&self, part: &Part, budget: &RetryBudget) -> Result<Answer, Error> {
        let server = format!("collector {}", self.client.address());
        let body = self.client.body(self.origin.request(part.metrics.clone()));
        // Increments that may have arrived count twice if they are sent again. The next export may do so, which has all
        // the time it needs. After the last one nobody could.
        let is_sent_once = self.collection.has_increments() && !budget.is_final;
        let (client, body) = (&self.client, &body);
        let attempt = move || async move {
            match client.send(body).await {
                Ok(answer) => Ok(Ok(answer)),
                Err(refusal) if refusal.is_ambiguous && is_sent_once => Ok(Err(refusal.failure.error)),
                Err(refusal) => Err(refusal.failure),
            }
        };
        retry(&server, budget, attempt).await?
    }

    /// Divides what is pending into smaller requests than the first one, which the collector found too large.
    fn divide(&mut self) {
        let Some(first) = self.pending.front() else { return };
        let limit = first.bytes / 2;
        // One odd answer does not make every later export many small requests.
        self.max_request = limit.max(MIN_REQUEST);
        let pending = std::mem::take(&mut self.pending).into_iter();
        self.pending = pending.flat_map(|part| parts(part.metrics, limit)).collect();
    }

    /// Data points were refused for good. Of totals the next export has the same again.
    fn lost(&mut self, points: usize, error: Error) -> Result<(), Error> {
        if !self.collection.has_increments() {
            return Err(error);
        }
        let error = Error::new(error.kind(), format!("{error:?}; {}", dropped(points))).with_loss();
        self.dropped.points += points;
        self.dropped.cause.get_or_insert_with(|| error.copy());
        Err(error)
    }
}

impl Dropped {
    /// The run did not deliver all of its increments.
    fn at_the_end(&self) -> Result<(), Error> {
        let Some(cause) = &self.cause else { return Ok(()) };
        let text = format!("{} in the course of the run: {cause:?}", dropped(self.points));
        Err(Error::new(cause.kind(), text).with_loss())
    }
}

fn dropped(points: usize) -> String {
    match points {
        1 => "1 data point was dropped".to_owned(),
        _ => format!("{points} data points were dropped"),
    }
}

#[cfg(test)]
#[path = "exporter/tests.rs"]
mod tests;
