//! The format and the encoding that a client of `/metrics` accepts.

use hyper::header::{ACCEPT, ACCEPT_ENCODING, HeaderMap, HeaderValue};
use mediatype::{MediaType, MediaTypeList, ReadParams};

use crate::exposition::{TEXT_CONTENT_TYPE, protobuf};

/// A format of `/metrics`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Format {
    Text,
    OpenMetrics,
    Protobuf,
}

impl Format {
    pub(super) const COUNT: usize = 3;

    pub(super) fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Text => TEXT_CONTENT_TYPE,
            // Prometheus 3 expects the scheme. This crate escapes names in the same way in every format.
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores",
            Self::Protobuf => protobuf::CONTENT_TYPE,
        })
    }
}

/// A media range that selects a format.
struct Range {
    format: Format,
    /// A more specific range overrides others of its format.
    specificity: u8,
    quality: f32,
}

/// Returns the format with the highest quality. Text is the format of a header that selects none, and wins over formats of the
/// same quality: a client gets another one only if it names it. Parts of the header that are not valid are ignored.
pub(super) fn negotiate(headers: &HeaderMap) -> Format {
    let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let ranges: Vec<_> = values.flat_map(MediaTypeList::new).flatten().filter_map(|range| Range::new(&range)).collect();
    let quality = |format| {
        let ranges = ranges.iter().filter(|range| range.format == format);
        let ranges = ranges.map(|range| (range.specificity, range.quality));
        ranges.max_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))).map_or(0.0, |(_, quality)| quality)
    };
    let mut best = (Format::Text, quality(Format::Text));
    for format in [Format::Protobuf, Format::OpenMetrics] {
        let quality = quality(format);
        if quality > best.1 {
            best = (format, quality);
        }
    }
    best.0
}

impl Range {
    /// `None` if the range selects no format of this crate, or has no valid quality.
    fn new(range: &MediaType<'_>) -> Option<Self> {
        let quality = parameter(range, "q").map_or(Ok(1.0), |quality| quality.parse()).ok()?;
        if !(0.0..=1.0).contains(&quality) {
            return None;
        }
        let has = |name, value: &str| parameter(range, name).is_some_and(|given| given.eq_ignore_ascii_case(value));
        let version = |ours| match parameter(range, "version") {
            Some(version) => (version == ours).then_some(3),
            None => Some(2),
        };
        let is_type = |kind, subtype| range.ty == kind && range.subty == subtype && range.suffix.is_none();
        let (format, specificity) = if is_type("*", "*") {
            (Format::Text, 0)
        } else if is_type("text", "*") {
            (Format::Text, 1)
        } else if is_type("text", "plain") {
            (Format::Text, version("0.0.4")?)
        } else if is_type("application", "openmetrics-text") {
            (Format::OpenMetrics, version("1.0.0")?)
        } else if is_type("application", "vnd.google.protobuf")
            && has("proto", "io.prometheus.client.MetricFamily")
            && has("encoding", "delimited")
        {
            (Format::Protobuf, 3)
        } else {
            return None;
        };
        Some(Self { format, specificity, quality })
    }
}

/// Returns a parameter, without the quotes that it may have.
fn parameter(range: &MediaType<'_>, name: &str) -> Option<String> {
    let value = range.params().find(|(given, _)| *given == name)?.1;
    Some(value.unquoted_str().into_owned())
}

