//! The format of a file in a spool: a payload and its destination.
//!
//! Format 2 is a line that names the format, lines of `key: value`, an empty line and the body. A reader ignores
//! unknown keys, which belong to later versions. A value is one line without control characters; a value of arbitrary
//! text is percent-encoded. A number is in plain decimals, a time is a Unix time in seconds, and spaces separate
//! several values of a key.
//!
//! | key | value |
//! |---|---|
//! | `gateway` | base URL of the gateway, without credentials |
//! | `group` | path of the group on it |
//! | `run-start` | start of the run on the clock of its node; missing if the body has none |
//! | `follows` | starts of earlier runs of the group whose payloads waited in the spool when this one was written |
//! | `increments` | of cumulative totals: successful and failed runs, then flags; missing without them |
//! | `increments-stage` | stage id, profile, successful and failed runs, seconds; a line for each stage that has some |
//! | `namespace` | prefix of the names of this crate's metrics |
//! | `content-type` | of the body |
//! | `written` | time of rendering, on the clock of the node |
//! | `gateway-written` | time of rendering, on the gateway's clock; missing if no gateway had responded |
//! | `length`, `crc32` | of the body |
//!
//! The flags of increments: `killed` (the totals of the body have a killed run before this one), `confirmed` (a push of
//! the run with totals was answered), `sent` (a request with the increments may have arrived).
//!
//! Format 1 had `group`, `time`, `length` and `crc32` in this order, each with a space after the key. Its body was
//! text, and its gateway that of the reader.

use std::fmt::Write as _;

use bytes::Bytes;

use super::increments;
use crate::delivery::pushgateway::{EncodedState, GroupState, Grouping, PushFormat, Pushgateway};
use crate::delivery::totals::{SpooledIncrements, Totals, is_total, of_families, replace_in};
use crate::exposition::{Families, Labels, protobuf, samples};
use crate::schema::{RUN_LAST_SUCCESS, RUN_START};
use crate::unix_time;

const MAGIC: &str = "tracing-stage-metrics spool ";
/// Length of the longest head in bytes: the longest path of a group, the earlier runs of a full spool, and increments.
pub(super) const MAX_HEAD: usize = 256 * 1024 + increments::MAX_LINES;

/// A state to deliver, its destination and its run.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::delivery) struct Payload {
    /// `None` in format 1.
    pub(in crate::delivery) gateway: Option<String>,
    pub(in crate::delivery) group: Grouping,
    pub(in crate::delivery) run_start: Option<f64>,
    /// Starts of the runs before this one.
    pub(in crate::delivery) follows: Vec<f64>,
    /// The increments of cumulative totals that the gateway may lack.
    pub(in crate::delivery) increments: Option<SpooledIncrements>,
    pub(in crate::delivery) namespace: Option<String>,
    pub(in crate::delivery) content_type: String,
    pub(in crate::delivery) written: f64,
    pub(in crate::delivery) gateway_written: Option<f64>,
    pub(in crate::delivery) body: Bytes,
}

/// The reason why a file is no payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// The file is incomplete, or this crate did not write it.
    Corrupt,
    /// A later version of this crate wrote the file.
    LaterFormat,
}

impl Payload {
    /// Creates a payload of a state that was just rendered.
    pub(in crate::delivery) fn new(gateway: &Pushgateway, namespace: &str, state: EncodedState) -> Self {
        let written = unix_time::now().as_secs_f64();
        Self {
            gateway: Some(gateway.endpoint().to_owned()),
            group: gateway.grouping().clone(),
            run_start: state.families.plain_gauge(&RUN_START.name(namespace)).map(|series| series.value.as_f64()),
            follows: Vec::new(),
            increments: None,
            namespace: Some(namespace.to_owned()),
            content_type: gateway.format().content_type().to_owned(),
            written,
            gateway_written: gateway.clock_offset().map(|offset| written + offset),
            body: state.body,
        }
    }

    /// Returns the time of writing on the gateway's clock. If no gateway had responded to its run, this converts by
    /// `offset`, the gateway's clock minus this node's now: wrong by the drift of the clocks since then.
    pub(in crate::delivery) fn gateway_time(&self, offset: Option<f64>) -> f64 {
        self.gateway_written.unwrap_or(self.written + offset.unwrap_or(0.0))
    }

    /// Returns whether the state on the gateway comes from a later run.
    ///
    /// The start of a run identifies it, but starts are not compared: each is on the clock of its node, so a single run
    /// dated 2099 would outdate all others. A payload is the last state of its own run, whatever the gateway shows: a
    /// gateway that was frozen may have applied its pushes in any order. `is_earlier` returns whether a run precedes
    /// this one by the order of the payloads in the spool. For all other runs the time of the push is compared with the
    /// time at which the payload was written, both on the gateway's clock; `offset` is that clock minus this node's.
    pub(super) fn is_outdated_by(
        &self,
        state: &GroupState,
        offset: Option<f64>,
        is_earlier: impl Fn(f64) -> bool,
    ) -> bool {
        let is_same_or_earlier = |start| self.run_start == Some(start) || is_earlier(start);
        !state.run_start.is_some_and(is_same_or_earlier)
            && state.push_time.is_some_and(|pushed| pushed > self.gateway_time(offset))
    }

