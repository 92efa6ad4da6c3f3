//! The settings of the user and their checks. Builds all other parts, so it uses all other modules.

mod builder;
mod delivery;
mod env;
mod install;
mod metrics;
mod validate;
#[cfg(test)]
pub(crate) mod variable_tables;
mod ways_out;

pub use builder::{DEFAULT_PUSH_INTERVAL, MetricsLayerBuilder};
pub use env::DEFAULT_ENV_PREFIX;
