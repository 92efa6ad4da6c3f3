//! A service that runs the batch job of the example `pipeline` over and over, and lets Prometheus scrape it.
//!
//! `cargo run --example service`, and then `curl http://127.0.0.1:9464/metrics`; `TV_PROMETHEUS_LISTEN` sets another
//! address. With `TV_PROMETHEUS_PUSHGATEWAY` it pushes as well. Ctrl-C or SIGTERM lets the run in hand end, and then
//! stops.
//!
//! What differs from a batch job: the metrics are scraped, the run id is no label (it would be new for ever), a run that
//! fails does not end the process, and the program has a shutdown of its own, so there is no `with_flush_on_signals`.

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

/// Where the metrics are unless `TV_PROMETHEUS_LISTEN` says otherwise: for this machine only.
const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9464);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let pause = match env::args().nth(1) {
        None => Duration::from_secs(5),
        Some(seconds) => Duration::try_from_secs_f64(
            seconds.parse().map_err(|_| format!("{seconds:?} is no number: give the seconds between two runs"))?,
        )?,
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
    // The last state goes to the gateway, if there is one, and the port is free again.
    Ok(guard.shutdown_async().await?)
}

/// One run, off the threads of the runtime. One that fails is told and no reason to stop.
async fn run_once() -> Result<(), tokio::task::JoinError> {
    match tokio::task::spawn_blocking(|| momentum::run(&Job::default())).await {
        Ok(Ok(outcome)) => info!(from = %outcome.from, to = %outcome.to, "the run is done"),
        Ok(Err(error)) => error!("the run failed: {error:#}"),
        Err(error) if error.is_panic() => error!("the run panicked"),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Ctrl-C or SIGTERM. Caught from here on.
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
