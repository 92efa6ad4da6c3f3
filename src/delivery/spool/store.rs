//! The directory: opened, written to and kept within bounds.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::format::Payload;
use super::lock::{self, Opened, Unavailable};
use super::names::{self, EXTENSION, Name, TEMPORARY};
use crate::delivery::DeliveryEvent;
use crate::delivery::pushgateway::Pushgateway;
use crate::error::{Error, Kind};

/// Files a spool directory keeps; beyond, the oldest are dropped.
pub const MAX_SPOOL_FILES: usize = 1_000;
/// Bytes its files have together; beyond, the oldest are dropped.
pub const MAX_SPOOL_BYTES: u64 = 256 << 20;

/// Age from which a temporary file that nobody holds was left by a process that is gone.
const ABANDONED: Duration = Duration::from_secs(60);

/// A directory of payloads. All functions that touch the disk may block for as long as it does.
#[derive(Debug)]
pub(crate) struct Spool {
    pub(super) directory: PathBuf,
    /// Prefix of the names of this process's metrics.
    namespace: String,
    max_files: usize,
    max_bytes: u64,
    dropped: AtomicU64,
    state: Mutex<State>,
    /// Names of files that this process works with: their locks are no sign of another one.
    held: Arc<Mutex<HashSet<String>>>,
}

/// A file that this process works with for as long as this is kept.
#[derive(Debug)]
pub(super) struct Held {
    name: String,
    held: Arc<Mutex<HashSet<String>>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

/// What this process knows of the directory. Each part has at most an item for a file.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Hashes of groups whose payloads do not get through: not tried again by this process.
    pub(super) passed_over: HashSet<String>,
    /// Names of files that are not for this process: of another gateway, or not to be opened or read.
    pub(super) left_alone: HashSet<String>,
    /// Files of requests whose outcome is unknown, by name. The locks stay until the process ends or a later request
    /// for the file is answered: the gateway may apply the first one at any time.
    pub(super) unanswered: HashMap<String, File>,
    /// Hash of the group and bits of the run's start of payloads that this process delivered.
    pub(super) delivered: HashSet<(String, u64)>,
    notices: Vec<DeliveryEvent>,
    lacks: HashSet<&'static str>,
}

impl State {
    /// Forgets what is gone. The names are sorted.
    pub(super) fn retain(&mut self, names: &[String]) -> &mut Self {
        let groups: HashSet<_> = names.iter().filter_map(|name| Some(Name::parse(name)?.group)).collect();
        self.passed_over.retain(|group| groups.contains(group.as_str()));
        self.delivered.retain(|(group, _)| groups.contains(group.as_str()));
        self.left_alone.retain(|name| names.binary_search(name).is_ok());
        self
    }
}

/// A payload in the spool that no other process works with for as long as this is kept.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(super) name: String,
    /// Locked.
    pub(super) file: File,
    pub(super) _held: Held,
    pub(crate) payload: Payload,
}

/// A payload was written.
#[derive(Debug)]
pub(crate) struct Written {
    /// `None` where the gateway had the payload before the file was ready.
    pub(crate) entry: Option<Entry>,
    /// Another process was delivering an earlier payload of the group, which may replace this one at the gateway.
    pub(crate) group_in_use: bool,
}

impl Spool {
    /// Opens the directory, makes it if it is not there, and finds what its file system cannot do.
    ///
    /// # Errors
    ///
    /// A configuration error where files cannot be written, read and listed in it.
    pub(crate) fn open(directory: PathBuf, namespace: &str) -> Result<Self, Error> {
        let failed = |what: &str, error: io::Error| {
            Error::config(format!("cannot {what} spool directory {directory:?}: check its permissions"))
                .with_source(error)
        };
        // A later change of the working directory does not move the spool.
        let absolute = std::path::absolute(&directory).map_err(|error| failed("find", error))?;
        let spool = Self {
            directory: absolute,
            namespace: namespace.to_owned(),
            max_files: MAX_SPOOL_FILES,
            max_bytes: MAX_SPOOL_BYTES,
            dropped: AtomicU64::new(0),
            state: Mutex::default(),
            held: Arc::default(),
        };
        let probe = format!(".{}.{TEMPORARY}", names::next_stem([], "probe"));
        lock::create_directory(&spool.directory)
            .and_then(|()| spool.probe(&spool.path(&probe)))
            .map_err(|error| failed("write to", error))?;
        fs::read_dir(&spool.directory).map_err(|error| failed("read", error))?;
        Ok(spool)
    }

