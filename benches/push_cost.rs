//! Cost of rendering and pushing many label sets in each format, and of one push to a gateway that holds many groups:
//! time and bytes, against a real Pushgateway if one is installed.
//!
//! `cargo bench -p benches --bench push_cost`

#![allow(clippy::print_stdout, clippy::unwrap_used)]

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
use tracing_stage_metrics::{MetricsLayer, PushFormat, Pushgateway};
use tracing_subscriber::prelude::*;

const LABEL_SETS: [usize; 4] = [100, 1_000, 3_000, 10_000];
const FORMATS: [PushFormat; 2] = [PushFormat::Text, PushFormat::Protobuf];
const ROUNDS: usize = 5;

const GROUPS: [usize; 6] = [1, 10, 50, 100, 300, 1_000];
/// Lines of each group: about what a worker with three stages pushes.
const SERIES: usize = 40;

fn median(mut work: impl FnMut()) -> Duration {
    let mut times: Vec<_> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed()
        })
        .collect();
    times.sort();
    times[ROUNDS / 2]
}

fn main() {
    by_label_sets();
    println!();
    by_groups();
}

/// Duration of one push and of a scrape, for a gateway that holds this many groups.
fn by_groups() {
    let Some(gateway) = Server::gateway(&[]).unwrap() else {
        println!("LEFT OUT: the groups, there is no prometheus-pushgateway here");
        return;
    };
    let url = gateway.url();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    println!("{:>10} {:>12} {:>12} {:>14}", "groups", "push", "scrape", "scraped bytes");
    let mut known = 0;
    for groups in GROUPS {
        for group in known..groups {
            runtime.block_on(worker(&url, group).push_replace(&series())).unwrap();
        }
        known = groups;
        let push = median(|| runtime.block_on(worker(&url, groups / 2).push_add(&series())).unwrap());
        let mut bytes = 0;
        let scrape = median(|| bytes = gateway.get("/metrics").unwrap().len());
        println!("{groups:>10} {:>12} {:>12} {bytes:>14}", format!("{push:.1?}"), format!("{scrape:.1?}"));
    }
}

fn worker(url: &str, n: usize) -> Pushgateway {
    let gateway = Pushgateway::new(url, "fleet").unwrap();
    gateway.with_grouping_label("instance", format!("worker-{n}")).unwrap()
}

fn series() -> String {
    (0..SERIES).map(|n| format!("quant_stage_total{{stage_id=\"stage {n}\"}} {n}\n")).collect()
}

/// Bytes of a push, and its duration to a server that reads it and no more (rendering, HTTP) and to a gateway.
fn by_label_sets() {
    let server = Server::gateway(&[]).unwrap();
    if server.is_none() {
        println!("LEFT OUT: the pushes, there is no prometheus-pushgateway here");
    }
    let sink = Sink::start();
    println!(
        "{:>10} {:>10} {:>12} {:>10} {:>14} {:>14}",
        "label sets", "format", "bytes", "render", "push, gzip", "push, plain"
    );
    for (sets, format) in LABEL_SETS.into_iter().flat_map(|sets| FORMATS.map(|format| (sets, format))) {
        let gateway =
            |url: String| Pushgateway::new(url, format!("sets-{sets}-{format:?}")).unwrap().with_format(format);
        let render = pushed(gateway(sink.url()).without_compression(), sets);
        let bytes = sink.bytes.load(Ordering::Relaxed);
        let push = |compressed: bool| {
            let Some(server) = &server else { return "-".to_owned() };
            let gateway = gateway(server.url());
            let push = pushed(if compressed { gateway } else { gateway.without_compression() }, sets);
            format!("{push:.1?}")
        };
        println!(
            "{sets:>10} {:>10} {bytes:>12} {:>10} {:>14} {:>14}",
            format!("{format:?}"),
            format!("{render:.1?}"),
            push(true),
            push(false)
        );
    }
}

/// Duration of one push of this many label sets.
fn pushed(gateway: Pushgateway, sets: usize) -> Duration {
    // Pushes on demand only.
    let builder = MetricsLayer::builder()
        .with_max_series(sets)
        .with_push_interval(Duration::from_secs(3_600))
        .with_flush_timeout(Duration::from_secs(60))
        .with_pushgateway(gateway);
    let (layer, guard) = builder.build().unwrap();
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
        for n in 0..sets {
            info_span!("x", stage_id = "foundation.ingest", profile = "crypto_production", run_id = n);
        }
    });
    guard.flush().unwrap();
    let push = median(|| guard.flush().unwrap());
    guard.shutdown().unwrap();
    push
}

/// A server that answers 200 to every push once it has read it.
struct Sink {
    address: SocketAddr,
    /// Length of the last body.
    bytes: Arc<AtomicUsize>,
}

impl Sink {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let bytes = Arc::new(AtomicUsize::new(0));
        let last = Arc::clone(&bytes);
        thread::spawn(move || {
            for connection in listener.incoming() {
                last.store(Self::answer(connection.unwrap()).unwrap(), Ordering::Relaxed);
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
        reader.read_exact(&mut vec![0; length])?;
        reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
        Ok(length)
    }
}
