//! The client of a Pushgateway. Uses `http` beside it.

mod client;
mod clock_offset;
pub(crate) mod conflict;
mod grouping;
pub(crate) mod push;

pub(crate) use client::TEXT_FORMAT;
pub use client::{DEFAULT_CONNECT_TIMEOUT, DEFAULT_REQUEST_TIMEOUT, Pushgateway};
pub(crate) use grouping::{Grouping, parse_grouping};