    fn probe(&self, path: &Path) -> io::Result<()> {
        let file = lock::create(path)?;
        self.note_lock(file.lock());
        self.note_sync(lock::sync_directory(&self.directory));
        fs::remove_file(path)
    }

    /// The state of this moment, for [`write`](Self::write). Touches no disk.
    pub(crate) fn payload(&self, gateway: &Pushgateway, text: Bytes) -> Payload {
        Payload::of_text(gateway, &self.namespace, text)
    }

    /// Writes a payload and keeps it from other processes. When this returns, it is on disk.
    ///
    /// `is_delivered` is looked at just before the file gets its name: where the gateway has the payload by then, the file
    /// is removed instead, unless [`group_in_use`](Written::group_in_use).
    pub(crate) fn write(&self, payload: &Payload, is_delivered: &AtomicBool) -> Result<Written, Error> {
        let size = payload.body.len() as u64;
        if size > self.max_bytes {
            let text = format!("a payload of {size} bytes is more than the spool's {}", self.max_bytes);
            return Err(Error::new(Kind::Delivery, text));
        }
        self.evict_oldest(size);
        let existing = self.names().unwrap_or_default();
        let group = names::group_hash(&payload.group);
        let stem = names::next_stem(existing.iter().map(String::as_str), &group);
        let mut payload = payload.clone();
        payload.follows = self.run_starts(&existing, &payload);
        let (temporary, name) = (self.path(&format!(".{stem}.{TEMPORARY}")), format!("{stem}.{EXTENSION}"));
        let _temporary = self.hold(&format!(".{stem}.{TEMPORARY}"));
        let held = self.hold(&name);
        let mut group_in_use = false;
        let mut store = || {
            let mut file = lock::create(&temporary)?;
            // Before it has its name: nobody finds it unlocked.
            self.note_lock(file.lock());
            // After the file is there: see the module's documentation.
            group_in_use =
                self.is_locked_elsewhere(&group, |other| other.extension == EXTENSION && *other.stem < *stem);
            file.write_all(payload.head().as_bytes())?;
            file.write_all(&payload.body)?;
            file.sync_all()?;
            // Pairs with the `Release` of the delivery thread, for the order alone.
            if is_delivered.load(Ordering::Acquire) && !group_in_use {
                fs::remove_file(&temporary)?;
                return Ok(None);
            }
            fs::rename(&temporary, self.path(&name))?;
            // The file is there, whatever comes of this.
            self.note_sync(lock::sync_directory(&self.directory));
            Ok(Some(file))
        };
        match store() {
            Ok(file) => {
                let entry = file.map(|file| Entry { name, file, _held: held, payload });
                Ok(Written { entry, group_in_use })
            }
            Err(error) => {
                // What was written of it is of no use.
                let _ = fs::remove_file(&temporary);
                Err(self.failed("write to", error))
            }
        }
    }

    /// Removes a payload: the gateway has it, or something newer. Whether it is gone.
    pub(crate) fn remove(&self, entry: &Entry) -> bool {
        let removed = fs::remove_file(self.path(&entry.name)).is_ok();
        self.state().unanswered.remove(&entry.name);
        removed
    }

    /// Sets payloads aside that the gateway will never take. Whether they are out of the way.
    pub(super) fn refuse(&self, entries: &[Entry], error: &Error) -> bool {
        let is_set_aside = entries.iter().all(|entry| self.quarantine(&entry.name, names::REFUSED));
        let mut state = self.state();
        entries.iter().for_each(|entry| drop(state.unanswered.remove(&entry.name)));
        if is_set_aside {
            state.notices.push(DeliveryEvent::ReplayRefused(error.copy()));
        }
        is_set_aside
    }

    pub(super) fn quarantine(&self, name: &str, extension: &str) -> bool {
        let path = self.path(name);
        fs::rename(&path, path.with_extension(extension)).is_ok()
    }

