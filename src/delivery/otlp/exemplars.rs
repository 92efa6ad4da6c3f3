//! Exemplars of data points.

use std::collections::HashMap;

use opentelemetry::KeyValue;
use opentelemetry_proto::tonic::metrics::v1::{Exemplar, exemplar::Value};

use super::families::OtlpFamilies;
use super::reader::nanos;
use crate::delivery::SeriesExemplars;
use crate::exposition::{self, metric_name};

/// The exemplars of a metric by the attributes of their series.
#[derive(Default)]
pub(super) struct FamilyExemplars(HashMap<Vec<KeyValue>, Vec<Exemplar>>);

impl FamilyExemplars {
    /// Groups exemplars by the names of their metrics.
    pub(super) fn by_name(exemplars: Vec<SeriesExemplars>, families: &OtlpFamilies) -> HashMap<String, Self> {
        let mut by_name = HashMap::<_, Self>::new();
        for (key, exemplars) in exemplars {
            let of_family = by_name.entry(metric_name(key.name()).into_owned()).or_default();
            // Beyond the limit on label sets several series of this crate are exported as one.
            let of_series = of_family.0.entry(families.attributes(&key)).or_default();
            of_series.extend(exemplars.iter().flatten().map(exemplar));
        }
        by_name
    }

    /// Takes the exemplars of a series that are not older than this Unix time, in nanoseconds.
    pub(super) fn take(&mut self, attributes: &[KeyValue], since: u64) -> Vec<Exemplar> {
        let mut exemplars = self.0.remove(attributes).unwrap_or_default();
        exemplars.retain(|exemplar| exemplar.time_unix_nano >= since);
        exemplars
    }
}

/// Converts an exemplar. The trace is a field here, and a label in the other formats.
fn exemplar(exposition::Exemplar { labels, value, time }: &exposition::Exemplar) -> Exemplar {
    let trace = labels.iter().find(|(name, _)| *name == "trace_id");
    let trace = trace.and_then(|(_, trace)| u128::from_str_radix(trace, 16).ok());
    Exemplar {
        time_unix_nano: time.map_or(0, nanos),
        value: Some(Value::AsDouble(*value)),
        trace_id: trace.map(|trace| trace.to_be_bytes().to_vec()).unwrap_or_default(),
        ..Exemplar::default()
    }
}
