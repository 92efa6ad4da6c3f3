//! LabelId sets, and what the stages of each add up to. Knows no span. Uses `recorder` and `histogram`.

pub(crate) mod append_only_map;
pub(crate) mod cardinality;
mod durations;
pub(crate) mod interner;
pub(crate) mod outcome;
pub(crate) mod stage_series;
#[cfg(feature = "trace-id")]
pub(crate) mod trace_id;

pub use cardinality::DEFAULT_MAX_SERIES;
#[cfg(feature = "pushgateway")]
pub(crate) use cardinality::MAX_MAX_SERIES;
