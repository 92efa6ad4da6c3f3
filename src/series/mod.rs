//! Label sets and their totals. Knows no span. Uses `recorder`, `exposition` and `histogram`.

pub(crate) mod append_only_map;
pub(crate) mod cardinality;
mod durations;
#[cfg(feature = "trace-id")]
mod exemplars;
pub(crate) mod interner;
pub(crate) mod outcome;
#[cfg(feature = "trace-id")]
mod seqlock;
mod stage_profile_series;
mod stage_series;
#[cfg(feature = "trace-id")]
mod sync;
mod table;
#[cfg(all(test, feature = "pushgateway"))]
mod tests;
#[cfg(feature = "trace-id")]
pub(crate) mod trace_id;

pub use cardinality::DEFAULT_MAX_SERIES;
#[cfg(feature = "pushgateway")]
pub(crate) use cardinality::MAX_MAX_SERIES;
pub(crate) use durations::{DurationBounds, HistogramTotals};
pub(crate) use stage_series::StageTotals;
pub(crate) use table::{CachedSeries, DurationSeries, FinishedStage, OnCpuTime, SeriesTable};
