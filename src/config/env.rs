//! The environment variables of this crate and the syntax of their values.

use std::collections::BTreeSet;
use std::env::{self, VarError};
use std::ffi::OsString;
#[cfg(feature = "http")]
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::validate::{MAX_DURATION, check_constant_label, check_namespace};
use crate::delivery::{GatewayVariables, Grouping, PushFormat, Pushgateway, Variable, parse_labels};
use crate::error::Error;
use crate::layer::FailurePolicy;
use crate::process::{executable_name, looked_up, trimmed};

/// Default prefix of the variables: `TV_`. `with_env_prefix` changes it.
pub const DEFAULT_ENV_PREFIX: &str = "TV_";

/// The variable of OpenTelemetry that selects exporters. `otlp` selects the one of this crate, whatever the prefix.
const OTEL_EXPORTER: &str = "OTEL_METRICS_EXPORTER";

/// The settings in the environment. A variable that is not set, empty or white space is `None`.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    pub(crate) gateway: Option<Pushgateway>,
    /// The variable for the job, if a gateway is set and neither a job nor a grouping is.
    pub(crate) default_job: Option<String>,
    /// The job if there is no gateway.
    pub(crate) job: Option<String>,
    /// The grouping if there is no gateway: labels of the text file.
    pub(crate) grouping: Vec<(String, String)>,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) namespace: Option<String>,
    pub(crate) policy: Option<FailurePolicy>,
    pub(crate) run_id_label: Option<bool>,
    pub(crate) instance_grouping: Option<bool>,
    pub(crate) cumulative_totals: Option<bool>,
    pub(crate) flush_on_signals: Option<bool>,
    pub(crate) push_format: Option<PushFormat>,
    /// Credentials and certificates of a gateway, also of one that the code has set.
    pub(crate) gateway_files: GatewayVariables,
    pub(crate) push_interval: Option<Duration>,
    pub(crate) flush_timeout: Option<Duration>,
    pub(crate) textfile: Option<PathBuf>,
    pub(crate) spool_directory: Option<PathBuf>,
    #[cfg(feature = "http")]
    pub(crate) listen: Option<SocketAddr>,
    /// Whether metrics are exported to a collector.
    #[cfg(feature = "otlp")]
    pub(crate) otlp: bool,
    pub(crate) node: Option<String>,
    pub(crate) native_histograms: Option<bool>,
    pub(crate) stage_cpu: Option<bool>,
    #[cfg(feature = "trace-id")]
    pub(crate) exemplars: Option<bool>,
}

/// Reads the variables of one prefix.
pub(crate) struct EnvReader<L> {
    prefix: String,
    lookup: L,
}

impl EnvReader<fn(&str) -> Result<String, VarError>> {
    pub(crate) fn process(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), lookup: |name| env::var(name) }
    }
}

/// Returns the name of a variable with this prefix.
pub(crate) fn variable_name(prefix: &str, variable: &str) -> String {
    format!("{prefix}PROMETHEUS_{variable}")
}

/// Returns the environment of the process.
pub(super) fn process_variables() -> impl Iterator<Item = (OsString, OsString)> {
    env::vars_os()
}

/// Returns the names of all variables that are read, those of features that are not compiled in included.
pub(super) fn known_variables(prefix: &str) -> BTreeSet<String> {
    looked_up(&[], |lookup| {
        // An empty environment is valid.
        let _ = EnvReader { prefix: prefix.to_owned(), lookup }.read();
    })
}

