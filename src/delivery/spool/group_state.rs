//! Reads a gateway's own metrics for what it has of one group: when that was pushed, and by which run.

use std::collections::BTreeMap;

use super::format::Payload;
use super::samples::{self, LabelSet};
use crate::delivery::pushgateway::Grouping;
use crate::schema::{RUN_LAST_SUCCESS, RUN_START};

/// Longest line that is looked at. The lines looked for have the labels of one group.
const MAX_LINE: usize = 64 * 1024;
const PUSH_TIME: &str = "push_time_seconds";
/// Every Pushgateway has it: a response without it is some other server's.
const BUILD_INFO: &str = "pushgateway_build_info";

/// What a gateway has of a group. What it does not have is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct GroupState {
    /// When the gateway took its last push, on the gateway's clock.
    pub(crate) push_time: Option<f64>,
    /// When the run began whose state it has, on the clock of its node.
    pub(crate) run_start: Option<f64>,
    pub(crate) last_success: Option<f64>,
}

impl GroupState {
    /// Whether that makes a payload out of date: a later run was here.
    ///
    /// Starts of runs tell which run it was and not which came later, since each is of the clock of its node: a single
    /// run dated 2099 would keep all others out. Of its own run the payload is the last state, whatever is in place: a
    /// gateway that was frozen may have taken its pushes in any order. `is_earlier` knows runs that came before, by the
    /// order of the payloads in the spool. For all others the time of the push decides, and the time at which the
    /// payload was written: both on the gateway's clock, where `offset` is that clock minus this node's.
    pub(crate) fn is_newer_than(
        &self,
        payload: &Payload,
        offset: Option<f64>,
        is_earlier: impl Fn(f64) -> bool,
    ) -> bool {
        let is_known_to_be_older = |start| payload.run_start == Some(start) || is_earlier(start);
        !self.run_start.is_some_and(is_known_to_be_older)
            && self.push_time.is_some_and(|pushed| pushed > payload.gateway_time(offset))
    }
}

/// Takes an exposition in pieces, keeps one line of it, and finds what it has of one group.
pub(crate) struct GroupStateReader {
    labels: LabelSet,
    run_start: Option<String>,
    last_success: Option<String>,
    line: Vec<u8>,
    is_gateway: bool,
    state: GroupState,
}

impl GroupStateReader {
    /// `namespace`: that of the group's metrics. Without it, nothing is known of its run.
    pub(crate) fn new(group: &Grouping, namespace: Option<&str>) -> Self {
        let labels = group.identity().into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut labels: BTreeMap<_, _> = labels.collect();
        // The gateway gives every series one.
        labels.entry("instance".to_owned()).or_default();
        Self {
            labels,
            run_start: namespace.map(|namespace| RUN_START.name(namespace)),
            last_success: namespace.map(|namespace| RUN_LAST_SUCCESS.name(namespace)),
            line: Vec::new(),
            is_gateway: false,
            state: GroupState::default(),
        }
    }

