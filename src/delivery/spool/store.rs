//! The spool directory: opening, writing, removing, and its bounds.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::SetOnce;

use super::format::Payload;
use super::lock::{self, OpenFile, Unavailable};
use super::names::{self, EXTENSION, FileName, TEMPORARY};
use crate::delivery::event::DeliveryEvent;
use crate::delivery::pushgateway::{EncodedState, Pushgateway};
use crate::delivery::totals::Totals;
use crate::error::{Error, Kind};

/// Limit of the files in a spool directory. Beyond it, the oldest are dropped.
pub const MAX_SPOOL_FILES: usize = 1_000;
/// Limit of the bytes in a spool directory. Beyond it, the oldest files are dropped.
pub const MAX_SPOOL_BYTES: u64 = 256 << 20;

/// Age from which an unlocked temporary file counts as abandoned: its process is gone.
const ABANDONED: Duration = Duration::from_secs(60);

/// A directory of payloads. Functions that access the disk block as long as the disk does.
#[derive(Debug)]
pub(crate) struct Spool {
    pub(super) directory: PathBuf,
    /// Prefix of this process's metrics.
    pub(super) namespace: String,
    max_files: usize,
    max_bytes: u64,
    dropped: AtomicU64,
    /// Held by work that may take the lock of a file, so that no thread of this process takes the lock of another for
    /// that of another process.
    turn: Mutex<()>,
    state: Mutex<State>,
    /// Names of the files that this process works with: their locks are not those of another process.
    in_use: Arc<Mutex<HashSet<String>>>,
}

/// Marks a file as in use by this process until it is dropped.
#[derive(Debug)]
pub(super) struct InUse {
    name: String,
    in_use: Arc<Mutex<HashSet<String>>>,
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.in_use.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

/// The state of this process for the directory. Each collection has at most one item for a file.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Hashes of groups whose payloads this process does not try again.
    pub(super) skipped_groups: HashSet<String>,
    /// Names of files that this process ignores: for another gateway, or unreadable.
    pub(super) ignored_files: HashSet<String>,
    /// Files of requests whose outcome is unknown, by name. Their locks are kept until the process ends or a later
    /// request for the file has a response: the gateway may apply the first request at any time.
    pub(super) unanswered: HashMap<String, File>,
    /// Hash of the group and bits of the run's start of payloads that this process delivered.
    pub(super) delivered_runs: HashSet<(String, u64)>,
    /// As returned by [`Spool::written`].
    pub(super) written: Option<(Totals, Option<f64>)>,
    /// Names of files whose increments are decided on.
    pub(super) settled: HashSet<String>,
    pub(super) notices: Vec<DeliveryEvent>,
    reported_lacks: HashSet<&'static str>,
}

impl State {
    /// Forgets files that do not exist any more. The names are sorted.
    pub(super) fn retain(&mut self, names: &[String]) -> &mut Self {
        let groups: HashSet<_> = names.iter().filter_map(|name| Some(FileName::parse(name)?.group)).collect();
        self.skipped_groups.retain(|group| groups.contains(group.as_str()));
        self.delivered_runs.retain(|(group, _)| groups.contains(group.as_str()));
        for files in [&mut self.ignored_files, &mut self.settled] {
            files.retain(|name| names.binary_search(name).is_ok());
        }
        self
    }
}

/// A payload in the spool, locked against other processes until this is dropped.
#[derive(Debug)]
pub(in crate::delivery) struct Entry {
    pub(in crate::delivery) name: String,
    /// Locked.
    pub(super) file: File,
    pub(super) _in_use: InUse,
    pub(in crate::delivery) payload: Payload,
}

/// What the push of a payload and its write tell each other while both go on.
#[derive(Debug, Default)]
pub(in crate::delivery) struct WriteState {
    /// Whether the gateway has the payload.
    pub(in crate::delivery) is_delivered: AtomicBool,
    /// As [`Written::group_in_use`]; set before the disk has the payload.
    pub(in crate::delivery) group_in_use: SetOnce<bool>,
}

