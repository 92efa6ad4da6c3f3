//! The grouping key of a Pushgateway group, and the URL path that names it.
//!
//! The rules are the gateway's: <https://github.com/prometheus/pushgateway#url>.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::error::Error;
use crate::schema::RESERVED_LABELS;

/// The characters that are percent-encoded: all but the unreserved ones of RFC 3986.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The job and further labels that together name one group on a gateway. The labels keep the order of the caller, which
/// does not matter to the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grouping {
    job: String,
    labels: Vec<(String, String)>,
}

impl Grouping {
    pub(crate) fn new(job: impl Into<String>) -> Result<Self, Error> {
        let job = job.into();
        if job.is_empty() {
            return Err(Error::config("the job name is \"\": a gateway refuses an empty one, give the job a name"));
        }
        Ok(Self { job, labels: Vec::new() })
    }

    /// Creates a group that a gateway has, whatever its labels are called. `None` if no URL can name it.
    pub(crate) fn from_labels(mut labels: BTreeMap<String, String>) -> Option<Self> {
        let job = labels.remove("job").filter(|job| !job.is_empty())?;
        let labels: Vec<_> = labels.into_iter().collect();
        labels.iter().all(|(name, _)| is_label_name(name)).then_some(Self { job, labels })
    }

    /// Adds a label.
    ///
    /// # Errors
    ///
    /// A configuration error if the name is not valid, reserved, or set already, or if the instance is empty.
    pub(crate) fn add(&mut self, name: impl Into<String>, value: impl Into<String>) -> Result<(), Error> {
        let (name, value) = (name.into(), value.into());
        if name == "instance" && value.is_empty() {
            // A variable that is not set, as in `instance=$POD_NAME`. The group and the one without the label have the same series.
            return Err(Error::config(
                "grouping label \"instance\" is empty: beside a group of the job without it, the gateway could not be \
                 scraped any more; give it a value or leave it out",
            ));
        }
        self.insert(name, value)
    }

    fn insert(&mut self, name: String, value: String) -> Result<(), Error> {
        check_label_name("grouping label", &name)?;
        if let Some(first) = self.get(&name) {
            return Err(Error::config(format!(
                "grouping label {name:?} is given twice, as {first:?} and as {value:?}: give it once"
            )));
        }
        self.labels.push((name, value));
        Ok(())
    }

    pub(crate) fn job(&self) -> &str {
        &self.job
    }

    pub(crate) fn labels(&self) -> &[(String, String)] {
        &self.labels
    }

    /// Returns the job and the further labels.
    pub(crate) fn all_labels(&self) -> Vec<(String, String)> {
        let job = ("job".to_owned(), self.job.clone());
        std::iter::once(job).chain(self.labels.iter().cloned()).collect()
    }

    /// Returns the value of a grouping label. The job is not one of them.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(label, _)| label == name).map(|(_, value)| value.as_str())
    }

    /// Returns all labels by name, which identify the group. A label with an empty value is part of the identity.
    pub(crate) fn identity(&self) -> BTreeMap<&str, &str> {
        let labels = self.labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        labels.chain([("job", self.job.as_str())]).collect()
    }

    /// Returns `/metrics/job/<job>/<name>/<value>...`, the path after the gateway's base URL.
    pub(crate) fn path(&self) -> String {
        let mut path = String::from("/metrics");
        append(&mut path, "job", &self.job);
        for (name, value) in &self.labels {
            append(&mut path, name, value);
        }
        path
    }

    /// Parses a path of [`path`](Self::path). `None` if the text is no such path.
    pub(in crate::delivery) fn from_path(path: &str) -> Option<Self> {
        let mut segments = path.strip_prefix("/metrics/")?.split('/');
        let mut pair = || {
            let (name, segment) = (segments.next()?, segments.next());
            Some(match (name.strip_suffix("@base64"), segment) {
                (Some(name), Some(segment)) => {
                    let bytes = URL_SAFE_NO_PAD.decode(segment.trim_end_matches('=')).ok();
                    bytes.and_then(|bytes| String::from_utf8(bytes).ok()).map(|value| (name, value))
                }
                (None, Some(segment)) => {
                    percent_decode_str(segment).decode_utf8().ok().map(|value| (name, value.into_owned()))
                }
                (_, None) => None,
            })
        };
        let (_, job) = pair()?.filter(|(name, _)| *name == "job")?;
        let mut grouping = Self::new(job).ok()?;
        while let Some(label) = pair() {
            let (name, value) = label?;
            grouping.insert(name.to_owned(), value).ok()?;
        }
        Some(grouping)
    }
}

