//! Exemplars of data points.

use std::collections::HashMap;

use opentelemetry::KeyValue;
use opentelemetry_proto::tonic::metrics::v1::{self, exemplar::Value};

use super::families::OtlpFamilies;
use super::reader::nanos;
use crate::exposition::SeriesExemplars;
use crate::exposition::{Exemplar, metric_name};

/// The exemplars of a metric by the attributes of their series, the latest of each bucket.
#[derive(Default)]
pub(super) struct FamilyExemplars(HashMap<Vec<KeyValue>, Vec<Option<Exemplar>>>);

impl FamilyExemplars {
    /// Groups exemplars by the names of their metrics.
    pub(super) fn by_name(exemplars: Vec<SeriesExemplars>, families: &OtlpFamilies) -> HashMap<String, Self> {
        let mut by_name = HashMap::<_, Self>::new();
        for (key, exemplars) in exemplars {
            let of_family = by_name.entry(metric_name(key.name()).into_owned()).or_default();
            // Beyond the limit on label sets several series of this crate are exported as one.
            Exemplar::keep_latest(of_family.0.entry(families.attributes(&key)).or_default(), exemplars);
        }
        by_name
    }

    /// Takes the exemplars of a series that are not older than this Unix time, in nanoseconds.
    pub(super) fn take(&mut self, attributes: &[KeyValue], since: u64) -> Vec<v1::Exemplar> {
        let exemplars = self.0.remove(attributes).unwrap_or_default();
        let exemplars = exemplars.iter().flatten().map(exemplar);
        exemplars.filter(|exemplar| exemplar.time_unix_nano >= since).collect()
    }
}

/// Converts an exemplar. The trace is a field here, and a label in the other formats.
fn exemplar(Exemplar { labels, value, time }: &Exemplar) -> v1::Exemplar {
    let trace = labels.iter().find(|(name, _)| *name == "trace_id");
    let trace = trace.and_then(|(_, trace)| u128::from_str_radix(trace, 16).ok());
    v1::Exemplar {
        time_unix_nano: time.map_or(0, nanos),
        value: Some(Value::AsDouble(*value)),
        trace_id: trace.map(|trace| trace.to_be_bytes().to_vec()).unwrap_or_default(),
        ..v1::Exemplar::default()
    }
}
