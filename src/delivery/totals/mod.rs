//! Totals over all runs of a group: three counters that each run continues.
//!
//! A group has one writer at a time. Its totals are a *base*, which is what the destination shows before the first push
//! of a run, and the *increments* of the run:
//!
//! ```text
//! unknown ── the group's state is read, and no payload of the group waits ──> known
//! ```
//!
//! While the base is unknown, pushes leave the totals out, and a gateway keeps what it has. Once it is known, each push
//! has the base plus the increments so far. A base whose run started and never completed has one failed run more: that
//! run was killed.
//!
//! The spool keeps what the gateway does not have. A payload records its increments since the last push that was
//! answered ([`SpooledIncrements`]). Its replay ([`decide`]) compares the group's totals with those before and after the
//! increments, so a payload that is delivered twice counts once. Only if the gateway shows the totals of another run are
//! the increments added to them. Before such a request the file gets the sums, so that the next try knows what the first
//! one wrote.
//!
//! `model` is the arithmetic and `replay` the decision, both without I/O. `families` and `read` are the forms of the
//! totals in a payload and on a gateway. `base` is the base of this process, which all ways out share, and `ledger` what
//! the gateway has of it. Uses `exposition` and `schema`.

mod base;
mod families;
mod ledger;
mod model;
mod read;
mod replay;

pub(super) use base::Base;
pub(crate) use base::CumulativeTotals;
pub(super) use families::{is_total, of_families, replace_in};
pub(super) use ledger::{Ledger, OutgoingTotals};
pub(super) use model::{Increments, Outcomes, Totals};
pub(crate) use model::{StageCounts, StageKey};
pub(super) use read::TotalsReader;
pub(super) use replay::{Decision, Shown, SpooledIncrements, decide};
