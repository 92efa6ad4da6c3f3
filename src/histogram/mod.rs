//! Histograms that count each sample into its bucket. Uses nothing else of the crate.

#[cfg(feature = "pushgateway")]
mod bucket_histogram;
mod buckets;
mod native;
#[cfg(all(test, feature = "pushgateway"))]
mod tests;

#[cfg(feature = "pushgateway")]
pub(crate) use bucket_histogram::BucketHistogram;
pub(crate) use buckets::{BucketCounts, Snapshot};
pub(crate) use native::Cells;
#[cfg(feature = "pushgateway")]
pub(crate) use native::NativeBuckets;
