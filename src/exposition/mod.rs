//! Metric families in memory, and the formats they are written in and read from.

mod families;
mod labels;
mod names;
mod parse;
mod problem;
mod text;

pub(crate) use families::{Bounds, Families, Family, Histogram, MetricKind, Number, Samples, Series};
pub(crate) use labels::Labels;
pub(crate) use names::metric_name;
#[cfg(feature = "otlp")]
#[allow(unused_imports)] // The recorder of OpenTelemetry uses them.
pub(crate) use names::{label_name, labels_of};
pub(crate) use parse::parse;
pub(crate) use problem::{Owner, Problem, Problems, owner_of};
