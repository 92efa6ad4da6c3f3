//! The standard variables of OpenTelemetry for metrics over OTLP.
//!
//! <https://opentelemetry.io/docs/specs/otel/protocol/exporter/> and
//! <https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>. The SDK ignores
//! an invalid value; here it is an error.

use std::collections::BTreeMap;
use std::env::{self, VarError};
use std::str::FromStr;
use std::time::Duration;

use opentelemetry_sdk::metrics::Temporality;
use percent_encoding::percent_decode_str;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use url::Url;

use crate::delivery::http::url::redact;
use crate::error::Error;
use crate::process::trimmed;

/// The default timeout of the specification.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// The settings of the export.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct OtlpSettings {
    pub(super) protocol: Protocol,
    /// The complete URL: for HTTP with the path of the metrics.
    pub(super) endpoint: Url,
    /// The timeout of one request.
    pub(super) timeout: Duration,
    pub(super) temporality: Temporality,
    /// Whether histograms are exponential, without the buckets of the settings.
    pub(super) exponential_histograms: bool,
    pub(super) compression: Option<Compression>,
    /// Headers of every request. Their values are not shown.
    pub(super) headers: HeaderMap,
    /// The attributes of the resource that the environment names.
    pub(super) resource: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    Gzip,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Grpc,
    Http,
}

impl OtlpSettings {
    /// Reads the environment. `None` if OpenTelemetry is disabled.
    ///
    /// # Errors
    ///
    /// A configuration error that names the variable.
    pub(super) fn from_env() -> Result<Option<Self>, Error> {
        Self::read(|name| env::var(name))
    }

    /// Reads these variables instead of the environment.
    #[cfg(test)]
    pub(super) fn from_variables(variables: &[(&str, &str)]) -> Self {
        Self::read(crate::process::lookup_in(variables)).expect("valid variables").expect("OpenTelemetry is enabled")
    }

    fn read(lookup: impl Fn(&str) -> Result<String, VarError>) -> Result<Option<Self>, Error> {
        let variables = Variables(lookup);
        // By the specification, any value other than `true` means false.
        if variables.value("OTEL_SDK_DISABLED")?.is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        for (part, reason) in [
            (
                "CERTIFICATE",
                "which this exporter does not read: unset it, and set SSL_CERT_FILE to the certificates to trust",
            ),
            ("CLIENT_CERTIFICATE", "but this exporter does not support client certificates: unset it"),
            ("CLIENT_KEY", "but this exporter does not support client certificates: unset it"),
        ] {
            if let Some((name, _)) = variables.otlp(part)? {
                return Err(Error::config(format!("{name} is set, {reason}")));
            }
        }
        let protocol = variables.parsed("PROTOCOL", protocol)?.unwrap_or(Protocol::Http);
        Ok(Some(Self {
            endpoint: variables.endpoint(protocol)?,
            protocol,
            timeout: variables.parsed("TIMEOUT", timeout)?.unwrap_or(DEFAULT_TIMEOUT),
            temporality: variables.temporality()?,
            exponential_histograms: variables.exponential_histograms()?,
            compression: variables.parsed("COMPRESSION", compression)?.flatten(),
            headers: variables.parsed("HEADERS", headers)?.unwrap_or_default(),
            resource: variables.resource()?,
        }))
    }
}

/// Reads variables of the environment, or of a test.
struct Variables<L>(L);

impl<L: Fn(&str) -> Result<String, VarError>> Variables<L> {
    /// Returns the value of a variable; `None` if it is unset or empty.
    fn value(&self, name: &str) -> Result<Option<String>, Error> {
        trimmed(name, (self.0)(name))
    }

    /// Returns the name and value of the variable for metrics or, if that is unset, of the one for all signals.
    fn otlp(&self, part: &str) -> Result<Option<(String, String)>, Error> {
        for name in [format!("OTEL_EXPORTER_OTLP_METRICS_{part}"), format!("OTEL_EXPORTER_OTLP_{part}")] {
            if let Some(value) = self.value(&name)? {
                return Ok(Some((name, value)));
            }
        }
        Ok(None)
    }

