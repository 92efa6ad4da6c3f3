//! What was not delivered yet: payloads on disk, what the gateway has of a group, and the delivery of both.

mod group_state;
mod replay;
mod store;

pub(super) use group_state::{InPlace, LastPush};
pub(super) use replay::{Replayed, replay};
pub(super) use store::Entry;
pub(crate) use store::Spool;
pub use store::{MAX_SPOOL_BYTES, MAX_SPOOL_FILES};
