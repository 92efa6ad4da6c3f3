//! Opens and locks the files of a spool.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;

/// The reason why a file cannot be used.
#[derive(Debug)]
pub(super) enum Unavailable {
    /// Another process holds the lock.
    Locked,
    /// The file does not exist any more, or is no regular file.
    Gone,
    /// The file cannot be opened.
    Denied(io::Error),
}

/// An open file, and the result of locking it: an error if the file system has no locks.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) file: File,
    pub(super) lock: io::Result<()>,
}

/// Opens a file and takes its lock. On a file system without locks it opens the file alone.
pub(super) fn open_locked(path: &Path) -> Result<OpenFile, Unavailable> {
    let file = open_regular(path)?;
    let lock = match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => return Err(Unavailable::Locked),
        Err(TryLockError::Error(error)) => Err(error),
    };
    // The previous holder of the lock may have removed the file.
    if is_at(&file, path) { Ok(OpenFile { file, lock }) } else { Err(Unavailable::Gone) }
}

/// Opens a regular file. It does not open a FIFO or a device, which could block for ever, and follows no symbolic link.
pub(super) fn open_regular(path: &Path) -> Result<File, Unavailable> {
    if !fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file()) {
        return Err(Unavailable::Gone);
    }
    // On NFS an exclusive lock needs a file that is open for writing.
    let opened = OpenOptions::new().read(true).write(true).open(path);
    let opened = opened.or_else(|error| match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => File::open(path),
        _ => Err(error),
    });
    opened.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Unavailable::Gone,
        _ => Unavailable::Denied(error),
    })
}

/// Returns whether an open file is still the file at this path.
#[cfg(unix)]
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(open), Ok(current)) => open.ino() == current.ino() && open.dev() == current.dev(),
        _ => false,
    }
}

#[cfg(not(unix))]
pub(super) fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

/// Creates a file that only its owner can read, since label values may be confidential.
pub(super) fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    options.open(path)
}

/// Creates a directory, with its parents, that only its owner can read.
pub(super) fn create_directory(directory: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt;
        builder.mode(0o700);
    }
    builder.create(directory)
}

/// Syncs the entries of a directory to disk.
#[cfg(unix)]
pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(not(unix))]
pub(super) fn sync_directory(_: &Path) -> io::Result<()> {
    Ok(())
}
