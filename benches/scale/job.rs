//! One job, which runs once in a process of its own. Its final deliveries are kept, so that many runs can be sent.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::mpsc::{self, Sender};
use std::{env, io, thread};

use tracing::info_span;
use tracing_stage_metrics::{MetricsLayer, Pushgateway};
use tracing_subscriber::prelude::*;

use crate::Result;

const STAGES: [&str; 4] = ["foundation.ingest", "alpha.inference", "risk.optimize", "allocation.simulate"];

/// All names have the same length, so that they can be replaced in an encoded export.
pub(crate) fn pipeline(n: usize) -> String {
    format!("pipeline-{n:04}")
}

fn run_id(n: usize) -> String {
    format!("20260105-{n:06}")
}

pub(crate) struct Job {
    text: String,
    export: Vec<u8>,
}

impl Job {
    /// Runs the job in a child process.
    pub(crate) fn run() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let url = format!("http://{}", listener.local_addr()?);
        let (sender, requests) = mpsc::channel();
        thread::spawn(move || listener.incoming().flatten().try_for_each(|stream| receive(stream, &sender)));
        let status = Command::new(env::current_exe()?)
            .args(["--child", &url])
            .env("OTEL_METRICS_EXPORTER", "otlp")
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", &url)
            .env("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta")
            .status()?;
        if !status.success() {
            return Err(format!("the job ended with {status}").into());
        }
        let mut job = Self { text: String::new(), export: Vec::new() };
        for (head, body) in requests.try_iter() {
            // The last one of each kind stays.
            if head.contains("/v1/metrics") { job.export = body } else { job.text = String::from_utf8(body)? }
        }
        Ok(job)
    }

    /// The final push of a run.
    pub(crate) fn text(&self, run: usize) -> String {
        self.text.replace(&run_id(0), &run_id(run))
    }

    /// The final export of a run.
    pub(crate) fn export(&self, pipeline_number: usize, run: usize) -> Vec<u8> {
        let mut export = self.export.clone();
        for (from, to) in [(run_id(0), run_id(run)), (pipeline(0), pipeline(pipeline_number))] {
            for at in 0..=export.len() - from.len() {
                if export[at..].starts_with(from.as_bytes()) {
                    export[at..at + to.len()].copy_from_slice(to.as_bytes());
                }
            }
        }
        export
    }
}

/// Passes on the first line and the body of a request, and answers it.
fn receive(mut stream: TcpStream, requests: &Sender<(String, Vec<u8>)>) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut head = Vec::new();
    while !head.ends_with(&[String::new()]) {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        head.push(line.trim_end().to_ascii_lowercase());
    }
    let length = head.iter().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body)?;
    requests.send((head.swap_remove(0), body)).map_err(io::Error::other)?;
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
}

/// The job itself, in the child process.
pub(crate) fn main(url: &str) -> Result<()> {
    let gateway = Pushgateway::new(url, pipeline(0))?.without_compression();
    let (layer, guard) = MetricsLayer::builder().with_env()?.with_pushgateway(gateway).install()?;
    tracing_subscriber::registry().with(layer).init();
    guard.flush()?; // otherwise the first export, not the last, could have increments of the first stages
    info_span!("pipeline", profile = "crypto_production", run_id = run_id(0)).in_scope(|| {
        for stage in STAGES {
            info_span!("stage", stage_id = stage).in_scope(|| ());
        }
    });
    Ok(guard.shutdown()?)
}
