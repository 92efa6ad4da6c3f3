//! Pushes that a gateway refuses because another of its groups holds the same series.
//!
//! A grouping label stands on every series of its group. So a job that ran with `profile` on its spans and has it in its
//! grouping from now on, or the other way round, pushes series that its former group still holds. Every push is refused
//! until somebody deletes that group.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use reqwest::StatusCode;
use tokio::time::{Instant, timeout_at};

use crate::delivery::pushgateway::Grouping;
use crate::delivery::pushgateway::Pushgateway;
use crate::error::{Error, Kind};

/// What gateways of all versions say of it.
const REASON: &str = "collected before with the same name and label values";
/// NamedSeries of a refusal that are looked at, at most.
const MAX_SERIES: usize = 64;
/// Groups that an error names, at most.
const MAX_GROUPS: usize = 4;
/// Longest line of a gateway's metrics that is looked at.
const MAX_LINE: usize = 64 * 1024;
/// How long the gateway's groups are looked for, at most. Half of what is left of the push, if that is less.
const SEARCH_TIME: Duration = Duration::from_secs(2);

type Labels = BTreeMap<String, String>;

/// The series that two groups would hold. The cause of a refusal.
#[derive(Debug)]
pub(crate) struct SeriesConflict {
    series: Vec<NamedSeries>,
}

#[derive(Debug, PartialEq)]
struct NamedSeries {
    metric: String,
    labels: Labels,
}

impl fmt::Display for SeriesConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another group on the gateway holds the same series")
    }
}

impl StdError for SeriesConflict {}

impl SeriesConflict {
    /// The conflict that the body of a refusal speaks of, if it does.
    pub(crate) fn find(status: StatusCode, body: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(body);
        if status != StatusCode::BAD_REQUEST || !text.contains(REASON) {
            return None;
        }
        let series = text.split(REASON).filter_map(|text| NamedSeries::parse(text.rsplit_once("collected metric ")?.1));
        Some(Self { series: series.take(MAX_SERIES).collect() })
    }

    fn of(refusal: &Error) -> Option<&Self> {
        refusal.source()?.downcast_ref()
    }

    /// Whether all labels of a group are labels of one of the series, as they are where the group holds it.
    fn may_be_in(&self, group: &Labels) -> bool {
        self.series.iter().any(|series| group.iter().all(|(name, value)| series.labels.get(name) == Some(value)))
    }
}

impl NamedSeries {
    /// Reads `"metric" { label:<name:"job" value:"j" > … }`, the text form of a protobuf message, whose brackets and spaces
    /// differ between versions.
    fn parse(text: &str) -> Option<Self> {
        const BETWEEN: [char; 5] = [' ', '<', '>', '{', '}'];
        let (metric, mut rest) = quoted(text)?;
        let mut labels = Labels::new();
        while let Some(label) = rest.trim_start_matches(BETWEEN).strip_prefix("label:") {
            let (name, after) = quoted(label.trim_start_matches(BETWEEN).strip_prefix("name:")?)?;
            let (value, after) = quoted(after.trim_start().strip_prefix("value:")?)?;
            if !value.is_empty() {
                labels.insert(name, value);
            }
            rest = after;
        }
        Some(Self { metric, labels })
    }
}

/// Reads a string in double quotes, and returns it with what follows. Knows the escapes of protobuf's text form, of which
/// those of label values in an exposition are a part.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut bytes = text.trim_start().strip_prefix('"')?.bytes().enumerate();
    let text = &text[text.len() - bytes.len()..];
    let mut value = Vec::new();
    loop {
        match bytes.next()? {
            (end, b'"') => return Some((String::from_utf8_lossy(&value).into_owned(), &text[end + 1..])),
            (_, b'\\') => match bytes.next()?.1 {
                b'n' => value.push(b'\n'),
                b'r' => value.push(b'\r'),
                b't' => value.push(b'\t'),
                first @ b'0'..=b'3' => {
                    let (second, third) = (bytes.next()?.1, bytes.next()?.1);
                    let digits = [first, second, third].map(|digit| digit.wrapping_sub(b'0') & 7);
                    value.push(digits.into_iter().fold(0, |byte, digit| byte << 3 | digit));
                }
                other => value.push(other),
            },
            (_, byte) => value.push(byte),
        }
    }
}

/// Whether a push of this exposition would be refused for the same reason: it has a family with one of the series.
pub(crate) fn is_within(refusal: &Error, exposition: &[u8]) -> bool {
    let Some(conflict) = SeriesConflict::of(refusal) else { return false };
    let text = String::from_utf8_lossy(exposition);
    let families: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    conflict.series.iter().any(|series| families.contains(series.metric.as_str()))
}

