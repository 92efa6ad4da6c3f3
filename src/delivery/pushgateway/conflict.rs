//! Refusals of pushes whose series another group of the gateway holds.
//!
//! Every series of a group has the grouping labels. So a job that had `profile` on its spans and moves it to its
//! grouping, or the other way round, pushes series that its former group still holds. The gateway refuses every push
//! until that group is deleted.

use std::error::Error as StdError;
use std::fmt;

use reqwest::StatusCode;

use super::group_state::has_all;
use crate::error::Error;
use crate::exposition::Families;
use crate::exposition::samples::LabelSet;

/// The reason in the refusals of all versions of the gateway.
const REASON: &str = "collected before with the same name and label values";
/// Limit of the series that are parsed in a refusal.
const MAX_SERIES: usize = 64;

/// The series that two groups would hold: the source of the error of a refusal.
#[derive(Debug)]
pub(super) struct SeriesConflict {
    series: Vec<NamedSeries>,
}

/// A series in the text of a refusal.
#[derive(Debug, PartialEq)]
struct NamedSeries {
    metric: String,
    /// A label without a value is left out.
    labels: LabelSet,
}

impl fmt::Display for SeriesConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another group on the gateway holds the same series")
    }
}

impl StdError for SeriesConflict {}

impl SeriesConflict {
    /// Parses the body of a refusal. `None` if the refusal has another reason.
    pub(super) fn find(status: StatusCode, body: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(body);
        if status != StatusCode::BAD_REQUEST || !text.contains(REASON) {
            return None;
        }
        let series = text.split(REASON).filter_map(|text| NamedSeries::parse(text.rsplit_once("collected metric ")?.1));
        Some(Self { series: series.take(MAX_SERIES).collect() })
    }

    /// Returns the conflict that is the source of an error.
    pub(super) fn source_of(refusal: &Error) -> Option<&Self> {
        refusal.source()?.downcast_ref()
    }

    /// Returns whether a group may hold one of the series: the series has all labels of the group.
    pub(super) fn may_be_in(&self, group: &LabelSet) -> bool {
        self.series.iter().any(|series| has_all(&series.labels, group))
    }
}

impl NamedSeries {
    /// Parses `"metric" { label:<name:"job" value:"j" > … }`, the text form of a protobuf message. Its brackets and
    /// spaces differ between versions.
    fn parse(text: &str) -> Option<Self> {
        const BETWEEN: [char; 5] = [' ', '<', '>', '{', '}'];
        let (metric, mut rest) = quoted(text)?;
        let mut labels = LabelSet::new();
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

/// Parses a string in double quotes with the escapes of protobuf's text form. Returns the string and the text after it.
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

/// Returns whether the gateway would refuse these families for the same conflict: one has one of the series.
pub(super) fn contains_conflict(families: &Families, refusal: &Error) -> bool {
    let conflict = SeriesConflict::source_of(refusal);
    conflict.is_some_and(|conflict| conflict.series.iter().any(|series| families.get(&series.metric).is_some()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::Kind;

    /// A refusal of Pushgateway 1.5.1.
    const TEXT: &str = "pushed metrics are invalid or inconsistent with existing metrics: collected metric \"h\" { \
        label:<name:\"instance\" value:\"\" > label:<name:\"job\" value:\"j\" > label:<name:\"profile\" \
        value:\"x\\\"\\\\\\303\\251\\n\" > histogram:<sample_count:1 bucket:<cumulative_count:1 upper_bound:inf > > } was \
        collected before with the same name and label values\n";
    /// A refusal of a later version, with two errors.
    const LATER_TEXT: &str = "pushed metrics are invalid or inconsistent with existing metrics: 2 error(s) occurred:\n\
        * collected metric \"a\" { label:{name:\"job\"  value:\"j\"}  label:{name:\"profile\"  value:\"é\"}  gauge:{value:1}} \
        was collected before with the same name and label values\n\
        * collected metric \"b\" { label:{name:\"job\"  value:\"label:\"}  untyped:{value:1}} was collected before with the \
        same name and label values";

    fn labels(labels: &[(&str, &str)]) -> LabelSet {
        labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn series(metric: &str, pairs: &[(&str, &str)]) -> NamedSeries {
        NamedSeries { metric: metric.to_owned(), labels: labels(pairs) }
    }

    fn find(text: &str) -> Vec<NamedSeries> {
        SeriesConflict::find(StatusCode::BAD_REQUEST, text.as_bytes()).unwrap().series
    }

    #[test]
    fn refusals_of_all_versions_are_parsed() {
        assert_eq!(find(TEXT), [series("h", &[("job", "j"), ("profile", "x\"\\é\n")])]);
        assert_eq!(
            find(LATER_TEXT),
            [series("a", &[("job", "j"), ("profile", "é")]), series("b", &[("job", "label:")])]
        );
        let (cut_off, _) = TEXT.split_once(" value:\"x").unwrap();
        assert_eq!(find(&format!("{cut_off} {REASON}")), [], "an incomplete series is ignored");
    }

    #[test]
    fn other_refusal_is_no_conflict() {
        assert!(SeriesConflict::find(StatusCode::FORBIDDEN, TEXT.as_bytes()).is_none());
        let other = "pushed metrics are invalid: text format parsing error in line 1";
        assert!(SeriesConflict::find(StatusCode::BAD_REQUEST, other.as_bytes()).is_none());
    }

    #[test]
    fn families_with_one_of_the_conflict_contain_it() {
        let families = |text| crate::delivery::PushFormat::Text.decode(text).unwrap();
        let conflict = SeriesConflict { series: vec![series("quant_stage_active", &[])] };
        let refusal = Error::new(Kind::Refused(400), "refused").with_source(conflict);
        let gauge = families(b"# TYPE quant_stage_active gauge\nquant_stage_active 1\n");
        assert!(contains_conflict(&gauge, &refusal));
        assert!(!contains_conflict(&families(b"quant_stage_active_total 1\nquant_stage 1\n"), &refusal));
        let other = Error::new(Kind::Refused(400), "refused");
        assert!(!contains_conflict(&gauge, &other));
    }

    proptest! {
        #[test]
        fn any_label_value_round_trips(value in any::<String>()) {
            let escaped = value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            let text = format!("\"{escaped}\", rest");
            prop_assert_eq!(quoted(&text), Some((value, ", rest")));
        }

        #[test]
        fn any_text_parses_without_a_panic(
            text in r#"(collected metric "|label:<name:"|value:"|="|"|\\|[0-9]|\PC){0,40}"#,
        ) {
            let _ = SeriesConflict::find(StatusCode::BAD_REQUEST, format!("{text}{REASON}").as_bytes());
        }
    }
}
