//! Spans in flight: the table of open spans, and what a span inherits from its ancestors.

pub(crate) mod cpu;
mod crowd;
pub(crate) mod enter_count;
pub(crate) mod flags;
pub(crate) mod label_cache;
mod level;
pub(crate) mod state;
mod sync;
pub(crate) mod table;
#[cfg(test)]
mod tests;
pub(crate) mod tree;
pub(crate) mod unwind;
