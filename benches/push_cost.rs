//! What it costs to render and push many label sets: time and bytes, against a real Pushgateway where there is one.
//!
//! `cargo bench --bench push_cost`

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tracing::info_span;
use tracing_stage_metrics::{MetricsLayer, Pushgateway};
use tracing_subscriber::prelude::*;

const LABEL_SETS: [usize; 4] = [100, 1_000, 3_000, 10_000];
const ROUNDS: usize = 5;

struct Server(Child, u16);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The real gateway on a free port, or nothing where it is not installed.
fn gateway() -> Option<Server> {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let child = Command::new("prometheus-pushgateway")
        .args([&format!("--web.listen-address=127.0.0.1:{port}"), "--persistence.file="])
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let server = Server(child, port);
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "the gateway does not listen");
        std::thread::yield_now();
    }
    Some(server)
}

fn median(mut work: impl FnMut()) -> Duration {
    let mut times: Vec<_> = (0..ROUNDS)
        .map(|_| {
            let begun = Instant::now();
            work();
            begun.elapsed()
        })
        .collect();
    times.sort();
    times[ROUNDS / 2]
}

fn main() {
    let server = gateway();
    if server.is_none() {
        println!("LEFT OUT: the pushes, there is no prometheus-pushgateway here");
    }
    println!("{:>10} {:>12} {:>10} {:>14} {:>14}", "label sets", "text", "render", "push, gzip", "push, plain");
    for sets in LABEL_SETS {
        let (mut text, mut render, mut pushes) = (0, Duration::ZERO, Vec::new());
        for compressed in [true, false] {
            // Pushes on demand only.
            let mut builder = MetricsLayer::builder()
                .with_max_series(sets)
                .with_push_interval(Duration::from_secs(3_600))
                .with_flush_timeout(Duration::from_secs(60));
            if let Some(Server(_, port)) = &server {
                let gateway = Pushgateway::new(format!("127.0.0.1:{port}"), format!("sets-{sets}")).unwrap();
                builder = builder.with_pushgateway(if compressed { gateway } else { gateway.without_compression() });
            }
            let (layer, guard) = builder.build().unwrap();
            tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
                for n in 0..sets {
                    info_span!("x", stage_id = "foundation.ingest", profile = "crypto_production", run_id = n);
                }
            });
            guard.flush().unwrap();
            text = guard.render().len();
            render = median(|| drop(guard.render()));
            pushes.push(server.as_ref().map(|_| median(|| guard.flush().unwrap())));
            guard.shutdown().unwrap();
        }
        let shown = |push: Option<Duration>| push.map_or("-".to_owned(), |push| format!("{push:.1?}"));
        println!(
            "{sets:>10} {text:>12} {:>10} {:>14} {:>14}",
            format!("{render:.1?}"),
            shown(pushes[0]),
            shown(pushes[1])
        );
    }
}
