//! Setters of the builder: the destinations, and when the metrics go there.

#[cfg(feature = "http")]
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

#[cfg(doc)]
use super::builder::DEFAULT_PUSH_INTERVAL;
use super::builder::MetricsLayerBuilder;
use crate::delivery::Pushgateway;
#[cfg(feature = "otlp")]
use crate::delivery::otlp::Otlp;
#[cfg(doc)]
use crate::run::guard::FlushGuard;
use crate::run::report::RunReport;

impl MetricsLayerBuilder {
    /// Pushes the metrics to this gateway: at `install()`, on the push interval and at the end. It replaces the address, the
    /// job and the grouping of the environment together. Without it, nothing is pushed.
    ///
    /// ```no_run
    /// # use tracing_stage_metrics::MetricsLayer;
    /// use tracing_stage_metrics::Pushgateway;
    ///
    /// let gateway = Pushgateway::new("http://pushgateway:9091", "quant_pipeline")?
    ///     .with_grouping_label("profile", "crypto_production")?;
    /// let (layer, guard) = MetricsLayer::builder().with_pushgateway(gateway).install()?;
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    pub fn with_pushgateway(mut self, gateway: Pushgateway) -> Self {
        self.gateway = Some(gateway);
        self.default_job = None;
        self
    }

    /// Sets the job where there is no gateway: the label `job` of the text file, and the service name of OTLP unless the
    /// environment has one. A gateway has a job of its own, which is part of its group; that of the environment takes it from
    /// `…_JOB`. Without a gateway and without this, the job is that of `…_JOB` too. Without that, the service has the file name of
    /// the program, and the text file has no such label unless it has a grouping.
    ///
    /// ```
    /// # use tracing_stage_metrics::MetricsLayer;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let directory = tempfile::tempdir()?;
    /// # let path = directory.path().join("quant.prom");
    /// let (_layer, guard) = MetricsLayer::builder().with_job("quant_pipeline").with_textfile(&path).build()?;
    /// guard.shutdown()?;
    /// assert!(std::fs::read_to_string(&path)?.contains("quant_run_duration_seconds{job=\"quant_pipeline\"} "));
    /// # Ok(()) }
    /// ```
    pub fn with_job(mut self, job: impl Into<String>) -> Self {
        self.job = Some(job.into());
        self
    }

    /// Changes the gateway that the environment or [`with_pushgateway`](Self::with_pushgateway) has set. Does nothing where no
    /// gateway is set: the environment decides where the program pushes, and the code decides how.
    ///
    /// ```no_run
    /// # use tracing_stage_metrics::MetricsLayer;
    /// use tracing_stage_metrics::PushFormat;
    ///
    /// let builder = MetricsLayer::builder().with_env()?; // TV_PROMETHEUS_PUSHGATEWAY
    /// let builder = builder.map_pushgateway(|gateway| gateway.with_format(PushFormat::Protobuf));
    /// let (layer, guard) = builder.install()?;
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    pub fn map_pushgateway(mut self, map: impl FnOnce(Pushgateway) -> Pushgateway) -> Self {
        if let Some(gateway) = self.gateway.take() {
            let grouping = gateway.grouping().clone();
            let gateway = map(gateway);
            self.default_job = self.default_job.filter(|_| *gateway.grouping() == grouping);
            self.gateway = Some(gateway);
        }
        self
    }

    /// Adds a grouping label `instance`, the host name and the process id, as in `worker-7:4711`. Processes of one job can then
    /// push to one gateway at the same time. It has no effect where no gateway is set. Without it, processes with the same job
    /// and grouping overwrite each other.
    ///
    /// Each process leaves its own group on the gateway, which keeps it until somebody [deletes](Pushgateway::delete) it. The
    /// process must not delete it at its own end, before Prometheus has scraped the last values.
    /// [`guide::fleets`](crate::guide::fleets) shows how to delete such groups, and when to use OTLP and a collector instead.
    ///
    /// ```no_run
    /// # use tracing_stage_metrics::MetricsLayer;
    /// let (layer, guard) = MetricsLayer::builder().with_env()?.with_instance_grouping().install()?;
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    pub fn with_instance_grouping(mut self) -> Self {
        self.instance_grouping = true;
        self
    }

