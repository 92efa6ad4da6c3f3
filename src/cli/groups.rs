//! The commands `groups`: what is on the gateway, and how to get rid of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::arguments::{Common, GroupsCommand, Selection};
use super::report::{Report, arguments, count, duration, table};
use super::{destinations, required, runtime};
use crate::config::{value, variable_name};
use crate::delivery::{Group, Grouping, Pushgateway};
use crate::error::{Error, Kind};

/// Timeout of a request. A gateway with many groups takes seconds to list them.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Limit of the deletions in flight.
const MAX_DELETIONS: usize = 8;
/// Age from which the list of groups is read again before the next deletion.
const MAX_LIST_AGE: Duration = Duration::from_secs(2);
/// How long a gateway may show a group after it has accepted its deletion.
const DELETION_TIME: Duration = Duration::from_secs(5);
/// How often the gateway is asked whether a group is gone.
const POLL: Duration = Duration::from_millis(50);

pub(super) fn run(command: GroupsCommand, progress: ProgressDrawTarget) -> Result<Report, Error> {
    let common = command.common();
    let gateway = required(destinations(common)?.gateway, common, "PUSHGATEWAY")?.with_timeout(TIMEOUT);
    match command {
        GroupsCommand::List { selection, common } => {
            let selector = Selector::new(selection, &common)?;
            runtime()?.block_on(list(&gateway, &selector))
        }
        GroupsCommand::Prune { older_than, selection, dry_run, common } => {
            let selector = Selector::new(selection, &common)?;
            runtime()?.block_on(prune(&gateway, &selector, older_than, dry_run, progress))
        }
        GroupsCommand::Delete { labels, common } => {
            let group = named_group(labels, &common)?;
            runtime()?.block_on(delete_named(&gateway, &group, progress))
        }
    }
}

/// Selects groups of the gateway.
struct Selector {
    /// `None` selects every job.
    job: Option<String>,
    label: Option<String>,
}

impl Selector {
    fn new(selection: Selection, common: &Common) -> Result<Self, Error> {
        let job = if selection.all { None } else { Some(required_job(common, "give --all for every job")?) };
        Ok(Self { job, label: selection.label })
    }

    fn selects(&self, group: &Group) -> bool {
        self.job.as_ref().is_none_or(|job| group.grouping.job() == job)
            && self.label.as_ref().is_none_or(|label| group.grouping.get(label).is_some())
    }
}

fn required_job(common: &Common, alternative: &str) -> Result<String, Error> {
    let name = variable_name(&common.env_prefix, "JOB");
    value(&name)?.ok_or_else(|| Error::config(format!("{name} is not set: set it, or {alternative}")))
}

/// Returns the group with these labels. The environment has the job if they do not.
fn named_group(labels: Vec<(String, String)>, common: &Common) -> Result<Grouping, Error> {
    let mut set = BTreeMap::new();
    for (name, value) in labels {
        if set.insert(name.clone(), value).is_some() {
            return Err(Error::config(format!("the label {name} is given twice: give it once")));
        }
    }
    if !set.contains_key("job") {
        set.insert("job".to_owned(), required_job(common, "give job=NAME")?);
    }
    Grouping::from_labels(set).ok_or_else(|| {
        Error::config(
            "these labels name no group: the job must not be empty, and a name consists of letters, digits and _",
        )
    })
}

async fn list(gateway: &Pushgateway, selector: &Selector) -> Result<Report, Error> {
    let mut groups = gateway.groups().await?;
    groups.retain(|group| selector.selects(group));
    let now = gateway.now();
    let mut rows = vec![vec!["LAST PUSH".to_owned(), "GROUP".to_owned()]];
    rows.extend(groups.iter().map(|group| vec![age(group, now), arguments(&group.grouping)]));
    let text = if groups.is_empty() { "no groups\n".to_owned() } else { table(&rows) };
    let json = json!({ "groups": groups.iter().map(|group| members(group, now)).collect::<Vec<_>>() });
    Ok(Report { text, json, is_ok: true })
}

