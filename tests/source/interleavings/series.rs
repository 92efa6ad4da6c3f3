//! The files of `src/series` that the table of open spans needs, as they are.

#[path = "../../../src/series/append_only_map.rs"]
pub(crate) mod append_only_map;
#[path = "../../../src/series/interner.rs"]
pub(crate) mod interner;
#[path = "../../../src/series/outcome.rs"]
pub(crate) mod outcome;
#[path = "../../../src/series/seqlock.rs"]
pub(crate) mod seqlock;
#[cfg(feature = "trace-id")]
#[path = "../../../src/series/trace_id.rs"]
pub(crate) mod trace_id;

use crate::sync;
