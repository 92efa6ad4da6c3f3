//! Payloads that were not delivered yet, on disk.
//!
//! The final payload of a run is written here first, pushed, and removed when the gateway has it. What a run left, since
//! the gateway was gone or the process was killed, a later run delivers.
//!
//! A file is written under a hidden name, synced and renamed, so that one with its final name is whole. Whoever works
//! with a file holds a lock on it, which the system takes back when the process dies: two processes neither send the
//! same file nor remove what the other is sending. A file that is not whole, or that the gateway refuses, gets another
//! ending and is left for people to look at.
//!
//! The name of a file is the time it was written, the group's hash, and what makes it one process's own.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::delivery::grouping::Grouping;
use crate::error::{Error, Kind};
use crate::schema::RUN_START;
use crate::unix_time;

/// Files a spool directory keeps; beyond, the oldest are dropped.
pub const MAX_SPOOL_FILES: usize = 1_000;
/// Bytes its files have together; beyond, the oldest are dropped.
pub const MAX_SPOOL_BYTES: u64 = 256 << 20;

/// Age from which a temporary file that nobody holds was left by a process that is gone.
const ABANDONED: Duration = Duration::from_secs(60);

const FORMAT: &str = "tracing-stage-metrics spool 1";
const ENDING: &str = "spool";
/// Of files that are not whole.
const TORN: &str = "torn";
/// Of files that the gateway refused.
const REFUSED: &str = "refused";
/// Longest head a file of ours has: the group's path is the only part that varies.
const MAX_HEAD: usize = 64 * 1024;

/// A directory of payloads.
#[derive(Debug)]
pub(crate) struct Spool {
    directory: PathBuf,
    max_files: usize,
    max_bytes: u64,
    dropped: AtomicU64,
    /// Groups whose payloads do not get through: not tried again by this process, so that those behind them are.
    passed_over: Mutex<HashSet<String>>,
}

/// A payload in the spool that nobody else works with for as long as this is kept.
#[derive(Debug)]
pub(crate) struct Entry {
    path: PathBuf,
    /// Locked.
    _file: File,
    pub(crate) group: Grouping,
    pub(crate) payload: Payload,
}

/// What was to be delivered, and what it says of its run. Times are Unix times in seconds.
#[derive(Clone, Debug)]
pub(crate) struct Payload {
    pub(crate) written: f64,
    pub(crate) exposition: Bytes,
    pub(crate) run_start: Option<f64>,
}

impl Payload {
    pub(crate) fn new(written: f64, exposition: Bytes) -> Self {
        let text = std::str::from_utf8(&exposition).unwrap_or_default();
        // A series without labels: its name ends so whatever the namespace.
        let mut samples = text.lines().filter_map(|line| line.split_once(' '));
        let run_start = samples.find(|(name, _)| name.ends_with(RUN_START.suffix));
        let run_start = run_start.and_then(|(_, value)| value.parse().ok());
        Self { written, exposition, run_start }
    }
}

impl Spool {
    /// Opens the directory, makes it if it is not there, and finds out whether files can be written in it.
    pub(crate) fn open(directory: PathBuf) -> Result<Self, Error> {
        let spool = Self {
            directory,
            max_files: MAX_SPOOL_FILES,
            max_bytes: MAX_SPOOL_BYTES,
            dropped: AtomicU64::new(0),
            passed_over: Mutex::default(),
        };
        let probe = spool.directory.join(format!(".{}.tmp", unique_name("probe")));
        create_directory(&spool.directory)
            .and_then(|()| create(&probe))
            .and_then(|_| fs::remove_file(&probe))
            .map_err(|error| {
                let directory = spool.directory.display();
                Error::config(format!("cannot write files in the spool directory {directory}: may this process?"))
                    .with_source(error)
            })?;
        Ok(spool)
    }

    /// Writes a payload and keeps it from others. When this returns, it is on disk.
    pub(crate) fn write(&self, group: &Grouping, exposition: Bytes) -> Result<Entry, Error> {
        if exposition.len() as u64 > self.max_bytes {
            let (bytes, max) = (exposition.len(), self.max_bytes);
            return Err(Error::new(
                Kind::Delivery,
                format!("a payload of {bytes} bytes is more than the spool's {max}"),
            ));
        }
        self.make_room(exposition.len() as u64);
        let name = unique_name(&hash_of(group));
        let temporary = self.directory.join(format!(".{name}.tmp"));
        let path = self.directory.join(format!("{name}.{ENDING}"));
        let written = unix_time::now().as_secs_f64();
        let head = format!(
            "{FORMAT}\ngroup {}\ntime {written}\nlength {}\ncrc32 {:08x}\n\n",
            group.path(),
            exposition.len(),
            checksum(&exposition)
        );
        let store = || {
            let mut file = create(&temporary)?;
            // Before it has its name: nobody finds it unlocked.
            file.lock()?;
            file.write_all(head.as_bytes())?;
            file.write_all(&exposition)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            sync_directory(&self.directory)?;
            Ok(file)
        };
        match store() {
            Ok(file) => {
                Ok(Entry { path, _file: file, group: group.clone(), payload: Payload::new(written, exposition) })
            }
            Err(error) => {
                // What was written of it is of no use.
                let _ = fs::remove_file(&temporary);
                Err(self.failed("write to", error))
            }
        }
    }

