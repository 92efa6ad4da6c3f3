//! Exports the metrics when the delivery thread requests it.

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

use super::client::{ExportResponse, OtlpClient};
use super::families::OtlpFamilies;
use super::instruments::Instruments;
use super::reader::MetricReader;
use super::request::{Origin, Part, split};
use super::settings::OtlpSettings;
use crate::delivery::http::retry::{RetryBudget, half_time, is_payload_rejected, retry};
use crate::error::{Error, Kind};
use crate::exposition::SeriesExemplars;
use crate::process;

/// Bytes of metrics in one request. Half of the default limit of collectors over gRPC.
const MAX_REQUEST: usize = 2 << 20;

/// Lower bound of that limit after a collector has refused larger requests.
const MIN_REQUEST: usize = 64 << 10;

/// Bytes of metrics that every collector accepts in a request.
const ALWAYS_ACCEPTED: usize = 4 << 10;

/// An exporter that is not started.
pub(crate) enum ExporterConfig {
    /// Exports to the collector of the environment.
    Owned(Box<OwnedConfig>),
    /// Flushes the provider of the application.
    External(SdkMeterProvider, Arc<Instruments>),
}

/// The parts of an [`OwnedExporter`].
pub(crate) struct OwnedConfig {
    settings: OtlpSettings,
    families: Arc<OtlpFamilies>,
    origin: Origin,
}

/// An exporter of the metrics.
pub(crate) enum Exporter {
    /// Exports to the collector of the environment.
    Owned(Box<OwnedExporter>),
    /// Flushes the provider of the application.
    External(ExternalExporter),
}

impl ExporterConfig {
    /// Creates the configuration of an owned exporter. `service` is the name of the service if the environment has none.
    pub(super) fn new(mut settings: OtlpSettings, service: String, families: Arc<OtlpFamilies>) -> Self {
        let mut attributes = std::mem::take(&mut settings.resource);
        let mut default = |name: &str, value| {
            attributes.entry(name.to_owned()).or_insert(value);
        };
        default("service.name", service);
        if settings.temporality != Temporality::Delta {
            // The totals of two processes are two series. The increments of two processes are one series, which is
            // their sum.
            default("service.instance.id", process::instance());
        }
        default("telemetry.sdk.language", "rust".to_owned());
        default("telemetry.sdk.name", env!("CARGO_PKG_NAME").to_owned());
        default("telemetry.sdk.version", env!("CARGO_PKG_VERSION").to_owned());
        Self::Owned(Box::new(OwnedConfig { settings, families, origin: Origin::new(attributes) }))
    }

    /// Returns the URL of the collector, if this crate exports the metrics.
    pub(crate) fn endpoint(&self) -> Option<String> {
        match self {
            Self::Owned(config) => Some(config.settings.endpoint.to_string()),
            Self::External(..) => None,
        }
    }

    /// Starts the exporter. The caller must be within the runtime that sends the requests.
    pub(in crate::delivery) fn start(self) -> Result<Exporter, Error> {
        Ok(match self {
            Self::Owned(config) => Exporter::Owned(Box::new(OwnedExporter::new(*config)?)),
            Self::External(provider, instruments) => {
                Exporter::External(ExternalExporter { provider, instruments, stuck: None })
            }
        })
    }
}

impl Exporter {
    /// Exports the current state within the budget. `publish` updates the metrics first and returns their exemplars.
    /// `is_requested`: a request waits for the export; an export on the interval may take as long as one of its requests.
    ///
    /// A panic of `publish` or of a dependency is an error, and the next call starts over.
    pub(in crate::delivery) async fn export(
        &mut self,
        budget: &RetryBudget,
        is_requested: bool,
        publish: impl FnOnce() -> Vec<SeriesExemplars>,
    ) -> Result<(), Error> {
        let exported = catch_panic(async {
            match &mut *self {
                Self::Owned(exporter) => exporter.export(budget, is_requested, publish).await,
                Self::External(provider) if is_requested => provider.flush(budget.deadline).await,
                Self::External(_) => Ok(()),
            }
        });
        if let Some(result) = exported.await {
            return result;
        }
        if let Self::Owned(exporter) = self {
            exporter.restart()?;
        }
        Err(Error::new(Kind::Delivery, "the export to the collector panicked; the next export starts over"))
    }
}

