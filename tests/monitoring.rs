//! `examples/monitoring`: the dashboard and the rules keep their conventions, leave no metric out, and the files fit
//! together. What the queries return on real servers is in `dashboard_data.rs`.
#![cfg(feature = "pushgateway")]
#![allow(clippy::unwrap_used)]

mod support;

#[path = "monitoring/dashboard.rs"]
mod dashboard;
#[path = "monitoring/files.rs"]
mod files;
#[path = "monitoring/fit_together.rs"]
mod fit_together;
#[path = "monitoring/lint.rs"]
mod lint;
#[path = "monitoring/promql.rs"]
mod promql;
#[path = "monitoring/render.rs"]
mod render;
#[path = "monitoring/rules.rs"]
mod rules;
#[path = "monitoring/shown.rs"]
mod shown;
#[path = "monitoring/states.rs"]
mod states;
