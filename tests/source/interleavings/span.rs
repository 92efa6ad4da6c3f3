//! The files of `src/layer/span` that the table of open spans consists of, as they are.

#[path = "../../../src/layer/span/enter_count.rs"]
mod enter_count;
#[path = "../../../src/layer/span/flags.rs"]
pub(crate) mod flags;
#[path = "../../../src/layer/span/table.rs"]
pub(crate) mod table;

use crate::sync;
