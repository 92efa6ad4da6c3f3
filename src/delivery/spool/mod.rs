//! Payloads that were not delivered yet, on disk.
//!
//! The final payload of a run is written here while it is pushed, and removed when the gateway has it. A later run
//! delivers what is left because the gateway was gone or the process was killed.
//!
//! A file is written under a hidden name, synced and renamed, so that one with its final name is whole. A process that
//! works with a file holds a lock on it, which the system takes back when the process dies: two processes neither send
//! the same file nor remove what the other is sending. A file that is not whole, or that the gateway refuses, gets
//! another ending and is left for people to look at.
//!
//! Two processes may be at work on one group at the same time: one ends its run, the other delivers what an earlier run
//! left. The first creates its file and then looks for locks on earlier payloads of the group ([`Spool::write`]); the
//! second locks the earlier payload and then looks for a later file being written ([`Spool::is_run_ending`]). At least
//! one of them sees the other.

mod format;
mod group_state;
mod last_success;
mod lock;
mod names;
mod replay;
mod samples;
mod select;
mod store;

pub(super) use format::Payload;
pub(super) use group_state::{GroupState, GroupStateReader};
pub(super) use replay::{Replayed, replay};
pub(super) use select::{CarriedOver, Scope};
pub(crate) use store::Spool;
pub(super) use store::{Entry, Written};
pub use store::{MAX_SPOOL_BYTES, MAX_SPOOL_FILES};

#[cfg(test)]
mod tests;
