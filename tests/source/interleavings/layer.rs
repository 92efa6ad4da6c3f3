//! The files of `src/layer` that the table of open spans needs, as they are.

#[path = "span.rs"]
pub(crate) mod span;