/// Runs a future. `None` if it panicked.
async fn catch_panic<T>(work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
        Ok(poll) => poll.map(Some),
        Err(_) => Poll::Ready(None),
    })
    .await
}

/// Flushes the provider of the application.
pub(crate) struct ExternalExporter {
    provider: SdkMeterProvider,
    instruments: Arc<Instruments>,
    /// A flush that did not end by its deadline.
    stuck: Option<JoinHandle<OTelSdkResult>>,
}

impl ExternalExporter {
    /// Flushes the provider on a blocking thread, which may take any time. At most one flush runs.
    async fn flush(&mut self, deadline: Instant) -> Result<(), Error> {
        let error = |kind, problem: &str| Error::new(kind, format!("the meter provider of the application {problem}"));
        let late = || error(Kind::Timeout, "did not flush its metrics in the time allowed");
        if let Some(stuck) = &mut self.stuck {
            // Its result does not matter: it does not contain the current state.
            let _ = timeout_at(deadline, stuck).await.map_err(|_| late())?;
            self.stuck = None;
        }
        let (provider, instruments) = (self.provider.clone(), Arc::clone(&self.instruments));
        // A callback of the application that blocks delays the instruments: the flush of other readers needs time too.
        let built_until = half_time(deadline);
        let flushed = self.stuck.insert(tokio::task::spawn_blocking(move || {
            instruments.build_until(built_until.into_std());
            provider.force_flush()
        }));
        let flushed = timeout_at(deadline, flushed).await.map_err(|_| late())?;
        self.stuck = None;
        match flushed {
            Ok(Ok(())) => Ok(()),
            Ok(Err(err)) => Err(error(Kind::Delivery, "did not flush its metrics").with_source(err)),
            Err(_) => Err(error(Kind::Delivery, "panicked while it flushed its metrics")),
        }
    }
}

/// Exports to the collector of the environment.
pub(crate) struct OwnedExporter {
    settings: OtlpSettings,
    origin: Origin,
    client: OtlpClient,
    reader: MetricReader,
    /// Collected parts that have not arrived, in order. The next collection waits until all have arrived, since it does
    /// not repeat their increments.
    pending: VecDeque<Part>,
    /// Bytes of metrics in one request, reduced after the collector has refused a larger one.
    max_request: usize,
    dropped: DroppedPoints,
}

/// Data points whose increments do not arrive.
#[derive(Default)]
struct DroppedPoints {
    points: usize,
    /// The error of the first ones.
    cause: Option<Error>,
}

impl OwnedExporter {
    fn new(OwnedConfig { settings, families, origin }: OwnedConfig) -> Result<Self, Error> {
        Ok(Self {
            client: OtlpClient::new(&settings)?,
            reader: MetricReader::new(families, settings.temporality),
            settings,
            origin,
            pending: VecDeque::new(),
            max_request: MAX_REQUEST,
            dropped: DroppedPoints::default(),
        })
    }

    /// Restarts the client after a panic. The pending parts are kept.
    fn restart(&mut self) -> Result<(), Error> {
        self.client = OtlpClient::new(&self.settings)?;
        Ok(())
    }

    /// Returns the budget of a request. On the interval it covers the timeout of a request even if the interval is shorter: a
    /// request that is cut off may have arrived.
    fn request_budget(&self, budget: &RetryBudget, is_requested: bool) -> RetryBudget {
        let interval_deadline = (!is_requested).then(|| Instant::now() + self.settings.timeout);
        RetryBudget {
            deadline: interval_deadline.map_or(budget.deadline, |d| d.max(budget.deadline)),
            ..budget.clone()
        }
    }

    async fn export(
        &mut self,
        budget: &RetryBudget,
        is_requested: bool,
        publish: impl FnOnce() -> Vec<SeriesExemplars>,
    ) -> Result<(), Error> {
        if !self.reader.has_increments() {
            // The next totals contain the pending ones.
            self.pending.clear();
        }
        let earlier = self.send(budget, is_requested).await;
        if !self.pending.is_empty() {
            return earlier;
        }
        let exemplars = publish();
        self.pending = split(self.reader.collect(exemplars), self.max_request);
        let sent = self.send(budget, is_requested).await;
        let last = if budget.is_final { self.dropped.to_result() } else { Ok(()) };
        earlier.and(sent).and(last)
    }

