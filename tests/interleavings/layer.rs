//! The source files of the table of open spans, and those that they need.

#[path = "../../src/layer/callsite.rs"]
mod callsite;
#[path = "../../src/layer/entered.rs"]
mod entered;
#[path = "../../src/layer/fields.rs"]
mod fields;
#[path = "../../src/layer/index.rs"]
pub(crate) mod index;
#[path = "../../src/layer/labels.rs"]
mod labels;
#[path = "../../src/layer/open.rs"]
pub(crate) mod open;
#[path = "../../src/layer/outcome.rs"]
pub(crate) mod outcome;
#[cfg(feature = "trace-id")]
#[path = "../../src/layer/trace_id.rs"]
mod trace_id;
