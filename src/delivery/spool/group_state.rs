//! Reads a gateway's own metrics for what it has of one group: when that was pushed, and by which run.

use std::collections::BTreeMap;

use super::store::Payload;
use crate::delivery::grouping::Grouping;
use crate::schema::RUN_START;

/// Longest line that is looked at. The lines looked for have the labels of one group.
const MAX_LINE: usize = 64 * 1024;
const PUSH_TIME: &str = "push_time_seconds";

/// What a gateway has of a group. What it does not have is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct InPlace {
    /// When the gateway took its last push, on the gateway's clock.
    pub(crate) pushed: Option<f64>,
    /// When the run began whose state it has, on the clock of its node.
    pub(crate) run_start: Option<f64>,
}

impl InPlace {
    /// Whether that makes a payload out of date: a later run was here. The starts of the runs decide where both sides
    /// have one, since a push time is of another clock, and of any push of the payload's own run. Of that run it is the
    /// last state, whatever is in place: a gateway that was frozen may have taken its pushes in any order.
    pub(crate) fn supersedes(self, payload: &Payload) -> bool {
        match (payload.run_start, self.run_start) {
            (Some(own), Some(there)) => there > own,
            _ => self.pushed.is_some_and(|pushed| pushed > payload.written),
        }
    }
}

/// Takes an exposition in pieces, keeps one line of it, and finds what it has of one group.
pub(crate) struct LastPush {
    labels: BTreeMap<String, String>,
    line: Vec<u8>,
    found: InPlace,
}

impl LastPush {
    pub(crate) fn of(group: &Grouping) -> Self {
        let labels = group.identity().into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self { labels: labels.collect(), line: Vec::new(), found: InPlace::default() }
    }

    pub(crate) fn read(&mut self, mut piece: &[u8]) {
        while let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
            self.keep(&piece[..end]);
            self.end_line();
            piece = &piece[end + 1..];
        }
        self.keep(piece);
    }

    pub(crate) fn found(mut self) -> InPlace {
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
            && let Some((name, rest)) = line.split_once('{')
            && let Some(place) = self.found.place_of(name)
            && let Some((labels, value)) = parse(rest)
            && labels == self.labels
        {
            *place = value.trim().parse().ok();
        }
        self.line = line;
        self.line.clear();
    }
}

impl InPlace {
    fn place_of(&mut self, metric: &str) -> Option<&mut Option<f64>> {
        if metric == PUSH_TIME {
            Some(&mut self.pushed)
        } else if metric.ends_with(RUN_START.suffix) {
            Some(&mut self.run_start)
        } else {
            None
        }
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
        quant_run_start_timestamp_seconds{instance=\"\",job=\"a\"} 1.6e+09\n\
        quant_run_start_timestamp_seconds{instance=\"\",job=\"b\"} 5\n\
        push_time_seconds{instance=\"\",job=\"a\",profile=\"x\\\\y\\\"}\\n\"} 1.8e+09\n\
        push_time_seconds{instance=\"i\",job=\"a\"} 1.9e+09";

    fn in_place(labels: &[(&str, &str)]) -> InPlace {
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

    fn found(labels: &[(&str, &str)]) -> Option<f64> {
        in_place(labels).pushed
    }

    #[test]
    fn finds_the_run_too() {
        assert_eq!(in_place(&[]), InPlace { pushed: Some(1.7e9), run_start: Some(1.6e9) });
        assert_eq!(in_place(&[("instance", "i")]).run_start, None);
    }

    #[test]
    fn a_payload_gives_way_to_a_later_run_and_not_to_an_earlier_state_of_its_own() {
        let payload = |text: &str| Payload::new(100.0, text.to_owned().into());
        let own = payload("x_run_start_timestamp_seconds 50\n");
        let there = |pushed, run_start| InPlace { pushed: Some(pushed), run_start };
        // A state of the same run, whatever the gateway's clock says of it.
        assert!(!there(999.0, Some(50.0)).supersedes(&own));
        assert!(there(1.0, Some(51.0)).supersedes(&own));
        assert!(!there(999.0, Some(49.0)).supersedes(&own));
        // Without the times of runs, the push time is what there is.
        assert!(there(101.0, None).supersedes(&own));
        assert!(!there(99.0, None).supersedes(&own));
        assert!(there(101.0, Some(1.0)).supersedes(&payload("a 1\n")));
        assert!(!InPlace::default().supersedes(&own));
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
        assert_eq!(reader.found().pushed, Some(5.0));
    }
}
