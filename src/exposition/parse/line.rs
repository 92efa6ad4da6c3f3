//! One line of the text format.

use std::borrow::Cow;

use super::super::labels::{Labels, closing_quote, unescape};
use super::super::names;
use super::super::values::Number;

pub(super) const BLANKS: [char; 2] = [' ', '\t'];

/// The error says what is wrong with a line.
pub(super) type Result<T> = std::result::Result<T, &'static str>;

/// A sample line, taken apart.
pub(super) struct Sample<'a> {
    pub(super) name: &'a str,
    /// The text between the braces.
    pub(super) block: &'a str,
    pub(super) value: &'a str,
}

impl<'a> Sample<'a> {
    pub(super) fn split(line: &'a str) -> Result<Self> {
        let end = line.find(|c| c == '{' || BLANKS.contains(&c)).ok_or("has no value")?;
        let (name, rest) = line.split_at(end);
        let rest = rest.trim_start_matches(BLANKS);
        let (block, rest) = match rest.strip_prefix('{') {
            // No value has a brace.
            Some(rest) => rest.rsplit_once('}').ok_or("has labels without an end")?,
            None => ("", rest),
        };
        let (value, rest) = token(rest);
        let (timestamp, rest) = token(rest);
        if value.is_empty() {
            return Err("has no value");
        }
        if !rest.is_empty() {
            return Err("has more than a value and a timestamp");
        }
        if !timestamp.is_empty() && timestamp.parse::<i64>().is_err() {
            return Err("has a timestamp that is no whole number");
        }
        Ok(Self { name, block, value })
    }
}

/// The first word of a text, and what follows the blanks behind it.
pub(super) fn token(text: &str) -> (&str, &str) {
    let text = text.trim_start_matches(BLANKS);
    match text.split_once(BLANKS) {
        Some((token, rest)) => (token, rest.trim_start_matches(BLANKS)),
        None => (text, ""),
    }
}

pub(super) fn metric_name(name: &str) -> Result<&str> {
    match names::metric_name(name) {
        Cow::Borrowed(same) if same == name => Ok(name),
        _ => Err("does not begin with the name of a metric"),
    }
}

/// Reads the labels between the braces: names, and values as they are escaped.
pub(super) fn read_block<'a>(block: &'a str, pairs: &mut Vec<(&'a str, &'a str)>) -> Result<()> {
    pairs.clear();
    let mut rest = block.trim_start_matches(BLANKS);
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=').ok_or("has a label without a value")?;
        let value = after.trim_start_matches(BLANKS).strip_prefix('"').ok_or("has a label value without quotes")?;
        let end = closing_quote(value).ok_or("has a label value without an end")?;
        pairs.push((name.trim_end_matches(BLANKS), &value[..end]));
        let after = value[end + 1..].trim_start_matches(BLANKS);
        rest = match after.strip_prefix(',') {
            Some(after) => after.trim_start_matches(BLANKS),
            None if after.is_empty() => after,
            None => return Err("has no comma between labels"),
        };
    }
    Ok(())
}

/// Makes labels of `pairs`. `block`: where they stand in the text, if they stand together.
pub(super) fn labels(block: Option<&str>, pairs: &[(&str, &str)]) -> Labels {
    // Where the text is in the form that is written here it can be taken as it is.
    if let Some(block) = block {
        let len: usize = pairs.iter().map(|(name, value)| name.len() + value.len() + r#"="","#.len()).sum();
        let is_clean = |(at, (name, value)): (usize, &(&str, &str))| {
            matches!(names::label_name(name), Cow::Borrowed(clean) if clean == *name)
                && !value.contains('\\')
                && pairs[..at].iter().all(|(other, _)| other != name)
        };
        if len.saturating_sub(1) == block.len() && pairs.iter().enumerate().all(is_clean) {
            return Labels::from_canonical(block);
        }
    }
    let plain: Vec<_> = pairs.iter().map(|(name, value)| (*name, unescape(value, true))).collect();
    Labels::new(plain.iter().map(|(name, value)| (*name, &**value))).0
}

/// The labels without the last one.
pub(super) fn without_last<'a>(block: &'a str, label: &str) -> Option<&'a str> {
    let before = block.strip_suffix('"')?.rsplit_once('"')?.0.strip_suffix('=')?.strip_suffix(label)?;
    if before.is_empty() { Some(before) } else { before.strip_suffix(',') }
}

/// Whether a line has the labels of the one before and, where there is one, a last label: then the value of that.
pub(super) fn continues<'a>(block: &'a str, before: &str, label: Option<&str>) -> Option<Option<&'a str>> {
    let rest = block.strip_prefix(before)?;
    let Some(label) = label else { return rest.is_empty().then_some(None) };
    let rest = if before.is_empty() { rest } else { rest.strip_prefix(',')? };
    let value = rest.strip_prefix(label)?.strip_prefix("=\"")?.strip_suffix('"')?;
    (!value.contains(['"', '\\'])).then_some(Some(value))
}

pub(super) fn number(text: &str) -> Result<Number> {
    if text.bytes().all(|byte| byte.is_ascii_digit())
        && let Ok(integer) = text.parse()
    {
        return Ok(Number::Integer(integer));
    }
    float(text).map(Number::from)
}

pub(super) fn float(text: &str) -> Result<f64> {
    text.parse().map_err(|_| "has a value that is no number")
}

/// The number in a label `le` or `quantile`.
pub(super) fn bound(text: &str) -> Result<f64> {
    text.parse().map_err(|_| "is a part of a metric, with a label that is no number where one says which")
}

pub(super) fn count(text: &str) -> Result<u64> {
    match number(text)? {
        Number::Integer(count) => Ok(count),
        // Exact: every integer that a float can be is.
        Number::Float(count) if count >= 0.0 && count.fract() == 0.0 && count < u64::MAX as f64 => Ok(count as u64),
        Number::Float(_) => Err("has a count that is no whole number"),
    }
}
