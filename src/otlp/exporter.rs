//! Collecting and sending, whenever the delivery thread says so.

use std::sync::{Arc, Weak};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Meter, MeterProvider as _};
use opentelemetry_otlp::{
    MetricExporter, Protocol as OtlpProtocol, RetryPolicy, WithExportConfig, WithHttpConfig, WithTonicConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::reader::MetricReader;
use opentelemetry_sdk::metrics::{
    Instrument, InstrumentKind, ManualReader, Pipeline, SdkMeterProvider, Stream, Temporality,
};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::client::{Client, Said};
use super::settings::{Protocol, Settings};
use super::{LabelSets, SCOPE};
use crate::delivery::{Address, Budget, Failure, again, is_of_payload};
use crate::error::{Error, Kind};
use crate::host;

/// Set up, and not yet on the runtime that it needs.
pub(crate) enum Collecting {
    Ours { settings: Settings, reader: Reader, provider: SdkMeterProvider },
    Theirs(SdkMeterProvider),
}

/// Sends what there is to send.
pub(crate) enum Collector {
    Ours(Box<Exporter>),
    /// The application's provider, which is asked to flush.
    Theirs(Theirs),
}

impl Collecting {
    /// `service`: where the environment names none.
    pub(super) fn new(settings: Settings, service: String, label_sets: LabelSets) -> Self {
        let reader = Reader::new(ManualReader::builder().with_temporality(settings.temporality).build());
        let mut resource = Resource::builder();
        if !settings.names_service {
            resource = resource.with_service_name(service);
        }
        if !settings.names_instance && settings.temporality != Temporality::Delta {
            // Totals of two processes are two series. Increments add up to one, and are to.
            resource = resource.with_attribute(KeyValue::new("service.instance.id", host::instance()));
        }
        let view = move |instrument: &Instrument| {
            Stream::builder().with_cardinality_limit(label_sets.of(instrument.name())).build().ok()
        };
        let provider = SdkMeterProvider::builder()
            .with_resource(resource.build())
            .with_reader(reader.clone())
            .with_view(view)
            .build();
        Self::Ours { settings, reader, provider }
    }

    pub(crate) fn meter(&self) -> Meter {
        match self {
            Self::Ours { provider, .. } | Self::Theirs(provider) => provider.meter(SCOPE),
        }
    }

    /// To be called within the runtime on which it will send.
    pub(crate) fn start(self) -> Result<Collector, Error> {
        Ok(match self {
            Self::Ours { settings, reader, provider } => {
                Collector::Ours(Box::new(Exporter::new(settings, reader, provider)?))
            }
            Self::Theirs(provider) => Collector::Theirs(Theirs { provider, stuck: None }),
        })
    }
}

impl Collector {
    /// Sends everything up to now, within the budget or not at all. `publish` brings the instruments up to date.
    /// `is_asked_for`: somebody waits for it; it is not the interval.
    pub(crate) async fn export(
        &mut self,
        budget: &Budget,
        is_asked_for: bool,
        publish: impl FnOnce(),
    ) -> Result<(), Error> {
        match self {
            Self::Ours(exporter) => exporter.export(budget, publish).await,
            Self::Theirs(theirs) if is_asked_for => theirs.flush(budget.deadline).await,
            Self::Theirs(_) => Ok(()),
        }
    }
}

pub(crate) struct Theirs {
    provider: SdkMeterProvider,
    /// A flush that took longer than it was allowed.
    stuck: Option<JoinHandle<OTelSdkResult>>,
}

impl Theirs {
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

/// The provider owns its reader; this is the handle that stays here.
#[derive(Clone, Debug)]
pub(crate) struct Reader(Arc<ManualReader>);

impl Reader {
    pub(super) fn new(reader: ManualReader) -> Self {
        Self(Arc::new(reader))
    }
}

impl MetricReader for Reader {
    fn register_pipeline(&self, pipeline: Weak<Pipeline>) {
        self.0.register_pipeline(pipeline);
    }

    fn collect(&self, metrics: &mut ResourceMetrics) -> OTelSdkResult {
        self.0.collect(metrics)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn temporality(&self, kind: InstrumentKind) -> Temporality {
        self.0.temporality(kind)
    }
}

pub(crate) struct Exporter {
    exporter: MetricExporter,
    reader: Reader,
    /// Collects nothing any more once it is dropped.
    _provider: SdkMeterProvider,
    address: Address,
    said: Said,
    /// What was collected and has not arrived. Where it holds changes nobody can collect it again, so nothing else is
    /// collected before it is gone: the SDK adds up what comes meanwhile.
    pending: Option<ResourceMetrics>,
}

impl Exporter {
    fn new(settings: Settings, reader: Reader, provider: SdkMeterProvider) -> Result<Self, Error> {
        let said = Said::default();
        let Settings { protocol, endpoint, timeout, temporality, compression, .. } = settings;
        let address = Address::of(endpoint.clone());
        let builder = MetricExporter::builder().with_temporality(temporality);
        let exporter = match protocol {
            Protocol::Http => {
                let client = Client::new(address.clone(), timeout, said.clone())?;
                let builder = builder
                    .with_http()
                    .with_retry_policy(RetryPolicy::disabled())
                    .with_protocol(OtlpProtocol::HttpBinary)
                    .with_endpoint(endpoint)
                    .with_timeout(timeout)
                    .with_http_client(client);
                match compression {
                    Some(compression) => builder.with_compression(compression).build(),
                    None => builder.build(),
                }
            }
            Protocol::Grpc => {
                let builder = builder.with_tonic().with_retry_policy(RetryPolicy::disabled());
                let builder = builder.with_endpoint(endpoint).with_timeout(timeout);
                #[cfg(feature = "tls")]
                let builder = match address.is_https() {
                    // It trusts nobody unless it is told to.
                    true => builder.with_tls_config(
                        opentelemetry_otlp::tonic_types::transport::ClientTlsConfig::new().with_enabled_roots(),
                    ),
                    false => builder,
                };
                match compression {
                    Some(compression) => builder.with_compression(compression).build(),
                    None => builder.build(),
                }
            }
        };
        let exporter = exporter
            .map_err(|error| Error::config(format!("cannot export metrics to {address}")).with_source(error))?;
        Ok(Self { exporter, reader, _provider: provider, address, said, pending: None })
    }

    async fn export(&mut self, budget: &Budget, publish: impl FnOnce()) -> Result<(), Error> {
        let earlier = match self.exporter.temporality() {
            // The next values have all that is in these.
            Temporality::Cumulative => Ok(()),
            _ => self.send(budget).await,
        };
        if earlier.is_err() && self.pending.is_some() {
            return earlier;
        }
        publish();
        let mut metrics = ResourceMetrics::default();
        self.reader.collect(&mut metrics).map_err(|error| {
            Error::new(Kind::Delivery, "the metrics were not collected for OTLP").with_source(error)
        })?;
        self.pending = Some(metrics);
        self.send(budget).await.and(earlier)
    }

    /// Sends what is pending. It stays where it may be taken later.
    async fn send(&mut self, budget: &Budget) -> Result<(), Error> {
        let Some(pending) = &self.pending else { return Ok(()) };
        let whom = format!("collector {}", self.address);
        let result = again(&whom, budget, || self.attempt(pending)).await;
        let is_done = match &result {
            Ok(()) => true,
            // With 200 the rest of it was taken.
            Err(error) => error.status() == Some(200) || is_of_payload(error),
        };
        if is_done {
            self.pending = None;
        }
        result
    }

    async fn attempt(&self, pending: &ResourceMetrics) -> Result<(), Failure> {
        // Of a request that was given up half-way.
        drop(self.said.take());
        let sent = self.exporter.export(pending).await;
        match (sent, self.said.take()) {
            (Ok(()), None) => Ok(()),
            (_, Some(said)) => Err(said),
            (Err(error), None) => Err(self.of_grpc(error).into()),
        }
    }

    /// The exporter tells of a refusal by gRPC in words only. Those that are final are given the status that says the same
    /// over HTTP.
    fn of_grpc(&self, error: OTelSdkError) -> Error {
        let (text, address) = (error.to_string(), &self.address);
        let has = |word: &str| text.contains(word);
        let kind = if has("InvalidArgument") {
            Kind::Refused(400)
        } else if has("Unauthenticated") {
            Kind::Refused(401)
        } else if has("PermissionDenied") {
            Kind::Refused(403)
        } else if has("Unimplemented") || has("NotFound") {
            Kind::Refused(404)
        } else if has("DeadlineExceeded") || matches!(error, OTelSdkError::Timeout(_)) {
            Kind::Timeout
        } else if has("Connection refused") || has("dns error") {
            Kind::Unreachable
        } else {
            Kind::Delivery
        };
        Error::new(kind, format!("the metrics did not get to {address}")).with_source(error)
    }
}
