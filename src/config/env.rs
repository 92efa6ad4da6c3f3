//! The environment variables of this crate and the syntax of their values.

use std::env::{self, VarError};
#[cfg(feature = "http")]
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::validate::{MAX_DURATION, check_constant_label};
use crate::delivery::{Grouping, PushFormat, Pushgateway, parse_labels};
use crate::error::Error;
use crate::process::{executable_name, trimmed};

/// Default prefix of the variables. `with_env_prefix` changes it.
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
    pub(crate) push_format: Option<PushFormat>,
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

impl<L: Fn(&str) -> Result<String, VarError>> EnvReader<L> {
    pub(crate) fn read(&self) -> Result<Environment, Error> {
        let job = self.value("JOB")?;
        let grouping = self.parsed("GROUPING", parse_labels)?;
        let is_default_job = job.is_none() && grouping.is_none();
        let grouping = grouping.unwrap_or_default();
        let (gateway, job, grouping) = match self.value("PUSHGATEWAY")? {
            Some(url) => (Some(self.gateway(&url, job, grouping)?), None, Vec::new()),
            None => {
                self.check_group(job.as_deref(), &grouping)?;
                (None, job, grouping)
            }
        };
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
        Ok(Environment {
            default_job: (is_default_job && gateway.is_some()).then(|| self.name("JOB")),
            gateway,
            job,
            grouping,
            labels: self.parsed("LABELS", parse_constant_labels)?.unwrap_or_default(),
            push_format: self.parsed("PUSH_FORMAT", parse_push_format)?,
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
            #[cfg(feature = "trace-id")]
            exemplars: self.parsed("EXEMPLARS", parse_bool)?,
        })
    }

    fn name(&self, variable: &str) -> String {
        format!("{}PROMETHEUS_{variable}", self.prefix)
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

    fn gateway(&self, url: &str, job: Option<String>, grouping: Vec<(String, String)>) -> Result<Pushgateway, Error> {
        let has_job = job.is_some();
        let job = job.unwrap_or_else(executable_name);
        let of = |variable| move |error| self.wrong(variable, &error);
        // The URL is checked first, with a job that is always valid, so that an error names the right variable.
        Pushgateway::new(url, "job").map_err(of("PUSHGATEWAY"))?;
        let mut gateway = Pushgateway::new(url, job).map_err(of(if has_job { "JOB" } else { "PUSHGATEWAY" }))?;
        for (name, value) in grouping {
            gateway = gateway.with_grouping_label(name, value).map_err(of("GROUPING"))?;
        }
        Ok(gateway)
    }

    fn check_group(&self, job: Option<&str>, grouping: &[(String, String)]) -> Result<(), Error> {
        let of = |variable| move |error| self.wrong(variable, &error);
        let mut group = Grouping::new(job.unwrap_or("job")).map_err(of("JOB"))?;
        for (name, value) in grouping {
            group.add(name, value).map_err(of("GROUPING"))?;
        }
        Ok(())
    }

    /// Adds the name of the variable to an error of a parser, which quotes the value.
    fn wrong(&self, variable: &str, error: &Error) -> Error {
        Error::config(format!("{}: {error:?}", self.name(variable)))
    }

    #[cfg(not(all(feature = "http", feature = "resource-usage", feature = "trace-id")))]
    fn compiled_out(&self, variable: &str, feature: &str) -> Result<(), Error> {
        match self.value(variable)? {
            None => Ok(()),
            Some(value) => Err(compiled_out(&self.name(variable), &value, feature)),
        }
    }
}

#[cfg(not(all(feature = "http", feature = "resource-usage", feature = "otlp", feature = "trace-id")))]
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
    labels.iter().try_for_each(|(name, _)| check_constant_label(name))?;
    Ok(labels)
}

fn parse_push_format(text: &str) -> Result<PushFormat, Error> {
    match text {
        "text" => Ok(PushFormat::Text),
        "protobuf" => Ok(PushFormat::Protobuf),
        _ => Err(Error::config(format!("{text:?} is not a format of a push: give text or protobuf"))),
    }
}

fn parse_bool(text: &str) -> Result<bool, Error> {
    text.parse().map_err(|_| Error::config(format!("{text:?} is neither true nor false")))
}

