//! The settings. [`start`](crate::start) checks them and makes the layer and the guard.

use std::fmt;
#[cfg(feature = "http")]
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::delivery::Pushgateway;
use crate::env::{DEFAULT_ENV_PREFIX, Reader};
use crate::error::Error;
use crate::flusher::TakeReport;
use crate::guard::{DEFAULT_FLUSH_TIMEOUT, FlushGuard};
use crate::layer::{DEFAULT_MAX_SERIES, FailurePolicy, MetricsLayer};
#[cfg(feature = "otlp")]
use crate::otlp::Otlp;
use crate::recorder::DEFAULT_BUCKETS;
use crate::report::RunReport;
use crate::schema::DEFAULT_NAMESPACE;

/// How often the state is pushed unless [`MetricsLayerBuilder::with_push_interval`] says otherwise.
pub const DEFAULT_PUSH_INTERVAL: Duration = Duration::from_secs(15);

/// Sets up the layer, the recorder and the delivery. Made by [`MetricsLayer::builder`].
///
/// | setter | default |
/// |---|---|
/// | [`with_namespace`](Self::with_namespace) | [`DEFAULT_NAMESPACE`](crate::DEFAULT_NAMESPACE) |
/// | [`with_buckets`](Self::with_buckets) | [`DEFAULT_BUCKETS`](crate::DEFAULT_BUCKETS) |
/// | [`with_histogram_buckets`](Self::with_histogram_buckets) | [`DEFAULT_HISTOGRAM_BUCKETS`](crate::DEFAULT_HISTOGRAM_BUCKETS) |
/// | [`with_failure_policy`](Self::with_failure_policy) | [`FailurePolicy::ErrorEvents`] |
/// | [`with_expected_stages`](Self::with_expected_stages) | none |
/// | [`with_max_series`](Self::with_max_series) | [`DEFAULT_MAX_SERIES`](crate::DEFAULT_MAX_SERIES) |
/// | [`without_run_id_label`](Self::without_run_id_label) | the label is there |
/// | [`with_pushgateway`](Self::with_pushgateway) | nothing is pushed |
/// | [`with_instance_grouping`](Self::with_instance_grouping) | no such label |
/// | [`with_push_interval`](Self::with_push_interval) | [`DEFAULT_PUSH_INTERVAL`] |
/// | [`with_flush_timeout`](Self::with_flush_timeout) | [`DEFAULT_FLUSH_TIMEOUT`](crate::DEFAULT_FLUSH_TIMEOUT) |
/// | [`with_textfile`](Self::with_textfile) | none is written |
/// | [`with_spool_dir`](Self::with_spool_dir) | what is not delivered in time is lost |
/// | `with_http_listener` | nothing is served |
/// | `with_otlp`, `with_meter_provider`, `with_meter` | nothing goes to OpenTelemetry |
/// | [`with_exposition`](Self::with_exposition) | a recorder of its own |
/// | `with_resource_usage` | every [`DEFAULT_RESOURCE_INTERVAL`](crate::DEFAULT_RESOURCE_INTERVAL) |
/// | [`with_node`](Self::with_node) | the host name |
/// | [`with_run_report`](Self::with_run_report) | nobody is told |
/// | `with_flush_on_signals` | a signal ends the process without a flush |
/// | [`with_flush_on_panic_abort`](Self::with_flush_on_panic_abort) | an aborting panic ends it without a flush |
///
/// What is set later wins. What is wrong is found by [`install`](Self::install) and [`build`](Self::build).
#[must_use = "nothing happens before `install` or `build`"]
pub struct MetricsLayerBuilder {
    pub(crate) namespace: String,
    pub(crate) buckets: Vec<f64>,
    pub(crate) histogram_buckets: Vec<(String, Vec<f64>)>,
    pub(crate) policy: FailurePolicy,
    pub(crate) expected_stages: Vec<String>,
    pub(crate) max_series: usize,
    pub(crate) run_id_label: bool,
    pub(crate) gateway: Option<Pushgateway>,
    pub(crate) job_by_default: bool,
    pub(crate) instance_grouping: bool,
    pub(crate) push_interval: Duration,
    pub(crate) flush_timeout: Duration,
    pub(crate) textfile: Option<PathBuf>,
    pub(crate) spool_directory: Option<PathBuf>,
    #[cfg(feature = "http")]
    pub(crate) listen: Option<SocketAddr>,
    #[cfg(feature = "otlp")]
    pub(crate) otlp: Option<Otlp>,
    pub(crate) exposition: Option<Box<dyn Fn() -> String + Send + Sync>>,
    #[cfg(feature = "resource-usage")]
    pub(crate) resource_interval: Duration,
    pub(crate) node: Option<String>,
    pub(crate) report: Option<TakeReport>,
    #[cfg(unix)]
    pub(crate) flush_on_signals: bool,
    pub(crate) flush_on_panic_abort: bool,
}

