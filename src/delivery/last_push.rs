//! Reads a gateway's own metrics for when it last took a push of a group.

use std::collections::BTreeMap;

use super::grouping::Grouping;

/// Longest line that is looked at. The lines looked for have the labels of one group.
const MAX_LINE: usize = 64 * 1024;
const METRIC: &str = "push_time_seconds{";

/// Takes an exposition in pieces, keeps one line of it, and finds the push time of one group.
pub(crate) struct LastPush {
    labels: BTreeMap<String, String>,
    line: Vec<u8>,
    found: Option<f64>,
}

impl LastPush {
    pub(crate) fn of(group: &Grouping) -> Self {
        let labels = group.identity().into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self { labels: labels.collect(), line: Vec::new(), found: None }
    }

    pub(crate) fn read(&mut self, mut piece: &[u8]) {
        while let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
            self.keep(&piece[..end]);
            self.end_line();
            piece = &piece[end + 1..];
        }
        self.keep(piece);
    }

    pub(crate) fn found(mut self) -> Option<f64> {
        self.end_line();
        self.found
    }

    fn keep(&mut self, part: &[u8]) {
        let room = MAX_LINE.saturating_sub(self.line.len());
        self.line.extend_from_slice(&part[..part.len().min(room)]);
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        if let Ok(line) = std::str::from_utf8(&line)
            && let Some(rest) = line.strip_prefix(METRIC)
            && let Some((labels, value)) = parse(rest)
            && labels == self.labels
        {
            self.found = value.trim().parse().ok();
        }
        self.line = line;
        self.line.clear();
    }
}

/// `name="value",name="value"} rest`. A label without a value is the same as none.
fn parse(text: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    let mut rest = text;
    loop {
        if let Some(value) = rest.strip_prefix('}') {
            return Some((labels, value));
        }
        let (name, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = after.chars();
        loop {
            match chars.next()? {
                '"' => break,
                '\\' => value.push(match chars.next()? {
                    'n' => '\n',
                    other => other,
                }),
                other => value.push(other),
            }
        }
        if !value.is_empty() {
            labels.insert(name.to_owned(), value);
        }
        rest = chars.as_str().trim_start_matches(',');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# TYPE push_time_seconds gauge\n\
        push_failure_time_seconds{instance=\"\",job=\"a\"} 9\n\
        push_time_seconds{instance=\"\",job=\"a\"} 1.7e+09\n\
        push_time_seconds{instance=\"\",job=\"a\",profile=\"x\\\\y\\\"}\\n\"} 1.8e+09\n\
        push_time_seconds{instance=\"i\",job=\"a\"} 1.9e+09";

    fn found(labels: &[(&str, &str)]) -> Option<f64> {
        let mut group = Grouping::new("a").unwrap();
        for (name, value) in labels {
            group.add(*name, *value).unwrap();
        }
        let whole = {
            let mut reader = LastPush::of(&group);
            reader.read(TEXT.as_bytes());
            reader.found()
        };
        for size in [1, 7, 64] {
            let mut reader = LastPush::of(&group);
            TEXT.as_bytes().chunks(size).for_each(|piece| reader.read(piece));
            assert_eq!(reader.found(), whole, "in pieces of {size}");
        }
        whole
    }

    #[test]
    fn finds_the_group_with_exactly_these_labels() {
        assert_eq!(found(&[]), Some(1.7e9));
        assert_eq!(found(&[("profile", "x\\y\"}\n")]), Some(1.8e9));
        assert_eq!(found(&[("instance", "i")]), Some(1.9e9));
        assert_eq!(found(&[("instance", "")]), Some(1.7e9));
        assert_eq!(found(&[("profile", "other")]), None);
    }

    #[test]
    fn an_endless_line_is_not_kept() {
        let mut reader = LastPush::of(&Grouping::new("a").unwrap());
        for _ in 0..1_000 {
            reader.read(&[b'x'; 1_000]);
        }
        assert!(reader.line.len() <= MAX_LINE);
        reader.read(b"\npush_time_seconds{job=\"a\"} 5\n");
        assert_eq!(reader.found(), Some(5.0));
    }
}
