//! What this machine and this process are called.

pub(crate) fn name() -> String {
    gethostname::gethostname().to_string_lossy().into_owned()
}

/// This process among all of a fleet.
pub(crate) fn instance() -> String {
    format!("{}:{}", name(), std::process::id())
}
