//! Compares a text with a template, line by line. Placeholders stand for values that change from run to run:
//!
//! | placeholder | stands for |
//! |---|---|
//! | `<seconds>` | a number without a sign or an exponent, above zero |
//! | `<unix>` | a Unix time in seconds, of the last minute |
//! | `<bytes>` | a whole number, at least a megabyte |
//! | `<cores>` | a number without a sign or an exponent |

use std::time::{SystemTime, UNIX_EPOCH};

/// Panics with the first line that differs.
#[track_caller]
pub fn assert_matches(text: &str, template: &str) {
    if let Err(difference) = matches(text, template) {
        panic!("{difference}\n--- the whole text:\n{text}");
    }
}

pub fn matches(text: &str, template: &str) -> Result<(), String> {
    // `split`, not `lines`: the final newline counts.
    let mut lines = text.split('\n');
    for expected in template.split('\n') {
        let Some(line) = lines.next() else { return Err(format!("the text ends before {expected:?}")) };
        if !line_matches(line, expected) {
            return Err(format!("{line:?} is not {expected:?}"));
        }
    }
    lines.next().map_or(Ok(()), |line| Err(format!("the text has a further line {line:?}")))
}

/// The name of a placeholder, and the check of its value.
type Placeholder = (&'static str, fn(&str) -> bool);

const PLACEHOLDERS: [Placeholder; 4] =
    [("<seconds>", is_positive), ("<unix>", is_now), ("<bytes>", is_bytes), ("<cores>", is_plain)];

fn line_matches(line: &str, expected: &str) -> bool {
    let Some((name, is_valid)) = PLACEHOLDERS.into_iter().find(|(name, _)| expected.ends_with(name)) else {
        return line == expected;
    };
    line.strip_prefix(expected.trim_end_matches(name)).is_some_and(is_valid)
}

/// Whether the text is digits, optionally with a point and more digits.
fn is_plain(text: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    text.split_once('.').map_or_else(|| digits(text), |(whole, rest)| digits(whole) && digits(rest))
}

fn is_positive(text: &str) -> bool {
    is_plain(text) && text.parse::<f64>().is_ok_and(|value| value > 0.0)
}

fn is_now(text: &str) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |now| now.as_secs_f64());
    is_plain(text) && text.parse::<f64>().is_ok_and(|value| (now - 60.0..=now + 1.0).contains(&value))
}

fn is_bytes(text: &str) -> bool {
    text.parse::<u64>().is_ok_and(|bytes| bytes >= 1 << 20)
}
