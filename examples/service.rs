//! A service that runs the batch job of the example `pipeline` over and over, and lets Prometheus scrape it.
//!
//! `cargo run --example service`, and then `curl http://127.0.0.1:9464/metrics`; `TV_PROMETHEUS_LISTEN` sets another
//! address. With `TV_PROMETHEUS_PUSHGATEWAY` it pushes as well. After Ctrl-C or SIGTERM it finishes the current run, and
//! stops.
//!
//! It differs from a batch job in this: Prometheus scrapes the metrics, the run id is no label (a service would have ever
//! new ones), a failed run does not end the process, and the program has a shutdown of its own, so it does not use
//! `with_flush_on_signals`.

#![allow(clippy::print_stdout, clippy::print_stderr)]

// The job can do more than is shown here.
#[allow(dead_code)]
mod momentum;

use std::env;
use std::error::Error;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use momentum::{Job, STAGES};
use tokio::signal;
use tracing::{error, info};
use tracing_stage_metrics::MetricsLayer;
use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

/// The address of the metrics, for this machine only. `TV_PROMETHEUS_LISTEN` overrides it.
const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9464);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let pause = match env::args().nth(1) {
        None => Duration::from_secs(5),
        Some(text) => {
            let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
            seconds.ok_or_else(|| format!("{text:?} is not a duration: give the seconds between two runs"))?
        }
    };
    let (layer, guard) = MetricsLayer::builder()
        .with_http_listener(ADDRESS)
        .with_env()? // TV_PROMETHEUS_LISTEN and the others
        .without_run_id_label()
        .with_expected_stages(STAGES)
        .install()?;
    let log = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::registry()
        .with(layer.with_filter(LevelFilter::INFO))
        .with(fmt::layer().with_writer(io::stderr).with_filter(log))
        .init();
    if let Some(address) = guard.listen_addr() {
        println!("metrics are at http://{address}/metrics");
    }

    let mut stop = std::pin::pin!(asked_to_stop()?);
    loop {
        run_once().await?;
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = &mut stop => break,
        }
    }
    info!("stopping");
    // Delivers the last state to the gateway, if one is set, and frees the port.
    Ok(guard.shutdown_async().await?)
}

/// Makes one run, on a thread for blocking work. A failed run is logged, and the service goes on.
async fn run_once() -> Result<(), tokio::task::JoinError> {
    match tokio::task::spawn_blocking(|| momentum::run(&Job::default())).await {
        Ok(Ok(outcome)) => info!(from = %outcome.from, to = %outcome.to, "the run is done"),
        Ok(Err(error)) => error!("the run failed: {error:#}"),
        Err(error) if error.is_panic() => error!("the run panicked"),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Completes on Ctrl-C or SIGTERM. Both are caught from this call on.
#[cfg(unix)]
fn asked_to_stop() -> io::Result<impl Future<Output = ()>> {
    use signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

#[cfg(not(unix))]
fn asked_to_stop() -> io::Result<impl Future<Output = ()>> {
    Ok(async {
        if let Err(error) = signal::ctrl_c().await {
            error!("cannot wait for Ctrl-C: {error}");
        }
    })
}
