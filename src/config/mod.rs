//! The settings of the user and their checks. Builds all other parts, so it uses all other modules.

mod builder;
mod delivery;
mod env;
#[cfg(feature = "cli")]
mod inspect;
mod install;
mod install_events;
mod metrics;
mod unknown_variables;
mod validate;
#[cfg(any(test, feature = "cli"))]
pub(crate) mod variable_tables;
mod ways_out;

pub use builder::{DEFAULT_PUSH_INTERVAL, MetricsLayerBuilder};
pub use env::DEFAULT_ENV_PREFIX;
#[cfg(feature = "cli")]
pub(crate) use env::{parse_duration, value, variable_name};
#[cfg(feature = "cli")]
pub(crate) use inspect::{Destinations, variables};
#[cfg(feature = "cli")]
pub(crate) use validate::check_namespace;
#[cfg(feature = "cli")]
pub(crate) use variable_tables::{Variable, documented_variables};
