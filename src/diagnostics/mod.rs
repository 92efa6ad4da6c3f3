//! The crate's own `tracing` events, and the spans and events of its own traffic, which no subscriber gets.

mod events;
#[cfg(feature = "pushgateway")]
pub(crate) mod suppress;

pub(crate) use events::Diagnostics;
