//! Payloads on disk that are not delivered yet.
//!
//! The final payload of a run is written here while it is pushed, and removed when the gateway has it. A later run
//! delivers the payloads that are left, because the gateway was down or the process was killed.
//!
//! A file is written under a hidden name, synced and renamed, so that a file with its final name is complete. A process
//! that works with a file holds a lock on it, which the system releases when the process dies: two processes neither
//! send the same file, nor does one remove a file that the other sends. An incomplete file, or one that the gateway
//! refuses, gets another extension and stays for inspection.
//!
//! Two processes may work on one group at the same time: one ends its run, the other delivers a payload of an earlier
//! run. The first creates its file, then checks earlier payloads of the group for locks ([`Spool::write`]), and then pushes,
//! unless the disk is slow. The second locks the earlier payload and then checks for a later file that is being written
//! ([`Spool::is_run_ending`]). At least one of them sees the other.
//!
//! Uses `pushgateway`, `totals`, `http` and `event`.

mod format;
mod increments;
mod last_success;
mod lock;
#[cfg(feature = "cli")]
mod manual;
mod names;
mod pending;
mod replay;
mod select;
mod store;

pub(super) use format::Payload;
#[cfg(feature = "cli")]
pub(crate) use manual::{FileState, SpoolFile};
#[cfg(feature = "cli")]
pub(crate) use replay::PayloadOutcome;
pub(super) use replay::{Replayed, replay};
pub(super) use select::{CarriedOver, Scope};
pub(crate) use store::Spool;
pub(super) use store::{Entry, WriteState, Written};
pub use store::{MAX_SPOOL_BYTES, MAX_SPOOL_FILES};

#[cfg(test)]
mod tests;
