//! `examples/monitoring`: the dashboard and the rules keep their conventions, leave no metric out, and the files fit
//! together. What the queries return on real servers is in `dashboard_data.rs`.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod dashboard;
mod files;
mod fit_together;
mod lint;
mod promql;
mod render;
mod rules;
mod shown;
mod states;
