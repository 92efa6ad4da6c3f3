//! The groups of a gateway, read from its own metrics.
//!
//! The series `push_time_seconds` of a group has exactly the labels of the group, and `instance=""` where the group has
//! no such label. So `/metrics` names the groups exactly, and up to that family it is shorter than `/api/v1/metrics`,
//! which repeats the labels for each series. A gateway sorts its families, so what follows the three that count here is
//! not read.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::client::Pushgateway;
use super::group_state::{BUILD_INFO, PUSH_TIME};
use super::grouping::Grouping;
use crate::error::{Error, Kind};
use crate::exposition::samples::{self, LabelSet};
use crate::unix_time;

/// The metric with the time of a group's last refused push.
const FAILURE_TIME: &str = "push_failure_time_seconds";

/// A group on a gateway. Times are on the gateway's clock.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Group {
    pub(crate) grouping: Grouping,
    /// Time of the last successful push.
    pub(crate) last_push: Option<f64>,
    /// Time of the last refused push.
    pub(crate) last_failure: Option<f64>,
}

impl Group {
    /// Returns the time of the last push, refused or not. `None` if the gateway does not show one.
    pub(crate) fn last_try(&self) -> Option<f64> {
        self.last_push.into_iter().chain(self.last_failure).reduce(f64::max)
    }
}

impl Pushgateway {
    /// Reads the groups of the gateway, sorted by their labels.
    ///
    /// # Errors
    ///
    /// Another server answers, or as [`push_add`](Self::push_add).
    pub(crate) async fn groups(&self) -> Result<Vec<Group>, Error> {
        if self.address.stores_samples() {
            let text = format!("gateway {} is an import path of VictoriaMetrics, which has no groups", self.address);
            return Err(Error::new(Kind::Delivery, text));
        }
        let mut reader = GroupReader::default();
        self.scrape_until(|line| reader.read(line)).await.map_err(|err| self.unreadable(err.error))?;
        reader
            .finish()
            .map_err(|page| Error::new(Kind::Delivery, format!("there is no Pushgateway at {}: {page}", self.address)))
    }

    /// Returns the time on the gateway's clock, or that of this node if no response had a date.
    pub(crate) fn now(&self) -> f64 {
        unix_time::now().as_secs_f64() + self.clock.get().unwrap_or_default()
    }

    /// Adds what to check to the error of a gateway that does not show its metrics.
    fn unreadable(&self, error: Error) -> Error {
        let remedy = match error.status() {
            Some(403) => "check the credentials",
            Some(404 | 405) => "check the address and its path prefix",
            _ => return error,
        };
        let text = format!("{} does not show the metrics of a Pushgateway: {remedy}", self.address);
        Error::new(error.kind(), text).with_source(error)
    }
}

/// Reads the groups from the lines of a gateway's own metrics.
#[derive(Default)]
struct GroupReader {
    /// Times of the last successful and the last refused push. Zero means never.
    groups: BTreeMap<LabelSet, (f64, f64)>,
    is_gateway: bool,
    /// The program whose metrics these are, if it is no gateway.
    program: Option<String>,
    is_web_page: bool,
}

