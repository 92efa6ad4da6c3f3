//! A case in a process of its own: requests of the parent and responses of the child, one line each.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use super::cases::{Case, Prepared};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The parent's side.
pub(crate) struct Child {
    process: std::process::Child,
    requests: ChildStdin,
    responses: BufReader<ChildStdout>,
    ran: u64,
}

impl Child {
    pub(crate) fn start(case: Case) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut process =
            command.arg("--child").arg(case.name()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let requests = process.stdin.take().ok_or("the child has no stdin")?;
        let responses = BufReader::new(process.stdout.take().ok_or("the child has no stdout")?);
        Ok(Self { process, requests, responses, ran: 0 })
    }

    fn ask(&mut self, request: &str) -> Result<u64> {
        writeln!(self.requests, "{request}")?;
        let mut response = String::new();
        self.responses.read_line(&mut response)?;
        Ok(response.trim().parse().map_err(|error| format!("the response to {request:?} is {response:?}: {error}"))?)
    }

    /// Runs the case this many times.
    pub(crate) fn run(&mut self, times: u64) -> Result<Duration> {
        self.ran += times;
        Ok(Duration::from_nanos(self.ask(&format!("run {times}"))?))
    }

    /// Allocations of this many runs, if the child can count them.
    #[allow(dead_code, reason = "one of the two benchmarks counts")]
    pub(crate) fn allocations(&mut self, times: u64) -> Result<u64> {
        self.ran += times;
        self.ask(&format!("count {times}"))
    }

    /// Ends the child after it has reported as many stages as it ran.
    pub(crate) fn finish(mut self, case: Case) -> Result<()> {
        let recorded = self.ask("recorded")?;
        let expected = case.stages_in(self.ran);
        drop(self.requests);
        self.process.wait()?;
        if recorded != expected {
            return Err(format!("{} ran {expected} stages and recorded {recorded}", case.name()).into());
        }
        Ok(())
    }
}

/// The child's side: serves requests until the parent closes the pipe. `count` runs a closure and returns its number
/// of allocations, if it can count them.
pub(crate) fn serve(case: Case, count: impl Fn(&mut dyn FnMut()) -> Option<u64>) -> Result<()> {
    let mut prepared: Prepared = case.prepare();
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (request, times) = line.split_once(' ').unwrap_or((&line, "0"));
        let times: u64 = times.parse()?;
        let response = match request {
            "run" => u64::try_from(prepared.run(times).as_nanos())?,
            "count" => count(&mut || {
                prepared.run(times);
            })
            .ok_or("allocations are not counted here")?,
            "recorded" => prepared.recorded(),
            _ => return Err(format!("unknown request: {line}").into()),
        };
        writeln!(out, "{response}")?;
        out.flush()?;
        prepared.rest();
    }
    Ok(())
}