fn append(path: &mut String, name: &str, value: &str) {
    path.push('/');
    path.push_str(name);
    // Servers and proxies drop or resolve these segments, percent-encoded or not.
    if matches!(value, "" | "." | "..") || value.contains('/') {
        path.push_str("@base64/");
        match value {
            // An empty value would be an empty segment; a lone padding character decodes to the empty value.
            "" => path.push('='),
            _ => URL_SAFE_NO_PAD.encode_string(value, path),
        }
    } else {
        path.push('/');
        path.extend(utf8_percent_encode(value, RESERVED));
    }
}

/// Checks the name of a label that is added to the metrics of this crate. `what` begins the error.
///
/// # Errors
///
/// A configuration error if the name is not valid or reserved.
pub(crate) fn check_label_name(what: &str, name: &str) -> Result<(), Error> {
    let reason = if !is_label_name(name) {
        "is not a label name: it has to match [a-zA-Z_][a-zA-Z0-9_]*"
    } else if name == "job" {
        "is reserved: the job has a setting of its own, use that or choose another name"
    } else if matches!(name, "le" | "quantile") || name.starts_with("__") {
        "is reserved by Prometheus: choose another name"
    } else if RESERVED_LABELS.contains(&name) {
        "is a label of the metrics themselves: choose another name"
    } else {
        return Ok(());
    };
    Err(Error::config(format!("{what} {name:?} {reason}")))
}

fn is_label_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first == b'_' || first.is_ascii_alphabetic())
        && bytes.all(|byte| byte == b'_' || byte.is_ascii_alphanumeric())
}

