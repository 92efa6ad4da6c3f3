//! The files that the table of open spans consists of and what they need, as they are.

#[path = "../../src/layer/callsite.rs"]
mod callsite;
#[path = "../../src/layer/entered.rs"]
mod entered;
#[path = "../../src/layer/fields.rs"]
mod fields;
#[path = "../../src/layer/open.rs"]
pub(crate) mod open;
#[path = "../../src/layer/outcome.rs"]
pub(crate) mod outcome;
