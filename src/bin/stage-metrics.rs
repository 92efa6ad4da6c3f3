//! The program `stage-metrics`: `stage-metrics --help` describes it.

use std::io;
use std::process::ExitCode;

use indicatif::ProgressDrawTarget;

fn main() -> ExitCode {
    // Draws nothing where standard error is no terminal.
    let progress = Some(ProgressDrawTarget::stderr());
    tracing_stage_metrics::cli::run(std::env::args_os(), &mut io::stdout(), &mut io::stderr(), progress).into()
}
