//! Names the groups that may hold the series of a refused push.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::client::Pushgateway;
use super::conflict::SeriesConflict;
use super::group_state::PUSH_TIME;
use super::grouping::Grouping;
use crate::delivery::http::retry::half_time;
use crate::error::{Error, Kind};
use crate::exposition::samples::{self, LabelSet};

/// Limit of the groups that an error names.
const MAX_GROUPS: usize = 4;
/// Limit of the groups that are counted.
const MAX_SEARCHED: usize = 64;
/// How long the search may take. Half of the remaining time of the push, if that is less.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(2);

/// Explains a refusal because of a conflict: adds the groups that may hold the series, and the commands that delete them.
/// Returns any other error unchanged.
pub(super) async fn explain(gateway: &Pushgateway, refusal: Error, deadline: Instant) -> Error {
    let (Some(conflict), Kind::Refused(status)) = (SeriesConflict::source_of(&refusal), refusal.kind()) else {
        return refusal;
    };
    let until = half_time(deadline).min(Instant::now() + SEARCH_TIMEOUT);
    let own = gateway.grouping().identity();
    let own = own.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let mut search = GroupSearch { own, conflict, groups: BTreeSet::new() };
    // The groups of an incomplete response are of use, too.
    let _ = timeout_at(until, gateway.scrape(|line| search.read(line))).await;
    let groups: Vec<_> = search.groups.into_iter().filter_map(Grouping::from_labels).collect();
    let mut text = format!(
        "gateway {} refused the push, since another group holds the same series. Either go back to the grouping of that \
         group, or delete it",
        gateway.endpoint()
    );
    match &groups[..] {
        [] => text.push_str(": it is a group that this job pushed to with other grouping labels"),
        groups => {
            for (number, group) in groups.iter().take(MAX_GROUPS).enumerate() {
                let before = if number == 0 { ": " } else { ", or " };
                text.push_str(&format!("{before}curl -X DELETE {}{}", gateway.endpoint(), group.path()));
            }
            if groups.len() > MAX_GROUPS {
                text.push_str(&format!(", or one of {} further groups", groups.len() - MAX_GROUPS));
            }
        }
    }
    Error::new(Kind::Refused(status), text).with_source(refusal)
}

/// Finds the groups that may hold the series of a conflict in the lines of a gateway's own metrics.
struct GroupSearch<'a> {
    own: LabelSet,
    conflict: &'a SeriesConflict,
    groups: BTreeSet<LabelSet>,
}

impl GroupSearch<'_> {
    fn read(&mut self, line: &str) {
        let group = pushed_group(line).filter(|group| *group != self.own && self.conflict.may_be_in(group));
        // An error counts the groups that it does not name, up to a limit.
        if self.groups.len() < MAX_SEARCHED {
            self.groups.extend(group);
        }
    }
}

/// Parses the group of a line `push_time_seconds{instance="",job="j"} 1.7e+09`. `None` for other lines, and for a group
/// without a successful push, which holds no series.
fn pushed_group(line: &str) -> Option<LabelSet> {
    // Cheaper than to parse every line.
    line.strip_prefix(PUSH_TIME)?;
    let (name, mut labels, time) = samples::parse(line)?;
    labels.retain(|_, value| !value.is_empty());
    (name == PUSH_TIME && time > 0.0).then_some(labels)
}

#[cfg(test)]
mod tests {
    use reqwest::StatusCode;

    use super::*;

    /// A refusal of Pushgateway 1.5.1.
    const REFUSAL: &str = "pushed metrics are invalid or inconsistent with existing metrics: collected metric \"h\" { \
        label:<name:\"instance\" value:\"\" > label:<name:\"job\" value:\"j\" > label:<name:\"profile\" \
        value:\"x\\\"\\\\\\303\\251\\n\" > histogram:<sample_count:1 > } was collected before with the same name and label \
        values\n";

