//! The protobuf format: `io.prometheus.client.MetricFamily`, each with its length before it.

mod message;
mod read;
#[cfg(test)]
mod tests;
mod write;

pub(crate) use read::read;

pub(crate) const CONTENT_TYPE: &str =
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";
