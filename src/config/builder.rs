//! The settings and their defaults. [`install`](super::install) checks them and makes the layer and the guard.

use std::collections::BTreeMap;
use std::fmt;
#[cfg(feature = "http")]
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::env::{DEFAULT_ENV_PREFIX, EnvReader, process_variables, variable_name};
use super::unknown_variables::unknown_variables;
use crate::delivery::Pushgateway;
#[cfg(feature = "otlp")]
use crate::delivery::otlp::Otlp;
use crate::error::Error;
use crate::layer::{FailurePolicy, MetricsLayer};
use crate::recorder::{DEFAULT_BUCKETS, check_is_installed};
use crate::run::guard::{DEFAULT_FLUSH_TIMEOUT, FlushGuard};
use crate::run::shutdown::TakeReport;
use crate::schema::DEFAULT_NAMESPACE;
use crate::series::DEFAULT_MAX_SERIES;

/// Default interval between two pushes: 15 seconds. [`MetricsLayerBuilder::with_push_interval`] changes it.
pub const DEFAULT_PUSH_INTERVAL: Duration = Duration::from_secs(15);

/// Builds the layer, the recorder and the delivery. [`MetricsLayer::builder`] creates it.
///
/// | setter | default |
/// |---|---|
/// | [`with_namespace`](Self::with_namespace) | [`DEFAULT_NAMESPACE`](crate::DEFAULT_NAMESPACE) |
/// | [`with_buckets`](Self::with_buckets) | [`DEFAULT_BUCKETS`](crate::DEFAULT_BUCKETS) |
/// | [`with_histogram_buckets`](Self::with_histogram_buckets) | [`DEFAULT_HISTOGRAM_BUCKETS`](crate::DEFAULT_HISTOGRAM_BUCKETS) |
/// | [`with_native_histograms`](Self::with_native_histograms) | no native histograms |
/// | [`with_label`](Self::with_label) | no constant label |
/// | [`with_failure_policy`](Self::with_failure_policy) | [`FailurePolicy::ErrorEvents`] |
/// | [`with_expected_stages`](Self::with_expected_stages) | none |
/// | [`with_max_series`](Self::with_max_series) | [`DEFAULT_MAX_SERIES`](crate::DEFAULT_MAX_SERIES) |
/// | [`without_run_id_label`](Self::without_run_id_label) | with the label |
/// | `with_exemplars` | no exemplars |
/// | [`with_pushgateway`](Self::with_pushgateway) | no push |
/// | [`map_pushgateway`](Self::map_pushgateway) | the gateway as it is |
/// | [`with_job`](Self::with_job) | no label `job` in the text file |
/// | [`with_instance_grouping`](Self::with_instance_grouping) | no such label |
/// | [`with_cumulative_totals`](Self::with_cumulative_totals) | the counters begin at zero with every run |
/// | [`with_push_interval`](Self::with_push_interval) | [`DEFAULT_PUSH_INTERVAL`] |
/// | [`with_flush_timeout`](Self::with_flush_timeout) | [`DEFAULT_FLUSH_TIMEOUT`](crate::DEFAULT_FLUSH_TIMEOUT) |
/// | [`with_textfile`](Self::with_textfile) | no file |
/// | [`with_spool_dir`](Self::with_spool_dir) | a state that is not delivered in time is lost |
/// | `with_http_listener` | no listener |
/// | `with_otlp`, `with_meter_provider`, `with_meter` | no export to OpenTelemetry |
/// | [`with_exposition`](Self::with_exposition) | a recorder of this crate |
/// | [`with_stage_cpu`](Self::with_stage_cpu) | no CPU time of stages |
/// | `with_resource_usage` | every [`DEFAULT_RESOURCE_INTERVAL`](crate::DEFAULT_RESOURCE_INTERVAL) |
/// | [`with_node`](Self::with_node) | the host name |
/// | [`with_run_report`](Self::with_run_report) | no report |
/// | `with_flush_on_signals` | a signal ends the process without a flush |
/// | [`with_flush_on_panic_abort`](Self::with_flush_on_panic_abort) | an aborting panic ends the process without a flush |
///
/// The later call wins. [`install`](Self::install) and [`build`](Self::build) check the settings.
#[must_use = "nothing happens before `install` or `build`"]
pub struct MetricsLayerBuilder {
    pub(super) namespace: String,
    pub(super) buckets: Vec<f64>,
    pub(super) histogram_buckets: Vec<(String, Vec<f64>)>,
    pub(super) native_histograms: bool,
    pub(super) stage_cpu: bool,
    pub(super) policy: FailurePolicy,
    pub(super) expected_stages: Vec<String>,
    pub(super) max_series: usize,
    pub(super) run_id_label: bool,
    #[cfg(feature = "trace-id")]
    pub(super) exemplars: bool,
    pub(super) gateway: Option<Pushgateway>,
    /// The variable that would set the job, which is the program's name by default.
    pub(super) default_job: Option<String>,
    /// The job where there is no gateway.
    pub(super) job: Option<String>,
    /// The grouping of the environment where there is no gateway: labels of the text file.
    pub(super) grouping: Vec<(String, String)>,
    pub(super) labels: Vec<(String, String)>,
    pub(super) instance_grouping: bool,
    pub(super) cumulative_totals: bool,
    pub(super) push_interval: Duration,
    pub(super) flush_timeout: Duration,
    pub(super) textfile: Option<PathBuf>,
    pub(super) spool_directory: Option<PathBuf>,
    #[cfg(feature = "http")]
    pub(super) listen: Option<SocketAddr>,
    #[cfg(feature = "otlp")]
    pub(super) otlp: Option<Otlp>,
    pub(super) exposition: Option<Box<dyn Fn() -> String + Send + Sync>>,
    #[cfg(feature = "resource-usage")]
    pub(super) resource_interval: Duration,
    pub(super) node: Option<String>,
    pub(super) report: Option<TakeReport>,
    #[cfg(unix)]
    pub(super) flush_on_signals: bool,
    pub(super) flush_on_panic_abort: bool,
    /// The prefix of the variables, if they were read.
    pub(super) env_prefix: Option<String>,
    /// The variables with this prefix that are not read, each with the nearest one that is.
    pub(super) unknown_variables: BTreeMap<String, String>,
}