/// Parses `name=value,name=value`. A comma inside a value is `\,` and a backslash `\\`; any other character stands for
/// itself, a further `=` too. White space around a name is dropped, and belongs to a value. [`Grouping::add`] checks
/// the names.
pub(crate) fn parse_labels(text: &str) -> Result<Vec<(String, String)>, Error> {
    let invalid = |reason: String| Error::config(format!("the list of labels {text:?} {reason}"));
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let mut labels = Vec::new();
    let mut rest = text;
    loop {
        let Some((name, after)) = rest.split_once('=').filter(|(name, _)| !name.contains(',')) else {
            let pair = rest.split(',').next().unwrap_or(rest);
            return Err(invalid(format!("has no `=` in {pair:?}: write it as name=value,name=value")));
        };
        let mut value = String::new();
        let mut chars = after.chars();
        let more = loop {
            match chars.next() {
                None => break false,
                Some(',') => break true,
                Some('\\') => match chars.next() {
                    Some(escaped @ (',' | '\\')) => value.push(escaped),
                    _ => {
                        return Err(invalid(format!(
                            "has a lone backslash in the value of {:?}: write `\\\\` for a backslash and `\\,` for a comma",
                            name.trim()
                        )));
                    }
                },
                Some(other) => value.push(other),
            }
        };
        labels.push((name.trim().to_owned(), value));
        if !more {
            return Ok(labels);
        }
        rest = chars.as_str();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(job: &str, labels: &[(&str, &str)]) -> String {
        let mut grouping = Grouping::new(job).unwrap();
        for (name, value) in labels {
            grouping.add(*name, *value).unwrap();
        }
        grouping.path()
    }

    fn add_error(name: &str) -> String {
        let error = Grouping::new("job").unwrap().add(name, "x").unwrap_err();
        assert!(error.is_config());
        error.to_string()
    }

    /// Decodes the path as a Go server does: splits it at `/`, unescapes each segment (`+` stands for itself in a
    /// path), and decodes base64, with or without padding, if the name asks for it. Shares no code with the encoder.
    fn decode(path: &str) -> Vec<(String, String)> {
        let segments: Vec<&str> = path.strip_prefix("/metrics/").unwrap().split('/').collect();
        assert_eq!(segments.len() % 2, 0, "{path}");
        segments
            .chunks(2)
            .map(|pair| {
                let (name, value) = (unescape(pair[0]), unescape(pair[1]));
                assert!(!value.is_empty() && value != b"." && value != b"..", "cleaned away on the server: {path}");
                assert!(!value.contains(&b'/'), "refused by the server: {path}");
                let name = String::from_utf8(name).unwrap();
                let (name, value) = match name.strip_suffix("@base64") {
                    Some(name) => (name.to_owned(), unbase64(&value)),
                    None => (name, value),
                };
                (name, String::from_utf8(value).unwrap())
            })
            .collect()
    }

    fn unescape(segment: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut rest = segment.as_bytes();
        while let Some((&byte, tail)) = rest.split_first() {
            rest = tail;
            match byte {
                b'%' => {
                    bytes.push(u8::from_str_radix(std::str::from_utf8(&rest[..2]).unwrap(), 16).unwrap());
                    rest = &rest[2..];
                }
                b'?' | b'#' => panic!("ends the path: {segment}"),
                _ => {
                    assert!(byte.is_ascii_graphic(), "not allowed in a URL: {segment}");
                    bytes.push(byte);
                }
            }
        }
        bytes
    }

    fn unbase64(text: &[u8]) -> Vec<u8> {
        const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut bits = 0_u32;
        let mut count = 0;
        let mut bytes = Vec::new();
        for digit in text.iter().filter(|digit| **digit != b'=') {
            let value = ALPHABET.iter().position(|other| other == digit).expect("a URL-safe base64 digit");
            bits = (bits << 6 | u32::try_from(value).unwrap()) & 0xffff;
            count += 6;
            if count >= 8 {
                count -= 8;
                bytes.push(u8::try_from(bits >> count & 0xff).unwrap());
            }
        }
        bytes
    }

    #[test]
    fn plain_values_are_not_encoded() {
        assert_eq!(
            path("quant_pipeline", &[("profile", "crypto-1.0~x"), ("run_id", "20260105")]),
            "/metrics/job/quant_pipeline/profile/crypto-1.0~x/run_id/20260105"
        );
    }

    #[test]
    fn segments_that_a_server_would_drop_are_base64() {
        assert_eq!(path("a/b", &[]), "/metrics/job@base64/YS9i");
        assert_eq!(path(".", &[("x", "..")]), "/metrics/job@base64/Lg/x@base64/Li4");
        assert_eq!(path("j", &[("x", "")]), "/metrics/job/j/x@base64/=");
        assert_eq!(path("j", &[("x", "/>?/~~~")]), "/metrics/job/j/x@base64/Lz4_L35-fg");
    }

    #[test]
    fn other_values_are_percent_encoded() {
        assert_eq!(path("a b+c", &[("x", "ä%2F?#\n@=")]), "/metrics/job/a%20b%2Bc/x/%C3%A4%252F%3F%23%0A%40%3D");
        assert_eq!(path("j", &[("x", "...")]), "/metrics/job/j/x/...");
    }

    #[test]
    fn profile_and_run_id_are_allowed() {
        let mut grouping = Grouping::new("j").unwrap();
        grouping.add("profile", "crypto").unwrap();
        grouping.add("run_id", "").unwrap();
        grouping.add("_x9", "y").unwrap();
        assert_eq!(grouping.get("profile"), Some("crypto"));
        assert_eq!(grouping.get("run_id"), Some(""));
        assert_eq!(grouping.get("job"), None);
        assert_eq!(grouping.job(), "j");
        assert_eq!(grouping.labels().len(), 3);
    }

    #[test]
    fn errors_quote_the_label_and_name_the_remedy() {
        let error = Grouping::new("").unwrap_err();
        assert!(error.is_config());
        assert_eq!(error.to_string(), "the job name is \"\": a gateway refuses an empty one, give the job a name");
        for name in ["", "1x", "a-b", "a b", "ä", "a:b", "a@base64", "a\n"] {
            assert_eq!(
                add_error(name),
                format!("grouping label {name:?} is not a label name: it has to match [a-zA-Z_][a-zA-Z0-9_]*")
            );
        }
        assert_eq!(
            add_error("job"),
            "grouping label \"job\" is reserved: the job has a setting of its own, use that or choose another name"
        );
        for name in ["le", "quantile", "__name__", "__", "__x"] {
            assert_eq!(
                add_error(name),
                format!("grouping label {name:?} is reserved by Prometheus: choose another name")
            );
        }
        for name in ["stage_id", "status", "reason", "resource_type", "node", "result"] {
            assert_eq!(
                add_error(name),
                format!("grouping label {name:?} is a label of the metrics themselves: choose another name")
            );
        }
        let mut grouping = Grouping::new("j").unwrap();
        grouping.add("team", "a").unwrap();
        assert_eq!(
            grouping.add("team", "b").unwrap_err().to_string(),
            "grouping label \"team\" is given twice, as \"a\" and as \"b\": give it once"
        );
        assert_eq!(grouping.get("team"), Some("a"));
    }

    #[test]
    fn grouping_is_parsed_from_text() {
        let parsed = |text: &str| parse_labels(text).unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(parsed(""), vec![]);
        assert_eq!(parsed("  "), vec![]);
        assert_eq!(parsed("a=b"), vec![pair("a", "b")]);
        assert_eq!(parsed(" a =b, c= d "), vec![pair("a", "b"), pair("c", " d ")]);
        assert_eq!(parsed("a=,b="), vec![pair("a", ""), pair("b", "")]);
        assert_eq!(parsed(r"a=x\,y=z\\,b=k=v"), vec![pair("a", r"x,y=z\"), pair("b", "k=v")]);
    }

    #[test]
    fn errors_quote_the_text_of_a_grouping() {
        let error_text = |text: &str| parse_labels(text).unwrap_err().to_string();
        assert_eq!(
            error_text("team"),
            r#"the list of labels "team" has no `=` in "team": write it as name=value,name=value"#
        );
        assert_eq!(
            error_text("a=b,"),
            r#"the list of labels "a=b," has no `=` in "": write it as name=value,name=value"#
        );
        assert_eq!(
            error_text("a=b,c,d=e"),
            r#"the list of labels "a=b,c,d=e" has no `=` in "c": write it as name=value,name=value"#
        );
        assert_eq!(
            error_text(r"dir=C:\x"),
            r#"the list of labels "dir=C:\\x" has a lone backslash in the value of "dir": write `\\` for a backslash and `\,` for a comma"#
        );
        assert_eq!(
            error_text(r"a=b\"),
            r#"the list of labels "a=b\\" has a lone backslash in the value of "a": write `\\` for a backslash and `\,` for a comma"#
        );
    }

    /// Any text, with frequent special characters of paths and URLs.
    fn value() -> impl Strategy<Value = String> {
        let special =
            prop::sample::select(vec!["", ".", "..", "/", "//", "%2F", "%", "+", " ", "\\", "\"", "\n", "?", "#", "="]);
        prop_oneof![any::<String>(), "\\PC{0,8}", prop::collection::vec(special, 0..4).prop_map(|parts| parts.concat())]
    }

    #[test]
    fn other_paths_are_not_parsed() {
        for path in [
            "",
            "/metrics",
            "/metrics/job",
            "/metrics/profile/a",
            "/metrics/job/a/b",
            "/metrics/job@base64/%%",
            "job/a",
        ] {
            assert_eq!(Grouping::from_path(path), None, "{path}");
        }
    }

    proptest! {
        #[test]
        fn any_value_round_trips_through_the_path(
            job in value().prop_filter("a job is not empty", |job| !job.is_empty()),
            values in prop::collection::vec(value(), 0..4),
        ) {
            let mut grouping = Grouping::new(job.clone()).unwrap();
            let mut expected = vec![("job".to_owned(), job)];
            for (index, value) in values.into_iter().enumerate() {
                let name = format!("l{index}");
                grouping.add(name.clone(), value.clone()).unwrap();
                expected.push((name, value));
            }
            prop_assert_eq!(decode(&grouping.path()), expected);
            prop_assert_eq!(Grouping::from_path(&grouping.path()), Some(grouping));
        }

        #[test]
        fn any_grouping_round_trips_through_its_text(labels in prop::collection::vec(("[a-zA-Z_][a-zA-Z0-9_]{0,8}", value()), 0..4)) {
            let text = labels
                .iter()
                .map(|(name, value)| format!("{name}={}", value.replace('\\', "\\\\").replace(',', "\\,")))
                .collect::<Vec<_>>()
                .join(",");
            prop_assert_eq!(parse_labels(&text).unwrap(), labels);
        }

        #[test]
        fn any_text_parses_without_a_panic(text in any::<String>()) {
            let _ = parse_labels(&text);
        }
    }
}