    /// How many payloads wait.
    pub(crate) fn len(&self) -> usize {
        self.payload_names().map_or(0, |names| names.len())
    }

    /// How many payloads were dropped by this process to stay within the bounds.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// What a user should know since the last call: each lack of the file system once, and each payload that was refused.
    /// It is here rather than in the result of a function, which is lost where nobody waits for it any more.
    pub(crate) fn take_notices(&self) -> Vec<DeliveryEvent> {
        std::mem::take(&mut self.state().notices)
    }

    /// The names of the payloads, oldest first. What is not a regular file is none.
    pub(super) fn payload_names(&self) -> Result<Vec<String>, Error> {
        let mut names = self.names().map_err(|error| self.failed("read", error))?;
        names.retain(|name| Path::new(name).extension().is_some_and(|extension| extension == EXTENSION));
        Ok(names)
    }

    /// The names of all regular files, sorted.
    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(&self.directory)?.filter_map(Result::ok);
        let files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
        let mut names: Vec<_> = files.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names)
    }

    /// Drops the oldest files until one more of this size is within the bounds: corrupt and refused ones, those for other
    /// gateways, and temporary ones whose writer is gone, count and are dropped like others.
    pub(crate) fn evict_oldest(&self, size: u64) {
        let Ok(names) = self.names() else { return };
        let mut files: Vec<_> = names
            .iter()
            .filter_map(|file| {
                let name = Name::parse(file)?;
                Some((name, file, fs::symlink_metadata(self.path(file)).ok()?))
            })
            .collect();
        files.sort_by_key(|(name, ..)| name.stem);
        let (mut count, mut bytes) = (files.len(), files.iter().map(|(.., metadata)| metadata.len()).sum::<u64>());
        for (name, file, metadata) in files {
            let is_temporary = name.extension == TEMPORARY;
            // Its writer may not have come to lock it yet.
            let is_abandoned = is_temporary && is_old(&metadata);
            if is_temporary != is_abandoned || !is_abandoned && count < self.max_files && bytes + size <= self.max_bytes
            {
                continue;
            }
            // Held by a process that is at work with it: not ours to drop.
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

    /// Opens a payload and locks it. A file of which this process holds the lock already is taken with it.
    pub(super) fn lock(&self, name: &str) -> Result<File, Unavailable> {
        if let Some(file) = self.state().unanswered.get(name) {
            // The same lock: it is free when both are closed.
            return file.try_clone().map_err(Unavailable::Denied);
        }
        let Opened { file, lock } = lock::open_locked(&self.path(name))?;
        self.note_lock(lock);
        Ok(file)
    }

    pub(super) fn hold(&self, name: &str) -> Held {
        self.held().insert(name.to_owned());
        Held { name: name.to_owned(), held: Arc::clone(&self.held) }
    }

    pub(super) fn is_held(&self, name: &str) -> bool {
        self.held().contains(name)
    }

    fn held(&self) -> MutexGuard<'_, HashSet<String>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn notice(&self, text: String, error: io::Error) {
        let error = Error::new(Kind::Delivery, text).with_source(error);
        self.state().notices.push(DeliveryEvent::SpoolDegraded(error));
    }

    fn note_lock(&self, result: io::Result<()>) {
        self.note_missing("has no file locks, so two processes may deliver the same payload", result);
    }

    fn note_sync(&self, result: io::Result<()>) {
        self.note_missing("cannot be synced, so a loss of power may take a payload with it", result);
    }

    fn note_missing(&self, what: &'static str, result: io::Result<()>) {
        if let Err(error) = result
            && self.state().lacks.insert(what)
        {
            self.notice(format!("spool directory {:?} {what}", self.directory), error);
        }
    }

    fn failed(&self, what: &str, error: io::Error) -> Error {
        let text = format!("cannot {what} spool directory {:?}", self.directory);
        Error::new(Kind::Delivery, text).with_source(error)
    }
}

/// Whether a file was changed long ago. One of the future was written before the clock went back.
fn is_old(metadata: &fs::Metadata) -> bool {
    let now = SystemTime::now();
    let age = metadata.modified().map(|time| now.duration_since(time).unwrap_or_else(|ahead| ahead.duration()));
    age.is_ok_and(|age| age > ABANDONED)
}