impl MetricsLayer {
    /// Returns a builder of the layer, its recorder, the delivery and the guard that makes the final flush.
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
            native_histograms: false,
            stage_cpu: false,
            policy: FailurePolicy::default(),
            expected_stages: Vec::new(),
            max_series: DEFAULT_MAX_SERIES,
            run_id_label: true,
            #[cfg(feature = "trace-id")]
            exemplars: false,
            gateway: None,
            default_job: None,
            job: None,
            grouping: Vec::new(),
            labels: Vec::new(),
            instance_grouping: false,
            cumulative_totals: false,
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
            resource_interval: crate::run::resource::DEFAULT_RESOURCE_INTERVAL,
            node: None,
            report: None,
            #[cfg(unix)]
            flush_on_signals: false,
            flush_on_panic_abort: false,
            env_prefix: None,
            unknown_variables: BTreeMap::new(),
        }
    }

    /// Reads the environment variables `TV_PROMETHEUS_…`, which [`guide::configuration`](crate::guide::configuration) lists.
    /// A variable that is not set, or empty, changes nothing. `OTEL_METRICS_EXPORTER=otlp` does what `with_otlp` does.
    ///
    /// Job and grouping belong to the gateway of `…_PUSHGATEWAY`; a gateway that the code sets keeps its own. Without a gateway
    /// they are only the labels of the text file, and the job is the service name of OTLP. The format, the credentials and the
    /// certificates apply to a gateway that the code has set, too.
    ///
    /// A variable `TV_PROMETHEUS_…` that is not in the list is one warning at [`install`](Self::install), with the nearest name
    /// that is.
    ///
    /// ```no_run
    /// # use tracing_stage_metrics::MetricsLayer;
    /// // With TV_PROMETHEUS_PUSHGATEWAY=http://pushgateway:9091 and TV_PROMETHEUS_JOB=quant_pipeline
    /// let (layer, guard) = MetricsLayer::builder().with_env()?.install()?;
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// A [configuration error](Error::is_config) that names the variable and quotes its value, without the user and the
    /// password of a URL. A variable that needs a feature which is not compiled in is an error that names the feature.
    pub fn with_env(self) -> Result<Self, Error> {
        self.with_env_prefix(DEFAULT_ENV_PREFIX)
    }

    /// Does what [`with_env`](Self::with_env) does, with another prefix of the names: `with_env_prefix("ACME_")` reads
    /// `ACME_PROMETHEUS_PUSHGATEWAY`.
    ///
    /// ```no_run
    /// # use tracing_stage_metrics::MetricsLayer;
    /// // With ACME_PROMETHEUS_PUSHGATEWAY=http://pushgateway:9091
    /// let (layer, guard) = MetricsLayer::builder().with_env_prefix("ACME_")?.install()?;
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`with_env`](Self::with_env).
    pub fn with_env_prefix(mut self, prefix: impl AsRef<str>) -> Result<Self, Error> {
        let unknown = unknown_variables(prefix.as_ref(), process_variables());
        // A misspelt variable may be the reason why another one is wrong.
        let environment =
            EnvReader::process(prefix.as_ref()).read().map_err(|error| match unknown.first_key_value() {
                Some((variable, nearest)) => {
                    Error::config(format!("{error:?}; {variable:?} is unknown: the nearest known one is {nearest}"))
                }
                None => error,
            })?;
        self.unknown_variables.extend(unknown);
        self.env_prefix = Some(prefix.as_ref().to_owned());
        self.job = environment.job.or(self.job);
        self.grouping = environment.grouping;
        for (name, value) in environment.labels {
            self = self.with_label(name, value);
        }
        if environment.gateway.is_some() {
            self.gateway = environment.gateway;
            self.default_job = environment.default_job;
        }
        let variable = |name: &str| variable_name(prefix.as_ref(), name);
        self = self.map_pushgateway(|gateway| gateway.with_variables(environment.gateway_files, variable));
        if let Some(format) = environment.push_format {
            self = self.map_pushgateway(|gateway| gateway.with_format(format));
        }
        #[cfg(feature = "trace-id")]
        {
            self.exemplars = environment.exemplars.unwrap_or(self.exemplars);
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
        self.namespace = environment.namespace.unwrap_or(self.namespace);
        self.policy = environment.policy.unwrap_or(self.policy);
        self.run_id_label = environment.run_id_label.unwrap_or(self.run_id_label);
        self.cumulative_totals = environment.cumulative_totals.unwrap_or(self.cumulative_totals);
        self.instance_grouping = environment.instance_grouping.unwrap_or(self.instance_grouping);
        #[cfg(unix)]
        {
            self.flush_on_signals = environment.flush_on_signals.unwrap_or(self.flush_on_signals);
        }
        self.node = environment.node.or(self.node);
        self.native_histograms = environment.native_histograms.unwrap_or(self.native_histograms);
        self.stage_cpu = environment.stage_cpu.unwrap_or(self.stage_cpu);
        Ok(self)
    }

    /// Builds the recorder, installs it as the global recorder of [`metrics`] and starts the delivery. The application's own
    /// `counter!` records into the same recorder.
    ///
    /// It starts threads, which a fork does not have: call `install()` after the fork.
    ///
    /// One `info!` event says where the metrics go. It reaches the subscriber that has the layer with the first stage, or at the
    /// final flush if there is none.
    ///
    /// ```
    /// # use tracing_stage_metrics::MetricsLayer;
    /// let (_layer, guard) = MetricsLayer::builder().install()?;
    /// metrics::counter!("rows_total").increment(7);
    /// assert!(guard.render().contains("rows_total 7\n"));
    /// assert!(MetricsLayer::builder().install().unwrap_err().is_config()); // once in a process
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// A [configuration error](Error::is_config) names the wrong setting. It is also a configuration error if a global recorder
    /// is installed already, for instance by an earlier `install()`, or if none is and
    /// [`with_exposition`](Self::with_exposition) is set. Any other error means that the system has no thread or file handle left.
    pub fn install(self) -> Result<(MetricsLayer, FlushGuard), Error> {
        if self.exposition.is_some() {
            check_is_installed()?;
        }
        self.start(|recorder| {
            metrics::set_global_recorder(recorder).map_err(|_| {
                Error::config(
                    "a global `metrics` recorder is installed already: call `install()` once in a process; for a \
                     recorder of your own use `with_exposition`, for a second pipeline `build()`",
                )
            })
        })
    }

    /// Does what [`install`](Self::install) does, without the global recorder: the layer records into a recorder of its own. Use it
    /// for tests, libraries, and two pipelines in one process. The application's own `counter!` does not reach that recorder.
    ///
    /// ```
    /// use tracing_stage_metrics::MetricsLayer;
    /// use tracing_subscriber::prelude::*;
    ///
    /// let (layer, guard) = MetricsLayer::builder().build()?;
    /// let _default = tracing_subscriber::registry().with(layer).set_default();
    /// tracing::info_span!("ingest", stage_id = "ingest").in_scope(|| {});
    /// assert_eq!(guard.report().stage("ingest").unwrap().runs(), 1);
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`install`](Self::install), except those about the global recorder.
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