    /// Returns the time of the last successful run of the group with these constant labels, if the body has it. That of a run
    /// with others, which the body carries over, does not count.
    pub(super) fn last_success(&self, constant: &Labels) -> Option<f64> {
        let name = RUN_LAST_SUCCESS.name(self.namespace.as_deref()?);
        let constant = constant.identity();
        let series = self.gauges(&[name]).into_iter().find(|(_, labels, _)| labels.identity() == constant);
        series.map(|(.., value)| value)
    }

    /// Returns the constant labels of the run, which all its series have.
    pub(super) fn constant_labels(&self) -> Labels {
        let Some(namespace) = self.namespace.as_deref() else { return Labels::default() };
        let series = self.gauges(&[RUN_START.name(namespace)]).into_iter().map(|(_, labels, _)| labels);
        // The series that has no labels but the constant ones.
        series.min_by_key(|labels| labels.iter().count()).unwrap_or_default()
    }

    /// Returns the series of gauges: name, labels and value. Nothing else of the body is read.
    pub(super) fn gauges(&self, names: &[String]) -> Vec<(String, Labels, f64)> {
        match self.format() {
            Some(PushFormat::Text) => {
                let text = std::str::from_utf8(&self.body).unwrap_or_default();
                samples::find(text, names).map(|(name, labels, value)| (name.to_owned(), labels, value)).collect()
            }
            Some(PushFormat::Protobuf) => {
                let is_wanted = |name: &str| names.iter().any(|other| other == name);
                let families = protobuf::read(&self.body, is_wanted).unwrap_or_default();
                let series = |name: &String| {
                    let series = families.gauge(name).iter();
                    let name = name.clone();
                    series.map(move |series| (name.clone(), series.labels.clone(), series.value.as_f64()))
                };
                names.iter().flat_map(series).collect()
            }
            None => Vec::new(),
        }
    }

    /// Returns the cumulative totals of the body. `None` if the run did not know its base.
    pub(super) fn totals(&self) -> Option<Totals> {
        let namespace = self.namespace.as_deref()?;
        let state = match self.format()? {
            PushFormat::Text => PushFormat::Text.decode(&self.body)?,
            PushFormat::Protobuf => protobuf::read(&self.body, |name| is_total(name, namespace))?,
        };
        of_families(&state, namespace)
    }

    /// Puts cumulative totals into the body, or removes them.
    pub(super) fn set_totals(&mut self, totals: Option<&Totals>) {
        let (Some(namespace), Some(format)) = (self.namespace.as_deref(), self.format()) else { return };
        let Some(state) = format.decode(&self.body) else { return };
        self.body = format.encode(&replace_in(&state, totals, namespace, &self.constant_labels()));
    }

    /// Returns a state of these totals alone.
    pub(super) fn only_totals(&self, totals: &Totals) -> Families {
        let namespace = self.namespace.as_deref().unwrap_or_default();
        replace_in(&Families::default(), Some(totals), namespace, &self.constant_labels())
    }

    /// Returns the format of the body. `None` for one of a later version of this crate.
    pub(super) fn format(&self) -> Option<PushFormat> {
        PushFormat::of_content_type(&self.content_type)
    }

    /// Returns the file up to the body.
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
        if let Some(spooled) = &self.increments {
            increments::write(&mut head, spooled);
        }
        let mut line = |key, value: &dyn std::fmt::Display| {
            let _ = writeln!(head, "{key}: {value}");
        };
        line("content-type", &self.content_type);
        line("written", &self.written);
        line("length", &self.body.len());
        line("crc32", &format_args!("{:08x}", checksum(&self.body)));
        head.push('\n');
        head
    }

    /// Parses a file.
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

    /// Parses the beginning of a file into a payload without its body.
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
        // A key may be missing; a value must be valid.
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
            increments: increments::read(lines)?,
            namespace: value("namespace"),
            content_type: value("content-type").unwrap_or_else(|| PushFormat::Text.content_type().to_owned()),
            written: number(if is_first_format { "time" } else { "written" })??,
            gateway_written: optional("gateway-written")?,
            body: Bytes::new(),
        };
        Some((payload, body))
    }

    /// Completes a payload of format 1, which had no namespace. The help text of the run's start distinguishes this
    /// crate's metric from a metric of the application with the same ending.
    fn complete_format_1(&mut self) {
        let Ok(text) = std::str::from_utf8(&self.body) else { return };
        let help = format!("_{} {}", RUN_START.suffix, RUN_START.help);
        let namespace = text.lines().find_map(|line| line.strip_prefix("# HELP ")?.strip_suffix(help.as_str()));
        let namespace = namespace.map(str::to_owned);
        self.run_start = namespace.as_deref().and_then(|namespace| samples::value(text, &RUN_START.name(namespace)));
        self.namespace = namespace;
    }
}