    /// Sends the pending parts in order, until a newer state waits. Dropped data points are an error too.
    async fn send(&mut self, budget: &RetryBudget, is_requested: bool) -> Result<(), Error> {
        let mut result = Ok(());
        while let Some(part) = self.pending.front() {
            let points = part.points();
            let budget = self.request_budget(budget, is_requested);
            match self.deliver(part, &budget).await {
                Ok(response) => {
                    // The part has arrived, even if the collector rejected some of it.
                    self.pending.pop_front();
                    if let Some(rejected) = self.client.rejected(response, budget.deadline).await {
                        result = result.and(self.drop_points(rejected.points, rejected.error));
                    }
                }
                Err(error) if error.status() == Some(413) && points > 1 => self.split_pending(),
                Err(error) if error.status() == Some(413) && part.bytes < ALWAYS_ACCEPTED => {
                    // The size is not the reason of the refusal.
                    let points = std::mem::take(&mut self.pending).iter().map(Part::points).sum();
                    result = result.and(self.drop_points(points, error));
                }
                Err(error) if is_payload_rejected(&error) => {
                    self.pending.pop_front();
                    result = result.and(self.drop_points(points, error));
                }
                Err(error) => {
                    self.client.reconnect();
                    return result.and(Err(error));
                }
            }
            // The next export sends the rest: it does not wait for requests that may each take their timeout, and the
            // final flush cuts none off.
            if !self.pending.is_empty() && budget.take_superseded() {
                let text = "the final flush replaced this export before all of its requests were sent";
                let replaced = if is_requested { Err(Error::new(Kind::Delivery, text)) } else { Ok(()) };
                return result.and(replaced);
            }
        }
        result
    }

    /// Sends one part until it arrives, is refused for good, or the time is over.
    async fn deliver(&self, part: &Part, budget: &RetryBudget) -> Result<ExportResponse, Error> {
        let server = format!("collector {}", self.client.address());
        let body = self.client.body(self.origin.request(part.metrics.clone()));
        // Increments that have arrived count twice if they are sent again. So this sends them once, and leaves the
        // retry to the next export, which has more time. The final export has no next one and retries itself.
        let is_sent_once = self.reader.has_increments() && !budget.is_final;
        let (client, body) = (&self.client, &body);
        let attempt = move || async move {
            match client.send(body).await {
                Ok(response) => Ok(Ok(response)),
                Err(err) if err.is_ambiguous && is_sent_once => Ok(Err(err.error.error)),
                Err(err) => Err(err.error),
            }
        };
        retry(&server, budget, attempt).await?
    }

    /// Splits the pending parts into smaller ones than the first, which was too large for the collector.
    fn split_pending(&mut self) {
        let Some(first) = self.pending.front() else { return };
        let limit = first.bytes / 2;
        // The bound keeps one odd response from splitting every later export into many small requests.
        self.max_request = limit.max(MIN_REQUEST);
        let pending = std::mem::take(&mut self.pending).into_iter();
        self.pending = pending.flat_map(|part| split(part.metrics, limit)).collect();
    }

    /// Counts data points that were refused for good. Totals are not counted, since the next export repeats them.
    fn drop_points(&mut self, points: usize, error: Error) -> Result<(), Error> {
        if !self.reader.has_increments() {
            return Err(error);
        }
        let error = Error::new(error.kind(), format!("{error:?}; {}", dropped_text(points))).with_loss();
        self.dropped.points += points;
        self.dropped.cause.get_or_insert_with(|| error.copy());
        Err(error)
    }
}

impl DroppedPoints {
    /// Returns an error if the run did not deliver all of its increments.
    fn to_result(&self) -> Result<(), Error> {
        let Some(cause) = &self.cause else { return Ok(()) };
        let text = format!("{} during the run: {cause:?}", dropped_text(self.points));
        Err(Error::new(cause.kind(), text).with_loss())
    }
}

fn dropped_text(points: usize) -> String {
    match points {
        1 => "1 data point was dropped".to_owned(),
        _ => format!("{points} data points were dropped"),
    }
}

#[cfg(test)]
#[path = "exporter/tests.rs"]
mod tests;