impl MetricsLayer {
    /// Sets up the layer together with the recorder, the delivery and the guard that makes the final flush.
    ///
    /// ```no_run
    /// use tracing_stage_metrics::MetricsLayer;
    /// use tracing_subscriber::prelude::*;
    ///
    /// # fn main() -> Result<(), tracing_stage_metrics::Error> {
    /// let (layer, _guard) = MetricsLayer::builder().with_env()?.install()?;
    /// tracing_subscriber::registry().with(layer).init();
    /// # Ok(()) }
    /// ```
    pub fn builder() -> MetricsLayerBuilder {
        MetricsLayerBuilder::new()
    }
}

impl MetricsLayerBuilder {
    fn new() -> Self {
        Self {
            namespace: DEFAULT_NAMESPACE.to_owned(),
            buckets: DEFAULT_BUCKETS.to_vec(),
            histogram_buckets: Vec::new(),
            policy: FailurePolicy::default(),
            expected_stages: Vec::new(),
            max_series: DEFAULT_MAX_SERIES,
            run_id_label: true,
            gateway: None,
            job_by_default: false,
            instance_grouping: false,
            push_interval: DEFAULT_PUSH_INTERVAL,
            flush_timeout: DEFAULT_FLUSH_TIMEOUT,
            textfile: None,
            spool_directory: None,
            #[cfg(feature = "http")]
            listen: None,
            #[cfg(feature = "otlp")]
            otlp: None,
            exposition: None,
            #[cfg(feature = "resource-usage")]
            resource_interval: crate::resource::DEFAULT_RESOURCE_INTERVAL,
            node: None,
            report: None,
            #[cfg(unix)]
            flush_on_signals: false,
            flush_on_panic_abort: false,
        }
    }

    /// Reads the environment variables `TV_PROMETHEUS_PUSHGATEWAY`, `…_JOB`, `…_GROUPING`, `…_PUSH_INTERVAL`,
    /// `…_FLUSH_TIMEOUT`, `…_TEXTFILE`, `…_LISTEN`, `…_SPOOL_DIR` and `…_NODE`. One that is not set, or empty, changes
    /// nothing. Job and grouping belong to the gateway's address, and say nothing without it. `OTEL_METRICS_EXPORTER=otlp`
    /// does what `with_otlp` does.
    ///
    /// # Errors
    ///
    /// A [configuration error](Error::is_config) that names the variable and quotes its value, but for user and
    /// password of a URL. A variable for something that a feature adds which is not compiled in is one too, and names
    /// the feature.
    pub fn with_env(self) -> Result<Self, Error> {
        self.with_env_prefix(DEFAULT_ENV_PREFIX)
    }

    /// As [`with_env`](Self::with_env), with names that begin otherwise: `with_env_prefix("ACME_")` reads
    /// `ACME_PROMETHEUS_PUSHGATEWAY`.
    ///
    /// # Errors
    ///
    /// As [`with_env`](Self::with_env).
    pub fn with_env_prefix(mut self, prefix: impl AsRef<str>) -> Result<Self, Error> {
        let environment = Reader::process(prefix.as_ref()).read()?;
        if environment.gateway.is_some() {
            self.gateway = environment.gateway;
            self.job_by_default = environment.job_by_default;
        }
        self.push_interval = environment.push_interval.unwrap_or(self.push_interval);
        self.flush_timeout = environment.flush_timeout.unwrap_or(self.flush_timeout);
        self.textfile = environment.textfile.or(self.textfile);
        self.spool_directory = environment.spool_directory.or(self.spool_directory);
        #[cfg(feature = "http")]
        {
            self.listen = environment.listen.or(self.listen);
        }
        #[cfg(feature = "otlp")]
        if environment.otlp && self.otlp.is_none() {
            self.otlp = Some(Otlp::Environment);
        }
        self.node = environment.node.or(self.node);
        Ok(self)
    }