/// Returns whether the client accepts gzip, by the rules of RFC 9110 that scrapers use.
pub(super) fn accepts_gzip(headers: &HeaderMap) -> bool {
    let listed = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    listed.flat_map(|value| value.split(',')).any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let is_gzip = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        let weight = parts.find_map(|part| part.strip_prefix("q=")).and_then(|weight| weight.parse().ok());
        is_gzip && weight.unwrap_or(1.0_f32) > 0.0
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PROTOBUF: &str = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";

    fn negotiated(values: &[&[u8]]) -> Format {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(ACCEPT, HeaderValue::from_bytes(value).unwrap());
        }
        negotiate(&headers)
    }

    #[track_caller]
    fn assert_gets(format: Format, values: &[&str]) {
        let bytes: Vec<_> = values.iter().map(|value| value.as_bytes()).collect();
        assert_eq!(negotiated(&bytes), format, "{values:?}");
    }

    /// As the servers send them.
    #[test]
    fn prometheus_gets_the_format_it_asks_for() {
        const TEXTS_2: &str =
            "application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_gets(Format::OpenMetrics, &[&format!("application/openmetrics-text;version=1.0.0,{TEXTS_2}")]);
        assert_gets(
            Format::Protobuf,
            &[&format!("{PROTOBUF},application/openmetrics-text;version=1.0.0;q=0.8,{TEXTS_2}")],
        );
        const TEXTS_3: &str = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
            application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
            text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        assert_gets(Format::OpenMetrics, &[TEXTS_3]);
        assert_gets(Format::Protobuf, &[&format!("{PROTOBUF};q=0.7,{TEXTS_3}")]);
        // With `scrape_protocols`.
        assert_gets(Format::Text, &["text/plain;version=0.0.4;q=0.7,application/openmetrics-text;version=1.0.0;q=0.6"]);
        assert_gets(Format::Text, &["application/openmetrics-text;version=0.0.1;q=0.7,*/*;q=0.6"]);
        assert_gets(Format::Text, &["text/plain;version=1.0.0;escaping=allow-utf-8;q=0.7,*/*;q=0.6"]);
    }

    #[test]
    fn format_is_text_unless_another_one_is_named() {
        const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8";
        for values in [&[][..], &["*/*"], &[""], &["application/*"], &["text/html"], &["application/json"], &[BROWSER]]
        {
            assert_gets(Format::Text, values);
        }
        assert_gets(Format::Text, &["application/openmetrics-text;version=1.0.0,text/plain"]);
        assert_gets(Format::Text, &["application/openmetrics-text;q=0.9,text/*"]);
        assert_gets(Format::Text, &["application/openmetrics-text;q=0.9,*/*"]);
        assert_gets(Format::Text, &["application/openmetrics-text;q=0"]);
        assert_gets(Format::Text, &["application/openmetrics-text;version=2.0.0"]);
        assert_gets(Format::Text, &["application/vnd.google.protobuf"]);
        assert_gets(Format::Text, &[&PROTOBUF.replace("delimited", "text")]);
        assert_gets(Format::Text, &[&PROTOBUF.replace("client", "server")]);
    }

    #[test]
    fn specific_range_overrides_others() {
        assert_gets(Format::OpenMetrics, &["application/openmetrics-text;q=0.2,text/plain;q=0.1,*/*"]);
        assert_gets(
            Format::OpenMetrics,
            &["text/plain;version=0.0.4;q=0,text/plain,application/openmetrics-text;q=0.1"],
        );
        assert_gets(
            Format::Text,
            &["application/openmetrics-text;version=1.0.0;q=0.1,application/openmetrics-text, */*;q=0.2"],
        );
    }

    #[test]
    fn spelling_of_a_range_does_not_matter() {
        let open_metrics = [
            "application/openmetrics-text",
            "Application/OpenMetrics-Text ; VERSION=\"1.0.0\" ; Q=0.5",
            "text/plain;q=0.4,\tapplication/openmetrics-text; charset=utf-8; version=1.0.0; q=0.5",
        ];
        for value in open_metrics {
            assert_gets(Format::OpenMetrics, &[value]);
        }
        assert_gets(Format::OpenMetrics, &["text/plain;q=0.5", "application/openmetrics-text;q=0.6"]);
        assert_gets(
            Format::Protobuf,
            &[&PROTOBUF.replace(';', " ; ").replace("=d", "=\"d").replace("limited", "limited\"")],
        );
    }

    #[test]
    fn invalid_parts_are_ignored() {
        for range in ["openmetrics-text", "application/", "/", ";", ",,", "a/b;=", "a/b;q", "\"", "a/b;c=\"", "a b/c"] {
            assert_gets(Format::Text, &[range]);
            assert_gets(Format::OpenMetrics, &[range, "application/openmetrics-text"]);
        }
        for quality in ["", "x", "-0.1", "1.1", "NaN", "inf", "0,5"] {
            assert_gets(Format::Text, &[&format!("application/openmetrics-text;q={quality}")]);
        }
        assert_eq!(negotiated(&[b"application/openmetrics-text;x=\xff"]), Format::Text);
    }

    #[test]
    fn gzip_is_used_if_the_client_accepts_it() {
        let accepts = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(ACCEPT_ENCODING, HeaderValue::from_static(value));
            }
            accepts_gzip(&headers)
        };
        for yes in [&["gzip"][..], &["deflate, GZIP;q=0.5"], &["br", "gzip"], &["gzip; q=1"]] {
            assert!(accepts(yes), "{yes:?}");
        }
        for no in [&[][..], &["identity"], &["gzip;q=0"], &["gzip ; q=0.000"], &["x-gzip"], &["*"]] {
            assert!(!accepts(no), "{no:?}");
        }
    }

    /// Pieces of headers, some of them longer than the name of a type may be.
    fn any_header() -> impl Strategy<Value = String> {
        let pieces = ["application/openmetrics-text", "*/*", ";", ",", "q=", "=", "\"", "\\", "/", "+", "0.5"];
        let piece =
            prop_oneof![prop::sample::select(pieces.map(str::to_owned).to_vec()), "[ -~\t]{0,4}", "[a-z]{100,300}",];
        prop::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_header_is_read(header in any_header()) {
            negotiated(&[header.as_bytes()]);
        }
    }
}