impl GroupReader {
    fn read(&mut self, line: &str) -> ControlFlow<()> {
        let name = samples::name(line);
        match name {
            BUILD_INFO => self.is_gateway = true,
            PUSH_TIME | FAILURE_TIME => {
                if let Some((_, labels, time)) = samples::parse(line) {
                    let (pushed, failed) = self.groups.entry(labels).or_default();
                    *(if name == PUSH_TIME { pushed } else { failed }) = time;
                }
            }
            "#" | "" => {}
            name if self.is_gateway && name > BUILD_INFO => return ControlFlow::Break(()),
            name if name.starts_with('<') => {
                self.is_web_page = true;
                return ControlFlow::Break(());
            }
            "vm_app_version" => self.program = Some("VictoriaMetrics".to_owned()),
            name => {
                let is_name = |name: &str| name.bytes().all(|byte| byte == b'_' || byte.is_ascii_alphanumeric());
                let program = name.strip_suffix("_build_info").filter(|program| *program != "go" && is_name(program));
                if let Some(program) = program {
                    self.program.get_or_insert_with(|| program.to_owned());
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// Returns the groups, or what the page is if it does not come from a Pushgateway.
    fn finish(self) -> Result<Vec<Group>, String> {
        if !self.is_gateway {
            return Err(match self.program {
                _ if self.is_web_page => "a web page is there, such as that of a login or of a web server".to_owned(),
                Some(program) => format!("the metrics there are those of {program}"),
                None => "what is there are not the metrics of a known server".to_owned(),
            });
        }
        let time = |time: f64| Some(time).filter(|time| *time > 0.0);
        let group = |(mut labels, (pushed, failed)): (LabelSet, (f64, f64))| {
            if labels.get("instance").is_some_and(String::is_empty) {
                labels.remove("instance");
            }
            let grouping = Grouping::from_labels(labels)?;
            Some(Group { grouping, last_push: time(pushed), last_failure: time(failed) })
        };
        Ok(self.groups.into_iter().filter_map(group).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Result<Vec<Group>, String>, usize) {
        let mut reader = GroupReader::default();
        let lines = text.lines().take_while(|line| reader.read(line).is_continue()).count();
        (reader.finish(), lines)
    }

    const TEXT: &str = "# TYPE a gauge\na{instance=\"\",job=\"a\"} 1\n\
        push_failure_time_seconds{instance=\"\",job=\"a\"} 9.5\n\
        push_failure_time_seconds{instance=\"i\",job=\"a\",status=\"x\\\\y\\\"\\n\"} 0\n\
        push_time_seconds{instance=\"\",job=\"a\"} 0\n\
        push_time_seconds{instance=\"i\",job=\"a\",status=\"x\\\\y\\\"\\n\"} 1.7e+09\n\
        push_time_seconds{instance=\"\",job=\"\"} 1.7e+09\n\
        # HELP pushgateway_build_info x\npushgateway_build_info{version=\"1.5.1\"} 1\n\
        # TYPE pushgateway_http_requests_total counter\npushgateway_http_requests_total 1\nquant_stage_total 1\n";

    #[test]
    fn groups_have_exactly_their_labels() {
        let (groups, lines) = read(TEXT);
        let groups = groups.unwrap();
        let paths: Vec<_> = groups.iter().map(|group| group.grouping.path()).collect();
        assert_eq!(paths, ["/metrics/job/a", "/metrics/job/a/instance/i/status/x%5Cy%22%0A"]);
        assert_eq!((groups[0].last_push, groups[0].last_failure, groups[0].last_try()), (None, Some(9.5), Some(9.5)));
        assert_eq!(
            (groups[1].last_push, groups[1].last_failure, groups[1].last_try()),
            (Some(1.7e9), None, Some(1.7e9))
        );
        assert_eq!(lines, TEXT.lines().count() - 2, "the rest is not read");
    }

    #[test]
    fn other_servers_are_named() {
        for (text, page) in [
            ("<!DOCTYPE html>\n<html>", "a web page is there, such as that of a login or of a web server"),
            ("\n<html>", "a web page is there, such as that of a login or of a web server"),
            (
                "go_build_info 1\nnode_exporter_build_info 1\npush_time_seconds{job=\"a\"} 1\n",
                "the metrics there are those of node_exporter",
            ),
            ("prometheus_build_info 1\nz 1\n", "the metrics there are those of prometheus"),
            ("flag 1\nvm_app_version{version=\"v1\"} 1\n", "the metrics there are those of VictoriaMetrics"),
            ("\u{1b}[2J_build_info 1\n", "what is there are not the metrics of a known server"),
            ("", "what is there are not the metrics of a known server"),
            ("ok", "what is there are not the metrics of a known server"),
        ] {
            assert_eq!(read(text).0.unwrap_err(), page, "{text}");
        }
    }
}
