//! The metrics for an OpenTelemetry collector, by OTLP, or for a meter of the application. Uses `http`.
//!
//! The only folder with `opentelemetry` types. [`recorder::OtelRecorder`] is a recorder of the `metrics` facade beside the
//! Prometheus recorder; [`Fanout`] passes every record to both. Metrics for a collector do not pass through the Metrics
//! SDK, which keeps 2 000 label sets of each metric, loses the sum of the others, and collects metrics that cannot be
//! divided into requests of a size that collectors accept. So [`Exporter`] reads the recorder itself, on the delivery
//! thread. The SDK serves only the provider or the meter of an application.

mod client;
mod exemplars;
mod exporter;
mod families;
mod fanout;
mod instrument_histogram;
mod instruments;
mod pipeline;
mod reader;
mod recorder;
mod request;
mod series;
mod settings;

pub(super) use exporter::{Exporter, ExporterConfig};
pub(crate) use families::OtlpBounds;
pub(crate) use fanout::Fanout;
pub(crate) use pipeline::{Otlp, OtlpPipeline, PipelineConfig};
pub(crate) use recorder::OtelRecorder;