/// Adds to a refusal for a conflict which groups hold the series and the commands that delete them. Any other error is
/// returned as it is.
pub(crate) async fn explain(gateway: &Pushgateway, refusal: Error, deadline: Instant) -> Error {
    let (Some(conflict), Kind::Refused(status)) = (SeriesConflict::of(&refusal), refusal.kind()) else {
        return refusal;
    };
    let now = Instant::now();
    let time = SEARCH_TIME.min(deadline.saturating_duration_since(now) / 2);
    let own = gateway.grouping().identity();
    let own: Labels = own.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let mut search = Search { own, conflict, line: Vec::new(), found: BTreeSet::new() };
    // What was found until it broke off is of use, too.
    let _ = timeout_at(now + time, gateway.scrape(|piece| search.read(piece))).await;
    let groups: Vec<_> = search.found.iter().filter_map(group).collect();
    let mut text = format!(
        "gateway {} refused the push, since another group holds the same series. Either go back to the grouping of that \
         group, or delete it",
        gateway.endpoint()
    );
    match &groups[..] {
        [] => text.push_str(": it is a group that this job pushed to with other grouping labels"),
        groups => {
            for (number, group) in groups.iter().take(MAX_GROUPS).enumerate() {
                let before = if number == 0 { ": " } else { ", or " };
                text.push_str(&format!("{before}curl -X DELETE {}{}", gateway.endpoint(), group.path()));
            }
            if groups.len() > MAX_GROUPS {
                text.push_str(&format!(", or one of {} further groups", groups.len() - MAX_GROUPS));
            }
        }
    }
    Error::new(Kind::Refused(status), text).with_source(refusal)
}

/// Finds the groups that may hold the series of a conflict in a gateway's own metrics, which come in pieces.
struct Search<'a> {
    own: Labels,
    conflict: &'a SeriesConflict,
    line: Vec<u8>,
    found: BTreeSet<Labels>,
}

impl Search<'_> {
    fn read(&mut self, mut piece: &[u8]) {
        while let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
            self.keep(&piece[..end]);
            let group = std::str::from_utf8(&self.line).ok().and_then(pushed_group);
            // More than an error names are counted, up to a limit.
            self.found.extend(
                group.filter(|group| {
                    self.found.len() < MAX_SERIES && *group != self.own && self.conflict.may_be_in(group)
                }),
            );
            self.line.clear();
            piece = &piece[end + 1..];
        }
        self.keep(piece);
    }

    fn keep(&mut self, part: &[u8]) {
        let room = MAX_LINE.saturating_sub(self.line.len());
        self.line.extend_from_slice(&part[..part.len().min(room)]);
    }
}

/// The group of a line `push_time_seconds{instance="",job="j"} 1.7e+09`. One that no push to has succeeded yet holds no
/// series.
fn pushed_group(line: &str) -> Option<Labels> {
    let mut rest = line.strip_prefix("push_time_seconds{")?;
    let mut group = Labels::new();
    loop {
        if let Some(time) = rest.strip_prefix('}') {
            return (time.trim().parse::<f64>().ok()? > 0.0).then_some(group);
        }
        let (name, after) = rest.split_once('=')?;
        let (value, after) = quoted(after)?;
        if !value.is_empty() {
            group.insert(name.to_owned(), value);
        }
        rest = after.strip_prefix(',').unwrap_or(after);
    }
}