    fn labels(labels: &[(&str, &str)]) -> LabelSet {
        labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn groups_that_may_hold_the_series_are_searched() {
        let conflict = SeriesConflict::find(StatusCode::BAD_REQUEST, REFUSAL.as_bytes()).unwrap();
        let text = "# TYPE push_time_seconds gauge\n\
            push_failure_time_seconds{instance=\"\",job=\"j\"} 9\n\
            push_time_seconds{instance=\"\",job=\"j\"} 1.7e+09\n\
            push_time_seconds{instance=\"\",job=\"j\",profile=\"x\\\"\\\\é\\n\"} 1.7e+09\n\
            push_time_seconds{instance=\"\",job=\"j\",profile=\"y\"} 1.7e+09\n\
            push_time_seconds{instance=\"i\",job=\"j\"} 1.7e+09\n\
            push_time_seconds{instance=\"\",job=\"k\"} 1.7e+09\n";
        let search = |own: &[(&str, &str)], text: &str| {
            let mut search = GroupSearch { own: labels(own), conflict: &conflict, groups: BTreeSet::new() };
            text.lines().for_each(|line| search.read(line));
            Vec::from_iter(search.groups)
        };
        let (plain, profile) = ([("job", "j")], [("job", "j"), ("profile", "x\"\\é\n")]);
        assert_eq!(search(&profile, text), [labels(&plain)]);
        assert_eq!(search(&plain, text), [labels(&profile)]);
        let refused = text.replace("1.7e+09", "0");
        assert_eq!(search(&profile, &refused), Vec::<LabelSet>::new(), "a group without a push holds nothing");
    }

    /// Returns the remedy in the explanation of a refusal. The gateway holds groups with these labels, and the group of
    /// the job alone, which is the refused one.
    async fn explained_remedy(groups: &[&str]) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gateway = Pushgateway::new(listener.local_addr().unwrap().to_string(), "j").unwrap();
        let refusal = "collected metric \"h\" { label:{name:\"job\" value:\"j\"} label:{name:\"a\" value:\"1\"} \
            label:{name:\"b\" value:\"2\"} label:{name:\"c\" value:\"3\"} gauge:{value:1} } was collected before \
            with the same name and label values";
        let conflict = SeriesConflict::find(StatusCode::BAD_REQUEST, refusal.as_bytes()).unwrap();
        let refusal = Error::new(Kind::Refused(400), "refused").with_source(conflict);
        let mut body = "push_time_seconds{instance=\"\",job=\"j\"} 1.7e+09\n".to_owned();
        body.extend(
            groups.iter().map(|labels| format!("push_time_seconds{{instance=\"\",job=\"j\",{labels}}} 1.7e+09\n")),
        );
        let respond = async {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            assert_ne!(connection.read(&mut request).await.unwrap(), 0);
            let response = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            connection.write_all(response.as_bytes()).await.unwrap();
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        let (error, ()) = tokio::join!(explain(&gateway, refusal, deadline), respond);
        assert_eq!(error.status(), Some(400));
        let text = error.to_string().replace(gateway.endpoint(), "GATEWAY");
        let (_, remedy) = text.split_once("Either go back to the grouping of that group, or delete it: ").unwrap();
        remedy.to_owned()
    }

    #[tokio::test]
    async fn explanation_names_the_groups_to_delete_up_to_a_limit() {
        let delete = "curl -X DELETE GATEWAY/metrics/job/j";
        assert_eq!(explained_remedy(&[]).await, "it is a group that this job pushed to with other grouping labels");
        assert_eq!(explained_remedy(&["a=\"1\""]).await, format!("{delete}/a/1"));
        let mut groups = vec!["a=\"1\"", "b=\"2\"", "c=\"3\"", "a=\"1\",b=\"2\""];
        let all = format!("{delete}/a/1/b/2, or {delete}/a/1, or {delete}/b/2, or {delete}/c/3");
        assert_eq!(explained_remedy(&groups).await, all);
        groups.push("b=\"2\",c=\"3\"");
        let some = format!("{delete}/a/1/b/2, or {delete}/a/1, or {delete}/b/2/c/3, or {delete}/b/2");
        assert_eq!(explained_remedy(&groups).await, format!("{some}, or one of 1 further groups"));
    }
}