async fn prune(
    gateway: &Pushgateway,
    selector: &Selector,
    older_than: Duration,
    dry_run: bool,
    progress: ProgressDrawTarget,
) -> Result<Report, Error> {
    let mut groups = gateway.groups().await?;
    let is_old = |time: f64| gateway.now() - time > older_than.as_secs_f64();
    groups.retain(|group| selector.selects(group) && group.last_try().is_some_and(is_old));
    let results = if dry_run {
        groups.into_iter().map(|group| (group, Outcome::WouldBeDeleted)).collect()
    } else {
        delete(gateway, groups, progress).await
    };
    Ok(report(gateway, results))
}

async fn delete_named(gateway: &Pushgateway, group: &Grouping, progress: ProgressDrawTarget) -> Result<Report, Error> {
    let groups = gateway.groups().await?;
    let Some(group) = groups.into_iter().find(|other| other.grouping.identity() == group.identity()) else {
        return Err(Error::new(
            Kind::Delivery,
            format!("there is no group {} on the gateway: `groups list` shows what is there", arguments(group)),
        ));
    };
    Ok(report(gateway, delete(gateway, vec![group], progress).await))
}

/// Returns the time since the last push.
fn age(group: &Group, now: f64) -> String {
    match (group.last_push, group.last_failure) {
        (Some(pushed), Some(failed)) if failed > pushed => {
            format!("{}, refused {} ago", duration(now - pushed), duration(now - failed))
        }
        (Some(pushed), _) => duration(now - pushed),
        (None, Some(failed)) => format!("never, refused {} ago", duration(now - failed)),
        (None, None) => "never".to_owned(),
    }
}

fn members(group: &Group, now: f64) -> Value {
    json!({
        "labels": group.grouping.identity(),
        "last_push": group.last_push,
        "last_refused_push": group.last_failure,
        "age_seconds": group.last_try().map(|time| now - time),
    })
}

/// The fate of a group that was to be deleted.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Outcome {
    Deleted,
    WouldBeDeleted,
    /// It was pushed to after the list was read, so it stays.
    PushedAgain,
    Failed(String),
}

impl Outcome {
    fn name(&self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::WouldBeDeleted => "would be deleted",
            Self::PushedAgain => "pushed again",
            Self::Failed(_) => "failed",
        }
    }

    fn error(&self) -> Option<&str> {
        match self {
            Self::Failed(error) => Some(error),
            _ => None,
        }
    }
}

/// Deletes groups, a few at a time, and waits until the gateway shows none of them.
///
/// A group that was pushed to since stays. A gateway has no deletion on a condition, so a push of the last
/// [`MAX_LIST_AGE`] is not seen.
pub(super) async fn delete(
    gateway: &Pushgateway,
    groups: Vec<Group>,
    progress: ProgressDrawTarget,
) -> Vec<(Group, Outcome)> {
    let bar = ProgressBar::with_draw_target(Some(groups.len() as u64), progress);
    let mut results: Vec<_> = groups.into_iter().map(|group| (group, None)).collect();
    let mut current = Listing::of(results.iter().map(|(group, _)| group));
    let mut deletions: JoinSet<(usize, Option<Outcome>)> = JoinSet::new();
    for at in 0..results.len() {
        if deletions.len() >= MAX_DELETIONS
            && let Some(Ok((at, result))) = deletions.join_next().await
        {
            results[at].1 = result;
            bar.inc(1);
        }
        if current.read.elapsed() > MAX_LIST_AGE {
            current = match gateway.groups().await {
                Ok(groups) => Listing::of(&groups),
                Err(error) => {
                    results[at..]
                        .iter_mut()
                        .for_each(|(_, outcome)| *outcome = Some(Outcome::Failed(format!("{error:?}"))));
                    break;
                }
            };
        }
        if !current.shows(&results[at].0) {
            results[at].1 = Some(current.outcome(&results[at].0));
            continue;
        }
        let group = gateway.for_group(results[at].0.grouping.clone());
        deletions
            .spawn(async move { (at, group.delete().await.err().map(|error| Outcome::Failed(format!("{error:?}")))) });
    }
    while let Some(deleted) = deletions.join_next().await {
        if let Ok((at, result)) = deleted {
            results[at].1 = result;
            bar.inc(1);
        }
    }
    await_deletion(gateway, &mut results).await;
    bar.finish_and_clear();
    results.into_iter().map(|(group, outcome)| (group, outcome.unwrap_or(Outcome::Deleted))).collect()
}

