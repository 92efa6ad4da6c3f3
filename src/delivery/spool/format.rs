//! What a file in a spool holds: a payload, and where it belongs.
//!
//! Format 2 is a line that names the format, lines of `key: value`, an empty line and the body. Keys that a reader does
//! not know are for later versions, and are ignored. A value is one line without control characters; a key whose value
//! may be any text percent-encodes it. A number is in plain decimals, a time is a Unix time in seconds, and a key that
//! may have several values has them with spaces between.
//!
//! | key | value |
//! |---|---|
//! | `gateway` | base URL of the gateway, without credentials |
//! | `group` | path of the group on it |
//! | `run-start` | start of the run on the clock of its node; missing where the body does not tell |
//! | `follows` | starts of earlier runs of the group whose payloads waited in the spool when this one was written |
//! | `namespace` | prefix of the names of this crate's metrics |
//! | `content-type` | of the body |
//! | `written` | when the body was rendered, on the clock of the node |
//! | `gateway-written` | the same moment on the gateway's clock; missing where no gateway had answered |
//! | `length`, `crc32` | of the body |
//!
//! Format 1 had `group`, `time`, `length` and `crc32` in this order, each with a space after the key, and was for text
//! and whatever gateway the reader had.

use std::fmt::Write as _;

use bytes::Bytes;

use super::samples;
use crate::delivery::pushgateway::Grouping;
use crate::delivery::pushgateway::{Pushgateway, TEXT_FORMAT};
use crate::schema::{RUN_LAST_SUCCESS, RUN_START};
use crate::unix_time;

const MAGIC: &str = "tracing-stage-metrics spool ";
/// Longest head: the longest path of a group, and the runs before it of a spool that is full.
pub(super) const MAX_HEAD: usize = 256 * 1024;

/// What is to be delivered, where, and what is known of its run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Payload {
    /// `None`: of format 1, which did not tell.
    pub(crate) gateway: Option<String>,
    pub(crate) group: Grouping,
    pub(crate) run_start: Option<f64>,
    /// Starts of runs that came before this one.
    pub(crate) follows: Vec<f64>,
    pub(crate) namespace: Option<String>,
    pub(crate) content_type: String,
    pub(crate) written: f64,
    pub(crate) gateway_written: Option<f64>,
    pub(crate) body: Bytes,
}

/// Why a file is no payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// It is not whole, or this crate did not write it.
    Corrupt,
    /// A later version of this crate wrote it.
    LaterFormat,
}

impl Payload {
    /// A state in the text format, rendered just now.
    pub(crate) fn of_text(gateway: &Pushgateway, namespace: &str, text: Bytes) -> Self {
        let written = unix_time::now().as_secs_f64();
        let exposition = std::str::from_utf8(&text).unwrap_or_default();
        Self {
            gateway: Some(gateway.endpoint().to_owned()),
            group: gateway.grouping().clone(),
            run_start: samples::value(exposition, &RUN_START.name(namespace)),
            follows: Vec::new(),
            namespace: Some(namespace.to_owned()),
            content_type: TEXT_FORMAT.to_owned(),
            written,
            gateway_written: gateway.clock_offset().map(|offset| written + offset),
            body: text,
        }
    }

    /// When it was written, on the gateway's clock. Where no gateway had answered its run, `offset` of today converts,
    /// the gateway's clock minus this node's: wrong only as far as the clocks moved against each other since.
    pub(crate) fn gateway_time(&self, offset: Option<f64>) -> f64 {
        self.gateway_written.unwrap_or(self.written + offset.unwrap_or(0.0))
    }

    /// When a run of the group last succeeded, as far as it tells.
    pub(crate) fn last_success(&self) -> Option<f64> {
        samples::value(self.text()?, &RUN_LAST_SUCCESS.name(self.namespace.as_deref()?))
    }

    /// `None` where the body is in another format.
    pub(crate) fn text(&self) -> Option<&str> {
        if self.content_type.starts_with("text/plain") { std::str::from_utf8(&self.body).ok() } else { None }
    }

