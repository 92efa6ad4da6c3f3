//! The labels of a series.

use std::borrow::Cow;
use std::sync::Arc;

use super::names::{UniqueLabels, label_name, unique_labels};

/// The labels of one series, each name once, in the order in which they were given.
///
/// They are kept as they stand between the braces of the text format, escaped: made once when a series is registered,
/// shared by all who read it, compared and copied as one string.
#[derive(Clone, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Labels(Arc<str>);

impl Labels {
    /// Cleans the names. The second value is a name that different labels became, whose values are joined.
    pub(crate) fn new<'a>(labels: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> (Self, Option<String>) {
        Self::with_names(labels, label_name)
    }

    /// Builds the labels of a histogram, whose buckets need the name `le` for themselves.
    pub(crate) fn of_histogram<'a>(labels: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> (Self, Option<String>) {
        let name = |name| if name == "le" { Cow::Borrowed("exported_le") } else { label_name(name) };
        Self::with_names(labels, name)
    }

    fn with_names<'a>(
        labels: impl Iterator<Item = (&'a str, &'a str)> + Clone,
        name: impl Fn(&'a str) -> Cow<'a, str>,
    ) -> (Self, Option<String>) {
        let UniqueLabels { pairs, collision } = unique_labels(labels, name);
        let mut text = String::with_capacity(pairs.iter().map(|(name, value)| name.len() + value.len() + 4).sum());
        for (name, value) in &pairs {
            push_label(&mut text, name, |text| escape(text, value, true));
        }
        (Self(text.into()), collision)
    }

    /// Adds labels to these. Of one name, the label of these stays.
    pub(crate) fn and(&self, more: &Self) -> Self {
        let is_new = |name: &str| self.iter().all(|(known, _)| known != name);
        let mut text = String::new();
        for (name, value) in more.iter().filter(|(name, _)| is_new(name)) {
            if text.is_empty() {
                text.push_str(&self.0);
            }
            push_label(&mut text, name, |text| text.push_str(value));
        }
        if text.is_empty() { self.clone() } else { Self(text.into()) }
    }

    /// Takes a text that is already in the form of this type.
    pub(super) fn from_canonical(text: &str) -> Self {
        Self(text.into())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Names and values, the values escaped.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut rest = &*self.0;
        std::iter::from_fn(move || {
            let (name, after) = rest.split_once("=\"")?;
            let end = closing_quote(after)?;
            rest = after[end + 1..].strip_prefix(',').unwrap_or_default();
            Some((name, &after[..end]))
        })
    }

    /// Names and values.
    pub(crate) fn values(&self) -> impl Iterator<Item = (&str, Cow<'_, str>)> {
        self.iter().map(|(name, value)| (name, unescape(value, true)))
    }

    /// Returns the identity of the series within its metric: Prometheus ignores the order of labels and labels without a value.
    pub(crate) fn identity(&self) -> Self {
        let mut pairs: Vec<_> = self.iter().filter(|(_, value)| !value.is_empty()).collect();
        pairs.sort_unstable();
        let mut text = String::with_capacity(self.0.len());
        for (name, value) in pairs {
            push_label(&mut text, name, |text| text.push_str(value));
        }
        if *text == *self.0 { self.clone() } else { Self(text.into()) }
    }
}

/// Where a label value ends that begins with this text.
pub(super) fn closing_quote(text: &str) -> Option<usize> {
    let mut is_escaped = false;
    text.bytes().position(|byte| {
        let closes = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        closes
    })
}

/// Adds a label to others, with the comma before it.
pub(super) fn push_label(text: &mut String, name: &str, value: impl FnOnce(&mut String)) {
    if !text.is_empty() {
        text.push(',');
    }
    text.push_str(name);
    text.push_str("=\"");
    value(text);
    text.push('"');
}

/// Escapes by the rule of the text format: backslash and line feed, and in a label value the quote.
pub(super) fn escape(to: &mut String, text: &str, is_value: bool) {
    let mut rest = text;
    while let Some(at) = rest.find(|c| matches!(c, '\\' | '\n') || (is_value && c == '"')) {
        to.push_str(&rest[..at]);
        to.push_str(match rest.as_bytes()[at] {
            b'\n' => "\\n",
            b'"' => "\\\"",
            _ => "\\\\",
        });
        rest = &rest[at + 1..];
    }
    to.push_str(rest);
}

/// Undoes [`escape`]. A backslash before any other character stands for itself.
pub(super) fn unescape(text: &str, is_value: bool) -> Cow<'_, str> {
    if !text.contains('\\') {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let mut ahead = chars.clone();
        let meant = match (c, ahead.next()) {
            ('\\', Some('\\')) => Some('\\'),
            ('\\', Some('n')) => Some('\n'),
            ('\\', Some('"')) if is_value => Some('"'),
            _ => None,
        };
        if meant.is_some() {
            chars = ahead;
        }
        plain.push(meant.unwrap_or(c));
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        Labels::new(pairs.iter().copied()).0
    }

    #[test]
    fn labels_stand_as_in_the_text_format() {
        assert_eq!(labels(&[]).as_str(), "");
        assert_eq!(labels(&[("b", "x\\y\"z\nw"), ("a-b", "")]).as_str(), r#"b="x\\y\"z\nw",a_b="""#);
        assert_eq!(Labels::of_histogram([("le", "1"), ("a", "2")].into_iter()).0.as_str(), r#"exported_le="1",a="2""#);
    }

    #[test]
    fn added_labels_do_not_replace_labels_of_the_same_name() {
        let more = labels(&[("env", "a\"b"), ("team", "x")]);
        assert_eq!(labels(&[("a", "1")]).and(&more).as_str(), r#"a="1",env="a\"b",team="x""#);
        assert_eq!(labels(&[("env", "")]).and(&more).as_str(), r#"env="",team="x""#);
        assert_eq!(labels(&[]).and(&more), more);
        assert_eq!(more.and(&labels(&[])), more);
    }

    #[test]
    fn identity_ignores_the_order_and_empty_values() {
        let one = labels(&[("b", "1"), ("a", "2"), ("c", "")]);
        assert_eq!(one.identity(), labels(&[("a", "2"), ("b", "1")]).identity());
        assert_ne!(one.identity(), labels(&[("a", "1"), ("b", "2")]).identity());
        assert_eq!(labels(&[("a", "")]).identity(), labels(&[]));
    }

    proptest! {
        #[test]
        fn any_value_comes_back(values in prop::collection::vec("[\\\\\"\n,=}ab]{0,8}|.*", 0..4)) {
            let pairs: Vec<_> = ["a", "b", "c", "d"].into_iter().zip(values.iter().map(String::as_str)).collect();
            let labels = labels(&pairs);
            let back: Vec<_> = labels.iter().map(|(name, value)| (name, unescape(value, true))).collect();
            prop_assert_eq!(back.len(), pairs.len());
            for ((name, value), (expected, given)) in back.iter().zip(&pairs) {
                prop_assert_eq!((*name, &**value), (*expected, *given));
            }
        }
    }
}
