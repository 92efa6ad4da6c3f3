//! Cost of rendering and pushing many label sets in each format, and of one push to a gateway that holds many groups:
//! time, bytes and memory, against a real Pushgateway if one is installed. Linux only.
//!
//! ```text
//! cargo bench -p benches --bench push_cost                 everything
//! PUSH_COST --child Protobuf 10000 SINK GATEWAY            one format and size, for a profiler
//! ```

#![allow(clippy::print_stdout, clippy::unwrap_used)]

#[allow(dead_code, reason = "shared, and used in part")]
#[path = "support/child.rs"]
mod child;
#[allow(dead_code, reason = "shared, and used in part")]
#[path = "support/memory.rs"]
mod memory;
#[path = "support/server.rs"]
mod server;

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use server::Server;
use tracing::info_span;
use tracing_stage_metrics::{FlushGuard, MetricsLayer, MetricsLayerBuilder, PushFormat, Pushgateway};
use tracing_subscriber::prelude::*;

const LABEL_SETS: [usize; 3] = [1_000, 10_000, 100_000];
const FORMATS: [PushFormat; 2] = [PushFormat::Text, PushFormat::Protobuf];
/// Longer than any push.
const LONG: Duration = Duration::from_secs(3_600);
/// The largest ratios of protobuf to text that are wanted: of a push, up to this many label sets, and of the others.
const GOALS: (usize, f64, f64) = (10_000, 0.2, 1.0);

const GROUPS: [usize; 6] = [1, 10, 50, 100, 300, 1_000];
/// Lines of each group: about what a worker with three stages pushes.
const SERIES: usize = 40;

fn median(rounds: usize, mut work: impl FnMut()) -> Duration {
    let mut times: Vec<_> = (0..rounds)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed()
        })
        .collect();
    times.sort();
    times[rounds / 2]
}

fn main() {
    if let Some(arguments) = child::arguments() {
        let [format, sets, sink, gateway] = &arguments[..] else { panic!("--child FORMAT SETS SINK GATEWAY") };
        let format = FORMATS.into_iter().find(|known| format!("{known:?}") == *format).unwrap();
        return measure(format, sets.parse().unwrap(), sink, gateway);
    }
    by_label_sets();
    println!();
    by_groups();
}

/// Duration of one push, of a scrape, and of reading the totals of a group, for a gateway that holds this many groups.
fn by_groups() {
    let Some(gateway) = Server::gateway(&[]).unwrap() else {
        println!("LEFT OUT: the groups, there is no prometheus-pushgateway here");
        return;
    };
    let url = gateway.url();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    println!("{:>10} {:>12} {:>12} {:>14} {:>12}", "groups", "push", "scrape", "scraped bytes", "base");
    let mut known = 0;
    for groups in GROUPS {
        for group in known..groups {
            runtime.block_on(worker(&url, group).push_replace(&series())).unwrap();
        }
        known = groups;
        let push = median(5, || runtime.block_on(worker(&url, groups / 2).push_add(&series())).unwrap());
        let mut bytes = 0;
        let scrape = median(5, || bytes = gateway.get("/metrics").unwrap().len());
        let run = |builder: fn() -> MetricsLayerBuilder| {
            let builder = || builder().with_push_interval(LONG).with_pushgateway(worker(&url, groups / 2));
            median(9, || builder().build().unwrap().1.shutdown().unwrap())
        };
        let base = run(|| MetricsLayer::builder().with_cumulative_totals()).saturating_sub(run(MetricsLayer::builder));
        let [push, scrape, base] = [push, scrape, base].map(|time| format!("{time:.1?}"));
        println!("{groups:>10} {push:>12} {scrape:>12} {bytes:>14} {base:>12}");
    }
}

fn worker(url: &str, n: usize) -> Pushgateway {
    let gateway = Pushgateway::new(url, "fleet").unwrap();
    gateway.with_grouping_label("instance", format!("worker-{n}")).unwrap()
}

fn series() -> String {
    (0..SERIES).map(|n| format!("quant_stage_total{{stage_id=\"stage {n}\"}} {n}\n")).collect()
}

/// What a push of many label sets takes in one format.
struct Cost {
    bytes: usize,
    /// Peak of the resident memory.
    peak: f64,
    /// A push of the plain body to a server that reads it and no more.
    render: f64,
    /// The same with the compressed body.
    body: f64,
    /// A push to a gateway.
    push: f64,
}

