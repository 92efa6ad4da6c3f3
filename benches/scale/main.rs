//! What one server carries when many jobs deliver to it, in each of the ways of `docs/fleets.md`: CPU time of a push and
//! of a scrape, pushes a second, memory of a series. Linux only.
//!
//! The servers are those in PATH. The ways take turns, so that the ratios of one run hold on a machine that does other
//! work. The driver shares the cores with the servers, so CPU time says more than pushes a second.
//!
//! `cargo bench -p benches --features otlp --bench scale`

mod job;
#[path = "../support/server.rs"]
mod server;
mod ways;

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use job::Job;
use reqwest::Client;
use server::Server;
use ways::Way;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Connections that push at the same time.
const CONNECTIONS: usize = 8;
const ROUNDS: usize = 3;
/// A way is left out where the runs that come before a table take longer.
const LIMIT: Duration = Duration::from_secs(120);

/// Requests, and what they cost.
#[derive(Default)]
struct Cost {
    requests: usize,
    cpu: f64,
    seconds: f64,
}

/// A way, and what it has had so far.
struct Progress {
    way: Way,
    runs: usize,
    series: usize,
    memory: f64,
}

fn main() -> Result<()> {
    let mut arguments = env::args().skip(1);
    let mode = arguments.next();
    if let (Some("--child"), Some(url)) = (mode.as_deref(), arguments.next()) {
        return job::main(&url);
    }
    // `cargo test --benches` only checks that it works.
    let is_bench = env::args().any(|argument| argument == "--bench");
    let (sizes, turn): (&[usize], f64) = if is_bench { (&[1, 100, 1_000, 10_000], 1.0) } else { (&[1, 10], 0.1) };
    let mut out = std::io::stdout().lock();
    let directory = env::temp_dir().join(format!("stage-metrics-scale-{}", std::process::id()));
    fs::create_dir(&directory)?;
    let job = Job::run()?;
    let series = job.text(0).lines().filter(|line| !line.starts_with('#')).count();
    writeln!(out, "a job pushes {series} series; {CONNECTIONS} connections")?;
    let ways = ways::start(&directory, &mut out)?;
    let mut ways: Vec<_> = ways.into_iter().map(|way| Progress { way, runs: 0, series: 0, memory: 0.0 }).collect();
    for size in sizes {
        ways = table(&mut out, ways, &job, *size, turn)?;
    }
    let last = ways.iter().filter_map(|progress| progress.way.scraped.as_deref()).next_back();
    if let (true, Some(scraped)) = (is_bench, last) {
        prometheus(&mut out, &directory, scraped)?;
    }
    drop(ways);
    Ok(fs::remove_dir_all(&directory)?)
}

/// The costs of all ways after this many runs. Returns the ways that got there.
fn table(out: &mut impl Write, ways: Vec<Progress>, job: &Job, size: usize, turn: f64) -> Result<Vec<Progress>> {
    writeln!(
        out,
        "\n{:<22} {:>10} {:>10} {:>6} {:>9} {:>9} {:>8} {:>9} {:>11} {:>10}",
        format!("after {size} runs"),
        "new, CPU",
        "next, CPU",
        "ratio",
        "pushes/s",
        "series",
        "MiB",
        "B/series",
        "scrape CPU",
        "scrape"
    )?;
    let mut rows = Vec::new();
    for mut progress in ways {
        let (runs, start, mut new) = (progress.runs, Instant::now(), Cost::default());
        let next = |n| (runs + n < size && start.elapsed() < LIMIT).then_some(runs + n);
        drive(&mut new, &progress.way, job, next)?;
        progress.runs += new.requests;
        if progress.runs == size {
            rows.push((progress, new, Cost::default(), Cost::default()));
        } else {
            writeln!(out, "{:<22} LEFT OUT: only {} runs in {LIMIT:?}", progress.way.name, progress.runs)?;
        }
    }
    for _ in 0..ROUNDS {
        for (Progress { way, .. }, _, push, scrapes) in &mut rows {
            let deadline = Instant::now() + Duration::from_secs_f64(turn);
            drive(push, way, job, |n| (Instant::now() < deadline).then_some(n % size))?;
            scrape(scrapes, way, turn / 4.0)?;
        }
    }
    let least = rows.iter().map(|(_, _, push, _)| push.each(push.cpu)).fold(f64::INFINITY, f64::min);
    for (Progress { way, series, memory, .. }, new, push, scrapes) in &mut rows {
        let before = (*series, *memory);
        (*series, *memory) = (block_on(async |client| way.series(client).await)?, way.memory()?);
        let added = series.saturating_sub(before.0);
        writeln!(
            out,
            "{:<22} {:>7.2} ms {:>7.2} ms {:>6.1} {:>9.0} {series:>9} {:>8.0} {:>9} {:>8.1} ms {:>7.1} ms",
            way.name,
            new.each(new.cpu),
            push.each(push.cpu),
            push.each(push.cpu) / least,
            push.requests as f64 / push.seconds,
            *memory / 1_048_576.0,
            // With fewer series the buffers of the server count for more than the series.
            if added < 10_000 { "-".to_owned() } else { format!("{:.0}", (*memory - before.1) / added as f64) },
            scrapes.each(scrapes.cpu),
            scrapes.each(scrapes.seconds),
        )?;
    }
    Ok(rows.into_iter().map(|(progress, ..)| progress).collect())
}

