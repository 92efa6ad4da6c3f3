//! The files of `src/layer/span` that the table of open spans consists of, as they are.

#[path = "../../../src/layer/span/crowd.rs"]
mod crowd;
#[path = "../../../src/layer/span/enter_count.rs"]
mod enter_count;
#[path = "../../../src/layer/span/flags.rs"]
pub(crate) mod flags;
#[path = "../../../src/layer/span/level.rs"]
mod level;
#[path = "../../../src/layer/span/state.rs"]
pub(crate) mod state;
#[path = "../../../src/layer/span/table.rs"]
pub(crate) mod table;

use crate::sync;
