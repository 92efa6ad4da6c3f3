//! The names that a metric and its labels have on every way out.

use std::borrow::Cow;

#[cfg(feature = "otlp")]
use metrics::Key;

/// Returns the name a metric has in every format: `[a-zA-Z_:][a-zA-Z0-9_:]*`, with `_` for each character that is not
/// allowed. An empty name becomes `_`.
pub(crate) fn metric_name(name: &str) -> Cow<'_, str> {
    clean(name, |c| c.is_ascii_alphabetic() || c == '_' || c == ':')
}

/// Returns the name a label has in every format: `[a-zA-Z_][a-zA-Z0-9_]*`, with `_` for each character that is not
/// allowed. An empty name becomes `_`. `__name__`, which Prometheus keeps for the name of the metric, gets the prefix
/// that Prometheus gives to labels that clash with its own.
pub(crate) fn label_name(name: &str) -> Cow<'_, str> {
    match name {
        "__name__" => Cow::Borrowed("exported___name__"),
        _ => clean(name, |c| c.is_ascii_alphabetic() || c == '_'),
    }
}

fn clean(name: &str, may_begin: impl Fn(char) -> bool) -> Cow<'_, str> {
    let is_allowed = |(at, c): (usize, char)| may_begin(c) || (at > 0 && c.is_ascii_digit());
    if name.is_empty() {
        Cow::Borrowed("_")
    } else if name.char_indices().all(is_allowed) {
        Cow::Borrowed(name)
    } else {
        Cow::Owned(name.char_indices().map(|(at, c)| if is_allowed((at, c)) { c } else { '_' }).collect())
    }
}

/// The labels of one series, each name once.
#[derive(Debug, PartialEq)]
pub(crate) struct UniqueLabels<'a> {
    /// Name and value, in the order in which the names were given first.
    pub(crate) pairs: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    /// A name that different labels became.
    pub(crate) collision: Option<String>,
}

/// Returns the labels under the names that `name` gives them.
///
/// Of one label given twice, the last value counts. The values of different labels that become one name are joined by
/// `;`, in the order of the labels' own names: the rule of OpenTelemetry for its attributes in Prometheus.
pub(crate) fn unique_labels<'a>(
    labels: impl Iterator<Item = (&'a str, &'a str)> + Clone,
    name: impl Fn(&'a str) -> Cow<'a, str>,
) -> UniqueLabels<'a> {
    let mut pairs: Vec<(Cow<'a, str>, Cow<'a, str>)> = Vec::with_capacity(labels.size_hint().0);
    for (label, value) in labels.clone() {
        let cleaned = name(label);
        if pairs.iter().any(|(other, _)| *other == cleaned) {
            return join_labels(labels, name);
        }
        pairs.push((cleaned, Cow::Borrowed(value)));
    }
    UniqueLabels { pairs, collision: None }
}

#[cold]
fn join_labels<'a>(
    labels: impl Iterator<Item = (&'a str, &'a str)>,
    name: impl Fn(&'a str) -> Cow<'a, str>,
) -> UniqueLabels<'a> {
    /// The labels of one name, sorted by their own.
    type Same<'a> = Vec<(&'a str, &'a str)>;
    let mut given: Vec<(Cow<'a, str>, Same<'a>)> = Vec::new();
    for (label, value) in labels {
        let name = name(label);
        match given.iter_mut().find(|(other, _)| *other == name) {
            Some((_, same)) => match same.binary_search_by_key(&label, |(other, _)| other) {
                Ok(at) => same[at].1 = value,
                Err(at) => same.insert(at, (label, value)),
            },
            None => given.push((name, vec![(label, value)])),
        }
    }
    let collision = given.iter().find(|(_, same)| same.len() > 1).map(|(name, _)| name.clone().into_owned());
    let join = |same: Same<'a>| match same[..] {
        [(_, value)] => Cow::Borrowed(value),
        _ => Cow::Owned(same.iter().map(|(_, value)| *value).collect::<Vec<_>>().join(";")),
    };
    UniqueLabels { pairs: given.into_iter().map(|(name, same)| (name, join(same))).collect(), collision }
}

/// Returns the labels of a key as they are on every way out.
#[cfg(feature = "otlp")]
pub(crate) fn labels_of(key: &Key) -> UniqueLabels<'_> {
    unique_labels(key.labels().map(|label| (label.key(), label.value())), label_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metric_names_have_the_characters_of_the_format() {
        for (name, expected) in [
            ("http_requests:rate5m", "http_requests:rate5m"),
            ("http.requests", "http_requests"),
            ("http-requests", "http_requests"),
            ("größe", "gr__e"),
            ("grüße", "gr__e"),
            ("7th", "_th"),
            ("1ä", "__"),
            ("", "_"),
        ] {
            assert_eq!(metric_name(name), expected, "{name}");
        }
    }

    #[test]
    fn label_names_have_the_characters_of_the_format() {
        for (name, expected) in
            [("a_b", "a_b"), ("a.b", "a_b"), ("x:y", "x_y"), ("", "_"), ("0", "_"), ("__name__", "exported___name__")]
        {
            assert_eq!(label_name(name), expected, "{name}");
        }
    }

    #[test]
    #[cfg(feature = "otlp")]
    fn labels_of_one_name_are_joined_and_repeated_labels_replaced() {
        let key = Key::from_parts("m", &[("a.b", "1"), ("c", "2"), ("a-b", "3"), ("a.b", "4")]);
        let UniqueLabels { pairs, collision } = labels_of(&key);
        let pairs: Vec<_> = pairs.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(pairs, [("a_b", "3;4"), ("c", "2")]);
        assert_eq!(collision.as_deref(), Some("a_b"));
        let twice = Key::from_parts("m", &[("a", "1"), ("a", "2")]);
        let UniqueLabels { pairs, collision } = labels_of(&twice);
        assert_eq!((&*pairs[0].1, pairs.len(), collision), ("2", 1, None));
    }
}
