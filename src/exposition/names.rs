//! The names that a metric and a label have on every way out.

use std::borrow::Cow;

/// Returns the name a metric has in every format: `[a-zA-Z_:][a-zA-Z0-9_:]*`, with `_` for each character that is not
/// allowed. An empty name becomes `_`.
pub(crate) fn metric_name(name: &str) -> Cow<'_, str> {
    clean(name, |c| c.is_ascii_alphabetic() || c == '_' || c == ':')
}

/// Returns the name a label has in every format: `[a-zA-Z_][a-zA-Z0-9_]*`, with `_` for each character that is not
/// allowed. An empty name becomes `_`, and the name of the label that holds the metric's name, which no sample may
/// carry, gets the prefix that Prometheus gives to labels that clash with its own.
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
}
