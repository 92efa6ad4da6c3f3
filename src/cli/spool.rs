//! The commands `spool`: what waits to be delivered.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressDrawTarget};
use serde_json::{Value, json};

use super::arguments::SpoolCommand;
use super::report::{Report, arguments, duration, shell_quoted, size, table};
use super::{destinations, required, runtime};
use crate::delivery::{FileState, PayloadOutcome, Pushgateway, Spool, SpoolFile};
use crate::error::Error;
use crate::unix_time;

pub(super) fn run(command: SpoolCommand, progress: ProgressDrawTarget) -> Result<Report, Error> {
    let common = command.common();
    let settings = destinations(common)?;
    let directory = required(settings.spool_directory, common, "SPOOL_DIR")?;
    let spool = Spool::existing(&directory, &settings.namespace)?;
    match &command {
        SpoolCommand::List { .. } => list(&spool),
        SpoolCommand::Replay { common } => {
            let gateway = required(settings.gateway, common, "PUSHGATEWAY")?;
            replay(spool, &gateway, progress)
        }
        SpoolCommand::Drop { files, .. } => drop_files(&spool, files),
    }
}

fn list(spool: &Spool) -> Result<Report, Error> {
    let files = spool.files()?;
    let now = unix_time::now().as_secs_f64();
    let header = ["WRITTEN", "SIZE", "STATE", "GATEWAY", "GROUP", "FILE"].map(str::to_owned).to_vec();
    let row = |file: &SpoolFile| {
        let unknown = || "?".to_owned();
        let head = file.head.as_ref();
        vec![
            head.map_or_else(unknown, |head| format!("{} ago", duration(now - head.written))),
            size(file.size),
            state(file.state).to_owned(),
            head.and_then(|head| head.gateway.as_deref().map(shell_quoted)).unwrap_or_else(unknown),
            head.map_or_else(unknown, |head| arguments(&head.group)),
            shell_quoted(&file.name),
        ]
    };
    let rows: Vec<_> = std::iter::once(header).chain(files.iter().map(row)).collect();
    let text = if files.is_empty() { "the spool is empty\n".to_owned() } else { table(&rows) };
    let object = |file: &SpoolFile| {
        let mut members = members(file);
        members["state"] = state(file.state).into();
        members
    };
    let json = json!({ "files": files.iter().map(object).collect::<Vec<_>>() });
    Ok(Report { text, json, is_ok: true })
}

fn state(state: FileState) -> &'static str {
    match state {
        FileState::Waiting => "waiting",
        FileState::Refused => "refused",
        FileState::Damaged => "damaged",
        FileState::BeingWritten => "being written",
    }
}

fn members(file: &SpoolFile) -> Value {
    let head = file.head.as_ref();
    json!({
        "file": file.name,
        "bytes": file.size,
        "gateway": head.map(|head| &head.gateway),
        "labels": head.map(|head| head.group.identity()),
        "written": head.map(|head| head.written),
    })
}

fn replay(spool: Spool, gateway: &Pushgateway, progress: ProgressDrawTarget) -> Result<Report, Error> {
    let mut waiting = spool.files()?;
    waiting.retain(|file| file.state == FileState::Waiting);
    let bar = ProgressBar::with_draw_target(Some(waiting.len() as u64), progress);
    let outcomes = Mutex::new(BTreeMap::new());
    let observe = |name: &str, outcome: PayloadOutcome| {
        outcomes.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), outcome);
        bar.inc(1);
    };
    let directory = spool.directory().to_owned();
    runtime()?.block_on(spool.replay(gateway, &observe))?;
    bar.finish_and_clear();
    let mut outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut results = Vec::new();
    for file in waiting {
        let is_other =
            file.head.as_ref().and_then(|head| head.gateway.as_ref()).is_some_and(|of| of != gateway.endpoint());
        let result = match outcomes.remove(&file.name) {
            Some(outcome) => outcome.into(),
            None if is_other => Outcome::OtherGateway,
            None if !directory.join(&file.name).exists() => Outcome::Gone,
            None => Outcome::NotTried,
        };
        results.push((file, result));
    }
    Ok(report(results))
}

/// The fate of a file.
enum Outcome {
    Delivered,
    Outdated,
    OtherGateway,
    /// Another process delivered, quarantined or dropped it first.
    Gone,
    /// A running job works with it or with an earlier one of its group, or the gateway accepted none before its turn.
    NotTried,
    Refused(String),
    Failed(String),
    Dropped,
}

impl From<PayloadOutcome> for Outcome {
    fn from(outcome: PayloadOutcome) -> Self {
        match outcome {
            PayloadOutcome::Delivered => Self::Delivered,
            PayloadOutcome::Outdated => Self::Outdated,
            PayloadOutcome::Refused(error) => Self::Refused(error),
            PayloadOutcome::Kept(error) => Self::Failed(error),
        }
    }
}

impl Outcome {
    fn name(&self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Outdated => "removed: the gateway has a newer state",
            Self::OtherGateway => "kept: for another gateway",
            Self::Gone => "gone: another process took it",
            Self::NotTried => "kept: not tried",
            Self::Refused(_) => "refused",
            Self::Failed(_) => "failed",
            Self::Dropped => "dropped",
        }
    }

    fn error(&self) -> Option<&str> {
        match self {
            Self::Refused(error) | Self::Failed(error) => Some(error),
            _ => None,
        }
    }
}

fn report(results: Vec<(SpoolFile, Outcome)>) -> Report {
    let rows: Vec<_> = results
        .iter()
        .map(|(file, outcome)| {
            let group = file.head.as_ref().map_or_else(|| "?".to_owned(), |head| arguments(&head.group));
            let result =
                outcome.error().map_or(outcome.name().to_owned(), |error| format!("{}: {error}", outcome.name()));
            vec![shell_quoted(&file.name), group, result]
        })
        .collect();
    let text = if rows.is_empty() { "there is nothing to deliver\n".to_owned() } else { table(&rows) };
    let objects = results.iter().map(|(file, outcome)| {
        let mut members = members(file);
        members["result"] = outcome.name().into();
        if let Some(error) = outcome.error() {
            members["error"] = error.into();
        }
        members
    });
    let is_ok = results.iter().all(|(_, outcome)| outcome.error().is_none());
    Report { text, json: json!({ "files": objects.collect::<Vec<_>>() }), is_ok }
}

/// Drops files; none if a path leads elsewhere, or its name is not one of this crate.
fn drop_files(spool: &Spool, files: &[PathBuf]) -> Result<Report, Error> {
    let names = files.iter().map(|file| spool.name_of(file)).collect::<Result<Vec<_>, _>>()?;
    let mut there: BTreeMap<_, _> = spool.files()?.into_iter().map(|file| (file.name.clone(), file)).collect();
    let mut results = Vec::new();
    for name in names {
        let dropped = spool.drop_file(&name);
        let missing = || SpoolFile { name: name.clone(), size: 0, state: FileState::Waiting, head: None };
        let file = there.remove(&name).unwrap_or_else(missing);
        results.push((file, dropped.map_or_else(|error| Outcome::Failed(format!("{error:?}")), |()| Outcome::Dropped)));
    }
    Ok(report(results))
}
