//! The exposition as a file for node_exporter's textfile collector: replaced as a whole, so that no reader sees half.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind};

/// A file that is replaced with each delivery.
#[derive(Clone, Debug)]
pub(crate) struct Textfile {
    path: PathBuf,
    /// In the same directory, so that the rename is atomic, and without the `.prom` that the collector looks for.
    temporary: PathBuf,
}

impl Textfile {
    pub(crate) fn new(path: PathBuf) -> Result<Self, Error> {
        let Some(name) = path.file_name().filter(|_| !path.is_dir()) else {
            return Err(Error::config(format!(
                "the text file {} names no file: give the path of the file to write, such as /var/lib/node_exporter/job.prom",
                path.display()
            )));
        };
        let mut temporary = OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{}.tmp", std::process::id()));
        let temporary = path.with_file_name(temporary);
        Ok(Self { path, temporary })
    }

    /// Finds out whether the file can be written, without touching it.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let written = fs::write(&self.temporary, "").and_then(|()| fs::remove_file(&self.temporary));
        written.map_err(|error| {
            Error::config(format!(
                "cannot write the text file {}: does its directory exist, and may this process \
                write there?",
                self.path.display()
            ))
            .with_source(error)
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn write(&self, exposition: &str) -> Result<(), Error> {
        let written = fs::write(&self.temporary, exposition).and_then(|()| fs::rename(&self.temporary, &self.path));
        written.map_err(|error| {
            // Whatever was written of it is of no use to anyone.
            let _ = fs::remove_file(&self.temporary);
            Error::new(Kind::Delivery, format!("cannot write the text file {}", self.path.display())).with_source(error)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_the_file_and_leaves_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("job.prom");
        let textfile = Textfile::new(path.clone()).unwrap();
        textfile.check().unwrap();
        assert!(!path.exists());
        textfile.write("a 1\n").unwrap();
        textfile.write("a 2\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "a 2\n");
        let names: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["job.prom"]);
    }

    #[test]
    fn a_place_where_nothing_can_be_written_is_found_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let error = Textfile::new(directory.path().join("no/such/job.prom")).unwrap().check().unwrap_err();
        assert!(error.is_config());
        assert!(error.to_string().contains("no/such/job.prom: does its directory exist"), "{error}");
        let error = Textfile::new(directory.path().to_owned()).unwrap_err();
        assert!(error.to_string().contains("names no file"), "{error}");
    }
}
