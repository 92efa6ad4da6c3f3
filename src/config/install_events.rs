//! The events of `install()` and `build()`: warnings about settings that are valid but hardly intended, and one that says where
//! the metrics go.

use std::net::SocketAddr;
use std::path::{self, Path, PathBuf};
use std::time::Duration;

use tracing::field::debug;
use tracing::{info, warn};

use super::builder::MetricsLayerBuilder;
use super::env::variable_name;
use super::ways_out::WaysOut;
use crate::delivery::Pushgateway;
#[cfg(feature = "otlp")]
use crate::delivery::otlp::OtlpPipeline;
use crate::diagnostics::Diagnostics;
use crate::schema::{OWN_TARGET, RUN_ID};

type Warning = Box<dyn FnOnce() + Send>;

/// The events of one `install()`.
pub(super) struct InstallEvents {
    warnings: Vec<Warning>,
    /// URL and path of the group.
    gateway: Option<(String, String)>,
    textfile: Option<PathBuf>,
    spool: Option<PathBuf>,
    /// The URL of the collector.
    collector: Option<String>,
    /// Whether the metrics go to a meter, which the application exports.
    has_meter: bool,
    push_interval: Duration,
    /// What to do where metrics go nowhere.
    remedy: String,
}

impl MetricsLayerBuilder {
    /// Returns the events of these settings, which are complete and checked.
    pub(super) fn install_events(&mut self, ways_out: WaysOut) -> InstallEvents {
        let gateway = self.gateway.as_ref();
        InstallEvents {
            gateway: gateway.map(|gateway| (gateway.endpoint().to_owned(), gateway.grouping().path())),
            textfile: self.textfile.as_deref().map(absolute),
            spool: self.spool_directory.as_deref().map(absolute),
            collector: None,
            has_meter: false,
            push_interval: self.push_interval,
            remedy: match &self.env_prefix {
                Some(prefix) => format!("set {}", variable_name(prefix, "PUSHGATEWAY")),
                None => "call `with_pushgateway`, or `with_env` to read the settings from the environment".to_owned(),
            },
            warnings: self.warnings(ways_out),
        }
    }

    fn warnings(&mut self, ways_out: WaysOut) -> Vec<Warning> {
        let mut warnings: Vec<Warning> = Vec::new();
        for (variable, nearest) in std::mem::take(&mut self.unknown_variables) {
            warnings.push(Box::new(move || {
                warn!(
                    target: OWN_TARGET,
                    variable,
                    nearest,
                    "the variable {variable:?} is unknown and has no effect: the nearest known one is {nearest}"
                );
            }));
        }
        if let (Some(gateway), Some(variable)) = (&self.gateway, self.default_job.take()) {
            let job = gateway.grouping().job().to_owned();
            warnings.push(Box::new(move || {
                warn!(
                    target: OWN_TARGET,
                    job,
                    "neither a job nor a grouping is set, so the metrics go to the group of the program's name, {job:?}: \
                     set {variable}, since jobs that share a group overwrite each other"
                );
            }));
        }
        // VictoriaMetrics has no groups.
        let makes_group = |gateway: &Pushgateway| gateway.grouping().get(RUN_ID).is_some() && !gateway.stores_samples();
        if self.gateway.as_ref().is_some_and(makes_group) {
            warnings.push(Box::new(|| {
                warn!(
                    target: OWN_TARGET,
                    "the grouping has the label `{RUN_ID}`, so each run makes a group that the gateway keeps until it is \
                     deleted: leave the label out of the grouping, and set the field `{RUN_ID}` on a span"
                );
            }));
        }
        if let Some(path) = self.textfile.clone().filter(|path| !is_read_by_node_exporter(path)) {
            warnings.push(Box::new(move || {
                warn!(
                    target: OWN_TARGET,
                    "the name of the text file {path:?} does not end in .prom: node_exporter does not read it"
                );
            }));
        }
        for warning in ways_out.warning().into_iter().chain(self.totals_warning()) {
            warnings.push(Box::new(move || warn!(target: OWN_TARGET, "{warning}")));
        }
        warnings
    }
}

/// Returns the path without its dependence on the working directory, which may change.
fn absolute(path: &Path) -> PathBuf {
    path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Whether the textfile collector reads a file of this name.
fn is_read_by_node_exporter(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().ends_with(b".prom"))
}

impl InstallEvents {
    /// Emits the warnings.
    pub(super) fn warn(&mut self, diagnostics: &Diagnostics) {
        for warning in self.warnings.drain(..) {
            diagnostics.emit(warning);
        }
    }

    /// Sets where the OpenTelemetry metrics go.
    #[cfg(feature = "otlp")]
    pub(super) fn set_otlp(&mut self, otlp: &OtlpPipeline) {
        self.collector = otlp.exporter.as_ref().and_then(|exporter| exporter.endpoint());
        self.has_meter = otlp.updates_eagerly;
    }

    /// Emits the event that says where the metrics go. `listener` is the address with its actual port.
    pub(super) fn started(self, listener: Option<SocketAddr>, diagnostics: &Diagnostics) {
        let Self { collector, textfile, .. } = self;
        let (gateway, group) = self.gateway.unzip();
        let destinations = [
            (gateway.is_some(), "the gateway"),
            (textfile.is_some(), "the text file"),
            (collector.is_some(), "the collector"),
            (self.has_meter, "the meter of the application"),
            (listener.is_some(), "scrapes of /metrics"),
        ];
        let destinations: Vec<_> =
            destinations.into_iter().filter_map(|(is_set, name)| is_set.then_some(name)).collect();
        if destinations.is_empty() {
            let remedy = self.remedy;
            diagnostics.emit(move || info!(target: OWN_TARGET, "metrics go nowhere: {remedy}"));
            return;
        }
        let destinations = destinations.join(" and ");
        let has_interval = gateway.is_some() || textfile.is_some() || collector.is_some();
        let interval = has_interval.then_some(self.push_interval).map(debug);
        let (textfile, listener) = (textfile.map(debug), listener.map(debug));
        let spool = self.spool.filter(|_| gateway.is_some()).map(debug);
        diagnostics.emit(move || {
            info!(
                target: OWN_TARGET,
                gateway, group, spool, textfile, collector, listener, interval, "metrics go to {destinations}"
            );
        });
    }
}
