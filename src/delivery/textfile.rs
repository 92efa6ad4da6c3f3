//! The exposition as a file for node_exporter's textfile collector.
//!
//! Each write creates a temporary file beside the target and renames it, so that a reader sees the old content or the
//! new one. The name of a temporary file is random and the file is created exclusively: nobody can plant a link or a
//! FIFO there. A process that is killed between the two steps leaves its temporary file behind; a later process removes
//! it once it is old.

use std::fs::{self, File, Metadata, OpenOptions};
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Write as _};
use std::path::{self, Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::error::{Error, Kind};

/// Of a file that did not exist: node_exporter runs as another user.
const DEFAULT_MODE: u32 = 0o644;
/// What the names of temporary files begin and end with, around 16 hexadecimal digits. The collector reads `*.prom` only.
const TEMPORARY: (&str, &str) = (".stage-metrics-", ".tmp");
/// Age from which a temporary file counts as left behind. A write takes milliseconds, and one that was suspended for
/// longer is done again.
const ABANDONED: Duration = Duration::from_secs(600);
/// As many symbolic links as Linux follows.
const MAX_LINKS: usize = 40;

/// A file that is replaced with each delivery.
#[derive(Clone, Debug)]
pub(crate) struct Textfile {
    /// As configured, absolute. For messages.
    name: PathBuf,
    /// The file that is replaced, symbolic links resolved.
    path: PathBuf,
}

impl Textfile {
    /// Resolves the path and checks that a file can be replaced there. Does not touch the file itself.
    ///
    /// # Errors
    ///
    /// A configuration error that says what the path is and what to do, unless it is a regular file or does not exist,
    /// in a directory that can be written.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let name = match path::absolute(path) {
            Ok(name) if !path.to_string_lossy().ends_with(path::is_separator) => name,
            Ok(_) => return Err(Unusable::Kind("is a directory").at(path)),
            Err(error) => return Err(Unusable::Io(error).at(path)),
        };
        let path = resolve(&name).map_err(|unusable| unusable.at(&name))?;
        let textfile = Self { name, path };
        let now = textfile.probe().map_err(|error| Unusable::Io(error).at(&textfile.name))?;
        textfile.remove_abandoned(now);
        Ok(textfile)
    }

    /// Replaces the file.
    pub(crate) fn write(&self, exposition: &str) -> Result<(), Error> {
        let written = match self.replace(exposition.as_bytes()) {
            // A later process took the temporary file of this one, suspended meanwhile, for left behind.
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.replace(exposition.as_bytes()),
            written => written,
        };
        written.map_err(|error| {
            Error::new(Kind::Delivery, format!("cannot write text file {:?}", self.name)).with_source(error)
        })
    }

    fn replace(&self, content: &[u8]) -> io::Result<()> {
        // Not through a link: the rename would replace it.
        let before = fs::symlink_metadata(&self.path).ok().filter(Metadata::is_file);
        let mode = before.as_ref().map_or(DEFAULT_MODE, mode_of);
        let (temporary, mut file) = self.create(mode)?;
        let replaced = file.write_all(content).and_then(|()| {
            set_access(&file, mode, before.as_ref());
            drop(file);
            fs::rename(&temporary, &self.path)
        });
        if replaced.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        replaced
    }

    /// Creates and removes a temporary file. Returns the time on the clock of the file system.
    fn probe(&self) -> io::Result<Option<SystemTime>> {
        let (temporary, file) = self.create(DEFAULT_MODE)?;
        let now = file.metadata().and_then(|metadata| metadata.modified()).ok();
        drop(file);
        fs::remove_file(temporary)?;
        Ok(now)
    }

    /// Creates a temporary file, with this mode at most.
    fn create(&self, mode: u32) -> io::Result<(PathBuf, File)> {
        let (start, end) = TEMPORARY;
        let path = self.path.with_file_name(format!("{start}{:016x}{end}", RandomState::new().hash_one(())));
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
        #[cfg(not(unix))]
        let _ = mode;
        Ok((path.clone(), options.open(path)?))
    }

    /// Removes temporary files that killed processes left, whatever text file they were for.
    fn remove_abandoned(&self, now: Option<SystemTime>) {
        let (Some(now), Some(directory)) = (now, self.path.parent()) else { return };
        let Ok(entries) = fs::read_dir(directory) else { return };
        for entry in entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_temporary)) {
            let modified = entry.metadata().and_then(|metadata| metadata.modified()).ok();
            let age = modified.and_then(|modified| now.duration_since(modified).ok());
            if age.is_some_and(|age| age > ABANDONED) {
                // Another process may be faster.
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

fn is_temporary(name: &str) -> bool {
    let digits = name.strip_prefix(TEMPORARY.0).and_then(|name| name.strip_suffix(TEMPORARY.1));
    digits.is_some_and(|digits| digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Why no text file can be at a path.
enum Unusable {
    /// What is there.
    Kind(&'static str),
    /// What is there, and the remedy.
    Other(String),
    Io(io::Error),
}

impl From<io::Error> for Unusable {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Unusable {
    fn at(self, path: &Path) -> Error {
        match self {
            Self::Kind(what) => Error::config(format!(
                "text file {path:?} {what}: give the path of a regular file, such as /var/lib/node_exporter/job.prom"
            )),
            Self::Other(what) => Error::config(format!("text file {path:?} {what}")),
            Self::Io(error) => Error::config(format!(
                "cannot write text file {path:?}: check that its directory exists, and its permissions"
            ))
            .with_source(error),
        }
    }
}

/// The regular file, or the free name, that a path leads to.
fn resolve(path: &Path) -> Result<PathBuf, Unusable> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Unusable::Kind("is a directory"));
        };
        let directory = directory.canonicalize()?;
        path = directory.join(name);
        // Of `/dev/stdout` and the like, wherever they lead.
        if path.starts_with("/proc") {
            return Err(Unusable::Kind("is an open file of a process"));
        }
        let metadata = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(path),
            metadata => metadata?,
        };
        if !metadata.is_symlink() {
            return check_replaceable(&path, &metadata).map(|()| path);
        }
        check_owner(&path, &metadata)?;
        path = directory.join(fs::read_link(&path)?);
    }
    Err(Unusable::Kind("is a symbolic link that leads to itself"))
}

/// What a rename would fail to replace, or must not.
fn check_replaceable(path: &Path, metadata: &Metadata) -> Result<(), Unusable> {
    let kind = metadata.file_type();
    if kind.is_dir() {
        return Err(Unusable::Kind("is a directory"));
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt as _;
        if kind.is_char_device() || kind.is_block_device() {
            return Err(Unusable::Kind("is a device"));
        }
        if kind.is_fifo() {
            return Err(Unusable::Kind("is a FIFO"));
        }
        if kind.is_socket() {
            return Err(Unusable::Kind("is a socket"));
        }
    }
    if is_mount_point(path) {
        return Err(Unusable::Other(
            "is a mount point, which cannot be replaced: mount its directory instead, and give the path of a file in it"
                .to_owned(),
        ));
    }
    Ok(())
}

/// A link that another user made may lead to any file that this process can write.
#[cfg(unix)]
fn check_owner(path: &Path, link: &Metadata) -> Result<(), Unusable> {
    use std::os::unix::fs::MetadataExt as _;
    let owner = link.uid();
    if owner == 0 || owner == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(Unusable::Other(format!(
        "leads through {path:?}, a symbolic link that belongs to another user (uid {owner}): give the path of the file \
         itself"
    )))
}

#[cfg(not(unix))]
fn check_owner(_: &Path, _: &Metadata) -> Result<(), Unusable> {
    Ok(())
}

/// Whether something is mounted on this very path, which must have no symbolic links in it.
#[cfg(target_os = "linux")]
fn is_mount_point(path: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt as _;
    let mut escaped = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => escaped.extend(format!("\\{byte:03o}").bytes()),
            _ => escaped.push(byte),
        }
    }
    let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mut lines = mounts.split(|&byte| byte == b'\n');
    lines.any(|line| line.split(|&byte| byte == b' ').nth(4) == Some(&escaped))
}

#[cfg(not(target_os = "linux"))]
fn is_mount_point(_: &Path) -> bool {
    false
}

#[cfg(unix)]
fn mode_of(file: &Metadata) -> u32 {
    std::os::unix::fs::MetadataExt::mode(file) & 0o777
}

#[cfg(not(unix))]
fn mode_of(_: &Metadata) -> u32 {
    DEFAULT_MODE
}

/// Sets the mode whatever the umask, and the group of the file before. On a file system without modes nothing changes.
#[cfg(unix)]
fn set_access(file: &File, mode: u32, before: Option<&Metadata>) {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
    if let Some(before) = before {
        let _ = fchown(file, None, Some(before.gid()));
    }
    let _ = file.set_permissions(fs::Permissions::from_mode(mode));
}

#[cfg(not(unix))]
fn set_access(_: &File, _: u32, _: Option<&Metadata>) {}
