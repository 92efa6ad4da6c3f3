//! The settings as the program `stage-metrics` shows and checks them.

use std::path::PathBuf;

use super::builder::MetricsLayerBuilder;
use super::env::{DEFAULT_ENV_PREFIX, value};
#[cfg(feature = "otlp")]
use super::variable_tables::documented_otlp_variables;
use super::variable_tables::{Variable, documented_variables};
use crate::delivery::{Pushgateway, without_credentials};
use crate::error::Error;

/// Returns the variables with this prefix, and the values of those that are set, without credentials. Those of OTLP are
/// among them if they are set, and if OTLP is.
pub(crate) fn variables(prefix: &str) -> Vec<(Variable, Option<String>)> {
    let shown = |mut variable: Variable| {
        if let Some(name) = variable.name.strip_prefix(DEFAULT_ENV_PREFIX) {
            variable.name = format!("{prefix}{name}");
        }
        // The error of a value that is no text is one of `with_env()`.
        let value = value(&variable.name).ok().flatten().map(|value| shown(&variable.name, &value));
        (variable, value)
    };
    #[cfg_attr(not(feature = "otlp"), allow(unused_mut))]
    let mut variables: Vec<_> = documented_variables().into_iter().map(shown).collect();
    #[cfg(feature = "otlp")]
    if variables.iter().any(|(variable, value)| variable.name == "OTEL_METRICS_EXPORTER" && value.is_some()) {
        variables.extend(documented_otlp_variables().into_iter().map(shown).filter(|(_, value)| value.is_some()));
    }
    variables
}

/// Returns a value without credentials: a user, those of a URL, and those in headers.
fn shown(name: &str, value: &str) -> String {
    if name.ends_with("_HEADERS") || name.ends_with("_USERNAME") {
        "***".to_owned()
    } else if name.ends_with("_PUSHGATEWAY") || name.ends_with("_ENDPOINT") {
        without_credentials(value)
    } else {
        value.to_owned()
    }
}

/// The destinations that can be tried.
pub(crate) struct Destinations {
    pub(crate) gateway: Option<Pushgateway>,
    pub(crate) textfile: Option<PathBuf>,
    pub(crate) spool_directory: Option<PathBuf>,
    /// Whether there is a destination at all, one of those that cannot be tried included.
    pub(crate) has_any: bool,
    pub(crate) namespace: String,
}

impl MetricsLayerBuilder {
    /// Returns the destinations of the settings, with the format in which the layer would push.
    pub(crate) fn destinations(&mut self) -> Destinations {
        self.ways_out();
        let has_any = self.gateway.is_some() || self.textfile.is_some();
        #[cfg(feature = "http")]
        let has_any = has_any || self.listen.is_some();
        #[cfg(feature = "otlp")]
        let has_any = has_any || self.otlp.is_some();
        Destinations {
            gateway: self.gateway.clone(),
            textfile: self.textfile.clone(),
            spool_directory: self.spool_directory.clone(),
            has_any,
            namespace: self.namespace.clone(),
        }
    }

    /// Finds every error that [`install`](Self::install) would find, and emits its warnings, but installs and delivers nothing.
    pub(crate) fn check_install(self) -> Result<(), Error> {
        let mut is_valid = false;
        // The recorder is installed last, since that cannot be undone. Until then nothing is delivered.
        let result = self.start(|_| {
            is_valid = true;
            Err(Error::config("nothing is installed"))
        });
        if is_valid { Ok(()) } else { result.map(drop) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shown_without_credentials() {
        for (name, value, text) in [
            ("TV_PROMETHEUS_PUSHGATEWAY", "http://me:hush@gw:9091/x", "http://gw:9091/x"),
            ("TV_PROMETHEUS_PUSHGATEWAY", "http://me:hush@gw:port", "http://***@gw:***"),
            ("TV_PROMETHEUS_PUSHGATEWAY", "me:hush@gw", "http://gw"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://me:hush@collector:4318", "http://collector:4318"),
            ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "authorization=hush", "***"),
            ("TV_PROMETHEUS_USERNAME", "hush", "***"),
            ("TV_PROMETHEUS_GROUPING", "profile=a@b", "profile=a@b"),
        ] {
            assert_eq!(shown(name, value), text, "{name}");
        }
    }
}
