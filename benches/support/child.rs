//! Runs this program again in a fresh process that does one thing and prints its figures.

use std::error::Error;
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

/// A child that has ended.
pub(crate) struct Ended {
    /// From before its start until its end.
    pub(crate) elapsed: Duration,
    printed: String,
}

/// Runs `--child` with these arguments. Fails if the child does not succeed.
pub(crate) fn run(arguments: &[&str]) -> Result<Ended, Box<dyn Error>> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--child").args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
    let start = Instant::now();
    let output = command.spawn()?.wait_with_output()?;
    let elapsed = start.elapsed();
    if !output.status.success() {
        return Err(format!("{arguments:?} ended with {}", output.status).into());
    }
    Ok(Ended { elapsed, printed: String::from_utf8(output.stdout)? })
}

impl Ended {
    /// The printed numbers.
    pub(crate) fn numbers<T: FromStr, const N: usize>(&self) -> Result<[T; N], Box<dyn Error>> {
        let numbers: Vec<T> = self.printed.split_whitespace().flat_map(str::parse).collect();
        let found = numbers.len();
        numbers.try_into().map_err(|_| format!("{N} numbers, not {found}: {:?}", self.printed).into())
    }
}

/// Arguments of a child, if this process is one.
pub(crate) fn arguments() -> Option<Vec<String>> {
    let mut arguments = std::env::args().skip(1);
    (arguments.next()? == "--child").then(|| arguments.collect())
}

/// Whether this is `cargo bench`: `cargo test --benches` only checks that it works.
pub(crate) fn is_bench() -> bool {
    std::env::args().any(|argument| argument == "--bench")
}
