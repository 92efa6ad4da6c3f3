//! The environment variables, and how their values are read.

use std::env::{self, VarError};
#[cfg(feature = "http")]
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::validate::MAX_DURATION;
use crate::delivery::{Grouping, Pushgateway, parse_grouping};
use crate::error::Error;
use crate::process::{executable_name, trimmed};

/// What the names of the variables begin with unless `with_env_prefix` says otherwise.
pub const DEFAULT_ENV_PREFIX: &str = "TV_";

/// Names the exporters of metrics: `otlp` asks for this crate's. The name is OpenTelemetry's, whatever the prefix.
const OTEL_EXPORTER: &str = "OTEL_METRICS_EXPORTER";

/// What the environment says. A variable that is not set, empty or white space is `None`.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    pub(crate) gateway: Option<Pushgateway>,
    /// Neither a job nor a grouping was given.
    pub(crate) job_by_default: bool,
    /// Job and grouping where no gateway is given: labels of the text file.
    pub(crate) job_labels: Vec<(String, String)>,
    pub(crate) push_interval: Option<Duration>,
    pub(crate) flush_timeout: Option<Duration>,
    pub(crate) textfile: Option<PathBuf>,
    pub(crate) spool_directory: Option<PathBuf>,
    #[cfg(feature = "http")]
    pub(crate) listen: Option<SocketAddr>,
    /// The metrics are to go to a collector.
    #[cfg(feature = "otlp")]
    pub(crate) otlp: bool,
    pub(crate) node: Option<String>,
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
        let grouping = self.parsed("GROUPING", parse_grouping)?;
        let job_by_default = job.is_none() && grouping.is_none();
        let (gateway, job_labels) = match self.value("PUSHGATEWAY")? {
            Some(url) => (Some(self.gateway(&url, job, grouping.unwrap_or_default())?), Vec::new()),
            None if job_by_default => (None, Vec::new()),
            None => (None, self.job_labels(job, grouping.unwrap_or_default())?),
        };
        #[cfg(not(feature = "http"))]
        self.compiled_out("LISTEN", "http")?;
        #[cfg(not(feature = "resource-usage"))]
        self.compiled_out("NODE", "resource-usage")?;
        #[cfg(not(feature = "otlp"))]
        if self.asks_for_otlp()? {
            return Err(compiled_out(OTEL_EXPORTER, "otlp", "otlp"));
        }
        Ok(Environment {
            job_by_default: job_by_default && gateway.is_some(),
            gateway,
            job_labels,
            push_interval: self.parsed("PUSH_INTERVAL", parse_duration)?,
            flush_timeout: self.parsed("FLUSH_TIMEOUT", parse_duration)?,
            textfile: self.value("TEXTFILE")?.map(PathBuf::from),
            spool_directory: self.value("SPOOL_DIR")?.map(PathBuf::from),
            #[cfg(feature = "http")]
            listen: self.parsed("LISTEN", parse_listen)?,
            #[cfg(feature = "otlp")]
            otlp: self.asks_for_otlp()?,
            node: self.value("NODE")?,
        })
    }

    fn name(&self, variable: &str) -> String {
        format!("{}PROMETHEUS_{variable}", self.prefix)
    }

    /// Whether the metrics are to go to a collector. The other exporters there are, are other libraries' affair.
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
        let given = job.is_some();
        let job = job.unwrap_or_else(executable_name);
        let of = |variable| move |error| self.wrong(variable, &error);
        // The URL first, with a job that is always right, so that the error names the variable that is to blame.
        Pushgateway::new(url, "job").map_err(of("PUSHGATEWAY"))?;
        let mut gateway = Pushgateway::new(url, job).map_err(of(if given { "JOB" } else { "PUSHGATEWAY" }))?;
        for (name, value) in grouping {
            gateway = gateway.with_grouping_label(name, value).map_err(of("GROUPING"))?;
        }
        Ok(gateway)
    }

    fn job_labels(&self, job: Option<String>, grouping: Vec<(String, String)>) -> Result<Vec<(String, String)>, Error> {
        let of = |variable| move |error| self.wrong(variable, &error);
        let mut group = Grouping::new(job.unwrap_or_else(executable_name)).map_err(of("JOB"))?;
        for (name, value) in grouping {
            group.add(name, value).map_err(of("GROUPING"))?;
        }
        Ok(group.all_labels())
    }

    /// The texts of the parsers quote the value; the variable is added here.
    fn wrong(&self, variable: &str, error: &Error) -> Error {
        Error::config(format!("{}: {error:?}", self.name(variable)))
    }

    #[cfg(not(all(feature = "http", feature = "resource-usage")))]
    fn compiled_out(&self, variable: &str, feature: &str) -> Result<(), Error> {
        match self.value(variable)? {
            None => Ok(()),
            Some(value) => Err(compiled_out(&self.name(variable), &value, feature)),
        }
    }
}

