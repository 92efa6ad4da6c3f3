//! The client of a Pushgateway: pushes, the state of a group, and the conflicts of two groups. Uses `http`, and
//! `source` for the state to push.

mod client;
mod clock_offset;
mod conflict;
mod conflicting_groups;
mod files;
mod format;
mod group_state;
mod grouping;
#[cfg(feature = "cli")]
mod groups;
mod lines;
mod push;
mod requests;

pub use client::{DEFAULT_CONNECT_TIMEOUT, DEFAULT_REQUEST_TIMEOUT, Pushgateway};
pub(crate) use files::{GatewayVariables, Variable};
pub(super) use format::EncodedState;
pub use format::PushFormat;
pub(super) use group_state::GroupState;
pub(crate) use grouping::{Grouping, check_label_name, parse_labels};
#[cfg(feature = "cli")]
pub(crate) use groups::Group;
pub(super) use push::{OutcomeGuard, Pushed, STAGES_PUSHED, application_refused, push_state};
