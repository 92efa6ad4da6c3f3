//! The text file for node_exporter's textfile collector.
//!
//! Each write creates a temporary file beside the target and renames it, so that a reader sees the old content or the
//! new one. The name of a temporary file is random and the file is created exclusively, so no other user can prepare a
//! link or a FIFO there. A process that is killed between the two steps leaves its temporary file; a later process
//! removes it once it is old.

use std::fs::{self, File, Metadata, OpenOptions};
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Write as _};
use std::path::{self, Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::error::{Error, Kind};

/// Mode of a new file, which node_exporter reads as another user.
const DEFAULT_MODE: u32 = 0o644;
/// Prefix and suffix of temporary names, around 16 hexadecimal digits. The collector reads `*.prom` only.
const TEMPORARY: (&str, &str) = (".stage-metrics-", ".tmp");
/// Age from which a temporary file counts as abandoned. A write takes milliseconds, and a process that was suspended for
/// longer writes again.
const ABANDONED: Duration = Duration::from_secs(600);
/// Limit of the symbolic links in a path, as on Linux.
const MAX_LINKS: usize = 40;

/// A text file that each delivery replaces.
#[derive(Clone, Debug)]
pub(crate) struct Textfile {
    /// The absolute path as configured, for messages.
    configured_path: PathBuf,
    /// The file that is replaced, with symbolic links resolved.
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
        let configured_path = match path::absolute(path) {
            Ok(absolute) if !path.to_string_lossy().ends_with(path::is_separator) => absolute,
            Ok(_) => return Err(InvalidPath::WrongType("is a directory").into_error(path)),
            Err(error) => return Err(InvalidPath::Io(error).into_error(path)),
        };
        let path = resolve(&configured_path).map_err(|invalid| invalid.into_error(&configured_path))?;
        let textfile = Self { configured_path, path };
        let now = textfile.probe().map_err(|error| InvalidPath::Io(error).into_error(&textfile.configured_path))?;
        textfile.remove_abandoned(now);
        Ok(textfile)
    }

    /// Returns the absolute path as configured.
    pub(super) fn configured_path(&self) -> &Path {
        &self.configured_path
    }

    /// Reads the file. `None` if it does not exist.
    pub(super) fn read(&self) -> Result<Option<String>, Error> {
        match fs::read_to_string(&self.path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => {
                let text = format!("cannot read text file {:?}", self.configured_path);
                Err(Error::new(Kind::Delivery, text).with_source(error))
            }
        }
    }

    /// Replaces the file.
    pub(super) fn write(&self, exposition: &str) -> Result<(), Error> {
        let written = match self.replace(exposition.as_bytes()) {
            // This process was suspended, and a later one removed its temporary file as abandoned.
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.replace(exposition.as_bytes()),
            written => written,
        };
        written.map_err(|error| {
            Error::new(Kind::Delivery, format!("cannot write text file {:?}", self.configured_path)).with_source(error)
        })
    }

    /// Writes a temporary file and renames it to the text file.
    fn replace(&self, content: &[u8]) -> io::Result<()> {
        // A symbolic link is not followed: the rename replaces it.
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

    /// Creates a temporary file with this mode, which the umask may reduce.
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

    /// Removes the temporary files of killed processes, of any text file in the directory.
    fn remove_abandoned(&self, now: Option<SystemTime>) {
        let (Some(now), Some(directory)) = (now, self.path.parent()) else { return };
        let Ok(entries) = fs::read_dir(directory) else { return };
        for entry in entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_temporary)) {
            let modified = entry.metadata().and_then(|metadata| metadata.modified()).ok();
            let age = modified.and_then(|modified| now.duration_since(modified).ok());
            if age.is_some_and(|age| age > ABANDONED) {
                // Another process may remove it first.
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

fn is_temporary(name: &str) -> bool {
    let digits = name.strip_prefix(TEMPORARY.0).and_then(|name| name.strip_suffix(TEMPORARY.1));
    digits.is_some_and(|digits| digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// The reason why no text file can be at a path.
enum InvalidPath {
    /// Another type of file, as the end of a sentence about the path.
    WrongType(&'static str),
    /// Another reason, with the remedy.
    Other(String),
    Io(io::Error),
}

impl From<io::Error> for InvalidPath {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl InvalidPath {
    fn into_error(self, path: &Path) -> Error {
        match self {
            Self::WrongType(reason) => Error::config(format!(
                "text file {path:?} {reason}: give the path of a regular file, such as /var/lib/node_exporter/job.prom"
            )),
            Self::Other(reason) => Error::config(format!("text file {path:?} {reason}")),
            Self::Io(error) => Error::config(format!(
                "cannot write text file {path:?}: check that its directory exists, and its permissions"
            ))
            .with_source(error),
        }
    }
}

/// Resolves a path to a regular file, or to a name that does not exist.
fn resolve(path: &Path) -> Result<PathBuf, InvalidPath> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(InvalidPath::WrongType("is a directory"));
        };
        let directory = directory.canonicalize()?;
        path = directory.join(name);
        // The target of `/dev/stdout` and similar links.
        if path.starts_with("/proc") {
            return Err(InvalidPath::WrongType("is an open file of a process"));
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
    Err(InvalidPath::WrongType("is a symbolic link that leads to itself"))
}

/// Checks that a rename can and may replace a file.
fn check_replaceable(path: &Path, metadata: &Metadata) -> Result<(), InvalidPath> {
    let kind = metadata.file_type();
    if kind.is_dir() {
        return Err(InvalidPath::WrongType("is a directory"));
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt as _;
        if kind.is_char_device() || kind.is_block_device() {
            return Err(InvalidPath::WrongType("is a device"));
        }
        if kind.is_fifo() {
            return Err(InvalidPath::WrongType("is a FIFO"));
        }
        if kind.is_socket() {
            return Err(InvalidPath::WrongType("is a socket"));
        }
    }
    if is_mount_point(path) {
        return Err(InvalidPath::Other(
            "is a mount point, which cannot be replaced: mount its directory instead, and give the path of a file in it"
                .to_owned(),
        ));
    }
    Ok(())
}

/// Checks the owner of a symbolic link: a link of another user may lead to any file that this process can write.
#[cfg(unix)]
fn check_owner(path: &Path, link: &Metadata) -> Result<(), InvalidPath> {
    use std::os::unix::fs::MetadataExt as _;
    let owner = link.uid();
    if owner == 0 || owner == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(InvalidPath::Other(format!(
        "leads through {path:?}, a symbolic link that belongs to another user (uid {owner}): give the path of the file \
         itself"
    )))
}

#[cfg(not(unix))]
fn check_owner(_: &Path, _: &Metadata) -> Result<(), InvalidPath> {
    Ok(())
}

/// Returns whether a file system is mounted on exactly this path, which must contain no symbolic links.
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

/// Sets the mode, whatever the umask, and the group of the previous file. Has no effect on a file system without modes.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn open_error(path: &Path) -> String {
        let Err(error) = Textfile::open(path) else { panic!("{path:?} was accepted") };
        assert!(error.is_config());
        error.to_string()
    }

    #[test]
    fn file_is_replaced_and_nothing_else_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("job.prom");
        let textfile = Textfile::open(&path).unwrap();
        assert!(!path.exists());
        textfile.write("a 1\n").unwrap();
        textfile.write("a 2\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "a 2\n");
        assert_eq!(names(directory.path()), ["job.prom"]);
    }

    #[test]
    fn directory_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let remedy = "give the path of a regular file, such as /var/lib/node_exporter/job.prom";
        for path in
            [directory.path().to_owned(), directory.path().join("new/"), "/".into(), directory.path().join("..")]
        {
            assert_eq!(open_error(&path), format!("text file {path:?} is a directory: {remedy}"));
        }
        let missing = directory.path().join("no/such/job.prom");
        let text = format!("cannot write text file {missing:?}: check that its directory exists, and its permissions");
        assert_eq!(open_error(&missing), text);
        assert!(open_error(Path::new("")).starts_with("cannot write text file \"\": "));
        assert_eq!(names(directory.path()), [""; 0]);
    }

    #[test]
    fn temporary_files_are_removed_once_they_are_old() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("job.prom");
        let old = [".stage-metrics-0123456789abcdef.tmp", ".stage-metrics-0123456789abcdef.tmp.prom", ".job.prom.tmp"];
        let young = ".stage-metrics-fedcba9876543210.tmp";
        for name in old {
            let file = File::create(directory.path().join(name)).unwrap();
            file.set_modified(SystemTime::now() - ABANDONED - Duration::from_secs(1)).unwrap();
        }
        File::create(directory.path().join(young)).unwrap();
        Textfile::open(&path).unwrap();
        assert_eq!(names(directory.path()), [old[2], old[1], young], "the writer of a young file may be active");
    }

    #[test]
    fn temporary_files_are_identified_by_their_whole_name() {
        assert!(is_temporary(".stage-metrics-0123456789abcdef.tmp"));
        for foreign in ["0123456789abcde", "0123456789abcdef0", "0123456789abcdeg", ""] {
            assert!(!is_temporary(&format!(".stage-metrics-{foreign}.tmp")), "{foreign}");
        }
    }

    /// The name is longer than the file system permits. The name of its temporary file is not.
    #[test]
    fn invalid_file_name_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x".repeat(300));
        assert!(open_error(&path).starts_with("cannot write text file "), "{}", open_error(&path));
    }

    /// A later process removes the temporary file of a process that was suspended for long.
    #[test]
    fn content_is_written_again_if_its_temporary_file_was_removed() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("job.prom");
        let textfile = Textfile::open(&path).unwrap();
        let content = "a 1\n".repeat(1 << 22);
        let was_removed = || {
            let written = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let remover = scope.spawn(|| {
                    while !written.load(Ordering::Relaxed) {
                        if let Some(name) = names(directory.path()).into_iter().find(|name| is_temporary(name)) {
                            return fs::remove_file(directory.path().join(name)).is_ok();
                        }
                    }
                    false
                });
                let result = textfile.write(&content);
                written.store(true, Ordering::Relaxed);
                result.unwrap();
                remover.join().unwrap()
            })
        };
        // The write may be faster than the remover.
        while !was_removed() {}
        assert!(fs::read_to_string(&path).unwrap() == content);
        assert_eq!(names(directory.path()), ["job.prom"]);
    }

    #[cfg(unix)]
    mod unix {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        use std::os::unix::net::UnixListener;
        use std::process::Command;

        use super::*;

        fn mode(path: &Path) -> u32 {
            fs::metadata(path).unwrap().permissions().mode() & 0o7777
        }

        #[test]
        fn error_names_the_type_of_the_file() {
            let directory = tempfile::tempdir().unwrap();
            let (fifo, socket) = (directory.path().join("fifo"), directory.path().join("socket"));
            assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
            let _socket = UnixListener::bind(&socket).unwrap();
            let (itself, to_null) = (directory.path().join("itself"), directory.path().join("to_null"));
            symlink(&itself, &itself).unwrap();
            symlink("/dev/null", &to_null).unwrap();
            for (path, reason) in [
                (Path::new("/dev/null"), "is a device"),
                (&to_null, "is a device"),
                (Path::new("/dev/stdout"), "is an open file of a process"),
                (Path::new("/dev/fd/1"), "is an open file of a process"),
                (Path::new("/proc/self/comm"), "is an open file of a process"),
                (&fifo, "is a FIFO"),
                (&socket, "is a socket"),
                (&itself, "is a symbolic link that leads to itself"),
            ] {
                assert!(
                    open_error(path).starts_with(&format!("text file {path:?} {reason}: give ")),
                    "{}",
                    open_error(path)
                );
            }
            assert_eq!(names(directory.path()), ["fifo", "itself", "socket", "to_null"]);
        }

        #[test]
        fn mode_of_the_file_is_kept() {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("job.prom");
            let textfile = Textfile::open(&path).unwrap();
            textfile.write("a 1\n").unwrap();
            assert_eq!(mode(&path), 0o644);
            for kept in [0o600, 0o640, 0o664, 0o444] {
                fs::set_permissions(&path, fs::Permissions::from_mode(kept)).unwrap();
                textfile.write("a 2\n").unwrap();
                assert_eq!(mode(&path), kept);
            }
        }

        #[test]
        fn link_is_resolved_once() {
            let directory = tempfile::tempdir().unwrap();
            let [first, second, target, other] =
                ["first", "second", "deep/target", "other"].map(|name| directory.path().join(name));
            fs::create_dir(directory.path().join("deep")).unwrap();
            symlink("second", &first).unwrap();
            // Its target does not exist yet.
            symlink(&target, &second).unwrap();
            let textfile = Textfile::open(&first).unwrap();
            textfile.write("a 1\n").unwrap();
            assert_eq!(fs::read_to_string(&target).unwrap(), "a 1\n");
            fs::write(&other, "not ours\n").unwrap();
            fs::remove_file(&second).unwrap();
            symlink(&other, &second).unwrap();
            textfile.write("a 2\n").unwrap();
            assert_eq!(fs::read_to_string(&target).unwrap(), "a 2\n");
            assert_eq!(fs::read_to_string(&other).unwrap(), "not ours\n");
            assert!(first.is_symlink() && second.is_symlink());
        }
    }
}
