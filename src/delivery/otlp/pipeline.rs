//! Builds the recorder and the exporter of the OpenTelemetry metrics.

use std::fmt;
use std::sync::Arc;

use opentelemetry::metrics::{Meter, MeterProvider};
use opentelemetry_sdk::metrics::SdkMeterProvider;

use super::exporter::ExporterConfig;
use super::families::{Limits, OtlpBounds, OtlpFamilies};
use super::instruments::Instruments;
use super::recorder::OtelRecorder;
use super::request::SCOPE;
use super::settings::OtlpSettings;
use crate::diagnostics::subscriber::without_subscriber;
use crate::error::Error;
use crate::exposition::Labels;
use crate::schema;

/// Limit of the label sets of a metric: the default of OpenTelemetry and of the SDK.
const MAX_LABEL_SETS: usize = 2_000;

/// The destination of the OpenTelemetry metrics.
#[derive(Clone)]
pub(crate) enum Otlp {
    /// The collector that the standard variables name.
    Environment,
    /// The provider of the application.
    Provider(SdkMeterProvider),
    /// A meter of the application, which cannot be flushed.
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

/// The settings of the pipeline.
pub(crate) struct PipelineConfig<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) max_series: usize,
    pub(crate) bounds: OtlpBounds,
    /// Labels of every series that has none of the same name.
    pub(crate) constant: Labels,
    /// Name of the service if the environment has none.
    pub(crate) service: String,
}

/// The recorder and the exporter of its metrics, which starts with the delivery thread. Both are `None` if
/// OpenTelemetry is disabled.
#[derive(Default)]
pub(crate) struct OtlpPipeline {
    pub(crate) recorder: Option<OtelRecorder>,
    pub(crate) exporter: Option<ExporterConfig>,
    /// Whether the recorder must be current at any time, since the application decides when to collect.
    pub(crate) updates_eagerly: bool,
}

impl Otlp {
    /// Builds the recorder and the exporter.
    ///
    /// # Errors
    ///
    /// A configuration error that names a variable of the environment.
    pub(crate) fn build(self, config: PipelineConfig<'_>) -> Result<OtlpPipeline, Error> {
        match self {
            Self::Environment => match OtlpSettings::from_env()? {
                Some(settings) => Ok(to_collector(settings, config)),
                None => Ok(OtlpPipeline::default()),
            },
            Self::Provider(provider) => {
                let instruments = Arc::new(Instruments::new(without_subscriber(|| provider.meter(SCOPE))));
                let exporter = Some(ExporterConfig::External(provider, Arc::clone(&instruments)));
                Ok(OtlpPipeline { exporter, ..to_meter(instruments, config) })
            }
            Self::Meter(meter) => Ok(to_meter(Arc::new(Instruments::new(meter)), config)),
        }
    }
}

fn to_collector(settings: OtlpSettings, config: PipelineConfig<'_>) -> OtlpPipeline {
    // The layer limits the label sets of the stages itself, with overflow series of its own.
    let unlimited = schema::METRICS.iter().map(|metric| metric.name(config.namespace)).collect();
    let limits = Limits { unlimited, others: config.max_series.max(MAX_LABEL_SETS) };
    let families = OtlpFamilies::new(config.bounds, limits, config.constant, None);
    let families =
        Arc::new(if settings.exponential_histograms { families.with_exponential_histograms() } else { families });
    let exporter = ExporterConfig::new(settings, config.service, Arc::clone(&families));
    OtlpPipeline { recorder: Some(OtelRecorder::new(families)), exporter: Some(exporter), updates_eagerly: false }
}

fn to_meter(instruments: Arc<Instruments>, config: PipelineConfig<'_>) -> OtlpPipeline {
    let limits = Limits { others: MAX_LABEL_SETS, ..Limits::default() };
    let families = Arc::new(OtlpFamilies::new(config.bounds, limits, config.constant, Some(Arc::clone(&instruments))));
    // The instruments of this crate exist before a stage needs one.
    for metric in schema::METRICS {
        let name = metric.name(config.namespace);
        families.describe(&name, Some(metric.unit), metric.help.into());
        families.family(&name, metric.kind);
    }
    instruments.build();
    let recorder = Some(OtelRecorder::new(families));
    OtlpPipeline { recorder, updates_eagerly: true, ..OtlpPipeline::default() }
}