    /// All that stands before the body.
    pub(super) fn head(&self) -> String {
        let mut head = format!("{MAGIC}2\n");
        let mut line = |key, value: &dyn std::fmt::Display| {
            // Writing to a string does not fail.
            let _ = writeln!(head, "{key}: {value}");
        };
        let follows: Vec<_> = self.follows.iter().map(f64::to_string).collect();
        let optional: [(&str, Option<&dyn std::fmt::Display>); 4] = [
            ("gateway", self.gateway.as_ref().map(|value| value as _)),
            ("run-start", self.run_start.as_ref().map(|value| value as _)),
            ("namespace", self.namespace.as_ref().map(|value| value as _)),
            ("gateway-written", self.gateway_written.as_ref().map(|value| value as _)),
        ];
        line("group", &self.group.path());
        for (key, value) in optional {
            if let Some(value) = value {
                line(key, value);
            }
        }
        if !follows.is_empty() {
            line("follows", &follows.join(" "));
        }
        line("content-type", &self.content_type);
        line("written", &self.written);
        line("length", &self.body.len());
        line("crc32", &format_args!("{:08x}", checksum(&self.body)));
        head.push('\n');
        head
    }

    pub(super) fn parse(content: Bytes) -> Result<Self, Unreadable> {
        let (mut payload, rest) = Self::parse_head(&content)?;
        payload.body = content.slice(rest.start..);
        if payload.body.len() != rest.length || checksum(&payload.body) != rest.crc {
            return Err(Unreadable::Corrupt);
        }
        if payload.gateway.is_none() {
            payload.complete_format_1();
        }
        Ok(payload)
    }

    /// The payload but for its body, from the beginning of a file.
    pub(super) fn parse_head(content: &[u8]) -> Result<(Self, BodyInfo), Unreadable> {
        let end = content.windows(2).take(MAX_HEAD).position(|pair| pair == b"\n\n").ok_or(Unreadable::Corrupt)?;
        let head = std::str::from_utf8(&content[..end]).map_err(|_| Unreadable::Corrupt)?;
        let (format, lines) = head.split_once('\n').ok_or(Unreadable::Corrupt)?;
        let separator = match format.strip_prefix(MAGIC).and_then(|version| version.parse::<u32>().ok()) {
            Some(1) => " ",
            Some(2) => ": ",
            Some(3..) => return Err(Unreadable::LaterFormat),
            _ => return Err(Unreadable::Corrupt),
        };
        Self::from_lines(lines, separator, end + 2).ok_or(Unreadable::Corrupt)
    }

    fn from_lines(lines: &str, separator: &str, start: usize) -> Option<(Self, BodyInfo)> {
        let value = |key: &str| {
            let value = |line: &'_ str| line.strip_prefix(key)?.strip_prefix(separator).map(str::to_owned);
            lines.lines().find_map(value)
        };
        let number = |key: &str| value(key).map(|value| value.parse::<f64>().ok().filter(|number| number.is_finite()));
        // A key may be missing; one that is there has to be right.
        let optional = |key: &str| number(key).map_or(Some(None), |number| number.map(Some));
        let is_first_format = separator == " ";
        let body = BodyInfo {
            start,
            length: value("length")?.parse().ok()?,
            crc: u32::from_str_radix(&value("crc32")?, 16).ok()?,
        };
        let payload = Self {
            gateway: if is_first_format { None } else { Some(value("gateway")?) },
            group: Grouping::from_path(&value("group")?)?,
            run_start: optional("run-start")?,
            follows: value("follows")
                .unwrap_or_default()
                .split_whitespace()
                .map(str::parse)
                .collect::<Result<_, _>>()
                .ok()?,
            namespace: value("namespace"),
            content_type: value("content-type").unwrap_or_else(|| TEXT_FORMAT.to_owned()),
            written: number(if is_first_format { "time" } else { "written" })??,
            gateway_written: optional("gateway-written")?,
            body: Bytes::new(),
        };
        Some((payload, body))
    }

    /// Format 1 said nothing of the namespace. The help text of the run's start tells this crate's metric from one of the
    /// application whose name ends in the same way.
    fn complete_format_1(&mut self) {
        let Some(text) = self.text() else { return };
        let help = format!("_{} {}", RUN_START.suffix, RUN_START.help);
        let namespace = text.lines().find_map(|line| line.strip_prefix("# HELP ")?.strip_suffix(help.as_str()));
        let namespace = namespace.map(str::to_owned);
        self.run_start = namespace.as_deref().and_then(|namespace| samples::value(text, &RUN_START.name(namespace)));
        self.namespace = namespace;
    }
}