impl<L: Fn(&str) -> Result<String, VarError>> EnvReader<L> {
    pub(crate) fn read(&self) -> Result<Environment, Error> {
        let job = self.value("JOB")?;
        let grouping = self.parsed("GROUPING", parse_labels)?;
        let is_default_job = job.is_none() && grouping.is_none();
        let grouping = grouping.unwrap_or_default();
        // The URL is checked with a job that is valid, so that an error names the right variable.
        let (gateway, job, grouping) = match self.parsed("PUSHGATEWAY", |url| Pushgateway::new(url, "job"))? {
            Some(gateway) => {
                let group = self.group(&job.unwrap_or_else(executable_name), &grouping)?;
                (Some(gateway.for_group(group)), None, Vec::new())
            }
            None => {
                self.group(job.as_deref().unwrap_or("job"), &grouping)?;
                (None, job, grouping)
            }
        };
        #[cfg(not(feature = "tls"))]
        for variable in ["CA_FILE", "CERT_FILE", "KEY_FILE"] {
            self.compiled_out(variable, "tls")?;
        }
        #[cfg(not(feature = "http"))]
        self.compiled_out("LISTEN", "http")?;
        #[cfg(not(feature = "resource-usage"))]
        self.compiled_out("NODE", "resource-usage")?;
        #[cfg(not(feature = "trace-id"))]
        self.compiled_out("EXEMPLARS", "trace-id")?;
        #[cfg(not(feature = "otlp"))]
        if self.asks_for_otlp()? {
            return Err(compiled_out(OTEL_EXPORTER, "otlp", "otlp"));
        }
        let has_credentials = gateway.as_ref().is_some_and(Pushgateway::has_authorization);
        Ok(Environment {
            default_job: (is_default_job && gateway.is_some()).then(|| self.name("JOB")),
            gateway,
            job,
            grouping,
            labels: self.parsed("LABELS", parse_constant_labels)?.unwrap_or_default(),
            namespace: self.parsed("NAMESPACE", parse_namespace)?,
            policy: self.parsed("FAILURE_POLICY", parse_policy)?,
            run_id_label: self.parsed("RUN_ID_LABEL", parse_bool)?,
            instance_grouping: self.parsed("INSTANCE_GROUPING", parse_bool)?,
            cumulative_totals: self.parsed("CUMULATIVE_TOTALS", parse_bool)?,
            flush_on_signals: self.parsed("FLUSH_ON_SIGNALS", parse_bool)?,
            push_format: self.parsed("PUSH_FORMAT", parse_push_format)?,
            gateway_files: self.gateway_files(has_credentials)?,
            push_interval: self.parsed("PUSH_INTERVAL", parse_duration)?,
            flush_timeout: self.parsed("FLUSH_TIMEOUT", parse_duration)?,
            textfile: self.value("TEXTFILE")?.map(PathBuf::from),
            spool_directory: self.value("SPOOL_DIR")?.map(PathBuf::from),
            #[cfg(feature = "http")]
            listen: self.parsed("LISTEN", parse_listen)?,
            #[cfg(feature = "otlp")]
            otlp: self.asks_for_otlp()?,
            node: self.value("NODE")?,
            native_histograms: self.parsed("NATIVE_HISTOGRAMS", parse_bool)?,
            stage_cpu: self.parsed("STAGE_CPU", parse_bool)?,
            #[cfg(feature = "trace-id")]
            exemplars: self.parsed("EXEMPLARS", parse_bool)?,
        })
    }

    fn name(&self, variable: &str) -> String {
        variable_name(&self.prefix, variable)
    }

    /// Returns whether metrics are exported to a collector. Other exporters belong to other libraries.
    fn asks_for_otlp(&self) -> Result<bool, Error> {
        if self.named("OTEL_SDK_DISABLED")?.is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(false);
        }
        let exporters = self.named(OTEL_EXPORTER)?.unwrap_or_default();
        Ok(exporters.split(',').any(|exporter| exporter.trim() == "otlp"))
    }

    fn value(&self, variable: &str) -> Result<Option<String>, Error> {
        self.named(&self.name(variable))
    }

    fn named(&self, name: &str) -> Result<Option<String>, Error> {
        trimmed(name, (self.lookup)(name))
    }

    fn parsed<T>(&self, variable: &str, parse: impl Fn(&str) -> Result<T, Error>) -> Result<Option<T>, Error> {
        let Some(text) = self.value(variable)? else { return Ok(None) };
        parse(&text).map(Some).map_err(|error| self.wrong(variable, &error))
    }

    /// Reads the files of credentials and certificates. `has_credentials`: the URL has a user or a password.
    fn gateway_files(&self, has_credentials: bool) -> Result<GatewayVariables, Error> {
        let mut files = GatewayVariables::default();
        let basic = self.pair("USERNAME", "PASSWORD_FILE")?;
        let token = self.named_value("BEARER_TOKEN_FILE")?;
        let first = basic.as_ref().map(|(_, password)| password).or(token.as_ref());
        if let Some((name, _)) = first.filter(|_| has_credentials) {
            let gateway = self.name("PUSHGATEWAY");
            return Err(Error::config(format!(
                "the URL in {gateway} has credentials, and {name} is set: give one of them"
            )));
        }
        match (basic, token) {
            (Some(((user, _), _)), Some((token, _))) => {
                return Err(Error::config(format!(
                    "{user} and {token} are set, but a request has one authorization: unset one of them"
                )));
            }
            (Some(((_, user), password)), None) => {
                files.set_basic_auth_file(user, password).map_err(|error| self.wrong("USERNAME", &error))?;
            }
            (None, Some(token)) => files.set_bearer_token_file(token),
            (None, None) => {}
        }
        #[cfg(feature = "tls")]
        {
            if let Some(roots) = self.named_value("CA_FILE")? {
                files.set_root_certificates(roots);
            }
            if let Some((certificate, key)) = self.pair("CERT_FILE", "KEY_FILE")? {
                files.set_client_certificate(certificate, key);
            }
        }
        Ok(files)
    }

    /// Returns the name and the value of a variable.
    fn named_value(&self, variable: &str) -> Result<Option<Variable>, Error> {
        Ok(self.value(variable)?.map(|value| (self.name(variable), value)))
    }

    /// Returns the names and the values of two variables that need each other.
    fn pair(&self, a: &str, b: &str) -> Result<Option<(Variable, Variable)>, Error> {
        let missing = |a, b| Err(Error::config(format!("{} is set without {}: set both", self.name(a), self.name(b))));
        match (self.named_value(a)?, self.named_value(b)?) {
            (Some(a), Some(b)) => Ok(Some((a, b))),
            (None, None) => Ok(None),
            (Some(_), None) => missing(a, b),
            (None, Some(_)) => missing(b, a),
        }
    }

    fn group(&self, job: &str, grouping: &[(String, String)]) -> Result<Grouping, Error> {
        let of = |variable| move |error| self.wrong(variable, &error);
        let mut group = Grouping::new(job).map_err(of("JOB"))?;
        for (name, value) in grouping {
            group.add(name, value).map_err(of("GROUPING"))?;
        }
        Ok(group)
    }

    /// Adds the name of the variable to an error of a parser, which quotes the value.
    fn wrong(&self, variable: &str, error: &Error) -> Error {
        Error::config(format!("{}: {error:?}", self.name(variable)))
    }

    #[cfg(not(all(feature = "http", feature = "resource-usage", feature = "tls", feature = "trace-id")))]
    fn compiled_out(&self, variable: &str, feature: &str) -> Result<(), Error> {
        match self.value(variable)? {
            None => Ok(()),
            Some(value) => Err(compiled_out(&self.name(variable), &value, feature)),
        }
    }
}