/// Parses a number and a unit: `ms`, `s`, `m` or `h`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, Error> {
    let wrong = |why: &str| {
        Error::config(format!(
            "{text:?} is not a duration: {why}; give a number and ms, s, m or h, such as 500ms or 15s"
        ))
    };
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit.trim() {
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
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
mod tests {
    use super::*;
    use crate::config::variable_tables as tables;
    use proptest::prelude::*;

    fn read(variables: &[(&str, &str)]) -> Result<Environment, Error> {
        let lookup = |name: &str| {
            let variable = variables.iter().find(|(variable, _)| *variable == name);
            variable.map(|(_, value)| (*value).to_owned()).ok_or(VarError::NotPresent)
        };
        EnvReader { prefix: DEFAULT_ENV_PREFIX.to_owned(), lookup }.read()
    }

    fn message(variables: &[(&str, &str)]) -> String {
        let error = read(variables).unwrap_err();
        assert!(error.is_config());
        error.to_string()
    }

    #[test]
    fn the_documentation_lists_every_variable_that_is_read_and_no_other() {
        let read = |set: &[(&str, &str)]| {
            tables::looked_up(set, |lookup| {
                let _ = EnvReader { prefix: DEFAULT_ENV_PREFIX.to_owned(), lookup }.read();
            })
        };
        let mut listed = tables::variables("Environment variables");
        // A test of `otlp::settings` compares the other variables of OpenTelemetry.
        listed.insert("OTEL_SDK_DISABLED".to_owned());
        assert_eq!(read(&[]), listed);
        // Some variables are read only if another one is set.
        for (name, value) in [("TV_PROMETHEUS_PUSHGATEWAY", "gateway:9091"), ("OTEL_METRICS_EXPORTER", "otlp")] {
            let names = read(&[(name, value)]);
            assert!(names.is_subset(&listed), "{names:?}");
        }
    }

    #[test]
    fn unset_and_empty_variables_set_nothing() {
        for empty in ["", " ", "\n", " \t\r\n"] {
            let variables = [("TV_PROMETHEUS_PUSHGATEWAY", empty), ("TV_PROMETHEUS_PUSH_INTERVAL", empty)];
            let environment = read(&variables).unwrap();
            assert!(environment.gateway.is_none() && environment.push_interval.is_none(), "{empty:?}");
            assert_eq!(environment.default_job, None);
        }
    }

    /// Tests every variable, so that a new one cannot be forgotten.
    #[test]
    fn white_space_around_a_value_is_ignored() {
        let values = [
            ("TV_PROMETHEUS_PUSHGATEWAY", "http://gateway:9091/x"),
            ("TV_PROMETHEUS_JOB", "quant"),
            ("TV_PROMETHEUS_GROUPING", "a= b c ,d=e f"),
            ("TV_PROMETHEUS_LABELS", "g= h i "),
            ("TV_PROMETHEUS_PUSH_FORMAT", "protobuf"),
            ("TV_PROMETHEUS_PUSH_INTERVAL", "1m"),
            ("TV_PROMETHEUS_FLUSH_TIMEOUT", "500ms"),
            ("TV_PROMETHEUS_TEXTFILE", "/tmp/x y.prom"),
            ("TV_PROMETHEUS_SPOOL_DIR", "/tmp/spool"),
            ("TV_PROMETHEUS_NATIVE_HISTOGRAMS", "true"),
            #[cfg(feature = "http")]
            ("TV_PROMETHEUS_LISTEN", "localhost:9464"),
            #[cfg(feature = "resource-usage")]
            ("TV_PROMETHEUS_NODE", "worker 7"),
            #[cfg(feature = "otlp")]
            ("OTEL_METRICS_EXPORTER", "otlp"),
            #[cfg(feature = "trace-id")]
            ("TV_PROMETHEUS_EXEMPLARS", "true"),
        ];
        #[cfg(all(feature = "http", feature = "resource-usage", feature = "otlp", feature = "trace-id"))]
        for name in tables::variables("Environment variables") {
            assert!(values.iter().any(|(known, _)| *known == name), "{name} is missing here");
        }
        let plain = format!("{:?}", read(&values).unwrap());
        for (before, after) in [("", "\n"), ("", " \r\n"), (" \t", ""), ("\n\n", " \u{a0}\n")] {
            let padded = values.map(|(name, value)| (name, format!("{before}{value}{after}")));
            let padded: Vec<_> = padded.iter().map(|(name, value)| (*name, value.as_str())).collect();
            assert_eq!(format!("{:?}", read(&padded).unwrap()), plain, "{before:?} {after:?}");
        }
        assert!(
            plain.contains(r#"("a", " b c "), ("d", "e f")"#),
            "white space within the list belongs to its values: {plain}"
        );
    }

    #[test]
    fn every_variable_sets_its_setting() {
        let environment = read(&[
            ("TV_PROMETHEUS_PUSHGATEWAY", "gateway:9091"),
            ("TV_PROMETHEUS_JOB", "quant"),
            ("TV_PROMETHEUS_GROUPING", r"profile=a\,b,team=x"),
            ("TV_PROMETHEUS_LABELS", r"env=prod,region=a\,b"),
            ("TV_PROMETHEUS_PUSH_FORMAT", "protobuf"),
            ("TV_PROMETHEUS_PUSH_INTERVAL", "1m"),
            ("TV_PROMETHEUS_FLUSH_TIMEOUT", "500ms"),
            ("TV_PROMETHEUS_TEXTFILE", "/tmp/x.prom"),
            ("TV_PROMETHEUS_SPOOL_DIR", "/tmp/spool"),
            ("TV_PROMETHEUS_NATIVE_HISTOGRAMS", "false"),
            #[cfg(feature = "http")]
            ("TV_PROMETHEUS_LISTEN", "[::1]:9464"),
            #[cfg(feature = "resource-usage")]
            ("TV_PROMETHEUS_NODE", "worker-7"),
            #[cfg(feature = "trace-id")]
            ("TV_PROMETHEUS_EXEMPLARS", "true"),
        ])
        .unwrap();
        let gateway = environment.gateway.unwrap();
        assert_eq!(gateway.grouping().job(), "quant");
        assert_eq!(gateway.grouping().get("profile"), Some("a,b"));
        assert_eq!(gateway.grouping().get("team"), Some("x"));
        let labels = [("env", "prod"), ("region", "a,b")];
        assert_eq!(environment.labels, labels.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(environment.push_format, Some(PushFormat::Protobuf));
        assert_eq!(environment.push_interval, Some(Duration::from_secs(60)));
        assert_eq!(environment.flush_timeout, Some(Duration::from_millis(500)));
        assert_eq!(environment.textfile, Some(PathBuf::from("/tmp/x.prom")));
        assert_eq!(environment.spool_directory, Some(PathBuf::from("/tmp/spool")));
        assert_eq!(environment.native_histograms, Some(false));
        #[cfg(feature = "http")]
        assert_eq!(environment.listen, Some("[::1]:9464".parse().unwrap()));
        #[cfg(feature = "resource-usage")]
        assert_eq!(environment.node.as_deref(), Some("worker-7"));
        #[cfg(feature = "trace-id")]
        assert_eq!(environment.exemplars, Some(true));
        assert_eq!(environment.default_job, None);
    }

    #[test]
    fn job_defaults_to_the_program_name() {
        let environment = read(&[("TV_PROMETHEUS_PUSHGATEWAY", "gateway:9091")]).unwrap();
        assert_eq!(environment.default_job.as_deref(), Some("TV_PROMETHEUS_JOB"));
        assert!(environment.gateway.unwrap().grouping().job().starts_with("tracing_stage_metrics"));
    }

    #[test]
    fn error_names_the_variable_and_quotes_the_value() {
        for (variable, value) in [
            ("TV_PROMETHEUS_PUSHGATEWAY", "ftp://gateway"),
            ("TV_PROMETHEUS_PUSH_INTERVAL", "15"),
            ("TV_PROMETHEUS_PUSH_INTERVAL", "s"),
            ("TV_PROMETHEUS_FLUSH_TIMEOUT", "5 days"),
            ("TV_PROMETHEUS_PUSH_FORMAT", "Protobuf"),
            ("TV_PROMETHEUS_NATIVE_HISTOGRAMS", "yes"),
            ("TV_PROMETHEUS_LABELS", "env"),
        ] {
            let message = message(&[(variable, value)]);
            assert!(message.starts_with(&format!("{variable}: ")) && message.contains(value), "{message}");
        }
        let message = message(&[("TV_PROMETHEUS_PUSHGATEWAY", "gateway:9091"), ("TV_PROMETHEUS_GROUPING", "1st=x")]);
        assert!(message.starts_with("TV_PROMETHEUS_GROUPING: ") && message.contains("1st"), "{message}");
        let message = self::message(&[("TV_PROMETHEUS_LABELS", "stage_id=x")]);
        assert!(message.starts_with("TV_PROMETHEUS_LABELS: constant label \"stage_id\" "), "{message}");
    }

    #[test]
    #[cfg(feature = "http")]
    fn port_alone_is_on_the_loopback_address() {
        for (text, address) in [
            ("9464", "127.0.0.1:9464"),
            (":9464", "127.0.0.1:9464"),
            ("localhost:9464", "127.0.0.1:9464"),
            ("0.0.0.0:0", "0.0.0.0:0"),
            ("[::]:9464", "[::]:9464"),
        ] {
            assert_eq!(parse_listen(text).unwrap(), address.parse().unwrap(), "{text}");
        }
        for text in
            ["localhost", "localhost9464", "::9464", "127.0.0.1", "65536", "-1", "worker-7:9464", "http://0.0.0.0:1"]
        {
            let message = message(&[("TV_PROMETHEUS_LISTEN", text)]);
            assert!(
                message.contains(&format!("TV_PROMETHEUS_LISTEN: {text:?} is not an address to listen on")),
                "{message}"
            );
        }
    }

    #[test]
    #[cfg(not(all(feature = "http", feature = "resource-usage", feature = "otlp")))]
    fn variable_of_a_missing_feature_names_the_feature() {
        for (name, feature) in [
            #[cfg(not(feature = "http"))]
            ("TV_PROMETHEUS_LISTEN", "http"),
            #[cfg(not(feature = "resource-usage"))]
            ("TV_PROMETHEUS_NODE", "resource-usage"),
            #[cfg(not(feature = "otlp"))]
            ("OTEL_METRICS_EXPORTER", "otlp"),
        ] {
            let message = message(&[(name, "otlp")]);
            assert!(message.starts_with(&format!("{name} is \"otlp\"")), "{message}");
            assert!(message.contains(&format!("the feature `{feature}`")), "{message}");
        }
    }

    #[test]
    fn other_exporters_are_ignored() {
        for exporters in ["none", "prometheus", "console,prometheus", "otlp2"] {
            let environment =
                read(&[("OTEL_METRICS_EXPORTER", exporters), ("OTEL_EXPORTER_OTLP_ENDPOINT", "x")]).unwrap();
            assert!(environment.gateway.is_none());
            #[cfg(feature = "otlp")]
            assert!(!environment.otlp, "{exporters}");
        }
    }

    #[test]
    fn disabled_opentelemetry_selects_no_exporter() {
        let environment = read(&[("OTEL_METRICS_EXPORTER", "otlp"), ("OTEL_SDK_DISABLED", "TRUE")]).unwrap();
        assert!(environment.gateway.is_none());
        #[cfg(feature = "otlp")]
        assert!(!environment.otlp);
    }

    #[test]
    #[cfg(feature = "otlp")]
    fn otlp_is_selected_among_other_exporters() {
        for exporters in ["otlp", " otlp ", "prometheus,otlp"] {
            assert!(read(&[("OTEL_METRICS_EXPORTER", exporters)]).unwrap().otlp, "{exporters}");
        }
    }

    #[test]
    fn error_hides_the_password_of_a_wrong_url() {
        for url in ["ftp://me:secret@gateway", "http://me:secret@", "http://me:secret@gateway:99999", "me:secret@"] {
            let message = message(&[("TV_PROMETHEUS_PUSHGATEWAY", url)]);
            assert!(!message.contains("secret"), "{message}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn error_hides_a_value_that_is_not_utf_8() {
        use std::os::unix::ffi::OsStringExt;
        let value = std::ffi::OsString::from_vec(b"http://me:secr\xe4t@gateway".to_vec());
        let lookup = |name: &str| match name {
            "TV_PROMETHEUS_PUSHGATEWAY" => Err(VarError::NotUnicode(value.clone())),
            _ => Err(VarError::NotPresent),
        };
        let error = EnvReader { prefix: DEFAULT_ENV_PREFIX.to_owned(), lookup }.read().unwrap_err();
        assert_eq!(error.to_string(), "TV_PROMETHEUS_PUSHGATEWAY is not UTF-8: set it to text that is");
    }

    #[test]
    fn wrong_durations_are_explained() {
        assert_eq!(parse_duration("1.5s").unwrap(), Duration::from_millis(1_500));
        assert_eq!(parse_duration("2h").unwrap(), Duration::from_secs(7_200));
        for (text, why) in [
            ("15", "it has no unit"),
            ("15 sec", "the unit is unknown"),
            ("s", "it does not begin with a number"),
            ("1.2.3s", "it does not begin with a number"),
            ("-1s", "the unit is unknown"),
            ("99999999999999999999h", "it is too long"),
            ("0s", "it must be above zero and at most a year"),
            ("9999h", "it must be above zero and at most a year"),
        ] {
            let expected =
                format!("{text:?} is not a duration: {why}; give a number and ms, s, m or h, such as 500ms or 15s");
            assert_eq!(parse_duration(text).unwrap_err().to_string(), expected);
        }
    }

    proptest! {
        #[test]
        fn durations_round_trip(n in 1..500_000_u64) {
            prop_assert_eq!(parse_duration(&format!("{n}ms")).unwrap(), Duration::from_millis(n));
            prop_assert_eq!(parse_duration(&format!("{n}s")).unwrap(), Duration::from_secs(n));
            prop_assert_eq!(parse_duration(&format!("{n}m")).unwrap(), Duration::from_secs(n * 60));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,20}") {
            let _ = parse_duration(&text);
        }
    }
}