#[cfg(not(all(feature = "http", feature = "resource-usage", feature = "otlp")))]
fn compiled_out(name: &str, value: &str, feature: &str) -> Error {
    Error::config(format!(
        "{name} is {value:?}, and the program is built without the feature `{feature}` of tracing-stage-metrics: unset it, \
         or build with that feature"
    ))
}

/// An address and a port. A port alone is on the loopback address: what is open to the network is asked for in full.
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

/// A number and `ms`, `s`, `m` or `h`.
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
    use crate::config::env::*;
    use crate::config::variable_tables as tables;
    use proptest::prelude::*;

    fn read(variables: &[(&str, &str)]) -> Result<Environment, Error> {
        let lookup = |name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned()).ok_or(VarError::NotPresent)
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
            tables::asked_for(set, |lookup| {
                let _ = EnvReader { prefix: DEFAULT_ENV_PREFIX.to_owned(), lookup }.read();
            })
        };
        let mut listed = tables::variables("Environment variables");
        // With the others of OpenTelemetry in the table below, which is compared with the code in `otlp::settings`.
        listed.insert("OTEL_SDK_DISABLED".to_owned());
        assert_eq!(read(&[]), listed);
        // One may be read only where another is set.
        for (name, value) in [("TV_PROMETHEUS_PUSHGATEWAY", "gateway:9091"), ("OTEL_METRICS_EXPORTER", "otlp")] {
            let found = read(&[(name, value)]);
            assert!(found.is_subset(&listed), "{found:?}");
        }
    }

    #[test]
    fn nothing_set_is_nothing_and_empty_is_unset() {
        for empty in ["", " ", "\n", " \t\r\n"] {
            let variables = [("TV_PROMETHEUS_PUSHGATEWAY", empty), ("TV_PROMETHEUS_PUSH_INTERVAL", empty)];
            let environment = read(&variables).unwrap();
            assert!(environment.gateway.is_none() && environment.push_interval.is_none(), "{empty:?}");
            assert!(!environment.job_by_default);
        }
    }

    /// Of every variable there is, so that a new one cannot be forgotten.
    #[test]
    fn white_space_around_any_value_is_dropped() {
        let values = [
            ("TV_PROMETHEUS_PUSHGATEWAY", "http://gateway:9091/x"),
            ("TV_PROMETHEUS_JOB", "quant"),
            ("TV_PROMETHEUS_GROUPING", "a= b c ,d=e f"),
            ("TV_PROMETHEUS_PUSH_INTERVAL", "1m"),
            ("TV_PROMETHEUS_FLUSH_TIMEOUT", "500ms"),
            ("TV_PROMETHEUS_TEXTFILE", "/tmp/x y.prom"),
            ("TV_PROMETHEUS_SPOOL_DIR", "/tmp/spool"),
            #[cfg(feature = "http")]
            ("TV_PROMETHEUS_LISTEN", "localhost:9464"),
            #[cfg(feature = "resource-usage")]
            ("TV_PROMETHEUS_NODE", "worker 7"),
            #[cfg(feature = "otlp")]
            ("OTEL_METRICS_EXPORTER", "otlp"),
        ];
        #[cfg(all(feature = "http", feature = "resource-usage", feature = "otlp"))]
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
    fn all_of_them() {
        let environment = read(&[
            ("TV_PROMETHEUS_PUSHGATEWAY", "gateway:9091"),
            ("TV_PROMETHEUS_JOB", "quant"),
            ("TV_PROMETHEUS_GROUPING", r"profile=a\,b,team=x"),
            ("TV_PROMETHEUS_PUSH_INTERVAL", "1m"),
            ("TV_PROMETHEUS_FLUSH_TIMEOUT", "500ms"),
            ("TV_PROMETHEUS_TEXTFILE", "/tmp/x.prom"),
            ("TV_PROMETHEUS_SPOOL_DIR", "/tmp/spool"),
            #[cfg(feature = "http")]
            ("TV_PROMETHEUS_LISTEN", "[::1]:9464"),
            #[cfg(feature = "resource-usage")]
            ("TV_PROMETHEUS_NODE", "worker-7"),
        ])
        .unwrap();
        let gateway = environment.gateway.unwrap();
        assert_eq!(gateway.grouping().job(), "quant");
        assert_eq!(gateway.grouping().get("profile"), Some("a,b"));
        assert_eq!(gateway.grouping().get("team"), Some("x"));
        assert_eq!(environment.push_interval, Some(Duration::from_secs(60)));
        assert_eq!(environment.flush_timeout, Some(Duration::from_millis(500)));
        assert_eq!(environment.textfile, Some(PathBuf::from("/tmp/x.prom")));
        assert_eq!(environment.spool_directory, Some(PathBuf::from("/tmp/spool")));
        #[cfg(feature = "http")]
        assert_eq!(environment.listen, Some("[::1]:9464".parse().unwrap()));
        #[cfg(feature = "resource-usage")]
        assert_eq!(environment.node.as_deref(), Some("worker-7"));
        assert!(!environment.job_by_default);
    }

    #[test]
    fn the_job_is_the_program_where_none_is_given() {
        let environment = read(&[("TV_PROMETHEUS_PUSHGATEWAY", "gateway:9091")]).unwrap();
        assert!(environment.job_by_default);
        assert!(environment.gateway.unwrap().grouping().job().starts_with("tracing_stage_metrics"));
    }

    #[test]
    fn a_wrong_value_is_quoted_and_its_variable_named() {
        for (variable, value) in [
            ("TV_PROMETHEUS_PUSHGATEWAY", "ftp://gateway"),
            ("TV_PROMETHEUS_PUSH_INTERVAL", "15"),
            ("TV_PROMETHEUS_PUSH_INTERVAL", "s"),
            ("TV_PROMETHEUS_FLUSH_TIMEOUT", "5 days"),
        ] {
            let message = message(&[(variable, value)]);
            assert!(message.starts_with(&format!("{variable}: ")) && message.contains(value), "{message}");
        }
        let message = message(&[("TV_PROMETHEUS_PUSHGATEWAY", "gateway:9091"), ("TV_PROMETHEUS_GROUPING", "1st=x")]);
        assert!(message.starts_with("TV_PROMETHEUS_GROUPING: ") && message.contains("1st"), "{message}");
    }

    #[test]
    #[cfg(feature = "http")]
    fn a_port_alone_is_on_the_loopback_address() {
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
    fn a_variable_of_a_feature_that_is_not_there_names_it() {
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
    fn the_exporters_of_others_are_no_affair_of_ours() {
        for exporters in ["none", "prometheus", "console,prometheus", "otlp2"] {
            let environment =
                read(&[("OTEL_METRICS_EXPORTER", exporters), ("OTEL_EXPORTER_OTLP_ENDPOINT", "x")]).unwrap();
            assert!(environment.gateway.is_none());
            #[cfg(feature = "otlp")]
            assert!(!environment.otlp, "{exporters}");
        }
    }

    #[test]
    fn where_opentelemetry_is_switched_off_nothing_is_asked_for() {
        let environment = read(&[("OTEL_METRICS_EXPORTER", "otlp"), ("OTEL_SDK_DISABLED", "TRUE")]).unwrap();
        assert!(environment.gateway.is_none());
        #[cfg(feature = "otlp")]
        assert!(!environment.otlp);
    }

    #[test]
    #[cfg(feature = "otlp")]
    fn otlp_is_asked_for_by_its_name_among_others() {
        for exporters in ["otlp", " otlp ", "prometheus,otlp"] {
            assert!(read(&[("OTEL_METRICS_EXPORTER", exporters)]).unwrap().otlp, "{exporters}");
        }
    }

    #[test]
    fn the_password_of_a_wrong_url_is_not_shown() {
        for url in ["ftp://me:secret@gateway", "http://me:secret@", "http://me:secret@gateway:99999", "me:secret@"] {
            let message = message(&[("TV_PROMETHEUS_PUSHGATEWAY", url)]);
            assert!(!message.contains("secret"), "{message}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_value_that_is_not_utf_8_is_not_shown() {
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
    fn durations_say_what_is_wrong() {
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
        fn a_duration_comes_back(n in 1..500_000_u64) {
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
