//! Opens the files of a spool, and locks them.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;

/// Why a file cannot be worked with.
#[derive(Debug)]
pub(super) enum Unavailable {
    /// Another process works with it.
    Locked,
    /// It is not there any more, or is no regular file.
    Gone,
    Denied(io::Error),
}

/// An open file, and whether it is locked: the error of the system where it has no locks.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) lock: io::Result<()>,
}

/// Opens a file and takes its lock, if that is free. Without locks the file is used as it is.
pub(super) fn open_locked(path: &Path) -> Result<Opened, Unavailable> {
    let file = open_regular(path)?;
    let lock = match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => return Err(Unavailable::Locked),
        Err(TryLockError::Error(error)) => Err(error),
    };
    // The process that had the lock before may have removed the file.
    if is_at(&file, path) { Ok(Opened { file, lock }) } else { Err(Unavailable::Gone) }
}

/// Opens a regular file. A FIFO or a device is not opened, which could wait for ever, and a symbolic link is not
/// followed.
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

#[cfg(unix)]
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(open), Ok(there)) => open.ino() == there.ino() && open.dev() == there.dev(),
        _ => false,
    }
}

#[cfg(not(unix))]
pub(super) fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

/// Creates a file that only its owner can read: label values may say more than everyone on the node should see.
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

/// Writes the names in a directory to disk.
#[cfg(unix)]
pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(not(unix))]
pub(super) fn sync_directory(_: &Path) -> io::Result<()> {
    Ok(())
}
