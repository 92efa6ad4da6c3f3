//! The spool as the program `stage-metrics` shows, delivers and drops it.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::format::{MAX_HEAD, Payload};
use super::lock::{self, Unavailable};
use super::names::{CORRUPT, EXTENSION, FileName, REFUSED};
use super::replay::{Observer, Replayed, replay_observed};
use super::select::Scope;
use super::store::Spool;
use crate::delivery::pushgateway::{Grouping, Pushgateway};
use crate::error::{Error, Kind};
use crate::job_thread::JobThread;

/// Limit of the jobs that wait for the disk.
const MAX_WAITING_JOBS: usize = 16;
/// How long the payloads of one group may take. Each request has its own timeout.
const GROUP_TIME: Duration = Duration::from_secs(3_600);

/// A file in a spool.
#[derive(Debug)]
pub(crate) struct SpoolFile {
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) state: FileState,
    /// `None` if the head cannot be read: the file is damaged, incomplete, of a later version or of another user.
    pub(crate) head: Option<SpoolFileHead>,
}

/// The head of a file.
#[derive(Debug)]
pub(crate) struct SpoolFileHead {
    /// `None` for the gateway of whoever delivers it.
    pub(crate) gateway: Option<String>,
    pub(crate) group: Grouping,
    /// Time of writing, on the clock of the node that wrote it.
    pub(crate) written: f64,
}

/// The state of a file, by its extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileState {
    Waiting,
    Refused,
    Damaged,
    BeingWritten,
}

impl Spool {
    /// Opens a directory that exists, without a write to it.
    ///
    /// # Errors
    ///
    /// A configuration error if the directory does not exist or cannot be read.
    pub(crate) fn existing(directory: &Path, namespace: &str) -> Result<Self, Error> {
        let failed = |error| {
            Error::config(format!("cannot read spool directory {directory:?}: a job creates it at its start"))
                .with_source(error)
        };
        let spool = Self::at(std::path::absolute(directory).map_err(failed)?, namespace);
        spool.names().map_err(failed)?;
        Ok(spool)
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the files of this crate in the directory, oldest first. Takes no lock, which a job could see.
    pub(crate) fn files(&self) -> Result<Vec<SpoolFile>, Error> {
        let names = self.names().map_err(|error| self.failed("read", error))?;
        let mut files: Vec<_> = names.into_iter().filter_map(|name| self.file(name)).collect();
        files.sort_by(|a, b| a.name.trim_start_matches('.').cmp(b.name.trim_start_matches('.')));
        Ok(files)
    }

    /// Returns a file; `None` if it is not of this crate, or gone.
    fn file(&self, name: String) -> Option<SpoolFile> {
        let state = match FileName::parse(&name)?.extension {
            EXTENSION => FileState::Waiting,
            REFUSED => FileState::Refused,
            CORRUPT => FileState::Damaged,
            _ => FileState::BeingWritten,
        };
        let path = self.path(&name);
        let size = fs::symlink_metadata(&path).ok()?.len();
        let head = || {
            let mut head = Vec::new();
            lock::open_regular(&path).ok()?.take(MAX_HEAD as u64).read_to_end(&mut head).ok()?;
            let Payload { gateway, group, written, .. } = Payload::parse_head(&head).ok()?.0;
            Some(SpoolFileHead { gateway, group, written })
        };
        let head = head();
        Some(SpoolFile { name, size, state, head })
    }

    /// Returns the name of a file of this spool: a name alone, or a path that leads to the directory.
    ///
    /// # Errors
    ///
    /// A configuration error if the path leads elsewhere, or the name is not one of this crate.
    pub(crate) fn name_of(&self, path: &Path) -> Result<String, Error> {
        let is_inside = match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => true,
            Some(parent) => same_directory(parent, &self.directory),
            None => false,
        };
        let name = path.file_name().and_then(|name| name.to_str()).filter(|name| FileName::parse(name).is_some());
        name.filter(|_| is_inside).map(str::to_owned).ok_or_else(|| {
            Error::config(format!(
                "{path:?} is not a file of spool directory {:?}: give a name that `spool list` prints",
                self.directory
            ))
        })
    }

    /// Removes a file, unless a job works with it.
    pub(crate) fn drop_file(&self, name: &str) -> Result<(), Error> {
        let path = self.path(name);
        let failed = |reason: &str| Error::new(Kind::Delivery, format!("cannot drop {path:?}: {reason}"));
        // The lock is held until the file is removed.
        let _locked = match lock::open_locked(&path) {
            Ok(file) => Some(file),
            Err(Unavailable::Locked) => return Err(failed("a job works with it")),
            Err(Unavailable::Gone) => return Err(failed("there is no such file")),
            // Another user's file, which may be removed all the same.
            Err(Unavailable::Denied(_)) => None,
        };
        fs::remove_file(&path).map_err(|error| failed("see the cause").with_source(error))
    }

    /// Delivers all payloads for this gateway, and calls `observe` with the outcome of each that was tried. Ends early if the
    /// gateway accepts none.
    pub(crate) async fn replay(self, gateway: &Pushgateway, observe: Observer<'_>) -> Result<(), Error> {
        let spool = Arc::new(self);
        let files = JobThread::start("metrics-spool", MAX_WAITING_JOBS)?;
        loop {
            let deadline = Instant::now() + GROUP_TIME;
            match replay_observed(gateway, &spool, &files, Scope::AllGroups, deadline, observe).await {
                Replayed::Done | Replayed::Refused | Replayed::Skipped => {}
                Replayed::Nothing | Replayed::Failed | Replayed::Unanswered => return Ok(()),
            }
        }
    }
}

fn same_directory(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}