    /// Continues three counters over all runs of the group: `quant_runs_total`, `quant_stage_runs_total` and
    /// `quant_stage_run_seconds_total`. `increase()` over a month then counts the runs of a month. Without it, every counter
    /// begins at zero with every run.
    ///
    /// The run reads the totals of its group from the gateway before its first push; without a gateway, from the
    /// [text file](Self::with_textfile). A run that was killed is counted as failed by the next one. The totals are exact while
    /// one run of a group is at work at a time, and with a [spool](Self::with_spool_dir) also if the gateway is away.
    /// [`guide::metrics`](crate::guide::metrics) has the details.
    ///
    /// OTLP, a listener without a gateway or a text file, and [`with_instance_grouping`](Self::with_instance_grouping) have no
    /// such totals, and one warning says so.
    ///
    /// ```
    /// # use tracing_stage_metrics::MetricsLayer;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let directory = tempfile::tempdir()?;
    /// # let path = directory.path().join("quant.prom");
    /// for _ in 0..2 {
    ///     let (_layer, guard) = MetricsLayer::builder().with_textfile(&path).with_cumulative_totals().build()?;
    ///     guard.fail();
    ///     guard.shutdown()?;
    /// }
    /// assert!(std::fs::read_to_string(&path)?.contains("quant_runs_total{status=\"failure\"} 2\n"));
    /// # Ok(()) }
    /// ```
    pub fn with_cumulative_totals(mut self) -> Self {
        self.cumulative_totals = true;
        self
    }

    /// Sets the time from one push to the next. Without it, [`DEFAULT_PUSH_INTERVAL`]. The first push goes out at `install()`.
    ///
    /// A push on the interval may take as long as the interval, and at least two seconds, so a short interval does not cut off a
    /// slow response. An OTLP export may take as long as the timeout of one request.
    ///
    /// ```no_run
    /// # use tracing_stage_metrics::MetricsLayer;
    /// use std::time::Duration;
    ///
    /// let (layer, guard) = MetricsLayer::builder().with_env()?.with_push_interval(Duration::from_secs(60)).install()?;
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    pub fn with_push_interval(mut self, interval: Duration) -> Self {
        self.push_interval = interval;
        self
    }

    /// Sets the longest duration of a flush, the final one included: the end of the process never waits longer for it. Without
    /// it, [`DEFAULT_FLUSH_TIMEOUT`](crate::DEFAULT_FLUSH_TIMEOUT).
    ///
    /// The final flush delivers in the first nine tenths of this time. The rest is for its events and the run report.
    ///
    /// ```no_run
    /// # use tracing_stage_metrics::MetricsLayer;
    /// use std::time::Duration;
    ///
    /// let (layer, guard) = MetricsLayer::builder().with_env()?.with_flush_timeout(Duration::from_secs(2)).install()?;
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    pub fn with_flush_timeout(mut self, timeout: Duration) -> Self {
        self.flush_timeout = timeout;
        self
    }

    /// Writes the metrics to this file at `install()`, on the push interval and at the end, for node_exporter's textfile
    /// collector or for people. The file is replaced as a whole, so a reader never sees half of it. node_exporter reads no
    /// file whose name does not end in `.prom`: one warning says so. Without this setting, no file is written.
    ///
    /// Each series has the job and the grouping labels of the gateway. Without a gateway they come from
    /// [`with_job`](Self::with_job) and the variables `…_JOB` and `…_GROUPING` (see [`with_env`](Self::with_env)). Without these
    /// the series have no such labels, and the run metrics of two jobs on one node collide.
    ///
    /// An existing file keeps its mode; a new one has mode 0644 whatever the umask. `install()` resolves a relative path and
    /// symbolic links, once. It returns a [configuration error](crate::Error::is_config) if the path is a directory, a device, a
    /// FIFO, a socket, a mount point, or a symbolic link of a user who is neither root nor the effective user.
    ///
    /// ```
    /// # use tracing_stage_metrics::MetricsLayer;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let directory = tempfile::tempdir()?;
    /// # let path = directory.path().join("quant.prom");
    /// let (_layer, guard) = MetricsLayer::builder().with_textfile(&path).build()?;
    /// guard.shutdown()?;
    /// assert!(std::fs::read_to_string(&path)?.contains("quant_run_duration_seconds"));
    /// # Ok(()) }
    /// ```
    pub fn with_textfile(mut self, path: impl Into<PathBuf>) -> Self {
        self.textfile = Some(path.into());
        self
    }