fn group(labels: &Labels) -> Option<Grouping> {
    let mut group = Grouping::new(labels.get("job")?.as_str()).ok()?;
    for (name, value) in labels.iter().filter(|(name, _)| *name != "job") {
        group.add(name.as_str(), value.as_str()).ok()?;
    }
    Some(group)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::delivery::pushgateway::conflict::*;

    /// Of Pushgateway 1.5.1.
    const TEXT: &str = "pushed metrics are invalid or inconsistent with existing metrics: collected metric \"h\" { \
        label:<name:\"instance\" value:\"\" > label:<name:\"job\" value:\"j\" > label:<name:\"profile\" \
        value:\"x\\\"\\\\\\303\\251\\n\" > histogram:<sample_count:1 bucket:<cumulative_count:1 upper_bound:inf > > } was \
        collected before with the same name and label values\n";
    /// Of a later version, with two errors.
    const LATER_TEXT: &str = "pushed metrics are invalid or inconsistent with existing metrics: 2 error(s) occurred:\n\
        * collected metric \"a\" { label:{name:\"job\"  value:\"j\"}  label:{name:\"profile\"  value:\"é\"}  gauge:{value:1}} \
        was collected before with the same name and label values\n\
        * collected metric \"b\" { label:{name:\"job\"  value:\"label:\"}  untyped:{value:1}} was collected before with the \
        same name and label values";

    fn labels(labels: &[(&str, &str)]) -> Labels {
        labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn series(metric: &str, of: &[(&str, &str)]) -> NamedSeries {
        NamedSeries { metric: metric.to_owned(), labels: labels(of) }
    }

    fn find(text: &str) -> Vec<NamedSeries> {
        SeriesConflict::find(StatusCode::BAD_REQUEST, text.as_bytes()).unwrap().series
    }

    #[test]
    fn refusals_of_all_versions_name_the_series() {
        assert_eq!(find(TEXT), [series("h", &[("job", "j"), ("profile", "x\"\\é\n")])]);
        assert_eq!(
            find(LATER_TEXT),
            [series("a", &[("job", "j"), ("profile", "é")]), series("b", &[("job", "label:")])]
        );
        let (cut_off, _) = TEXT.split_once(" value:\"x").unwrap();
        assert_eq!(find(&format!("{cut_off} {REASON}")), [], "what cannot be read is no series");
    }

    #[test]
    fn other_refusals_are_no_conflict() {
        assert!(SeriesConflict::find(StatusCode::FORBIDDEN, TEXT.as_bytes()).is_none());
        let other = "pushed metrics are invalid: text format parsing error in line 1";
        assert!(SeriesConflict::find(StatusCode::BAD_REQUEST, other.as_bytes()).is_none());
    }

    #[test]
    fn a_push_with_a_family_of_the_conflict_is_refused_again() {
        let conflict = SeriesConflict { series: vec![series("quant_stage_active", &[])] };
        let refusal = Error::new(Kind::Refused(400), "refused").with_source(conflict);
        assert!(is_within(&refusal, b"# HELP quant_stage_active x\n# TYPE quant_stage_active gauge\n"));
        assert!(!is_within(&refusal, b"# TYPE quant_stage_active_total counter\nquant_stage_active 1\n"));
        assert!(!is_within(&Error::new(Kind::Refused(400), "refused"), b"# TYPE quant_stage_active gauge\n"));
    }

    #[test]
    fn groups_that_may_hold_the_series_are_found() {
        let conflict = SeriesConflict { series: find(TEXT) };
        let text = "# TYPE push_time_seconds gauge\n\
            push_failure_time_seconds{instance=\"\",job=\"j\"} 9\n\
            push_time_seconds{instance=\"\",job=\"j\"} 1.7e+09\n\
            push_time_seconds{instance=\"\",job=\"j\",profile=\"x\\\"\\\\é\\n\"} 1.7e+09\n\
            push_time_seconds{instance=\"\",job=\"j\",profile=\"y\"} 1.7e+09\n\
            push_time_seconds{instance=\"i\",job=\"j\"} 1.7e+09\n\
            push_time_seconds{instance=\"\",job=\"k\"} 1.7e+09\n";
        let found = |own: &[(&str, &str)], text: &str, size: usize| {
            let mut search = Search { own: labels(own), conflict: &conflict, line: Vec::new(), found: BTreeSet::new() };
            text.as_bytes().chunks(size).for_each(|piece| search.read(piece));
            Vec::from_iter(search.found)
        };
        let (plain, profile) = ([("job", "j")], [("job", "j"), ("profile", "x\"\\é\n")]);
        for size in [1, 7, 4096] {
            assert_eq!(found(&profile, text, size), [labels(&plain)], "in pieces of {size}");
            assert_eq!(found(&plain, text, size), [labels(&profile)], "in pieces of {size}");
        }
        let refused = text.replace("1.7e+09", "0");
        assert_eq!(found(&profile, &refused, 4096), Vec::<Labels>::new(), "a group without a push holds nothing");
        let endless = format!("{}\n{text}", "x".repeat(1_000_000));
        assert_eq!(found(&profile, &endless, 1_000), [labels(&plain)]);
    }

    proptest! {
        #[test]
        fn any_label_value_is_read(value in any::<String>()) {
            let escaped = value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            let text = format!("\"{escaped}\", rest");
            prop_assert_eq!(quoted(&text), Some((value, ", rest")));
        }

        #[test]
        fn no_text_makes_the_reader_panic(
            text in r#"(collected metric "|label:<name:"|value:"|push_time_seconds\{|="|"|\\|[0-9]|\PC){0,40}"#,
        ) {
            let _ = SeriesConflict::find(StatusCode::BAD_REQUEST, format!("{text}{REASON}").as_bytes());
            let _ = pushed_group(&format!("push_time_seconds{{{text}"));
        }
    }
}
