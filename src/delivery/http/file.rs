//! Small files that the user names: secrets and certificates.

use std::fs::File;
use std::io::Read as _;
use std::path::{self, PathBuf};

use crate::error::{Error, Kind};

/// A file, and the setting that names it.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::delivery) struct NamedFile {
    setting: String,
    path: PathBuf,
}

impl NamedFile {
    /// Names a file. A relative path starts at the working directory of now.
    pub(in crate::delivery) fn new(setting: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self { setting: setting.into(), path: path::absolute(&path).unwrap_or(path) }
    }

    /// Reads the file, which may have `max` bytes at most. Blocks while its file system does.
    ///
    /// # Errors
    ///
    /// An error that names the setting and the file. Another try may succeed: a new version of the file may be on its way.
    pub(super) fn read(&self, max: usize) -> Result<Vec<u8>, Error> {
        let metadata = std::fs::metadata(&self.path);
        // The open of a FIFO waits for its writer.
        if metadata.is_ok_and(|metadata| !metadata.is_file()) {
            return Err(self.error("is not a regular file"));
        }
        let mut bytes = Vec::new();
        let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
        File::open(&self.path)
            .and_then(|file| file.take(limit).read_to_end(&mut bytes))
            .map_err(|error| self.error("cannot be read").with_source(error))?;
        if bytes.len() > max {
            return Err(self.error(&format!("is larger than {max} bytes")));
        }
        Ok(bytes)
    }

    /// Returns an error of this file. `problem` must not quote its contents.
    pub(super) fn error(&self, problem: &str) -> Error {
        Error::new(Kind::Delivery, format!("{}: file {:?} {problem}", self.setting, self.path))
    }

    #[cfg(test)]
    pub(in crate::delivery) fn setting(&self) -> &str {
        &self.setting
    }

    pub(in crate::delivery) fn path(&self) -> &path::Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_text(path: impl Into<PathBuf>) -> String {
        let file = NamedFile::new("X_FILE", path);
        let text = file.read(4).unwrap_err().to_string();
        let expected = format!("X_FILE: file {:?} ", file.path);
        text.strip_prefix(&expected).unwrap_or_else(|| panic!("{text}")).to_owned()
    }

    #[test]
    fn file_is_read_up_to_a_limit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        assert_eq!(error_text(&path), "cannot be read");
        std::fs::write(&path, "four").unwrap();
        assert_eq!(NamedFile::new("X_FILE", &path).read(4).unwrap(), b"four");
        std::fs::write(&path, "fives").unwrap();
        assert_eq!(error_text(&path), "is larger than 4 bytes");
        assert_eq!(error_text(directory.path()), "is not a regular file");
        assert_eq!(error_text(""), "cannot be read");
    }

    /// The open of a FIFO without a writer would wait for ever.
    #[test]
    #[cfg(target_os = "linux")]
    fn device_or_fifo_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        assert_eq!(error_text(fifo), "is not a regular file");
        assert_eq!(error_text("/dev/zero"), "is not a regular file");
    }

    #[test]
    fn relative_path_is_resolved_once() {
        let file = NamedFile::new("X_FILE", "secrets/token");
        assert_eq!(file.path, std::env::current_dir().unwrap().join("secrets/token"));
    }
}