/// Where the body is in a file, and what it has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BodyInfo {
    start: usize,
    length: usize,
    crc: u32,
}

pub(super) fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP x_run_start_timestamp_seconds Unix time at which this run started.\n\
        # TYPE x_run_start_timestamp_seconds gauge\nx_run_start_timestamp_seconds 1.5\n";

    fn payload() -> Payload {
        let gateway = Pushgateway::new("http://user:hush@gw:9091/prefix", "a/b ü").unwrap();
        Payload::of_text(&gateway, "x", TEXT.into())
    }

    fn file(payload: &Payload) -> Bytes {
        [payload.head().as_bytes(), &payload.body].concat().into()
    }

    #[test]
    fn a_payload_comes_back_as_it_was() {
        let mut payload = payload();
        assert_eq!(Payload::parse(file(&payload)).unwrap(), payload);
        payload.follows = vec![1.5, 1.7e9 + 0.123];
        payload.gateway_written = Some(7.25);
        payload.content_type = "application/x".to_owned();
        payload.body = Bytes::from_static(b"\0\n\n\xff");
        assert_eq!(Payload::parse(file(&payload)).unwrap(), payload);
        let head = payload.head();
        assert!(head.contains("\ngateway: http://gw:9091/prefix\n") && !head.contains("hush"), "{head}");
        assert!(head.contains("\nrun-start: 1.5\nnamespace: x\n"), "{head}");
    }

    #[test]
    fn keys_of_later_versions_are_ignored_and_later_formats_are_told_apart() {
        let payload = payload();
        let text = String::from_utf8(file(&payload).to_vec()).unwrap();
        let more = text.replacen("\ngroup: ", "\nincrements: a%20b=1\nincrements: c=2\ngroup: ", 1);
        assert_eq!(Payload::parse(more.into()).unwrap(), payload);
        let later = text.replacen("spool 2\n", "spool 3\n", 1);
        assert_eq!(Payload::parse(later.into()), Err(Unreadable::LaterFormat));
        for (from, to) in
            [("spool 2", "spool x"), ("gateway: ", "gatewax: "), ("written: ", "written: x"), ("crc32", "")]
        {
            let broken = text.replacen(from, to, 1);
            assert_eq!(Payload::parse(broken.into()), Err(Unreadable::Corrupt), "{from}");
        }
    }

    #[test]
    fn format_1_is_read_and_an_application_gauge_is_not_taken_for_the_runs_start() {
        let file = |text: &str| {
            let (length, crc) = (text.len(), checksum(text.as_bytes()));
            let head =
                format!("{MAGIC}1\ngroup /metrics/job/a/x/b%20c\ntime 9.5\nlength {length}\ncrc32 {crc:08x}\n\n");
            Payload::parse((head + text).into()).unwrap()
        };
        let application = "# HELP warehouse_run_start_timestamp_seconds Start of the warehouse.\n\
            warehouse_run_start_timestamp_seconds 99\n";
        let payload = file(&format!("{application}{TEXT}"));
        assert_eq!((payload.gateway, payload.written, payload.gateway_written), (None, 9.5, None));
        assert_eq!(payload.group.get("x"), Some("b c"));
        assert_eq!((payload.run_start, payload.namespace.as_deref()), (Some(1.5), Some("x")));
        let payload = file(application);
        assert_eq!((payload.run_start, payload.namespace), (None, None));
    }

    #[test]
    fn the_start_of_the_run_is_of_the_exact_name() {
        let gateway = Pushgateway::new("gw", "a").unwrap();
        let text = format!("warehouse_x_run_start_timestamp_seconds 99\n{TEXT}");
        assert_eq!(Payload::of_text(&gateway, "x", text.into()).run_start, Some(1.5));
        assert_eq!(Payload::of_text(&gateway, "warehouse", TEXT.into()).run_start, None);
    }

    #[test]
    fn the_time_of_writing_is_of_the_gateways_clock_where_that_is_known() {
        let mut payload = payload();
        (payload.written, payload.gateway_written) = (100.0, None);
        assert_eq!((payload.gateway_time(None), payload.gateway_time(Some(-30.0))), (100.0, 70.0));
        payload.gateway_written = Some(50.0);
        assert_eq!(payload.gateway_time(Some(-30.0)), 50.0);
    }
}
