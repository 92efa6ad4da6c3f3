//! Duration of a flush: from the start of a process until its metrics are on the gateway and the process has ended; and
//! duration and memory of rendering and pushing many label sets. Against a real Pushgateway. Linux only.
//!
//! Two minimal programs serve as comparison: one with the exporter and the HTTP client that the crate uses, and for many
//! label sets one with the crate `prometheus`, whose text goes out through the same client. (Its own pusher uses another
//! major version of that client, and of protobuf.)
//!
//! ```text
//! cargo bench -p benches --bench flush                     whole processes, and many label sets
//! FLUSH --child ours URL 4                      one process that runs and pushes, for a profiler
//! ```

#[path = "../support/child.rs"]
mod child;
#[path = "../support/memory.rs"]
mod memory;
mod minimal;
mod ours;
mod prometheus;
#[path = "../support/server.rs"]
mod server;
mod stages;

use std::error::Error;
use std::io::Write;

use server::Server;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const MIB: f64 = 1_048_576.0;

/// Figures of a flush of many label sets, in the order in which a child prints them.
struct Flushed {
    milliseconds: f64,
    /// Resident memory before the flush.
    before: f64,
    peak: f64,
    /// Length of the text.
    bytes: f64,
}

fn main() -> Result<()> {
    if let Some(arguments) = child::arguments() {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let flushed = match arguments[..] {
            ["empty"] => return Ok(()),
            ["ours", url, stages] => return ours::run(url, stages.parse()?),
            ["minimal", url, stages] => return minimal::run(url, stages.parse()?),
            ["ours-large", url, sets] => ours::large(url, sets.parse()?)?,
            ["prometheus-large", url, sets] => prometheus::large(url, sets.parse()?)?,
            _ => return Err(format!("no such child: {arguments:?}").into()),
        };
        let Flushed { milliseconds, before, peak, bytes } = flushed;
        return Ok(writeln!(std::io::stdout(), "{milliseconds} {before} {peak} {bytes}")?);
    }
    let mut out = std::io::stdout().lock();
    let is_bench = child::is_bench();
    let (rounds, large): (usize, &[usize]) = if is_bench { (200, &[10_000, 100_000]) } else { (2, &[100]) };
    if !processes(&mut out, rounds, 4)? || !processes(&mut out, rounds, 100)? {
        return Ok(writeln!(out, "LEFT OUT: there is no prometheus-pushgateway here")?);
    }
    for sets in large {
        many(&mut out, *sets)?;
    }
    Ok(())
}

/// Runs whole processes in turn. Returns `false` without a gateway.
fn processes(out: &mut impl Write, rounds: usize, stages: usize) -> Result<bool> {
    let Some(gateway) = Server::gateway(&[])? else { return Ok(false) };
    let programs = ["empty", "minimal", "ours"];
    let mut durations = programs.map(|_| Vec::new());
    for _ in 0..rounds {
        for (program, durations) in programs.iter().zip(&mut durations) {
            let arguments = [program, &gateway.url()[..], &stages.to_string()];
            let ended = child::run(if *program == "empty" { &arguments[..1] } else { &arguments })?;
            durations.push(ended.elapsed.as_secs_f64() * 1e3);
        }
    }
    let scraped = gateway.get("/metrics")?;
    writeln!(
        out,
        "{:<44} {:>8} {:>10} {:>10}",
        format!("{stages} stages, start to end"),
        "series",
        "min ms",
        "median ms"
    )?;
    let mut shown = Vec::new();
    for (program, mut durations) in programs.into_iter().zip(durations) {
        let job = format!("job=\"{program}\"");
        let series = scraped.lines().filter(|line| line.contains(&job)).count();
        if program != "empty" && stages::on_gateway(&scraped, &job) != stages {
            return Err(format!("not all stages of {program} are on the gateway").into());
        }
        durations.sort_by(f64::total_cmp);
        let (min, median) = (durations[0], durations[durations.len() / 2]);
        shown.push((min, median));
        writeln!(out, "{program:<44} {series:>8} {min:>10.2} {median:>10.2}")?;
    }
    let [_, minimal, ours] = shown[..] else { return Err("three programs".into()) };
    let (min, ratio) = (ours.0 / minimal.0, ours.1 / minimal.1);
    let met = if ratio <= 1.3 { "met" } else { "NOT MET" };
    writeln!(out, "{:<44} {:>8} {min:>10.2} {ratio:>10.2}  <= 1.3 {met}\n", "ours / minimal", "")?;
    Ok(true)
}

/// Flushes many label sets; each program has a gateway of its own.
fn many(out: &mut impl Write, sets: usize) -> Result<()> {
    let title = format!("{sets} label sets");
    writeln!(out, "{title:<44} {:>8} {:>10} {:>10} {:>10}", "MiB text", "ms", "MiB before", "peak MiB")?;
    let mut peaks = Vec::new();
    for program in ["prometheus-large", "ours-large"] {
        let Some(gateway) = Server::gateway(&[])? else { return Ok(()) };
        let ended = child::run(&[program, &gateway.url(), &sets.to_string()])?;
        let [milliseconds, before, peak, bytes] = ended.numbers::<f64, 4>()?;
        let [bytes, before, mib] = [bytes, before, peak].map(|bytes| bytes / MIB);
        writeln!(out, "{program:<44} {bytes:>8.1} {milliseconds:>10.0} {before:>10.1} {mib:>10.1}")?;
        peaks.push(peak);
    }
    let ratio = peaks[1] / peaks[0];
    let met = if ratio <= 1.5 { "met" } else { "NOT MET" };
    writeln!(out, "{:<44} {ratio:>41.2}  <= 1.5 {met}\n", "peak memory, ours / prometheus")?;
    Ok(())
}
