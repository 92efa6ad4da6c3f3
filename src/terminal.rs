//! Text of the application and of servers, as a terminal may show it.

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// Whether a terminal obeys the character, or shows the text around it as another one: control characters, and those that
/// set the direction of writing or have no width.
pub(crate) fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Returns a text on one line, without characters that deceive its reader.
pub(crate) fn one_line(text: &str) -> String {
    let shown = |c: char| match c {
        c if c.is_whitespace() => ' ',
        c if is_deceptive(c) => '\u{fffd}',
        c => c,
    };
    text.trim().chars().map(shown).collect()
}

/// Returns the number of columns that a text fills.
pub(crate) fn width(text: &str) -> usize {
    text.width()
}

/// Keeps the beginning of a line that fills more columns.
pub(crate) fn first_columns(line: &str, columns: usize) -> String {
    if width(line) <= columns {
        return line.to_owned();
    }
    fitting(line.chars(), columns).chain(['…']).collect()
}

/// Keeps the end of a line that fills more columns.
pub(crate) fn last_columns(line: &str, columns: usize) -> String {
    if width(line) <= columns {
        return line.to_owned();
    }
    let mut kept: Vec<_> = fitting(line.chars().rev(), columns).chain(['…']).collect();
    kept.reverse();
    kept.into_iter().collect()
}

/// Takes the characters that leave a column for an ellipsis.
fn fitting(line: impl Iterator<Item = char>, columns: usize) -> impl Iterator<Item = char> {
    line.scan(0, |filled, c| {
        *filled += c.width().unwrap_or(0);
        Some((*filled, c))
    })
    .take_while(move |(filled, _)| *filled < columns)
    .map(|(_, c)| c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_has_no_deceptive_characters() {
        assert_eq!(one_line("\u{1b}[2J two\r\n\tlines\n"), "\u{fffd}[2J two   lines");
        assert_eq!(one_line("a\u{202e}b\u{2066}c\u{200b}\u{2029}d\u{feff}"), "a\u{fffd}b\u{fffd}c\u{fffd} d\u{fffd}");
        assert_eq!(one_line("größer 日本"), "größer 日本");
    }

    #[test]
    fn wide_characters_fill_two_columns() {
        assert_eq!((width("ab…"), width("日本"), width("e\u{301}")), (3, 4, 1));
        for (columns, first, last) in [(6, "日本語", "日本語"), (5, "日本…", "…本語"), (4, "日…", "…語"), (1, "…", "…")]
        {
            assert_eq!((&*first_columns("日本語", columns), &*last_columns("日本語", columns)), (first, last));
        }
        assert_eq!((&*first_columns("abcdef", 4), &*last_columns("abcdef", 4)), ("abc…", "…def"));
    }
}