/// The position, length and checksum of the body in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BodyInfo {
    start: usize,
    length: usize,
    crc: u32,
}

/// Returns the CRC-32 of bytes.
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
        payload_in(PushFormat::Text)
    }

    fn payload_in(format: PushFormat) -> Payload {
        let gateway = Pushgateway::new("http://user:hush@gw:9091/prefix", "a/b ü").unwrap().with_format(format);
        Payload::new(&gateway, "x", EncodedState::of_text(TEXT, format))
    }

    fn file(payload: &Payload) -> Bytes {
        [payload.head().as_bytes(), &payload.body].concat().into()
    }

    #[test]
    fn payload_round_trips() {
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
    fn payload_keeps_its_format() {
        for format in [PushFormat::Text, PushFormat::Protobuf] {
            let payload = Payload::parse(file(&payload_in(format))).unwrap();
            assert_eq!((payload.format(), payload.run_start), (Some(format), Some(1.5)));
            assert_eq!(format.decode(&payload.body).unwrap().to_text(), TEXT);
        }
    }

    #[test]
    fn unknown_keys_are_ignored_and_later_formats_are_rejected() {
        let payload = payload();
        let text = String::from_utf8(file(&payload).to_vec()).unwrap();
        let more = text.replacen("\ngroup: ", "\nremarks: a%20b=1\nremarks: c=2\ngroup: ", 1);
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
    fn format_1_is_parsed_without_a_similar_gauge_of_the_application() {
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
    fn run_start_has_the_exact_metric_name() {
        let gateway = Pushgateway::new("gw", "a").unwrap();
        let text = format!("warehouse_x_run_start_timestamp_seconds 99\n{TEXT}");
        let run_start = |namespace, text| {
            Payload::new(&gateway, namespace, EncodedState::of_text(text, PushFormat::Text)).run_start
        };
        assert_eq!(run_start("x", &text), Some(1.5));
        assert_eq!(run_start("warehouse", TEXT), None);
    }

    #[test]
    fn last_success_is_that_of_the_own_labels() {
        let gateway = Pushgateway::new("gw", "a").unwrap();
        let last_success = |text: &str| {
            let text = format!("x_run_start_timestamp_seconds{{v=\"2\"}} 5\n{text}");
            let payload = Payload::new(&gateway, "x", EncodedState::of_text(&text, PushFormat::Text));
            payload.last_success(&payload.constant_labels())
        };
        let carried_over = "x_run_last_success_timestamp_seconds{v=\"1\"} 3\n";
        assert_eq!(last_success(carried_over), None);
        let both = format!("{carried_over}x_run_last_success_timestamp_seconds{{v=\"2\"}} 7\n");
        assert_eq!(last_success(&both), Some(7.0));
    }

    #[test]
    fn time_of_writing_is_on_the_gateways_clock_if_known() {
        let mut payload = payload();
        (payload.written, payload.gateway_written) = (100.0, None);
        assert_eq!((payload.gateway_time(None), payload.gateway_time(Some(-30.0))), (100.0, 70.0));
        payload.gateway_written = Some(50.0);
        assert_eq!(payload.gateway_time(Some(-30.0)), 50.0);
    }

    #[test]
    fn only_a_later_run_makes_a_payload_outdated() {
        let gateway = Pushgateway::new("gw", "a").unwrap();
        let state = EncodedState::of_text("x_run_start_timestamp_seconds 50\n", PushFormat::Text);
        let mut payload = Payload::new(&gateway, "x", state);
        payload.written = 100.0;
        let is_outdated = |push_time: f64, run_start, offset| {
            let state = GroupState { push_time: Some(push_time), run_start, ..GroupState::default() };
            payload.is_outdated_by(&state, offset, |start| start == 40.0)
        };
        assert!(!is_outdated(999.0, Some(50.0), None), "a state of the same run");
        assert!(!is_outdated(999.0, Some(40.0), None), "a run that came before");
        assert!(is_outdated(101.0, Some(49.0), None), "a later run on a node whose clock is behind");
        assert!(!is_outdated(99.0, Some(4e9), None), "an earlier run on a node whose clock is in the year 2099");
        assert!(is_outdated(101.0, None, None) && !is_outdated(99.0, None, None));
        assert!(!is_outdated(100.0, None, None), "a push at the same moment shows no later run");
        assert!(is_outdated(51.0, Some(49.0), Some(-50.0)), "the node's clock is ahead of the gateway's");
        assert!(!is_outdated(149.0, Some(49.0), Some(50.0)), "the node's clock is behind the gateway's");
        assert!(!payload.is_outdated_by(&GroupState::default(), None, |_| false));
    }
}
