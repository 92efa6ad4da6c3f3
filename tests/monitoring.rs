//! `examples/monitoring`: dashboard and rules keep their conventions and cover every metric, and the configuration
//! files refer to each other correctly. `dashboard_data.rs` tests the query results on real servers.
#![cfg(feature = "pushgateway")]
#![allow(clippy::unwrap_used)]

mod support;

#[path = "monitoring/config_files.rs"]
mod config_files;
#[path = "monitoring/coverage.rs"]
mod coverage;
#[path = "monitoring/dashboard.rs"]
mod dashboard;
#[path = "monitoring/files.rs"]
mod files;
#[path = "monitoring/lint.rs"]
mod lint;
#[path = "monitoring/panel_values.rs"]
mod panel_values;
#[path = "monitoring/promql.rs"]
mod promql;
#[path = "monitoring/render.rs"]
mod render;
#[path = "monitoring/rules.rs"]
mod rules;
