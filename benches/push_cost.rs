//! Cost of rendering and pushing many label sets, and of one push to a gateway that holds many groups: time and
//! bytes, against a real Pushgateway if one is installed.
//!
//! `cargo bench -p benches --bench push_cost`

#![allow(clippy::print_stdout, clippy::unwrap_used)]

#[path = "support/gateway.rs"]
mod gateway;

use std::time::{Duration, Instant};

use gateway::Gateway;
use tracing::info_span;
use tracing_stage_metrics::{MetricsLayer, Pushgateway};
use tracing_subscriber::prelude::*;

const LABEL_SETS: [usize; 4] = [100, 1_000, 3_000, 10_000];
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
    let Some(gateway) = Gateway::start().unwrap() else {
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
        let scrape = median(|| bytes = gateway.scrape().unwrap().len());
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

fn by_label_sets() {
    let server = Gateway::start().unwrap();
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
            if let Some(server) = &server {
                let gateway = Pushgateway::new(server.url(), format!("sets-{sets}")).unwrap();
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
