//! `examples/monitoring`: dashboard and rules keep their conventions and cover every metric, and the configuration files refer to
//! each other correctly. `examples/deploy`: manifests and units are valid. `dashboard_data.rs` tests the query results on real
//! servers.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod config_files;
mod coverage;
mod dashboard;
mod deploy;
mod files;
mod grafana_schema;
mod links;
mod lint;
mod panel_values;
mod persistence;
mod promql;
mod render;
mod rules;
mod simulator;