fn by_label_sets() {
    let sets: &[usize] = if child::is_bench() { &LABEL_SETS } else { &[10] };
    let sink = Sink::start();
    println!(
        "{:>10} {:>10} {:>12} {:>10} {:>10} {:>10} {:>10} {:>10}",
        "label sets", "format", "bytes", "peak MiB", "render ms", "body ms", "push ms", "gateway ms"
    );
    for &sets in sets {
        let Some([text, protobuf]) = FORMATS
            .map(|format| of_child(format, sets, &sink))
            .into_iter()
            .collect::<Option<Vec<_>>>()
            .and_then(|costs| <[Cost; 2]>::try_from(costs).ok())
        else {
            println!("LEFT OUT: the pushes, there is no prometheus-pushgateway here");
            return;
        };
        let ratio = |of: fn(&Cost) -> f64| of(&protobuf) / of(&text);
        let [bytes, peak, render, body, push] = [
            ratio(|cost| cost.bytes as f64),
            ratio(|cost| cost.peak),
            ratio(|cost| cost.render),
            ratio(|cost| cost.body),
            ratio(|cost| cost.push),
        ];
        let gateway = ratio(|cost| cost.push - cost.body);
        println!("{:>21} {bytes:>12.2} {peak:>10.2} {render:>10.2} {body:>10.2} {push:>10.2} {gateway:>10.2}", "ratio");
        let (up_to, max_push, max_other) = GOALS;
        let is_met = render <= max_other && peak <= max_other && (sets > up_to || push <= max_push);
        println!(
            "{:>21} push <= {max_push} up to {up_to} sets, render and peak <= {max_other}: {}",
            "",
            if is_met { "met" } else { "NOT MET" }
        );
    }
}

/// The cost in a process and with a gateway of its own. `None` without a gateway.
fn of_child(format: PushFormat, sets: usize, sink: &Sink) -> Option<Cost> {
    let gateway = Server::gateway(&[]).unwrap()?;
    sink.bytes.store(0, Ordering::Relaxed);
    let ended = child::run(&[&format!("{format:?}"), &sets.to_string(), &sink.url(), &gateway.url()]).unwrap();
    let [peak, render, body, push] = ended.numbers::<f64, 4>().unwrap();
    let bytes = sink.bytes.load(Ordering::Relaxed);
    println!(
        "{sets:>10} {:>10} {bytes:>12} {peak:>10.1} {render:>10.2} {body:>10.2} {push:>10.2} {:>10.2}",
        format!("{format:?}"),
        push - body
    );
    Some(Cost { bytes, peak, render, body, push })
}

/// Measures one format and prints the figures of [`Cost`].
fn measure(format: PushFormat, sets: usize, sink: &str, gateway: &str) {
    const MIB: f64 = 1_048_576.0;
    let [sink, gateway] =
        [sink, gateway].map(|url| Pushgateway::new(url, "sets").unwrap().with_format(format).with_timeout(LONG));
    let guard = with_sets(sink.clone(), sets);
    memory::forget_peak().unwrap();
    guard.flush().unwrap();
    let peak = memory::peak().unwrap() as f64 / MIB;
    let rounds = (100_000 / sets).clamp(1, 25);
    let milliseconds = |guard: &FlushGuard| median(rounds, || guard.flush().unwrap()).as_secs_f64() * 1e3;
    let body = milliseconds(&guard);
    // Without the final flush, here and below.
    std::mem::forget(guard);
    let [render, push] = [sink.without_compression(), gateway].map(|gateway| {
        let guard = with_sets(gateway, sets);
        guard.flush().unwrap();
        let median = milliseconds(&guard);
        std::mem::forget(guard);
        median
    });
    println!("{peak} {render} {body} {push}");
}

/// A layer that has measured this many label sets and has pushed nothing of them.
fn with_sets(gateway: Pushgateway, sets: usize) -> FlushGuard {
    // Pushes on demand only.
    let builder = MetricsLayer::builder()
        .with_max_series(sets)
        .with_push_interval(LONG)
        .with_flush_timeout(LONG)
        .with_pushgateway(gateway);
    let (layer, guard) = builder.build().unwrap();
    guard.flush().unwrap();
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
        for n in 0..sets {
            info_span!("x", stage_id = "foundation.ingest", profile = "crypto_production", run_id = n);
        }
    });
    guard
}

/// A server that answers 200 to every push once it has read it.
struct Sink {
    address: SocketAddr,
    /// Length of the longest body.
    bytes: Arc<AtomicUsize>,
}

impl Sink {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let bytes = Arc::new(AtomicUsize::new(0));
        let longest = Arc::clone(&bytes);
        thread::spawn(move || {
            for connection in listener.incoming() {
                longest.fetch_max(Self::answer(connection.unwrap()).unwrap(), Ordering::Relaxed);
            }
        });
        Self { address, bytes }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Reads one push. Returns the length of its body.
    fn answer(connection: TcpStream) -> io::Result<usize> {
        let mut reader = BufReader::new(connection);
        let mut length = 0;
        let mut line = String::new();
        while reader.read_line(&mut line)? > 2 {
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
            line.clear();
        }
        io::copy(&mut reader.by_ref().take(length as u64), &mut io::sink())?;
        reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
        Ok(length)
    }
}
