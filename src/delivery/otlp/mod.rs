//! The same metrics for an OpenTelemetry collector, by OTLP, or for a meter of the application.
//!
//! The one place with `opentelemetry` types. [`OtelRecorder`] is a recorder of the `metrics` facade beside the Prometheus
//! one, and both get every record. What goes to a collector never passes through the Metrics SDK: that keeps 2 000 label
//! sets of each metric and loses the sum of the others, and what it collects cannot be divided into requests that a
//! collector takes. So [`Collector`] reads the recorder itself, on the delivery thread. The SDK is for the provider or
//! the meter that an application has.

mod both;
mod client;
mod collection;
mod exporter;
mod families;
mod instruments;
mod recorder;
mod settings;

use std::fmt;
use std::sync::Arc;

use metrics::Unit;
use opentelemetry::metrics::{Meter, MeterProvider};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use tracing::dispatcher::{Dispatch, get_default, with_default};
use tracing::subscriber::NoSubscriber;

pub(crate) use both::Both;
pub(crate) use exporter::{Exporter, ExporterConfig};
pub(crate) use families::OtlpBounds;
use families::{Limits, OtlpFamilies};
use instruments::Instruments;
pub(crate) use recorder::OtelRecorder;
use settings::OtlpSettings;

use crate::error::Error;
use crate::schema;

/// The instrumentation scope of everything that is exported.
const SCOPE: &str = "tracing_stage_metrics";

/// How many label sets a metric has at most: the default of OpenTelemetry, and what the SDK keeps.
const MAX_LABEL_SETS: usize = 2_000;

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
    pub(crate) bounds: OtlpBounds,
    /// The service where the environment names none.
    pub(crate) service: String,
}

/// The recorder, and what sends what it holds, which is set going with the delivery thread. Nothing of both where nobody
/// asked, or OpenTelemetry is switched off.
#[derive(Default)]
pub(crate) struct OtlpPipeline {
    pub(crate) recorder: Option<OtelRecorder>,
    pub(crate) exporter: Option<ExporterConfig>,
    /// Whether somebody else decides when to collect.
    pub(crate) updates_eagerly: bool,
}

impl Otlp {
    pub(crate) fn ready(self, setup: Setup<'_>) -> Result<OtlpPipeline, Error> {
        match self {
            Self::Environment => match OtlpSettings::from_env()? {
                Some(settings) => Ok(to_collector(settings, setup)),
                None => Ok(OtlpPipeline::default()),
            },
            Self::Provider(provider) => {
                let meter = silently(|| provider.meter(SCOPE));
                Ok(OtlpPipeline { exporter: Some(ExporterConfig::External(provider)), ..to_meter(meter, setup) })
            }
            Self::Meter(meter) => Ok(to_meter(meter, setup)),
        }
    }
}

fn to_collector(settings: OtlpSettings, setup: Setup<'_>) -> OtlpPipeline {
    // The label sets of the stages are limited by the layer, with series of its own for the others.
    let unlimited = schema::METRICS.iter().map(|metric| metric.name(setup.namespace)).collect();
    let limits = Limits { unlimited, others: setup.max_series.max(MAX_LABEL_SETS) };
    let families = Arc::new(OtlpFamilies::new(setup.bounds, limits, None));
    let exporter = ExporterConfig::new(settings, setup.service, Arc::clone(&families));
    OtlpPipeline { recorder: Some(OtelRecorder::new(families)), exporter: Some(exporter), updates_eagerly: false }
}

fn to_meter(meter: Meter, setup: Setup<'_>) -> OtlpPipeline {
    let instruments = Arc::new(Instruments::new(meter));
    let limits = Limits { others: MAX_LABEL_SETS, ..Limits::default() };
    let families = Arc::new(OtlpFamilies::new(setup.bounds, limits, Some(Arc::clone(&instruments))));
    // Those of this crate are there before a stage needs one.
    for metric in schema::METRICS {
        let name = metric.name(setup.namespace);
        families.describe(&name, Some(metric.unit), metric.help.into());
        families.family(&name, metric.kind);
    }
    instruments.build();
    OtlpPipeline { recorder: Some(OtelRecorder::new(families)), exporter: None, updates_eagerly: true }
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

/// The code of a unit by the rules of OpenTelemetry. A count is given none: what is translated to Prometheus would be
/// named `_ratio` where its unit is `1`.
fn ucum(unit: Unit) -> &'static str {
    match unit {
        Unit::Count => "",
        Unit::Percent => "%",
        Unit::Seconds => "s",
        Unit::Milliseconds => "ms",
        Unit::Microseconds => "us",
        Unit::Nanoseconds => "ns",
        Unit::Bytes => "By",
        Unit::Kibibytes => "KiBy",
        Unit::Mebibytes => "MiBy",
        Unit::Gibibytes => "GiBy",
        Unit::Tebibytes => "TiBy",
        Unit::BitsPerSecond => "bit/s",
        Unit::KilobitsPerSecond => "kbit/s",
        Unit::MegabitsPerSecond => "Mbit/s",
        Unit::GigabitsPerSecond => "Gbit/s",
        Unit::TerabitsPerSecond => "Tbit/s",
        Unit::CountPerSecond => "1/s",
    }
}
