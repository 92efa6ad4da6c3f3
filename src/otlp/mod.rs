//! The same metrics for an OpenTelemetry collector: through the OpenTelemetry Metrics SDK, by OTLP.
//!
//! The one place with `opentelemetry` types. [`OtelRecorder`] is a recorder of the `metrics` facade beside the Prometheus
//! one, and both get every record. [`Exporter`] collects and sends on the delivery thread: the SDK's own periodic
//! reader has a thread that no subscriber is kept from, no bound on its shutdown, and errors that do not say why.
//!
//! There are bridges from `metrics` to OpenTelemetry, and none of them would do: `metrics-exporter-opentelemetry` 0.2
//! keeps a state per handle, so that gauges lose increments, and takes no bucket bounds; `metrics-opentelemetry` 0.24033
//! loses a gauge that was not set since the last export under delta temporality, and gauges moved by two threads at once.

mod both;
mod client;
mod exporter;
mod recorder;
mod settings;

use std::collections::HashMap;
use std::fmt;

use opentelemetry::metrics::Meter;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use tracing::dispatcher::{Dispatch, get_default, with_default};
use tracing::subscriber::NoSubscriber;

pub(crate) use both::Both;
pub(crate) use exporter::{Collecting, Collector};
pub(crate) use recorder::{Bounds, OtelRecorder};
use settings::Settings;

use crate::error::Error;
use crate::layer::REASONS;
use crate::schema::{self, Metric};

/// The instrumentation scope of everything that is exported.
const SCOPE: &str = "tracing_stage_metrics";

/// Where the OpenTelemetry metrics go.
#[derive(Clone)]
pub(crate) enum Otlp {
    /// To the collector that the standard variables name.
    Environment,
    /// To whatever the application's provider exports to.
    Provider(SdkMeterProvider),
    /// The same, without a way to flush it.
    Meter(Meter),
}

impl fmt::Debug for Otlp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Environment => "Environment",
            Self::Provider(_) => "Provider",
            Self::Meter(_) => "Meter",
        })
    }
}

/// What has to be known to set it up.
pub(crate) struct Setup<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) max_series: usize,
    pub(crate) bounds: Bounds,
    /// The service where the environment names none.
    pub(crate) service: String,
}

/// The recorder, and what sends what it holds, which is set going with the delivery thread. Nothing of both where nobody
/// asked, or OpenTelemetry is switched off.
#[derive(Default)]
pub(crate) struct Ready {
    pub(crate) recorder: Option<OtelRecorder>,
    pub(crate) collecting: Option<Collecting>,
    /// Whether somebody else decides when to collect.
    pub(crate) is_live: bool,
}

impl Otlp {
    pub(crate) fn ready(self, setup: Setup<'_>) -> Result<Ready, Error> {
        silently(|| self.set_up(setup))
    }

    fn set_up(self, setup: Setup<'_>) -> Result<Ready, Error> {
        let (meter, collecting, is_live) = match self {
            Self::Environment => {
                let Some(settings) = Settings::from_env()? else { return Ok(Ready::default()) };
                let limits = LabelSets::new(setup.namespace, setup.max_series);
                let collecting = Collecting::new(settings, setup.service, limits);
                (collecting.meter(), Some(collecting), false)
            }
            Self::Provider(provider) => {
                let collecting = Collecting::Theirs(provider);
                (collecting.meter(), Some(collecting), true)
            }
            Self::Meter(meter) => (meter, None, true),
        };
        Ok(Ready { recorder: Some(OtelRecorder::new(meter, setup.bounds)), collecting, is_live })
    }
}

/// How many label sets a metric of the application has at most, where the limit on those of the stages is not above. The
/// SDK's own default.
const APPLICATION_SERIES: usize = 2_000;

/// How many label sets the SDK is to keep of each metric. It reserves the room for them at once.
struct LabelSets {
    by_name: HashMap<String, usize>,
    others: usize,
}

impl LabelSets {
    fn new(namespace: &str, max_series: usize) -> Self {
        // Beyond the limit there are a few more: one for each stage, and for each stage and profile.
        let all = max_series.saturating_mul(2).saturating_add(8);
        let sets = |metric: &Metric| match metric.labels {
            labels if !labels.contains(&schema::STAGE_ID) => 4,
            labels if labels.contains(&schema::REASON) => all.saturating_mul(REASONS),
            labels if labels.contains(&schema::STATUS) => all.saturating_mul(2),
            _ => all,
        };
        let by_name = schema::METRICS.iter().map(|metric| (metric.name(namespace), sets(metric))).collect();
        Self { by_name, others: max_series.max(APPLICATION_SERIES) }
    }

    fn of(&self, name: &str) -> usize {
        self.by_name.get(name).copied().unwrap_or(self.others)
    }
}

/// Keeps the SDK's own events out of the application's log: it tells of each instrument, for one.
fn silently<T>(work: impl FnOnce() -> T) -> T {
    // Inside a callback of a layer there may be nobody to tell anyway, and then the default cannot be changed either.
    if get_default(|subscriber| subscriber.is::<NoSubscriber>()) {
        work()
    } else {
        with_default(&Dispatch::none(), work)
    }
}
