//! Metric families in memory, and the formats they are written in and read from.

#[cfg(test)]
mod any_families;
#[cfg(feature = "trace-id")]
mod exemplars;
mod families;
mod labels;
mod names;
#[cfg(feature = "http")]
mod open_metrics;
mod parse;
mod problem;
pub(crate) mod protobuf;
mod sample_lines;
mod text;
mod values;

pub(crate) use families::{Families, Family, MetricKind, Samples, Series};
pub(crate) use labels::Labels;
#[cfg(feature = "otlp")]
pub(crate) use names::labels_of;
pub(crate) use names::metric_name;
pub(crate) use parse::{parse, samples};
pub(crate) use problem::{Owner, Problem, Problems, owner_of};
pub(crate) use text::TEXT_CONTENT_TYPE;
pub(crate) use values::{Counter, Histogram, Number, WrittenBounds};
#[cfg(any(feature = "otlp", feature = "trace-id"))]
pub(crate) use values::{Exemplar, SeriesExemplars};
