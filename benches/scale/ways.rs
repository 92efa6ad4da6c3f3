//! The ways in which jobs deliver, each with its server.

use std::fs;
use std::io::Write;
use std::path::Path;

use reqwest::Client;
use tracing_stage_metrics::Pushgateway;

use crate::Result;
use crate::job::{self, Job};
use crate::server::{Server, free_port};

/// The runs are those of this many pipelines in turn.
const PIPELINES: usize = 10;

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");

/// Clock ticks of a second in `/proc`, the same on every Linux.
const TICKS: f64 = 100.0;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// A group for each pipeline.
    ByPipeline,
    /// A group for each process.
    ByProcess,
    Otlp,
    /// Through a collector that distributes. The figures are those of this collector alone.
    Balanced,
    VictoriaMetrics,
}

pub(crate) struct Way {
    pub(crate) name: &'static str,
    kind: Kind,
    server: Server,
    /// Where a Prometheus scrapes.
    pub(crate) scraped: Option<String>,
}

/// Starts the servers, with their files in this directory. Leaves out what is not installed.
pub(crate) fn start(directory: &Path, out: &mut impl Write) -> Result<Vec<Way>> {
    let (exporter, grpc) = (free_port()?, free_port()?);
    let collector = |file: &str, grpc: u16, exporters: &str| {
        let overlay = directory.join(format!("{grpc}.yaml"));
        Server::start("otelcol", |command, http| {
            let receivers = format!("grpc: {{endpoint: 127.0.0.1:{grpc}}}, http: {{endpoint: 127.0.0.1:{http}}}");
            let _ = fs::write(
                &overlay,
                format!(
                    "receivers: {{otlp: {{protocols: {{{receivers}}}}}}}\nexporters: {{{exporters}}}\n\
                     service: {{telemetry: {{metrics: {{level: none}}}}}}\n"
                ),
            );
            command.arg("--config").arg(format!("{EXAMPLES}/{file}")).arg("--config").arg(&overlay);
        })
    };
    let sums = collector("otlp-collector.yaml", grpc, &format!("prometheus: {{endpoint: 127.0.0.1:{exporter}}}"));
    // Two collectors, which are one under two names.
    let balancer = |key: &str| {
        let exporters = format!(
            "load_balancing: {{routing_key: {key}, \
             resolver: {{static: {{hostnames: ['127.0.0.1:{grpc}', 'localhost:{grpc}']}}}}}}"
        );
        collector("otlp-load-balancer.yaml", free_port()?, &exporters)
    };
    let (by_service, by_stream) = (balancer("service"), balancer("streamID"));
    let victoria = Server::start("victoria-metrics", |command, port| {
        command.arg(format!("-httpListenAddr=127.0.0.1:{port}")).arg("-storageDataPath").arg(directory.join("data"));
    });
    let mut ways = Vec::new();
    for (name, kind, server) in [
        ("gateway, by pipeline", Kind::ByPipeline, Server::gateway(&[])),
        ("gateway, by process", Kind::ByProcess, Server::gateway(&[])),
        ("the same, unchecked", Kind::ByProcess, Server::gateway(&["--push.disable-consistency-check"])),
        ("OTLP, collector", Kind::Otlp, sums),
        ("a tier before it", Kind::Balanced, by_service),
        ("the same, by stream", Kind::Balanced, by_stream),
        ("VictoriaMetrics", Kind::VictoriaMetrics, victoria),
    ] {
        let Some(server) = server? else {
            writeln!(out, "LEFT OUT: {name}, its server is not in PATH")?;
            continue;
        };
        let scraped = match kind {
            Kind::ByPipeline | Kind::ByProcess => Some(format!("{}/metrics", server.url())),
            Kind::Otlp => Some(format!("http://127.0.0.1:{exporter}/metrics")),
            Kind::Balanced | Kind::VictoriaMetrics => None,
        };
        ways.push(Way { name, kind, server, scraped });
    }
    Ok(ways)
}

impl Way {
    /// Sends the final state of a run.
    pub(crate) async fn push(&self, client: &Client, job: &Job, run: usize) -> Result<()> {
        let pipeline = run % PIPELINES;
        let url = self.server.url();
        if matches!(self.kind, Kind::Otlp | Kind::Balanced) {
            let request = client.post(format!("{url}/v1/metrics")).header("content-type", "application/x-protobuf");
            request.body(job.export(pipeline, run)).send().await?.error_for_status()?;
            return Ok(());
        }
        let path = if self.kind == Kind::VictoriaMetrics { "/api/v1/import/prometheus" } else { "" };
        let mut gateway = Pushgateway::new(url + path, job::pipeline(pipeline))?;
        if self.kind == Kind::ByProcess {
            gateway = gateway.with_grouping_label("instance", format!("worker-{run}"))?;
        }
        Ok(gateway.push_add(&job.text(run)).await?)
    }

    /// The number of series that the server holds.
    pub(crate) async fn series(&self, client: &Client) -> Result<usize> {
        if let Some(url) = &self.scraped {
            let text = client.get(url).send().await?.text().await?;
            return Ok(text.lines().filter(|line| line.starts_with("quant_")).count());
        }
        if self.kind == Kind::Balanced {
            return Ok(0);
        }
        let text = self.server.get("/api/v1/series/count")?;
        let digits = text.split("\"data\":[").nth(1).and_then(|data| data.split(']').next());
        Ok(digits.unwrap_or("0").parse()?)
    }

    /// Seconds of CPU time that the server has used.
    pub(crate) fn cpu(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.server.process.id()))?;
        // The second field, in parentheses, may have spaces.
        let mut fields = stat.rsplit(')').next().unwrap_or("").split_whitespace().skip(11).flat_map(str::parse::<f64>);
        Ok(fields.by_ref().take(2).sum::<f64>() / TICKS)
    }

    /// Resident bytes of the server.
    pub(crate) fn memory(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.server.process.id()))?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        Ok(1_024.0 * kib.ok_or("VmRSS is missing")?.parse::<f64>()?)
    }
}