/// The result of writing a payload.
#[derive(Debug)]
pub(in crate::delivery) struct Written {
    /// `None` if the gateway had the payload before the file was complete.
    pub(in crate::delivery) entry: Option<Entry>,
    /// Whether another process was delivering an earlier payload of the group, which may replace this one on the gateway.
    pub(in crate::delivery) group_in_use: bool,
}

impl Spool {
    /// Opens the directory, creates it if it does not exist, and checks what its file system supports.
    ///
    /// # Errors
    ///
    /// A configuration error if files cannot be written, read or listed in the directory.
    pub(crate) fn open(directory: PathBuf, namespace: &str) -> Result<Self, Error> {
        let failed = |action: &str, error: io::Error| {
            Error::config(format!("cannot {action} spool directory {directory:?}: check its permissions"))
                .with_source(error)
        };
        // A later change of the working directory does not move the spool.
        let absolute = std::path::absolute(&directory).map_err(|error| failed("find", error))?;
        let spool = Self::at(absolute, namespace);
        let probe = format!(".{}.{TEMPORARY}", names::next_stem([], "probe"));
        lock::create_directory(&spool.directory)
            .and_then(|()| spool.probe(&spool.path(&probe)))
            .map_err(|error| failed("write to", error))?;
        fs::read_dir(&spool.directory).map_err(|error| failed("read", error))?;
        Ok(spool)
    }

    /// Creates the spool of an absolute path, without access to the disk.
    pub(super) fn at(directory: PathBuf, namespace: &str) -> Self {
        Self {
            directory,
            namespace: namespace.to_owned(),
            max_files: MAX_SPOOL_FILES,
            max_bytes: MAX_SPOOL_BYTES,
            dropped: AtomicU64::new(0),
            turn: Mutex::default(),
            state: Mutex::default(),
            in_use: Arc::default(),
        }
    }

    /// Creates and removes a file.
    fn probe(&self, path: &Path) -> io::Result<()> {
        let file = lock::create(path)?;
        self.report_lock(file.lock());
        self.report_sync(lock::sync_directory(&self.directory));
        fs::remove_file(path)
    }

    /// Creates a payload of the current state, without access to the disk.
    pub(in crate::delivery) fn payload(&self, gateway: &Pushgateway, state: EncodedState) -> Payload {
        Payload::new(gateway, &self.namespace, state)
    }

    /// Does work with the directory while no other thread does. [`write`](Self::write) takes its turn itself.
    pub(in crate::delivery) fn in_turn<T>(&self, work: impl FnOnce(&Self) -> T) -> T {
        let _turn = self.turn();
        work(self)
    }