    /// What the names of the metrics begin with. Without it, [`DEFAULT_NAMESPACE`](crate::DEFAULT_NAMESPACE).
    pub fn with_namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// Upper bounds of the buckets of the stage duration, in seconds, ascending. Without it,
    /// [`DEFAULT_BUCKETS`](crate::DEFAULT_BUCKETS).
    pub fn with_buckets(mut self, bounds: &[f64]) -> Self {
        self.buckets = bounds.to_vec();
        self
    }

    /// Upper bounds of the buckets of one of the application's own histograms, by the name it is recorded under.
    /// Without it, [`DEFAULT_HISTOGRAM_BUCKETS`](crate::DEFAULT_HISTOGRAM_BUCKETS).
    pub fn with_histogram_buckets(mut self, histogram: impl Into<String>, bounds: &[f64]) -> Self {
        self.histogram_buckets.push((histogram.into(), bounds.to_vec()));
        self
    }

    /// What makes a stage fail. Without it, [`FailurePolicy::ErrorEvents`].
    pub fn with_failure_policy(mut self, policy: FailurePolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Stages every run has: they are in `quant_stage_total` with zeros at once, so that one that never ran is seen,
    /// and a run in which one of them did not succeed is no success. Without it, the stages that ran are what there is.
    pub fn with_expected_stages<I>(mut self, stages: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.expected_stages = stages.into_iter().map(Into::into).collect();
        self
    }

    /// How many label sets a metric may have before new ones are counted as `_overflow`. Without it,
    /// [`DEFAULT_MAX_SERIES`](crate::DEFAULT_MAX_SERIES).
    pub fn with_max_series(mut self, sets: usize) -> Self {
        self.max_series = sets;
        self
    }

    /// Leaves the label `run_id` out. For services, whose run ids are new for ever. Without it, the label is there.
    pub fn without_run_id_label(mut self) -> Self {
        self.run_id_label = false;
        self
    }

    /// Pushes to this gateway: on the interval, and at the end. Replaces address, job and grouping of the environment
    /// as a whole. Without it nothing is pushed.
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
    pub fn with_instance_grouping(mut self) -> Self {
        self.instance_grouping = true;
        self
    }

    /// The time from one push to the next. Without it, [`DEFAULT_PUSH_INTERVAL`]. The first push goes out at once.
    pub fn with_push_interval(mut self, interval: Duration) -> Self {
        self.push_interval = interval;
        self
    }

    /// How long a flush may take, the final one too: the end of the process never waits longer. Without it,
    /// [`DEFAULT_FLUSH_TIMEOUT`](crate::DEFAULT_FLUSH_TIMEOUT).
    pub fn with_flush_timeout(mut self, timeout: Duration) -> Self {
        self.flush_timeout = timeout;
        self
    }

    /// Writes the metrics to this file as well, on the push interval and at the end, for node_exporter's textfile
    /// collector or for people. It is replaced as a whole, so that a reader never sees half. Without it none is written.
    pub fn with_textfile(mut self, path: impl Into<PathBuf>) -> Self {
        self.textfile = Some(path.into());
        self
    }

    /// Keeps the final payload in this directory until the gateway has it: it is written there first, pushed, and removed.
    /// What a run leaves there, since the gateway was gone or the process was killed, a later run with the same directory
    /// delivers to its own group: oldest first, in the background from its start and after its own payload at its end,
    /// and not where the gateway has a later run of that group. Without it, what is not delivered in time is lost.
    ///
    /// The directory is made if it is not there. Processes may share it. It keeps at most
    /// [`MAX_SPOOL_FILES`](crate::MAX_SPOOL_FILES) files and [`MAX_SPOOL_BYTES`](crate::MAX_SPOOL_BYTES) bytes, the oldest
    /// are dropped and counted. A file that is not whole is set aside as `*.torn`, one that the gateway refuses, or of which
    /// it takes the stages alone, as `*.refused`. One that does not get through keeps no other from delivery: it is left to
    /// the next process.
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
    /// `/health` an `OK`, everything else 404. Each connection is for one request. Rendering takes at most a tenth of the
    /// delivery thread's time: requests that come meanwhile wait, and share one text, which is of after they came. At most
    /// [`MAX_HTTP_CONNECTIONS`](crate::MAX_HTTP_CONNECTIONS) are open at once: beyond, the oldest that has asked nothing yet
    /// is closed. A client has [`HTTP_REQUEST_TIMEOUT`](crate::HTTP_REQUEST_TIMEOUT) to ask, and as long again to take its
    /// answer. The port is bound by `install()`, where one that is taken is an error, and freed when the guard is gone.
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
    #[cfg(feature = "otlp")]
    pub fn with_meter_provider(mut self, provider: opentelemetry_sdk::metrics::SdkMeterProvider) -> Self {
        self.otlp = Some(Otlp::Provider(provider));
        self
    }

    /// As [`with_meter_provider`](Self::with_meter_provider), with a meter: there is nothing to flush then, so the
    /// application flushes its provider when the guard is gone. Without it nothing is recorded there.
    #[cfg(feature = "otlp")]
    pub fn with_meter(mut self, meter: opentelemetry::metrics::Meter) -> Self {
        self.otlp = Some(Otlp::Meter(meter));
        self
    }

    /// Delivers the metrics of a recorder that the application has installed itself: `render` returns them in the
    /// Prometheus text format. Nothing is installed, and the layer records through the [`metrics`] facade; buckets and
    /// upkeep are that recorder's affair. Without it a recorder is built.
    pub fn with_exposition(mut self, render: impl Fn() -> String + Send + Sync + 'static) -> Self {
        self.exposition = Some(Box::new(render));
        self
    }

    /// How often CPU and memory of this process are sampled. Without it,
    /// [`DEFAULT_RESOURCE_INTERVAL`](crate::DEFAULT_RESOURCE_INTERVAL).
    #[cfg(feature = "resource-usage")]
    pub fn with_resource_usage(mut self, interval: Duration) -> Self {
        self.resource_interval = interval;
        self
    }

    /// The label `node` of the resource usage. Without it, the host name.
    pub fn with_node(mut self, node: impl Into<String>) -> Self {
        self.node = Some(node.into());
        self
    }

    /// Hands over the report of the run, once, after the final flush, on every ending. Without it nobody is told;
    /// [`FlushGuard::report`] has it at any time.
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
    #[cfg(unix)]
    pub fn with_flush_on_signals(mut self) -> Self {
        self.flush_on_signals = true;
        self
    }

    /// Makes the final flush in the panic hook where a panic aborts the process (`panic = "abort"`), since no destructor
    /// runs then. The hook that was there is called first. Without it such a panic leaves the state of the last push.
    /// Where panics unwind it does nothing: the guard is dropped by them.
    pub fn with_flush_on_panic_abort(mut self) -> Self {
        self.flush_on_panic_abort = true;
        self
    }

    /// Builds the recorder, installs it as the global recorder of [`metrics`], so that the application's own `counter!`
    /// goes to the same place, and starts the delivery.
    ///
    /// # Errors
    ///
    /// A [configuration error](Error::is_config) that says what is wrong: among them a recorder that is installed
    /// already, by a second `install()` perhaps. An error that is none when the system does not give a thread.
    pub fn install(self) -> Result<(MetricsLayer, FlushGuard), Error> {
        self.start(|recorder| {
            metrics::set_global_recorder(recorder).map_err(|_| {
                Error::config(
                    "a global `metrics` recorder is installed already: call `install()` once in a process; for a \
                     recorder of your own use `with_exposition`, for a second pipeline `build()`",
                )
            })
        })
    }

    /// As [`install`](Self::install), without touching the global recorder: the layer calls its own. For tests,
    /// libraries, and two pipelines in one process. The application's own `counter!` is not in it.
    ///
    /// # Errors
    ///
    /// As [`install`](Self::install), but for the global recorder.
    pub fn build(self) -> Result<(MetricsLayer, FlushGuard), Error> {
        self.start(|_| Ok(()))
    }
}

impl fmt::Debug for MetricsLayerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut builder = f.debug_struct("MetricsLayerBuilder");
        builder
            .field("namespace", &self.namespace)
            .field("policy", &self.policy)
            .field("gateway", &self.gateway)
            .field("push_interval", &self.push_interval)
            .field("flush_timeout", &self.flush_timeout)
            .field("textfile", &self.textfile);
        #[cfg(feature = "http")]
        builder.field("listen", &self.listen);
        builder.finish_non_exhaustive()
    }
}
