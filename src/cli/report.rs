//! The result of a command, for people and for scripts.

use serde_json::Value;

use crate::delivery::Grouping;
use crate::terminal::{self, is_deceptive};

/// The output of a command in both forms, and whether all is well.
pub(super) struct Report {
    pub(super) text: String,
    pub(super) json: Value,
    pub(super) is_ok: bool,
}

/// Aligns the columns of a table. The last column has no padding.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| terminal::width(cell)).max();
    let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or_default()).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let padding = width - terminal::width(cell) + 2;
            line.push_str(&format!("{cell}{:padding$}", ""));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Returns a duration in its two largest units, such as `2d 3h`.
pub(super) fn duration(seconds: f64) -> String {
    // A clock that is behind by a moment.
    let seconds = seconds.max(0.0) as u64;
    let units = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let Some(first) = units.iter().position(|(unit, _)| seconds >= *unit) else { return "0s".to_owned() };
    let (unit, name) = units[first];
    let whole = format!("{}{name}", seconds / unit);
    match units.get(first + 1).map(|(smaller, name)| (seconds % unit / smaller, name)) {
        Some((rest, name)) if rest > 0 => format!("{whole} {rest}{name}"),
        _ => whole,
    }
}

/// Returns a number of bytes.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

/// Returns a noun with its number.
pub(super) fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Returns the labels of a group as the arguments of `groups delete`, the job first.
pub(super) fn arguments(group: &Grouping) -> String {
    let arguments: Vec<_> =
        group.all_labels().iter().map(|(name, value)| format!("{name}={}", shell_quoted(value))).collect();
    arguments.join(" ")
}

/// Quotes a value for a shell where it has to be. Characters that deceive whoever reads them in a terminal are escaped.
pub(super) fn shell_quoted(value: &str) -> String {
    if value.chars().any(is_deceptive) {
        let escaped: String = value
            .chars()
            .map(|c| match c {
                '\\' | '\'' => format!("\\{c}"),
                c if is_deceptive(c) => c.to_string().bytes().map(|byte| format!("\\x{byte:02x}")).collect(),
                c => c.to_string(),
            })
            .collect();
        return format!("$'{escaped}'");
    }
    let is_plain = |c: char| c.is_alphanumeric() || "_@%+=:,./-".contains(c);
    if value.chars().all(is_plain) { value.to_owned() } else { format!("'{}'", value.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units() {
        for (seconds, text) in [
            (-1.0, "0s"),
            (0.9, "0s"),
            (59.9, "59s"),
            (60.0, "1m"),
            (61.0, "1m 1s"),
            (7_200.0, "2h"),
            (86_399.0, "23h 59m"),
            (183_600.0, "2d 3h"),
            (1e9, "11574d 1h"),
        ] {
            assert_eq!(duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn values_are_quoted_for_a_shell() {
        for (value, quoted) in [
            ("worker-7:4711", "worker-7:4711"),
            ("", ""),
            ("a b", "'a b'"),
            ("it's $HOME", r"'it'\''s $HOME'"),
            ("a\n\x1b[31m'\\", r"$'a\x0a\x1b[31m\'\\'"),
            ("a\u{202e}b", r"$'a\xe2\x80\xaeb'"),
        ] {
            assert_eq!(shell_quoted(value), quoted, "{value:?}");
        }
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["a".to_owned(), "bcd".to_owned()], vec!["ef".to_owned(), String::new()]];
        assert_eq!(table(&rows), "a   bcd\nef\n");
        let rows = [vec!["日本".to_owned(), "b".to_owned()], vec!["ef".to_owned(), "c".to_owned()]];
        assert_eq!(table(&rows), "日本  b\nef    c\n");
    }
}