    /// The oldest payload that nobody works with. One behind another of its group that somebody does work with is left
    /// too, so that a group's payloads are sent in their order. Sets aside what is not whole.
    pub(crate) fn next(&self) -> Option<Entry> {
        let mut left = self.passed_over.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for path in self.paths().ok()? {
            // A foreign file has none, and is set aside when it is read.
            let group = group_of(&path);
            if group.is_some_and(|group| left.contains(group)) {
                continue;
            }
            let Some(file) = lock(&path) else {
                left.extend(group.map(str::to_owned));
                continue;
            };
            match read(&path, file) {
                Some(entry) => return Some(entry),
                None => drop(set_aside(&path, TORN)),
            }
        }
        None
    }

    /// Leaves the group of this payload to a later process.
    pub(crate) fn pass_over(&self, entry: &Entry) {
        if let Some(group) = group_of(&entry.path) {
            self.passed_over.lock().unwrap_or_else(PoisonError::into_inner).insert(group.to_owned());
        }
    }

    /// How many payloads wait.
    pub(crate) fn len(&self) -> usize {
        self.paths().map_or(0, |paths| paths.len())
    }

    /// How many payloads were dropped by this process to stay within the bounds.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// The payloads, oldest first: names begin with the time.
    fn paths(&self) -> Result<Vec<PathBuf>, Error> {
        let entries = fs::read_dir(&self.directory).map_err(|error| self.failed("read", error))?;
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let mut paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|ending| ending == ENDING)).collect();
        paths.sort();
        Ok(paths)
    }

    /// Drops the oldest files until one more of this size is within the bounds: torn and refused ones, and temporary
    /// ones whose writer is gone, count and are dropped like others.
    pub(crate) fn make_room(&self, size: u64) {
        let now = unix_time::now().as_secs_f64();
        let Ok(entries) = fs::read_dir(&self.directory) else { return };
        let mut files: Vec<_> = entries
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let name = path.file_name()?.to_str()?.trim_start_matches('.').to_owned();
                is_ours(&name).then_some(())?;
                Some((name, fs::metadata(&path).ok()?.len(), path))
            })
            .collect();
        files.sort();
        let (mut count, mut bytes) = (files.len(), files.iter().map(|(_, size, _)| size).sum::<u64>());
        for (name, length, path) in files {
            // Its writer may not have come to lock it yet.
            let age = now - name[..20].parse::<f64>().unwrap_or(f64::MAX) / 1e9;
            let is_temporary = path.extension().is_some_and(|ending| ending == "tmp");
            let abandoned = is_temporary && age > ABANDONED.as_secs_f64();
            if is_temporary != abandoned || !abandoned && count < self.max_files && bytes + size <= self.max_bytes {
                continue;
            }
            // Held by a process that is at work with it: not ours to drop.
            let Some(_lock) = lock(&path) else { continue };
            if fs::remove_file(&path).is_ok() {
                count -= 1;
                bytes -= length;
                if !abandoned {
                    self.dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    fn failed(&self, what: &str, error: io::Error) -> Error {
        let directory = self.directory.display();
        Error::new(Kind::Delivery, format!("cannot {what} the spool directory {directory}")).with_source(error)
    }
}

impl Entry {
    /// The gateway has it, or something newer. Whether it is gone.
    pub(crate) fn remove(&self) -> bool {
        fs::remove_file(&self.path).is_ok()
    }

    /// The gateway will never take it. Whether it is out of the way.
    pub(crate) fn refused(&self) -> bool {
        set_aside(&self.path, REFUSED)
    }
}

/// Opens a file and takes its lock, if it is free and the file still there: whoever had the lock before may have removed
/// it.
fn lock(path: &Path) -> Option<File> {
    let file = File::open(path).ok()?;
    file.try_lock().ok()?;
    is_at(&file, path).then_some(file)
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(there)) => open.ino() == there.ino() && open.dev() == there.dev(),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

fn set_aside(path: &Path, ending: &str) -> bool {
    fs::rename(path, path.with_extension(ending)).is_ok()
}

/// The hash of the group, from the name of its file.
fn group_of(path: &Path) -> Option<&str> {
    path.file_stem()?.to_str()?.split('-').nth(1)
}

/// `None` where it is not a whole file of ours.
fn read(path: &Path, mut file: File) -> Option<Entry> {
    let mut content = Vec::new();
    Read::by_ref(&mut file).take(MAX_SPOOL_BYTES + MAX_HEAD as u64).read_to_end(&mut content).ok()?;
    let end = content.windows(2).take(MAX_HEAD).position(|pair| pair == b"\n\n")?;
    let head = std::str::from_utf8(&content[..end]).ok()?;
    let mut lines = head.lines();
    (lines.next()? == FORMAT).then_some(())?;
    let group = Grouping::from_path(lines.next()?.strip_prefix("group ")?)?;
    let written: f64 = lines.next()?.strip_prefix("time ")?.parse().ok()?;
    let length: usize = lines.next()?.strip_prefix("length ")?.parse().ok()?;
    let crc = u32::from_str_radix(lines.next()?.strip_prefix("crc32 ")?, 16).ok()?;
    let exposition = Bytes::from(content).slice(end + 2..);
    let whole = exposition.len() == length && checksum(&exposition) == crc;
    whole.then(|| Entry { path: path.to_owned(), _file: file, group, payload: Payload::new(written, exposition) })
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// Of the group, whatever the order of its labels.
fn hash_of(group: &Grouping) -> String {
    let identity: Vec<_> = group.identity().into_iter().map(|(name, value)| format!("{name}={value:?}")).collect();
    format!("{:08x}", checksum(identity.join(",").as_bytes()))
}

/// Sorts by time, and is one process's own.
fn unique_name(group: &str) -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let nanos = unix_time::now().as_nanos();
    format!("{nanos:020}-{group}-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

fn is_ours(name: &str) -> bool {
    let (time, rest) = name.split_at_checked(20).unwrap_or_default();
    let ending = rest.rsplit_once('.').map(|(_, ending)| ending);
    time.bytes().all(|byte| byte.is_ascii_digit())
        && rest.starts_with('-')
        && matches!(ending, Some(ENDING | TORN | REFUSED | "tmp"))
}

fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // Label values may say more than everyone on the node should read.
        options.mode(0o600);
    }
    options.open(path)
}

fn create_directory(directory: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt;
        builder.mode(0o700);
    }
    builder.create(directory)
}

/// So that the new name is on disk as well.
#[cfg(unix)]
fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(not(unix))]
fn sync_directory(_: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spool(directory: &tempfile::TempDir) -> Spool {
        Spool::open(directory.path().join("a/b")).unwrap()
    }

    fn group(job: &str) -> Grouping {
        let mut group = Grouping::new(job).unwrap();
        group.add("profile", "a/b ü").unwrap();
        group
    }

    fn write(spool: &Spool, job: &str, text: &str) -> PathBuf {
        spool.write(&group(job), Bytes::from(text.to_owned())).unwrap().path.clone()
    }

    fn names(spool: &Spool) -> Vec<String> {
        let entries = fs::read_dir(&spool.directory).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_written_comes_back_oldest_first() {
        let directory = tempfile::tempdir().unwrap();
        let spool = spool(&directory);
        write(&spool, "one", "a 1\n");
        write(&spool, "two", "b 2\n\nc 3\n");
        assert_eq!(spool.len(), 2);
        let first = spool.next().unwrap();
        assert_eq!((&first.group, &*first.payload.exposition), (&group("one"), &b"a 1\n"[..]));
        assert!((unix_time::now().as_secs_f64() - first.payload.written).abs() < 60.0);
        let second = spool.next().unwrap();
        assert_eq!((&second.group, &*second.payload.exposition), (&group("two"), &b"b 2\n\nc 3\n"[..]));
        assert!(spool.next().is_none());
        assert!(first.remove());
        assert!(second.refused());
        assert_eq!(spool.len(), 0);
        assert!(names(&spool)[0].ends_with(".refused"), "{:?}", names(&spool));
    }

    #[test]
    fn what_waits_behind_a_payload_of_its_group_waits_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let (mine, other) = (spool(&directory), spool(&directory));
        for job in ["one", "two", "one"] {
            write(&mine, job, "a 1\n");
        }
        let first = mine.next().unwrap();
        let theirs = other.next().unwrap();
        assert_eq!((first.group.job(), theirs.group.job()), ("one", "two"));
        assert!(theirs.remove());
        assert!(other.next().is_none(), "the second of one is behind the first");
        mine.pass_over(&first);
        drop(first);
        assert!(mine.next().is_none(), "passed over, with what is behind it");
        assert!(other.next().unwrap().remove());
        assert_eq!(other.next().unwrap().group.job(), "one");
    }

    #[test]
    fn a_payload_tells_of_its_run() {
        let text = "# TYPE x_run_start_timestamp_seconds gauge\nx_run_start_timestamp_seconds 1.5\n";
        let payload = Payload::new(9.0, text.into());
        assert_eq!(payload.run_start, Some(1.5));
    }

    #[test]
    fn the_order_of_the_labels_makes_no_other_group() {
        let mut groups = [Grouping::new("a").unwrap(), Grouping::new("a").unwrap()];
        for (group, order) in groups.iter_mut().zip([["x", "y"], ["y", "x"]]) {
            order.into_iter().for_each(|name| group.add(name, name).unwrap());
        }
        groups[1].add("z", "").unwrap();
        assert_eq!(hash_of(&groups[0]), hash_of(&groups[1]));
        assert_ne!(hash_of(&groups[0]), hash_of(&Grouping::new("a").unwrap()));
    }

    #[test]
    fn what_another_works_with_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (mine, other) = (spool(&directory), spool(&directory));
        write(&mine, "one", "a 1\n");
        let held = mine.next().unwrap();
        assert!(other.next().is_none(), "locked");
        drop(held);
        let held = other.next().unwrap();
        // Opened by one while the other still has it, and removed before the lock is free.
        let late = File::open(&held.path).unwrap();
        let path = held.path.clone();
        assert!(held.remove());
        drop(held);
        late.try_lock().unwrap();
        assert!(!is_at(&late, &path));
        assert!(mine.next().is_none());
    }

    #[test]
    fn a_torn_file_is_set_aside_and_a_foreign_one_is_not_touched() {
        let directory = tempfile::tempdir().unwrap();
        let spool = spool(&directory);
        fs::write(spool.directory.join("notes.txt"), "hands off").unwrap();
        let whole = write(&spool, "one", "a 1\n");
        let content = fs::read(&whole).unwrap();
        for cut in 0..content.len() {
            fs::write(&whole, &content[..cut]).unwrap();
            assert!(spool.next().is_none(), "cut to {cut} bytes");
            let torn = whole.with_extension(TORN);
            assert!(torn.exists() && !whole.exists(), "cut to {cut} bytes");
            fs::remove_file(torn).unwrap();
        }
        let mut changed = content.clone();
        *changed.last_mut().unwrap() ^= 1;
        fs::write(&whole, changed).unwrap();
        assert!(spool.next().is_none());
        assert_eq!(fs::read(spool.directory.join("notes.txt")).unwrap(), b"hands off");
    }

    #[test]
    fn bounds_hold_and_what_is_dropped_is_counted() {
        let directory = tempfile::tempdir().unwrap();
        let mut spool = spool(&directory);
        (spool.max_files, spool.max_bytes) = (3, 10_000);
        for n in 0..5 {
            write(&spool, &format!("job{n}"), "a 1\n");
        }
        assert_eq!((spool.len(), spool.dropped()), (3, 2));
        assert_eq!(spool.next().unwrap().group.job(), "job2");
        write(&spool, "large", &"a 1\n".repeat(2_499));
        assert_eq!((spool.len(), spool.dropped()), (1, 5));
        let held = spool.next().unwrap();
        write(&spool, "last", "a 1\n".repeat(1_000).as_str());
        assert_eq!(spool.len(), 2, "one that is being sent stays");
        assert!(held.remove());
        fs::write(spool.directory.join(".00000000000000000001-0-1-1.tmp"), "half").unwrap();
        let at_work = format!(".{}.tmp", unique_name("0"));
        fs::write(spool.directory.join(&at_work), "half").unwrap();
        write(&spool, "after", "a 1\n");
        let temporary: Vec<_> = names(&spool).into_iter().filter(|name| name.ends_with(".tmp")).collect();
        assert_eq!(temporary, [at_work], "its writer is about to lock it");
        assert_eq!(spool.dropped(), 5, "half a payload is no payload");
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_can_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let spool = spool(&directory);
        let path = write(&spool, "one", "a 1\n");
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&spool.directory).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_found_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Spool::open(file).unwrap_err();
        assert!(error.is_config() && error.to_string().starts_with("cannot write files in the spool directory "));
    }
}
