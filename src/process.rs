//! What the operating system tells of this process: its host, its program, its environment variables.

use std::env::{self, VarError};
use std::path::PathBuf;

use crate::error::Error;

pub(crate) fn hostname() -> String {
    gethostname::gethostname().to_string_lossy().into_owned()
}

/// This process among all of a fleet.
pub(crate) fn instance() -> String {
    format!("{}:{}", hostname(), std::process::id())
}

/// The name of the running program, which is the job where none is given.
pub(crate) fn executable_name() -> String {
    let path = env::current_exe().ok().or_else(|| env::args_os().next().map(PathBuf::from));
    let name = path.and_then(|path| Some(path.file_stem()?.to_string_lossy().into_owned()));
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "unknown".to_owned())
}

/// The value of a variable without the white space around it: files of secrets and here-documents end in a line feed.
/// `None` where nothing is left.
pub(crate) fn trimmed(name: &str, value: Result<String, VarError>) -> Result<Option<String>, Error> {
    match value {
        Ok(value) => Ok(Some(value.trim()).filter(|value| !value.is_empty()).map(str::to_owned)),
        Err(VarError::NotPresent) => Ok(None),
        // Not quoted: a password is how an address comes not to be UTF-8.
        Err(VarError::NotUnicode(_)) => Err(Error::config(format!("{name} is not UTF-8: set it to text that is"))),
    }
}
