//! The protobuf format: `io.prometheus.client.MetricFamily`, each with its length before it.

mod message;
mod read;
#[cfg(test)]
mod tests;
mod write;

pub(crate) use read::read;
