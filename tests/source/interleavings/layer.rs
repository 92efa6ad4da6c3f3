//! The files of `src/layer` that the table of open spans needs, as they are.

#[path = "../../../src/layer/callsite.rs"]
mod callsite;
#[path = "../../../src/layer/fields.rs"]
mod fields;
#[path = "../../../src/layer/outcome.rs"]
pub(crate) mod outcome;
#[path = "span.rs"]
pub(crate) mod span;