    pub(crate) fn read(&mut self, mut piece: &[u8]) {
        while let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
            self.keep(&piece[..end]);
            self.end_line();
            piece = &piece[end + 1..];
        }
        self.keep(piece);
    }

    /// The state, unless what was read was not a Pushgateway's.
    pub(crate) fn finish(mut self) -> Option<GroupState> {
        self.end_line();
        self.is_gateway.then_some(self.state)
    }

    fn keep(&mut self, part: &[u8]) {
        let room = MAX_LINE.saturating_sub(self.line.len());
        self.line.extend_from_slice(&part[..part.len().min(room)]);
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        if let Ok(text) = std::str::from_utf8(&line) {
            self.read_line(text);
        }
        self.line = line;
        self.line.clear();
    }

    fn read_line(&mut self, line: &str) {
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        let field = if name == PUSH_TIME {
            &mut self.state.push_time
        } else if self.run_start.as_deref() == Some(name) {
            &mut self.state.run_start
        } else if self.last_success.as_deref() == Some(name) {
            &mut self.state.last_success
        } else {
            self.is_gateway |= name == BUILD_INFO;
            return;
        };
        if let Some((_, labels, value)) = samples::parse(line)
            && labels == self.labels
        {
            *field = Some(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pushgateway;

    const TEXT: &str = "# TYPE push_time_seconds gauge\n\
        push_failure_time_seconds{instance=\"\",job=\"a\"} 9\n\
        push_time_seconds{instance=\"\",job=\"a\"} 1.7e+09\n\
        pushgateway_build_info{version=\"1.5.1\"} 1\n\
        quant_run_last_success_timestamp_seconds{instance=\"\",job=\"a\"} 1.5e+09\n\
        quant_run_start_timestamp_seconds{instance=\"\",job=\"a\"} 1.6e+09\n\
        quant_run_start_timestamp_seconds{instance=\"\",job=\"b\"} 5\n\
        warehouse_run_start_timestamp_seconds{instance=\"\",job=\"a\"} 6\n\
        push_time_seconds{instance=\"\",job=\"a\",profile=\"\"} 1.75e+09\n\
        push_time_seconds{instance=\"\",job=\"a\",profile=\"x\\\\y\\\"}\\n\"} 1.8e+09\n\
        push_time_seconds{instance=\"i\",job=\"a\"} 1.9e+09";

    fn state(labels: &[(&str, &str)]) -> GroupState {
        let mut group = Grouping::new("a").unwrap();
        for (name, value) in labels {
            group.add(*name, *value).unwrap();
        }
        let read = |pieces: &mut dyn Iterator<Item = &[u8]>| {
            let mut reader = GroupStateReader::new(&group, Some("quant"));
            pieces.for_each(|piece| reader.read(piece));
            reader.finish().unwrap()
        };
        let whole = read(&mut [TEXT.as_bytes()].into_iter());
        for size in [1, 7, 64] {
            assert_eq!(read(&mut TEXT.as_bytes().chunks(size)), whole, "in pieces of {size}");
        }
        whole
    }

    #[test]
    fn the_run_is_found_by_its_exact_name() {
        let found = GroupState { push_time: Some(1.7e9), run_start: Some(1.6e9), last_success: Some(1.5e9) };
        assert_eq!(state(&[]), found);
        assert_eq!(state(&[("instance", "i")]).run_start, None);
        let mut reader = GroupStateReader::new(&Grouping::new("a").unwrap(), None);
        reader.read(TEXT.as_bytes());
        assert_eq!(reader.finish().unwrap(), GroupState { push_time: Some(1.7e9), ..GroupState::default() });
    }

    #[test]
    fn the_group_is_the_one_with_exactly_these_labels() {
        let pushed = |labels| state(labels).push_time;
        assert_eq!(pushed(&[]), Some(1.7e9));
        assert_eq!(pushed(&[("profile", "x\\y\"}\n")]), Some(1.8e9));
        assert_eq!(pushed(&[("instance", "i")]), Some(1.9e9));
        assert_eq!(pushed(&[("profile", "")]), Some(1.75e9), "an empty value makes another group");
        assert_eq!(pushed(&[("profile", "other")]), None);
    }

    #[test]
    fn a_page_of_another_server_says_nothing() {
        for page in ["", "<html>Please log in</html>", "push_time_seconds{instance=\"\",job=\"a\"} 9e9\n"] {
            let mut reader = GroupStateReader::new(&Grouping::new("a").unwrap(), Some("quant"));
            reader.read(page.as_bytes());
            assert_eq!(reader.finish(), None, "{page}");
        }
    }

    #[test]
    fn a_payload_gives_way_to_a_later_run_and_not_to_its_own_or_an_earlier_one() {
        let gateway = Pushgateway::new("gw", "a").unwrap();
        let mut payload = Payload::of_text(&gateway, "x", "x_run_start_timestamp_seconds 50\n".into());
        payload.written = 100.0;
        let is_newer = |push_time: f64, run_start, offset| {
            let state = GroupState { push_time: Some(push_time), run_start, last_success: None };
            state.is_newer_than(&payload, offset, |start| start == 40.0)
        };
        assert!(!is_newer(999.0, Some(50.0), None), "a state of the same run");
        assert!(!is_newer(999.0, Some(40.0), None), "a run that came before");
        assert!(is_newer(101.0, Some(49.0), None), "a later run on a node whose clock is behind");
        assert!(!is_newer(99.0, Some(4e9), None), "an earlier run on a node whose clock is in the year 2099");
        assert!(is_newer(101.0, None, None) && !is_newer(99.0, None, None));
        assert!(is_newer(51.0, Some(49.0), Some(-50.0)), "the node's clock is ahead of the gateway's");
        assert!(!is_newer(149.0, Some(49.0), Some(50.0)), "the node's clock is behind the gateway's");
        assert!(!GroupState::default().is_newer_than(&payload, None, |_| false));
    }

    #[test]
    fn an_endless_line_is_not_kept() {
        let mut reader = GroupStateReader::new(&Grouping::new("a").unwrap(), None);
        for _ in 0..1_000 {
            reader.read(&[b'x'; 1_000]);
        }
        assert!(reader.line.len() <= MAX_LINE);
        reader.read(b"\npush_time_seconds{instance=\"\",job=\"a\"} 5\npushgateway_build_info 1\n");
        assert_eq!(reader.finish().unwrap().push_time, Some(5.0));
    }
}