    /// Parses a value. The error text of `parse` follows the name of the variable.
    fn parsed<T>(&self, part: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, Error> {
        let Some((name, value)) = self.otlp(part)? else { return Ok(None) };
        parse(value.trim()).map(Some).map_err(|reason| Error::config(format!("{name} {reason}")))
    }

    fn endpoint(&self, protocol: Protocol) -> Result<Url, Error> {
        let default = match protocol {
            Protocol::Http => "http://localhost:4318",
            Protocol::Grpc => "http://localhost:4317",
        };
        let variable = self.otlp("ENDPOINT")?;
        let (name, text) = variable.unwrap_or_else(|| ("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), default.to_owned()));
        let mut url = endpoint(text.trim()).map_err(|reason| {
            Error::config(format!("{name} is {:?}, which {reason}: write it as http://host:port", redact(&text)))
        })?;
        // The endpoint for all signals is a base URL. The endpoint for metrics is complete.
        if protocol == Protocol::Http && !name.contains("METRICS") {
            url.set_path(&format!("{}/v1/metrics", url.path().trim_end_matches('/')));
        }
        Ok(url)
    }

    fn resource(&self) -> Result<BTreeMap<String, String>, Error> {
        let mut resource = attributes(&self.value("OTEL_RESOURCE_ATTRIBUTES")?.unwrap_or_default());
        if let Some(service) = self.value("OTEL_SERVICE_NAME")? {
            resource.insert("service.name".to_owned(), service.trim().to_owned());
        }
        // An empty attribute of the service counts as unset.
        resource.retain(|name, value| !value.is_empty() || !name.starts_with("service."));
        Ok(resource)
    }

    fn temporality(&self) -> Result<Temporality, Error> {
        let name = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE";
        let Some(value) = self.value(name)? else { return Ok(Temporality::Cumulative) };
        Temporality::from_str(value.trim())
            .map_err(|_| Error::config(format!("{name} is {value:?}: set it to cumulative, delta or lowmemory")))
    }

    fn exponential_histograms(&self) -> Result<bool, Error> {
        let name = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION";
        let Some(value) = self.value(name)? else { return Ok(false) };
        match value.to_ascii_lowercase().as_str() {
            "explicit_bucket_histogram" => Ok(false),
            "base2_exponential_bucket_histogram" => Ok(true),
            _ => Err(Error::config(format!(
                "{name} is {value:?}: set it to explicit_bucket_histogram or base2_exponential_bucket_histogram"
            ))),
        }
    }
}

fn protocol(value: &str) -> Result<Protocol, String> {
    match value {
        "grpc" => Ok(Protocol::Grpc),
        "http/protobuf" => Ok(Protocol::Http),
        _ => Err(format!("is {value:?}: this exporter speaks http/protobuf and grpc")),
    }
}

/// Parses an endpoint. The error text follows the value.
fn endpoint(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|err| format!("cannot be read ({err})"))?;
    match url.scheme() {
        "http" => {}
        "https" if cfg!(feature = "tls") => {}
        "https" => {
            return Err("this build cannot speak: enable the feature `tls` of tracing-stage-metrics".to_owned());
        }
        _ => return Err("has no scheme of http or https".to_owned()),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(
            "has a user name or password: an authorization is a header, in OTEL_EXPORTER_OTLP_HEADERS".to_owned()
        );
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("has a query or a fragment".to_owned());
    }
    Ok(url)
}

fn timeout(value: &str) -> Result<Duration, String> {
    let millis = value.parse().ok().filter(|millis| *millis > 0_u64);
    millis
        .map(Duration::from_millis)
        .ok_or_else(|| format!("is {value:?}: give a number of milliseconds without a unit, such as 10000, above zero"))
}

fn compression(value: &str) -> Result<Option<Compression>, String> {
    match value {
        "gzip" => Ok(Some(Compression::Gzip)),
        "none" => Ok(None),
        _ => Err(format!("is {value:?}: set it to gzip or none")),
    }
}

/// Parses headers. Error texts do not quote the values, which may be secrets.
fn headers(value: &str) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (number, pair) in value.split_terminator(',').enumerate() {
        let invalid = |reason: &str| {
            format!("has a header that {reason}, number {} of the list: write it as name=value,name=value", number + 1)
        };
        let (name, value) = pair.split_once('=').ok_or_else(|| invalid("has no `=`"))?;
        let name = HeaderName::from_str(name.trim()).map_err(|_| invalid("has a name that no header has"))?;
        let value = percent_decode_str(value.trim()).decode_utf8().ok();
        let value = value.and_then(|value| HeaderValue::from_str(&value).ok());
        let mut value = value.ok_or_else(|| invalid("has a value that no header can carry"))?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}

/// Parses attributes. Ignores pairs without a name or a `=`, and keeps text that cannot be decoded.
fn attributes(text: &str) -> BTreeMap<String, String> {
    let decoded = |text: &str| {
        let text = text.trim();
        percent_decode_str(text).decode_utf8().map_or_else(|_| text.to_owned(), |text| text.into_owned())
    };
    let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (decoded(name), decoded(value))).filter(|(name, _)| !name.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::variable_tables as tables;
    use crate::process::{looked_up, lookup_in};

    fn read(variables: &[(&str, &str)]) -> Result<Option<OtlpSettings>, Error> {
        OtlpSettings::read(lookup_in(variables))
    }

    fn settings(variables: &[(&str, &str)]) -> OtlpSettings {
        OtlpSettings::from_variables(variables)
    }

    #[track_caller]
    fn error_text(name: &str, value: &str) -> String {
        let error = read(&[(name, value)]).unwrap_err();
        assert!(error.is_config() && error.to_string().starts_with(name), "{error}");
        error.to_string()
    }

    const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    const METRICS_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT";
    const PROTOCOL: &str = "OTEL_EXPORTER_OTLP_PROTOCOL";
    const AGGREGATION: &str = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION";

    #[test]
    fn documentation_lists_exactly_the_variables_that_are_read() {
        let read = |set: &[(&str, &str)]| {
            looked_up(set, |lookup| {
                let _ = OtlpSettings::read(lookup);
            })
        };
        let listed = tables::variables("Variables of OpenTelemetry");
        assert_eq!(read(&[]), listed);
        let names = read(&[(PROTOCOL, "grpc"), (ENDPOINT, "http://collector:4317"), ("OTEL_SERVICE_NAME", "x")]);
        assert!(names.is_subset(&listed), "{names:?}");
    }

    #[test]
    fn defaults_are_those_of_the_specification() {
        for variables in [&[][..], &[(ENDPOINT, ""), (PROTOCOL, "")]] {
            let settings = settings(variables);
            assert_eq!(settings.endpoint.as_str(), "http://localhost:4318/v1/metrics");
            assert_eq!((settings.protocol, settings.timeout), (Protocol::Http, Duration::from_secs(10)));
            assert_eq!((settings.temporality, settings.compression), (Temporality::Cumulative, None));
            assert!(settings.resource.is_empty() && settings.headers.is_empty() && !settings.exponential_histograms);
        }
        assert_eq!(settings(&[(PROTOCOL, "grpc")]).endpoint.as_str(), "http://localhost:4317/");
    }

    #[test]
    fn only_the_endpoint_for_all_signals_is_a_base_url() {
        let endpoint = |variables: &[_]| settings(variables).endpoint.to_string();
        assert_eq!(endpoint(&[(ENDPOINT, "http://collector:4318")]), "http://collector:4318/v1/metrics");
        assert_eq!(endpoint(&[(ENDPOINT, "http://collector/otlp/")]), "http://collector/otlp/v1/metrics");
        assert_eq!(endpoint(&[(METRICS_ENDPOINT, "http://collector/x")]), "http://collector/x");
        assert_eq!(endpoint(&[(METRICS_ENDPOINT, "http://a/x"), (ENDPOINT, "http://b")]), "http://a/x");
        assert_eq!(endpoint(&[(PROTOCOL, "grpc"), (ENDPOINT, "http://collector:4317")]), "http://collector:4317/");
    }

    #[test]
    fn variables_for_metrics_take_precedence() {
        let settings = settings(&[
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1000"),
            ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "2500"),
            (PROTOCOL, "grpc"),
            ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "none"),
            ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "Delta"),
        ]);
        assert_eq!((settings.timeout, settings.protocol), (Duration::from_millis(2_500), Protocol::Http));
        assert_eq!((settings.compression, settings.temporality), (None, Temporality::Delta));
    }

    #[test]
    fn resource_attributes_are_decoded_and_completed() {
        let resource = |variables: &[_]| settings(variables).resource.into_iter().collect::<Vec<_>>();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let attributes = "team=a%2Cb%3d, service.name = x ,service.instance.id=7,";
        let expected = [pair("service.instance.id", "7"), pair("service.name", "x"), pair("team", "a,b=")];
        assert_eq!(resource(&[("OTEL_RESOURCE_ATTRIBUTES", attributes)]), expected);
        let both = [("OTEL_RESOURCE_ATTRIBUTES", "service.name=x"), ("OTEL_SERVICE_NAME", " y\n")];
        assert_eq!(resource(&both), [pair("service.name", "y")]);
        let empty = "service.name=,service.instance.id= ,team=,=x, ,no pair";
        assert_eq!(resource(&[("OTEL_RESOURCE_ATTRIBUTES", empty), ("OTEL_SERVICE_NAME", " ")]), [pair("team", "")]);
        let odd = "a=100%,b=%ff%20,c=1=2,c=3,my.service.name=x";
        let expected = [pair("a", "100%"), pair("b", "%ff%20"), pair("c", "3"), pair("my.service.name", "x")];
        assert_eq!(resource(&[("OTEL_RESOURCE_ATTRIBUTES", odd)]), expected);
    }

    #[test]
    fn histogram_aggregation_is_read_in_any_case() {
        for (value, expected) in [
            ("", false),
            ("explicit_bucket_histogram", false),
            ("Explicit_Bucket_Histogram", false),
            ("base2_exponential_bucket_histogram", true),
            (" BASE2_EXPONENTIAL_BUCKET_HISTOGRAM\n", true),
        ] {
            assert_eq!(settings(&[(AGGREGATION, value)]).exponential_histograms, expected, "{value:?}");
        }
    }

    #[test]
    fn disabled_sdk_exports_nothing() {
        assert_eq!(read(&[("OTEL_SDK_DISABLED", "True"), (PROTOCOL, "wrong")]).unwrap(), None);
        assert!(read(&[("OTEL_SDK_DISABLED", "1")]).unwrap().is_some());
    }

    #[test]
    fn error_names_the_variable_and_quotes_the_value() {
        assert!(
            error_text(PROTOCOL, "http/json").contains("is \"http/json\": this exporter speaks http/protobuf and grpc")
        );
        for value in ["5s", "0", "-1", "1.5", "99999999999999999999"] {
            assert!(error_text("OTEL_EXPORTER_OTLP_TIMEOUT", value).contains(&format!("{value:?}")));
        }
        error_text("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd");
        error_text("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "deltas");
        let text = error_text(AGGREGATION, "exponential");
        assert!(text.contains("is \"exponential\": set it to explicit_bucket_histogram or base2_"), "{text}");
        // The port may be a password.
        assert!(error_text(ENDPOINT, "collector:4318").contains("\"collector:***\""));
        for value in ["ftp://collector", "http://", "nothing"] {
            assert!(error_text(ENDPOINT, value).contains(&format!("{value:?}")), "{value}");
        }
        assert!(error_text("OTEL_EXPORTER_OTLP_CERTIFICATE", "/x.pem").contains("SSL_CERT_FILE"));
    }

    #[test]
    fn error_of_a_client_certificate_names_no_other_setting() {
        for name in ["OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "OTEL_EXPORTER_OTLP_METRICS_CLIENT_KEY"] {
            let expected = format!("{name} is set, but this exporter does not support client certificates: unset it");
            assert_eq!(error_text(name, "/x.pem"), expected);
        }
    }

    #[test]
    fn texts_contain_no_secret() {
        for value in ["authorization", "authorization=hush%0Ahush", "=hush", "a b=hush", "a=b,hush", "a=%ff hush"] {
            let text = error_text("OTEL_EXPORTER_OTLP_HEADERS", value);
            assert!(!text.contains("hush"), "{text}");
        }
        for value in
            ["http://me:hush@collector", "http://me:hush@collector:x", "ftp://me:hush@collector", "me:hush@collector"]
        {
            let text = error_text(ENDPOINT, value);
            assert!(!text.contains("hush"), "{text}");
        }
        let settings = settings(&[("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hush,x-team=a,")]);
        assert_eq!(settings.headers["authorization"], "Bearer hush");
        assert!(!format!("{settings:?}").contains("hush"), "{settings:?}");
    }
}
