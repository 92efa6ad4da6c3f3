//! Where it goes, when, and on which endings.

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
    /// Pushes to this gateway: on the interval, and at the end. Replaces address, job and grouping of the environment
    /// as a whole. Without it nothing is pushed.
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
        self.job_by_default = false;
        self
    }

    /// Adds a grouping label `instance` of the host name and the process id, as in `worker-7:4711`, so that processes of
    /// the same job push side by side to one gateway. Without it, processes with the same job and grouping overwrite each
    /// other.
    ///
    /// Each process then leaves a group of its own on the gateway, until somebody [deletes](Pushgateway::delete) it. The
    /// process itself cannot: what it deletes at its end Prometheus has not scraped yet. [`guide::fleets`](crate::guide::fleets)
    /// says how, and from how many processes on to send OTLP to a collector instead.
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

    /// The time from one push to the next. Without it, [`DEFAULT_PUSH_INTERVAL`]. The first push goes out at once.
    ///
    /// A push on the interval may take as long as the interval, and two seconds if that is shorter: an interval that is shorter
    /// than the answer does not cut a push off. An export by OTLP may take as long as one of its requests.
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

    /// How long a flush may take, the final one too: the end of the process never waits longer. Without it,
    /// [`DEFAULT_FLUSH_TIMEOUT`](crate::DEFAULT_FLUSH_TIMEOUT).
    ///
    /// The final flush delivers in nine tenths of it. The rest is for its events and the run report.
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

    /// Writes the metrics to this file as well, on the push interval and at the end, for node_exporter's textfile
    /// collector or for people. It is replaced as a whole, so that a reader never sees half. Without it none is written.
    ///
    /// Each series has the job and the grouping as labels: those of the gateway or, where none is set, of the variables
    /// `…_JOB` and `…_GROUPING` (see [`with_env`](Self::with_env)). With neither it has no such labels, and the run metrics of two
    /// jobs on one node collide.
    ///
    /// The file keeps the mode it had; a new one has mode 0644 whatever the umask. A relative path and symbolic links are
    /// resolved once, by `install()`. There a path that is a directory, a device, a FIFO, a socket, a mount point, or a
    /// link of another user than root and the effective one, is a [configuration error](crate::Error::is_config).
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

    /// Keeps the final payload in this directory until the gateway has it. What a run leaves there, because the gateway was
    /// gone or the process was killed, a later run with the same directory delivers, to its own gateway and group:
    /// payloads of the later run's own group before its first push, others in the background, oldest first, and none
    /// where the gateway has a later run of that group. Without it, what is not delivered in time is lost.
    ///
    /// The directory is made if it is not there; a relative path is resolved by `install()`. Processes may share it, also
    /// with different gateways. It keeps at most
    /// [`MAX_SPOOL_FILES`](crate::MAX_SPOOL_FILES) files and [`MAX_SPOOL_BYTES`](crate::MAX_SPOOL_BYTES) bytes, the oldest
    /// are dropped and counted. A file that is not whole is set aside as `*.torn`, one that the gateway refuses, or of which
    /// it takes the stages alone, as `*.refused`. One that does not get through keeps no other from delivery: it is left to
    /// the next process.
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

    /// Serves the metrics at `http://ADDRESS/metrics`, for a Prometheus that scrapes: beside pushing, not instead of it.
    /// Port 0 takes one that is free, which [`FlushGuard::listen_addr`] tells. Without it nothing is served.
    ///
    /// Metrics are for everyone who can reach the address, so take a loopback address where Prometheus runs on the same
    /// machine, and `0.0.0.0` or `[::]`, which reach every network of the machine, only where they are to be reached.
    ///
    /// `GET` and `HEAD` of `/metrics` give the text format 0.0.4 (with gzip where it is large and the client takes it),
    /// `/health` an `OK`, everything else 404. Each connection is for one request. After a rendering, the next one waits ten
    /// times as long as it took, but at most four seconds: requests that come meanwhile wait, and share one text, which is
    /// rendered after they came. At most [`MAX_HTTP_CONNECTIONS`](crate::MAX_HTTP_CONNECTIONS) are open at once: beyond, the
    /// oldest that has asked nothing yet is closed. A client has [`HTTP_REQUEST_TIMEOUT`](crate::HTTP_REQUEST_TIMEOUT) to
    /// ask, and as long again to take its answer. The port is bound by `install()`, where one that is taken is an error, and
    /// freed when the guard is gone.
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

    /// Sends the same metrics to an OpenTelemetry collector as well, by OTLP: beside the gateway, or alone. On the push
    /// interval and at every flush, the final one too, within the same time. Without it, or `OTEL_METRICS_EXPORTER=otlp` for
    /// [`with_env`](Self::with_env), nothing is sent there: that `OTEL_EXPORTER_OTLP_ENDPOINT` is set for the traces is no
    /// reason to.
    ///
    /// The standard variables say where and how, `OTEL_EXPORTER_OTLP_METRICS_…` before `OTEL_EXPORTER_OTLP_…`: `…_ENDPOINT`,
    /// `…_PROTOCOL` (`http/protobuf` or `grpc`), `…_HEADERS`, `…_TIMEOUT`, `…_COMPRESSION`,
    /// `OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE`, `OTEL_SERVICE_NAME` (else the job, else the program's name),
    /// `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_SDK_DISABLED`. Names, attributes and buckets are those of the Prometheus metrics.
    ///
    /// For jobs that come and go take `delta`: what a process counted arrives as an increment, so that a collector can add
    /// up all of them. What does not arrive is kept, and sent before anything new is. With cumulative values each process
    /// has a `service.instance.id` of its own, so that none is taken for another.
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

    /// Records the same metrics with this provider of the application as well, which exports them as it was set up to: the
    /// standard variables say nothing here. Every flush of the guard flushes the provider too, within the same time, and
    /// leaves it running. Without it nothing is recorded there.
    ///
    /// The provider's limit on label sets holds, 2 000 by default. This type is `opentelemetry_sdk`'s: another version of
    /// it may come with a minor release of this crate.
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

    /// As [`with_meter_provider`](Self::with_meter_provider), with a meter: there is nothing to flush then, so the
    /// application flushes its provider when the guard is gone. Without it nothing is recorded there.
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

    /// Delivers the metrics of a recorder that the application has installed itself: `render` returns them in the
    /// Prometheus text format 0.0.4. Nothing is installed, and the layer records through the [`metrics`] facade; buckets and
    /// upkeep are that recorder's affair. Without it a recorder is built.
    ///
    /// The recorder must be installed before [`install`](Self::install), which fails otherwise. ([`build`](Self::build) does
    /// not check that: without a recorder the stages and the metrics of the run are lost.)
    ///
    /// `render` is called on a thread of its own, by [`FlushGuard::render`] on the caller's. While it does not return, its last
    /// text is delivered, and one warning says so. If that is at the final flush, the text lacks what the final flush
    /// records. The text is delivered in a stable order, without its comments. A line that is not of the format is left
    /// out, and so is a metric whose name belongs to one of another kind: either would make a reader refuse the whole text.
    /// One warning says which. A text without any line of the format is an error of the delivery.
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

    /// Calls `take` with the report of the run, once, after the final flush, however that came. Without it there is no such
    /// call; [`FlushGuard::report`] returns the report at any time.
    ///
    /// `take` runs on a thread of its own, with the subscriber of the thread that ends the run. It is waited for until the
    /// [flush timeout](Self::with_flush_timeout), of which a gateway that does not answer takes nine tenths. A panic in it is
    /// one warning.
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

    /// Makes the final flush on SIGTERM and SIGINT too; then the process dies of that signal, as its parent expects (as
    /// process 1 of a container, where it cannot, it exits with 128 and the number of the signal). Without it a signal
    /// ends the process with the state of the last push.
    ///
    /// A second signal during the flush ends the process at once. One that was ignored when the process started, as
    /// SIGINT is for what a shell script puts in the background, stays ignored (on Linux). After the final flush signals act
    /// as if never caught. One guard of a process can have the signals; for a second it is an error of `install()`.
    ///
    /// Not for a program with a shutdown handler of its own: that drops the guard when it is done.
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

    /// Makes the final flush in the panic hook where a panic aborts the process (`panic = "abort"`), since no destructor
    /// runs then. The hook that was there runs at the same time, so that one that blocks does not cost the flush. Without it
    /// such a panic leaves the state of the last push. Where panics unwind it does nothing: the guard is dropped by them.
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