    /// Writes and locks a payload. The payload is on disk when this returns. Other work goes on while this waits for the
    /// disk.
    ///
    /// [`is_delivered`](WriteState::is_delivered) is read just before the file gets its final name: if the gateway has the
    /// payload by then, the file is removed instead, unless [`group_in_use`](Written::group_in_use).
    pub(in crate::delivery) fn write(&self, payload: &Payload, state: &WriteState) -> Result<Written, Error> {
        let size = payload.body.len() as u64;
        if size > self.max_bytes {
            let text = format!("a payload of {size} bytes is more than the spool's {}", self.max_bytes);
            return Err(Error::new(Kind::Delivery, text));
        }
        let turn = self.turn();
        self.evict_oldest(size);
        let existing = self.names().unwrap_or_default();
        let group = names::group_hash(&payload.group);
        let stem = names::next_stem(existing.iter().map(String::as_str), &group);
        let mut payload = payload.clone();
        payload.follows = self.run_starts(&existing, &payload);
        let (temporary, name) = (self.path(&format!(".{stem}.{TEMPORARY}")), format!("{stem}.{EXTENSION}"));
        let _temporary = self.set_in_use(&format!(".{stem}.{TEMPORARY}"));
        let in_use = self.set_in_use(&name);
        let mut group_in_use = false;
        let mut store = |turn: MutexGuard<'_, ()>| {
            let mut file = lock::create(&temporary)?;
            // Before the file has its final name, so that no process sees it unlocked.
            self.report_lock(file.lock());
            // After the file exists: see the module documentation.
            group_in_use =
                self.is_locked_elsewhere(&group, |other| other.extension == EXTENSION && *other.stem < *stem);
            // A payload is written once.
            let _ = state.group_in_use.set(group_in_use);
            // The disk may take long, and others take no lock of this file.
            drop(turn);
            file.write_all(payload.head().as_bytes())?;
            file.write_all(&payload.body)?;
            file.sync_all()?;
            // Pairs with the `Release` store after the push, which orders the two.
            if state.is_delivered.load(Ordering::Acquire) && !group_in_use {
                fs::remove_file(&temporary)?;
                return Ok(None);
            }
            fs::rename(&temporary, self.path(&name))?;
            // The file exists even if this fails.
            self.report_sync(lock::sync_directory(&self.directory));
            Ok(Some(file))
        };
        match store(turn) {
            Ok(file) => {
                let entry = file.map(|file| Entry { name, file, _in_use: in_use, payload });
                Ok(Written { entry, group_in_use })
            }
            Err(error) => {
                // An incomplete file is of no use.
                let _ = fs::remove_file(&temporary);
                Err(self.failed("write to", error))
            }
        }
    }

    /// Removes a payload that the gateway has, or whose group has a newer state. Returns whether the file is removed.
    pub(in crate::delivery) fn remove(&self, entry: &Entry) -> bool {
        let removed = fs::remove_file(self.path(&entry.name)).is_ok();
        self.state().unanswered.remove(&entry.name);
        removed
    }

    /// Quarantines payloads that the gateway refused for good. Returns whether all of them are renamed.
    pub(super) fn refuse(&self, entries: &[Entry], error: &Error) -> bool {
        let renamed = entries.iter().filter(|entry| self.quarantine(&entry.name, names::REFUSED)).count();
        let mut state = self.state();
        entries.iter().for_each(|entry| drop(state.unanswered.remove(&entry.name)));
        if renamed > 0 {
            state.notices.push(DeliveryEvent::ReplayRefused(error.copy()));
        }
        renamed == entries.len()
    }

    /// Renames a file to another extension, so that no process delivers it. Returns whether that succeeded.
    pub(super) fn quarantine(&self, name: &str, extension: &str) -> bool {
        let path = self.path(name);
        fs::rename(&path, path.with_extension(extension)).is_ok()
    }

    /// Returns the number of payloads in the directory.
    pub(in crate::delivery) fn len(&self) -> usize {
        self.payload_names().map_or(0, |names| names.len())
    }

    /// Returns the number of payloads that this process dropped to stay within the bounds.
    pub(in crate::delivery) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Returns the notices since the last call: each lack of the file system once, and each refused payload. They are
    /// kept here, since the result of a function is lost when its caller stops waiting.
    pub(crate) fn take_notices(&self) -> Vec<DeliveryEvent> {
        std::mem::take(&mut self.state().notices)
    }

    /// Returns the names of the payloads, oldest first. Only regular files count.
    pub(super) fn payload_names(&self) -> Result<Vec<String>, Error> {
        let mut names = self.names().map_err(|error| self.failed("read", error))?;
        names.retain(|name| Path::new(name).extension().is_some_and(|extension| extension == EXTENSION));
        Ok(names)
    }

    /// Returns the names of all regular files, sorted.
    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(&self.directory)?.filter_map(Result::ok);
        let files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
        let mut names: Vec<_> = files.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names)
    }

    /// Drops the oldest files until another file of this size is within the bounds. Corrupt and refused files, files
    /// for other gateways and abandoned temporary files count, and are dropped like others.
    pub(in crate::delivery) fn evict_oldest(&self, size: u64) {
        let Ok(names) = self.names() else { return };
        let mut files: Vec<_> = names
            .iter()
            .filter_map(|file| {
                let name = FileName::parse(file)?;
                Some((name, file, fs::symlink_metadata(self.path(file)).ok()?))
            })
            .collect();
        files.sort_by_key(|(name, ..)| name.stem);
        let (mut count, mut bytes) = (files.len(), files.iter().map(|(.., metadata)| metadata.len()).sum::<u64>());
        for (name, file, metadata) in files {
            let is_temporary = name.extension == TEMPORARY;
            // The writer of a young file may not have locked it yet.
            let is_abandoned = is_temporary && is_old(&metadata);
            if is_temporary != is_abandoned || !is_abandoned && count < self.max_files && bytes + size <= self.max_bytes
            {
                continue;
            }
            // Another process works with a locked file.
            let Ok(_locked) = lock::open_locked(&self.path(file)) else { continue };
            if fs::remove_file(self.path(file)).is_ok() {
                count -= 1;
                bytes -= metadata.len();
                if !is_abandoned {
                    self.dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    #[cfg(test)]
    pub(super) fn set_bounds(&mut self, files: usize, bytes: u64) {
        (self.max_files, self.max_bytes) = (files, bytes);
    }

    /// Opens and locks a payload. If this process holds the lock already, it returns another handle with the same lock.
    pub(super) fn lock(&self, name: &str) -> Result<File, Unavailable> {
        if let Some(file) = self.state().unanswered.get(name) {
            // The lock is released when both handles are closed.
            return file.try_clone().map_err(Unavailable::Denied);
        }
        let OpenFile { file, lock } = lock::open_locked(&self.path(name))?;
        self.report_lock(lock);
        Ok(file)
    }

    /// Marks a file as in use by this process.
    pub(super) fn set_in_use(&self, name: &str) -> InUse {
        self.in_use().insert(name.to_owned());
        InUse { name: name.to_owned(), in_use: Arc::clone(&self.in_use) }
    }

    /// Returns whether this process works with a file.
    pub(super) fn is_in_use(&self, name: &str) -> bool {
        self.in_use().contains(name)
    }

    fn in_use(&self) -> MutexGuard<'_, HashSet<String>> {
        self.in_use.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a notice that the spool works with limitations.
    pub(super) fn notice(&self, text: String, error: io::Error) {
        let error = Error::new(Kind::Delivery, text).with_source(error);
        self.state().notices.push(DeliveryEvent::SpoolDegraded(error));
    }

    pub(super) fn report_lock(&self, result: io::Result<()>) {
        self.report_lack("has no file locks, so two processes may deliver the same payload", result);
    }

    pub(super) fn report_sync(&self, result: io::Result<()>) {
        self.report_lack("cannot be synced, so a loss of power may take a payload with it", result);
    }

    /// Reports a lack of the file system once.
    fn report_lack(&self, lack: &'static str, result: io::Result<()>) {
        if let Err(error) = result
            && self.state().reported_lacks.insert(lack)
        {
            self.notice(format!("spool directory {:?} {lack}", self.directory), error);
        }
    }

    pub(super) fn failed(&self, action: &str, error: io::Error) -> Error {
        let text = format!("cannot {action} spool directory {:?}", self.directory);
        Error::new(Kind::Delivery, text).with_source(error)
    }
}

/// Returns whether a file was modified long ago. A time in the future means that the clock was set back since.
fn is_old(metadata: &fs::Metadata) -> bool {
    let now = SystemTime::now();
    let age = metadata.modified().map(|time| now.duration_since(time).unwrap_or_else(|ahead| ahead.duration()));
    age.is_ok_and(|age| age > ABANDONED)
}
