//! Histograms that count each sample into its bucket. Uses nothing else of the crate.

#[cfg(feature = "pushgateway")]
mod bucket_histogram;
mod buckets;

#[cfg(feature = "pushgateway")]
pub(crate) use bucket_histogram::BucketHistogram;
pub(crate) use buckets::{BucketCounts, Snapshot};