impl Cost {
    /// Milliseconds of each request.
    fn each(&self, seconds: f64) -> f64 {
        seconds * 1e3 / self.requests.max(1) as f64
    }

    fn add(&mut self, way: &Way, work: impl FnOnce() -> Result<usize>) -> Result<()> {
        let (cpu, start) = (way.cpu()?, Instant::now());
        self.requests += work()?;
        self.cpu += way.cpu()? - cpu;
        self.seconds += start.elapsed().as_secs_f64();
        Ok(())
    }
}

/// Pushes the runs that `next` gives for 0, 1, 2, …, until it gives none.
fn drive(cost: &mut Cost, way: &Way, job: &Job, next: impl Fn(usize) -> Option<usize> + Sync) -> Result<()> {
    let (count, pushed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let connection = || {
        block_on(async |client| {
            while let Some(run) = next(count.fetch_add(1, Ordering::Relaxed)) {
                way.push(client, job, run).await?;
                pushed.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        })
    };
    cost.add(way, || {
        thread::scope(|scope| {
            let connections: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(connection)).collect();
            connections.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a connection panicked")?)
        })?;
        Ok(pushed.load(Ordering::Relaxed))
    })
}

/// Scrapes as a Prometheus does, for this many seconds.
fn scrape(cost: &mut Cost, way: &Way, seconds: f64) -> Result<()> {
    let Some(url) = &way.scraped else { return Ok(()) };
    let work = async |client: &Client| {
        let (mut scrapes, start) = (0, Instant::now());
        while scrapes == 0 || start.elapsed().as_secs_f64() < seconds {
            client.get(url).header("accept-encoding", "gzip").send().await?.error_for_status()?.bytes().await?;
            scrapes += 1;
        }
        Ok(scrapes)
    };
    cost.add(way, || block_on(work))
}

/// What the first scrape costs a Prometheus, by its own metrics.
fn prometheus(out: &mut impl Write, directory: &Path, scraped: &str) -> Result<()> {
    let target = scraped.trim_start_matches("http://").trim_end_matches("/metrics");
    let config = directory.join("prometheus.yml");
    fs::write(
        &config,
        format!(
            "scrape_configs: [{{job_name: jobs, scrape_timeout: 1m, static_configs: [{{targets: ['{target}']}}]}}]"
        ),
    )?;
    let server = Server::start("prometheus", |command, port| {
        command.arg(format!("--web.listen-address=127.0.0.1:{port}")).arg("--config.file").arg(&config);
        command.arg("--storage.tsdb.path").arg(directory.join("prometheus"));
    })?;
    let Some(server) = server else { return Ok(writeln!(out, "\nLEFT OUT: prometheus is not in PATH")?) };
    let value = |name: &str| -> Result<f64> {
        let text = server.get("/metrics")?;
        Ok(text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0.0))
    };
    const MEMORY: &str = "process_resident_memory_bytes";
    let (idle, start) = (value(MEMORY)?, Instant::now());
    while value("prometheus_tsdb_head_samples_appended_total{type=\"float\"}")? == 0.0 {
        if start.elapsed() > LIMIT {
            return Err("Prometheus has scraped nothing".into());
        }
        thread::sleep(Duration::from_millis(100));
    }
    let (series, cpu) = (value("prometheus_tsdb_head_series")?, value("process_cpu_seconds_total")?);
    let each = (value(MEMORY)? - idle) / series;
    Ok(writeln!(out, "\nPrometheus: {series} series, {each:.0} B/series, {cpu:.1} s of CPU with the first scrape")?)
}

/// Every request has a connection of its own, as those of the crate have.
fn block_on<T>(work: impl AsyncFnOnce(&Client) -> Result<T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = Client::builder().no_proxy().pool_max_idle_per_host(0).build()?;
    runtime.block_on(work(&client))
}