/// Waits until the gateway shows none of the groups that have no outcome yet: it answers a deletion before it deletes.
async fn await_deletion(gateway: &Pushgateway, results: &mut [(Group, Option<Outcome>)]) {
    let deadline = Instant::now() + DELETION_TIME;
    let mut pending: Vec<_> = results.iter_mut().filter(|(_, outcome)| outcome.is_none()).collect();
    while !pending.is_empty() {
        let is_last = Instant::now() > deadline;
        let failure = match gateway.groups().await {
            Ok(groups) => {
                let current = Listing::of(&groups);
                pending.retain_mut(|(group, outcome)| {
                    let is_shown = current.shows(group);
                    *outcome = (!is_shown).then_some(Outcome::Deleted);
                    is_shown
                });
                "the gateway accepted the deletion, and still shows the group".to_owned()
            }
            Err(error) => {
                format!("the gateway accepted the deletion, and does not show whether the group is gone: {error:?}")
            }
        };
        if is_last {
            pending.iter_mut().for_each(|(_, outcome)| *outcome = Some(Outcome::Failed(failure.clone())));
            return;
        }
        sleep(POLL).await;
    }
}

/// The groups of a gateway at one moment.
struct Listing {
    read: Instant,
    /// Time of the last push by path.
    groups: BTreeMap<String, Option<f64>>,
}

impl Listing {
    fn of<'a>(groups: impl IntoIterator<Item = &'a Group>) -> Self {
        let groups = groups.into_iter().map(|group| (group.grouping.path(), group.last_try())).collect();
        Self { read: Instant::now(), groups }
    }

    /// Returns whether a group is there and was not pushed to since it was listed.
    fn shows(&self, group: &Group) -> bool {
        self.groups.get(&group.grouping.path()) == Some(&group.last_try())
    }

    /// Returns the outcome of a group that is not shown any more.
    fn outcome(&self, group: &Group) -> Outcome {
        if self.groups.contains_key(&group.grouping.path()) { Outcome::PushedAgain } else { Outcome::Deleted }
    }
}

fn report(gateway: &Pushgateway, results: Vec<(Group, Outcome)>) -> Report {
    let now = gateway.now();
    let rows: Vec<_> = results
        .iter()
        .map(|(group, outcome)| {
            let name = outcome.error().map_or(outcome.name().to_owned(), |error| format!("failed: {error}"));
            vec![age(group, now), arguments(&group.grouping), name]
        })
        .collect();
    let number = |outcome: fn(&Outcome) -> bool| results.iter().filter(|(_, other)| outcome(other)).count();
    let deleted = number(|outcome| matches!(outcome, Outcome::Deleted | Outcome::WouldBeDeleted));
    let failed = number(|outcome| outcome.error().is_some());
    let is_dry_run = results.iter().any(|(_, outcome)| *outcome == Outcome::WouldBeDeleted);
    let verb = if is_dry_run { "would be deleted" } else { "deleted" };
    let mut text = format!("{}{} {verb}", table(&rows), count(deleted, "group"));
    for (number, what) in [(results.len() - deleted - failed, "pushed again and kept"), (failed, "failed")] {
        if number > 0 {
            text.push_str(&format!(", {number} {what}"));
        }
    }
    text.push('\n');
    let objects = results.iter().map(|(group, outcome)| {
        let mut members = members(group, now);
        members["result"] = outcome.name().into();
        if let Some(error) = outcome.error() {
            members["error"] = error.into();
        }
        members
    });
    Report { text, json: json!({ "groups": objects.collect::<Vec<_>>() }), is_ok: failed == 0 }
}
