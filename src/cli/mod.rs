//! The program `stage-metrics`, for people who look after jobs. The topmost module: it uses the settings, the client, the
//! spool and the text file of the library, and nothing uses it.
//!
//! `arguments` is the command line, `report` the result of a command. The other files are the commands.

mod arguments;
mod check;
mod groups;
mod report;
mod spool;
mod templates;

use std::ffi::OsString;
use std::io::{self, Write};

use clap::error::ErrorKind;
use indicatif::ProgressDrawTarget;
use serde_json::json;
use tokio::runtime::Runtime;

use self::arguments::{Arguments, Command, Common};
use self::report::Report;
use crate::MetricsLayer;
use crate::config::{Destinations, variable_name};
use crate::error::{Error, Kind};

/// Exit code if something is wrong, or could not be done.
const FAILURE: u8 = 1;
/// Exit code of a wrong command line or a wrong variable.
const USAGE: u8 = 2;

/// Runs the program with these arguments, the first of which is its name, and returns its exit code. `progress` is where
/// a command that takes long draws its progress; `None` for nowhere, as with `--json`.
pub fn run(
    arguments: impl IntoIterator<Item = OsString>,
    out: &mut dyn Write,
    err: &mut dyn Write,
    progress: Option<ProgressDrawTarget>,
) -> u8 {
    let arguments: Vec<_> = arguments.into_iter().collect();
    let is_json = arguments.iter().any(|argument| argument == "--json");
    let progress = progress.filter(|_| !is_json).unwrap_or_else(ProgressDrawTarget::hidden);
    let result = match Arguments::parse(&arguments) {
        Ok(arguments) => execute(arguments, progress).map_err(|error| {
            let code = if error.is_config() { USAGE } else { FAILURE };
            // With the causes.
            (code, format!("{error:?}"))
        }),
        Err(help) if matches!(help.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            return exit_code(0, write!(out, "{help}"));
        }
        Err(help) if help.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand && !is_json => {
            return exit_code(USAGE, write!(err, "{help}"));
        }
        Err(error) => Err((USAGE, error.to_string().trim_start_matches("error: ").trim_end().to_owned())),
    };
    let (code, written) = match result {
        Ok(report) => {
            let text = if is_json { format!("{}\n", report.json) } else { report.text };
            (if report.is_ok { 0 } else { FAILURE }, out.write_all(text.as_bytes()))
        }
        Err((code, text)) if is_json => (code, writeln!(out, "{}", json!({ "error": text }))),
        Err((code, text)) => (code, writeln!(err, "stage-metrics: {text}")),
    };
    exit_code(code, written.and_then(|()| out.flush()))
}

fn execute(arguments: Arguments, progress: ProgressDrawTarget) -> Result<Report, Error> {
    match arguments.command {
        Command::Check { common } => check::run(&common),
        Command::Groups { command } => groups::run(command, progress),
        Command::Spool { command } => spool::run(command, progress),
        Command::Rules { namespace, history, dashboard_url } => {
            templates::rules(&namespace, &history, dashboard_url.as_deref())
        }
        Command::Dashboard { namespace } => templates::dashboard(&namespace),
    }
}

/// Returns the destinations of the environment.
fn destinations(common: &Common) -> Result<Destinations, Error> {
    Ok(MetricsLayer::builder().with_env_prefix(&common.env_prefix)?.destinations())
}

/// Returns a setting that a command cannot do without.
fn required<T>(setting: Option<T>, common: &Common, variable: &str) -> Result<T, Error> {
    let prefix = &common.env_prefix;
    setting
        .ok_or_else(|| Error::config(format!("{} is not set: set it as for the job", variable_name(prefix, variable))))
}

/// Returns the exit code of a command whose output was written. A reader that has seen enough is no failure.
fn exit_code(code: u8, written: io::Result<()>) -> u8 {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => code.max(FAILURE),
        _ => code,
    }
}

/// Starts the runtime of a command.
fn runtime() -> Result<Runtime, Error> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_io().enable_time().build();
    runtime.map_err(|error| Error::new(Kind::Delivery, "cannot start the network code").with_source(error))
}
