//! Facts of the operating system about this process: host, program and environment variables.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::env::{self, VarError};
use std::path::PathBuf;

use crate::error::Error;

pub(crate) fn hostname() -> String {
    gethostname::gethostname().to_string_lossy().into_owned()
}

/// Returns the name of this process in a fleet: host name and process id.
pub(crate) fn instance() -> String {
    format!("{}:{}", hostname(), std::process::id())
}

/// Returns the name of the running program, the default job.
pub(crate) fn executable_name() -> String {
    let path = env::current_exe().ok().or_else(|| env::args_os().next().map(PathBuf::from));
    let name = path.and_then(|path| Some(path.file_stem()?.to_string_lossy().into_owned()));
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "unknown".to_owned())
}

/// Returns a lookup in these variables.
pub(crate) fn lookup_in(variables: &[(&str, &str)]) -> impl Fn(&str) -> Result<String, VarError> {
    |name| {
        let variable = variables.iter().find(|(variable, _)| *variable == name);
        variable.map(|(_, value)| (*value).to_owned()).ok_or(VarError::NotPresent)
    }
}

/// Returns the names that `read` looks up in an environment with these variables.
pub(crate) fn looked_up(
    variables: &[(&str, &str)],
    read: impl FnOnce(&dyn Fn(&str) -> Result<String, VarError>),
) -> BTreeSet<String> {
    let (names, lookup) = (RefCell::new(BTreeSet::new()), lookup_in(variables));
    read(&|name| {
        names.borrow_mut().insert(name.to_owned());
        lookup(name)
    });
    names.into_inner()
}

/// Returns the value of a variable without surrounding white space, since secret files and here-documents end in a line feed.
/// `None` if nothing is left.
pub(crate) fn trimmed(name: &str, value: Result<String, VarError>) -> Result<Option<String>, Error> {
    match value {
        Ok(value) => Ok(Some(value.trim()).filter(|value| !value.is_empty()).map(str::to_owned)),
        Err(VarError::NotPresent) => Ok(None),
        // The value is not quoted: it may contain a password.
        Err(VarError::NotUnicode(_)) => Err(Error::config(format!("{name} is not UTF-8: set it to text that is"))),
    }
}