#[cfg(not(all(
    feature = "http",
    feature = "resource-usage",
    feature = "otlp",
    feature = "tls",
    feature = "trace-id"
)))]
fn compiled_out(name: &str, value: &str, feature: &str) -> Error {
    Error::config(format!(
        "{name} is {value:?}, and the program is built without the feature `{feature}` of tracing-stage-metrics: unset it, \
         or build with that feature"
    ))
}

/// Parses an address and a port. A port alone is on the loopback address: an address that is open to the network must be
/// complete.
#[cfg(feature = "http")]
fn parse_listen(text: &str) -> Result<SocketAddr, Error> {
    let port = text.strip_prefix("localhost").unwrap_or(text);
    let port = port.strip_prefix(':').unwrap_or(if port.len() == text.len() { port } else { "" });
    if let Ok(port) = port.parse() {
        return Ok((Ipv4Addr::LOCALHOST, port).into());
    }
    text.parse().map_err(|_| {
        Error::config(format!(
            "{text:?} is not an address to listen on: give an IP address and a port, such as 127.0.0.1:9464, or \
             0.0.0.0:9464 for every network of the machine; a port alone is on 127.0.0.1"
        ))
    })
}

fn parse_constant_labels(text: &str) -> Result<Vec<(String, String)>, Error> {
    let labels = parse_labels(text)?;
    let mut names = BTreeSet::new();
    for (name, _) in &labels {
        check_constant_label(name)?;
        if !names.insert(name) {
            return Err(Error::config(format!("constant label {name:?} is given twice: give it once")));
        }
    }
    Ok(labels)
}

fn parse_push_format(text: &str) -> Result<PushFormat, Error> {
    match text {
        "text" => Ok(PushFormat::Text),
        "protobuf" => Ok(PushFormat::Protobuf),
        _ => Err(Error::config(format!("{text:?} is not a format of a push: give text or protobuf"))),
    }
}

fn parse_namespace(text: &str) -> Result<String, Error> {
    check_namespace(text)?;
    Ok(text.to_owned())
}

fn parse_policy(text: &str) -> Result<FailurePolicy, Error> {
    match text {
        "error-events" => Ok(FailurePolicy::ErrorEvents),
        "returned-error" => Ok(FailurePolicy::ReturnedError),
        "errors-within" => Ok(FailurePolicy::ErrorsWithin),
        "proven-success" => Ok(FailurePolicy::ProvenSuccess),
        _ => Err(Error::config(format!(
            "{text:?} is not a failure policy: give error-events, returned-error, errors-within or proven-success"
        ))),
    }
}

fn parse_bool(text: &str) -> Result<bool, Error> {
    text.parse().map_err(|_| Error::config(format!("{text:?} is neither true nor false")))
}

/// Returns the value of a variable as the settings are read from it.
#[cfg(feature = "cli")]
pub(crate) fn value(name: &str) -> Result<Option<String>, Error> {
    trimmed(name, env::var(name))
}

/// Parses a number and a unit: `ms`, `s`, `m`, `h` or `d`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, Error> {
    let wrong = |why: &str| {
        Error::config(format!(
            "{text:?} is not a duration: {why}; give a number and ms, s, m, h or d, such as 500ms or 15s"
        ))
    };
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit.trim() {
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        "" => return Err(wrong("it has no unit")),
        _ => return Err(wrong("the unit is unknown")),
    };
    let number: f64 = number.parse().map_err(|_| wrong("it does not begin with a number"))?;
    let duration = Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong("it is too long"))?;
    if duration.is_zero() || duration > MAX_DURATION {
        return Err(wrong("it must be above zero and at most a year"));
    }
    Ok(duration)
}

#[cfg(test)]
mod tests;
