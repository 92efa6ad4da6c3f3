//! Spans in flight: the table of open spans, and what a span inherits from its ancestors.

pub(crate) mod enter_count;
pub(crate) mod flags;
pub(crate) mod inherit;
pub(crate) mod label_cache;
mod sync;
pub(crate) mod table;
pub(crate) mod unwind;