    /// Keeps the final payload in this directory until the gateway has it. A payload stays there if the gateway is away or the
    /// process is killed during the final flush. A later run with the same directory delivers it, to the gateway and the group
    /// that it was for, unless the gateway has a later run of that group. Payloads of the later run's own group go out before
    /// its first push, others in the background, oldest first. It has no effect where no gateway is set. Without it, a state that
    /// is not delivered in time is lost.
    ///
    /// `install()` creates the directory if it does not exist, and resolves a relative path. Processes may share a directory,
    /// also if their gateways differ. It keeps at most [`MAX_SPOOL_FILES`](crate::MAX_SPOOL_FILES) files and
    /// [`MAX_SPOOL_BYTES`](crate::MAX_SPOOL_BYTES) bytes; beyond that, the oldest payloads are dropped and counted. An incomplete
    /// file is renamed to `*.torn`. A payload that the gateway refuses, or of which it accepts only the stages, is renamed to
    /// `*.refused`. A payload that cannot be delivered does not hold up the others, and is left to the next process.
    ///
    /// ```no_run
    /// # use tracing_stage_metrics::MetricsLayer;
    /// let (layer, guard) = MetricsLayer::builder().with_env()?.with_spool_dir("/var/spool/quant-metrics").install()?;
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    pub fn with_spool_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.spool_directory = Some(directory.into());
        self
    }

    /// Serves the metrics at `http://ADDRESS/metrics`, for a Prometheus that scrapes. A gateway that is set gets its pushes all
    /// the same. Port 0 takes a free port; [`FlushGuard::listen_addr`] returns it. Without it, nothing is served.
    ///
    /// Everyone who can reach the address can read the metrics. Use a loopback address if Prometheus runs on the same machine.
    /// `0.0.0.0` and `[::]` listen on every network of the machine.
    ///
    /// `GET` and `HEAD` of `/metrics` return the text format 0.0.4, compressed with gzip if the text is large and the client
    /// accepts it. With native histograms or exemplars a client may ask for OpenMetrics 1.0 or protobuf by its `Accept` header.
    /// `/health` returns `OK`, any other path 404. Each connection serves one request. After a rendering, the next one waits ten
    /// times as long as it took, but at most four seconds. Requests that arrive meanwhile share the next text.
    ///
    /// At most [`MAX_HTTP_CONNECTIONS`](crate::MAX_HTTP_CONNECTIONS) connections are open at once; a further one closes the oldest
    /// that has sent no request. A client has [`HTTP_REQUEST_TIMEOUT`](crate::HTTP_REQUEST_TIMEOUT) to send its request, and the
    /// same time again to read the response. `install()` binds the port, and returns an error if it is taken. The port is free
    /// again when the guard is gone.
    ///
    /// ```
    /// # use tracing_stage_metrics::MetricsLayer;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (_layer, guard) = MetricsLayer::builder().with_http_listener("127.0.0.1:0".parse()?).build()?;
    /// println!("metrics are at http://{}/metrics", guard.listen_addr().unwrap());
    /// # Ok(()) }
    /// ```
    #[cfg(feature = "http")]
    pub fn with_http_listener(mut self, address: SocketAddr) -> Self {
        self.listen = Some(address);
        self
    }

    /// Sends the metrics to an OpenTelemetry collector over OTLP, beside the gateway or alone: on the push interval and at every
    /// flush, the final one included, within the same time. Without it, and without `OTEL_METRICS_EXPORTER=otlp` for
    /// [`with_env`](Self::with_env), nothing is sent over OTLP. `OTEL_EXPORTER_OTLP_ENDPOINT` alone does not switch it on, since it
    /// may be set for traces.
    ///
    /// The standard variables of OpenTelemetry set the endpoint, the protocol and the rest;
    /// [`guide::configuration`](crate::guide::configuration) lists them. Names, attributes and buckets are those of the Prometheus
    /// metrics; a variable makes histograms exponential.
    ///
    /// Use the temporality `delta` for short-lived jobs: counts of a process then arrive as increments, which a collector adds
    /// up over all processes. Increments that did not arrive are kept and sent before anything new. With cumulative values each
    /// process has its own `service.instance.id`.
    ///
    /// ```no_run
    /// # use tracing_stage_metrics::MetricsLayer;
    /// // With OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318
    /// let (layer, guard) = MetricsLayer::builder().with_otlp().install()?;
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    #[cfg(feature = "otlp")]
    pub fn with_otlp(mut self) -> Self {
        self.otlp = Some(Otlp::Environment);
        self
    }

    /// Records the metrics with this meter provider of the application too. The provider exports them as the application has set
    /// it up; the variables of OTLP have no effect on it. Every flush of the guard flushes the provider too, within the same time,
    /// and leaves it running. Without it, no meter provider gets the metrics.
    ///
    /// The provider's limit on label sets applies, 2 000 by default. The type is that of `opentelemetry_sdk` 0.33. It stays within
    /// 0.1; from 1.0 on, a minor release of this crate may move to a new version.
    ///
    /// ```
    /// # use tracing_stage_metrics::MetricsLayer;
    /// use opentelemetry_sdk::metrics::SdkMeterProvider;
    ///
    /// let provider = SdkMeterProvider::builder().build(); // with your reader and exporter
    /// let (_layer, guard) = MetricsLayer::builder().with_meter_provider(provider.clone()).build()?;
    /// guard.shutdown()?; // flushes the provider
    /// assert!(provider.shutdown().is_ok()); // which is the application's to shut down
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    #[cfg(feature = "otlp")]
    pub fn with_meter_provider(mut self, provider: opentelemetry_sdk::metrics::SdkMeterProvider) -> Self {
        self.otlp = Some(Otlp::Provider(provider));
        self
    }

    /// Does what [`with_meter_provider`](Self::with_meter_provider) does, with a meter. A meter cannot be flushed, so the
    /// application flushes its provider when the guard is gone. Without it, no meter gets the metrics.
    ///
    /// ```
    /// # use tracing_stage_metrics::MetricsLayer;
    /// use opentelemetry::metrics::MeterProvider as _;
    /// use opentelemetry_sdk::metrics::SdkMeterProvider;
    ///
    /// let provider = SdkMeterProvider::builder().build(); // with your reader and exporter
    /// let (_layer, guard) = MetricsLayer::builder().with_meter(provider.meter("quant")).build()?;
    /// guard.shutdown()?;
    /// assert!(provider.force_flush().is_ok());
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    #[cfg(feature = "otlp")]
    pub fn with_meter(mut self, meter: opentelemetry::metrics::Meter) -> Self {
        self.otlp = Some(Otlp::Meter(meter));
        self
    }

    /// Delivers the metrics of a recorder that the application has installed: `render` returns them in the Prometheus text
    /// format 0.0.4. The builder then installs no recorder, and the layer records through the [`metrics`] facade. Buckets and
    /// upkeep are up to the application's recorder. Without it, the builder makes a recorder.
    ///
    /// Install the recorder before [`install`](Self::install), which fails otherwise. [`build`](Self::build) does not check that:
    /// without a recorder the stages and the metrics of the run are lost.
    ///
    /// `render` runs on a thread of its own; [`FlushGuard::render`] calls it on the caller's thread. While it does not return, its
    /// last text is delivered, and one warning says so. At the final flush that text lacks what the final flush records.
    ///
    /// The text is delivered in a stable order, without its comments. A line that does not parse is left out, and so is a metric
    /// that conflicts with another one, since a reader would refuse the whole text; one warning names it. A text without any valid
    /// line is an error of the delivery.
    ///
    /// ```
    /// # use tracing_stage_metrics::MetricsLayer;
    /// use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
    /// use tracing_stage_metrics::DEFAULT_BUCKETS;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let exporter = PrometheusBuilder::new()
    ///     .set_buckets_for_metric(Matcher::Full("quant_stage_duration_seconds".to_owned()), &DEFAULT_BUCKETS)?
    ///     .install_recorder()?;
    /// let exposition = move || {
    ///     exporter.run_upkeep(); // drains its histograms
    ///     exporter.render()
    /// };
    /// let (_layer, guard) = MetricsLayer::builder().with_exposition(exposition).install()?;
    /// metrics::counter!("rows_total").increment(7);
    /// assert!(guard.render().contains("rows_total 7\n"));
    /// # Ok(()) }
    /// ```
    pub fn with_exposition(mut self, render: impl Fn() -> String + Send + Sync + 'static) -> Self {
        self.exposition = Some(Box::new(render));
        self
    }

    /// Calls `take` with the report of the run, once, after the final flush, whichever way the process ends. Without it,
    /// [`FlushGuard::report`] still returns the report at any time.
    ///
    /// `take` runs on a thread of its own, with the subscriber of the thread that ends the run. The end of the process waits for
    /// it until the [flush timeout](Self::with_flush_timeout), of which a gateway that does not answer takes nine tenths. If it
    /// panics, the crate emits one warning.
    ///
    /// ```
    /// # use tracing_stage_metrics::MetricsLayer;
    /// let (layer, guard) = MetricsLayer::builder().with_run_report(|report| eprintln!("{report}")).build()?;
    /// # drop(layer);
    /// guard.shutdown()?; // prints the table
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    pub fn with_run_report(mut self, take: impl FnOnce(RunReport) + Send + 'static) -> Self {
        self.report = Some(Box::new(take));
        self
    }

    /// Makes the final flush on SIGTERM and SIGINT too. Then the process dies of that signal, as its parent expects. Process 1 of
    /// a container cannot die of it, and exits with 128 plus the number of the signal. Without it, a signal ends the process, and
    /// the gateway keeps the state of the last push.
    ///
    /// A second signal during the flush ends the process at once. A signal that was ignored when the process started stays
    /// ignored (on Linux): a shell script starts its background jobs with SIGINT ignored. After the final flush signals act as if
    /// they were never caught. Only one guard of a process can handle signals; for a second one `install()` returns an error.
    ///
    /// Do not use it in a program with its own shutdown handler: that program drops the guard when it is done.
    ///
    /// ```no_run
    /// # use tracing_stage_metrics::MetricsLayer;
    /// let (layer, guard) = MetricsLayer::builder().with_env()?.with_flush_on_signals().install()?;
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    #[cfg(unix)]
    pub fn with_flush_on_signals(mut self) -> Self {
        self.flush_on_signals = true;
        self
    }

    /// Makes the final flush in the panic hook of a program that is built with `panic = "abort"`, where a panic runs no
    /// destructor. The previous panic hook runs at the same time, so a hook that blocks does not cost the flush. Without it, the
    /// gateway keeps the state of the last push. It does nothing in a program whose panics unwind: unwinding drops the guard.
    ///
    /// ```no_run
    /// # use tracing_stage_metrics::MetricsLayer;
    /// let (layer, guard) = MetricsLayer::builder().with_env()?.with_flush_on_panic_abort().install()?;
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    pub fn with_flush_on_panic_abort(mut self) -> Self {
        self.flush_on_panic_abort = true;
        self
    }
}
