//! Checks the settings and builds the parts. The global recorder is installed last, since that cannot be undone.

use std::sync::{Arc, Mutex};

use metrics::Recorder;
#[cfg(feature = "otlp")]
use metrics::{Key, Label};

use super::builder::MetricsLayerBuilder;
#[cfg(feature = "http")]
use crate::delivery::Listener;
#[cfg(feature = "otlp")]
use crate::delivery::otlp;
use crate::delivery::{CumulativeTotals, DeliveryConfig, DeliveryThread, Spool, Textfile};
use crate::diagnostics::Diagnostics;
use crate::error::Error;
use crate::exposition::{Labels, metric_name};
#[cfg(feature = "otlp")]
use crate::layer::OnRunInfo;
use crate::layer::{LayerSettings, MetricsLayer, StageTracker};
use crate::process::{self, executable_name};
#[cfg(feature = "otlp")]
use crate::recorder::DEFAULT_HISTOGRAM_BUCKETS;
use crate::recorder::{ForeignRecorder, RecorderTarget, StageRecorder};
use crate::run::guard::FlushGuard;
use crate::run::metrics::{Exposition, RunMetrics, own_metrics};
use crate::run::panic_hook;
use crate::run::shutdown::Flusher;
#[cfg(unix)]
use crate::run::signals::SignalHandler;
use crate::schema;
#[cfg(feature = "otlp")]
use crate::series::OnCpuTime;

/// Returns a function that sets `quant_run_info` for OTLP. The other formats take it from the layer when they are written.
#[cfg(feature = "otlp")]
fn run_info_over_otlp(otel: Arc<otlp::OtelRecorder>, namespace: String) -> OnRunInfo {
    Box::new(move |values| otel.set_only_gauge(&key_of(&schema::RUN_INFO, &namespace, &values), 1.0))
}

/// Returns a function that adds the CPU time of a stage for OTLP. The other formats take it from the layer, too.
#[cfg(feature = "otlp")]
fn cpu_time_over_otlp(otel: Arc<otlp::OtelRecorder>, namespace: String) -> OnCpuTime {
    Box::new(move |values, nanos| otel.add_seconds(&key_of(&schema::STAGE_CPU, &namespace, &values), nanos))
}

#[cfg(feature = "otlp")]
fn key_of(metric: &schema::Metric, namespace: &str, values: &[&str]) -> Key {
    let labels = metric.labels.iter().zip(values).map(|(name, value)| Label::new(*name, (*value).to_owned()));
    Key::from_parts(metric.name(namespace), labels.collect::<Vec<_>>())
}

impl MetricsLayerBuilder {
    /// Builds and starts all parts. `install` makes the recorder the global one.
    pub(crate) fn start(
        mut self,
        install: impl FnOnce(Arc<dyn Recorder + Send + Sync>) -> Result<(), Error>,
    ) -> Result<(MetricsLayer, FlushGuard), Error> {
        let ways_out = self.ways_out();
        self.check()?;
        if self.instance_grouping
            && let Some(gateway) = self.gateway.take()
        {
            let grouped = gateway.with_grouping_label("instance", process::instance());
            self.gateway = Some(grouped.map_err(|error| {
                Error::config(format!("{error}; the second is of `with_instance_grouping` or …_INSTANCE_GROUPING"))
            })?);
            self.default_job = None;
        }
        let mut events = self.install_events(ways_out);
        let duration = (schema::STAGE_DURATION.name(&self.namespace), std::mem::take(&mut self.buckets));
        let bounds: Vec<_> = std::iter::once(duration).chain(std::mem::take(&mut self.histogram_buckets)).collect();
        let constant = Labels::new(self.labels.iter().map(|(name, value)| (name.as_str(), value.as_str()))).0;
        #[cfg(feature = "otlp")]
        let otlp = self.otlp(&bounds, constant.clone())?;
        #[cfg(feature = "otlp")]
        events.set_otlp(&otlp);
        let textfile = self.textfile.map(|path| Textfile::open(&path)).transpose()?;
        let open_spool = |directory| Spool::open(directory, &self.namespace);
        let spool = self.spool_directory.map(open_spool).transpose()?;
        #[cfg(feature = "http")]
        let listener = self.listen.map(|address| Listener::bind(address, ways_out.scrapes_carry())).transpose()?;
        // A second recorder needs each duration as it is recorded.
        #[cfg(feature = "otlp")]
        let is_alone = otlp.recorder.is_none();
        #[cfg(not(feature = "otlp"))]
        let is_alone = true;
        // The last bounds of a name count, as in the recorder, which cleans the names too.
        let of_duration =
            bounds.iter().rev().find(|(name, _)| metric_name(name) == bounds[0].0).map(|(_, of)| of.clone());
        #[cfg(feature = "trace-id")]
        let exemplars = of_duration.clone().filter(|_| self.exemplars && ways_out.carry_exemplars());
        let buckets = of_duration.filter(|_| is_alone && self.exposition.is_none());
        let native_histograms = self.native_histograms && ways_out.carry();
        #[cfg_attr(not(feature = "otlp"), allow(unused_mut))]
        let (mut on_run_info, mut on_cpu_time) = (None, None);
        let (target, exposition, recorder) = match self.exposition {
            Some(render) => (RecorderTarget::Global, Exposition::Foreign(ForeignRecorder::new(render)?), None),
            None => {
                let buckets = bounds.iter().map(|(name, of)| (name.as_str(), of.as_slice()));
                let own = Arc::new(StageRecorder::new(
                    buckets,
                    own_metrics(&self.namespace),
                    native_histograms,
                    constant.clone(),
                ));
                let recorder: Arc<dyn Recorder + Send + Sync> = Arc::clone(&own) as _;
                let target = RecorderTarget::Own(Arc::clone(&recorder));
                #[cfg(feature = "otlp")]
                let (recorder, target) = match otlp.recorder.map(Arc::new) {
                    Some(otel) => {
                        on_run_info = Some(run_info_over_otlp(Arc::clone(&otel), self.namespace.clone()));
                        on_cpu_time = Some(cpu_time_over_otlp(Arc::clone(&otel), self.namespace.clone()));
                        let both: Arc<dyn Recorder + Send + Sync> = Arc::new(otlp::Fanout(recorder, otel));
                        let target = if otlp.updates_eagerly { RecorderTarget::Shared } else { RecorderTarget::Own };
                        (Arc::clone(&both), target(both))
                    }
                    None => (recorder, target),
                };
                (target, Exposition::Own { recorder: own, rendering: Mutex::new(()) }, Some(recorder))
            }
        };
        let grouping = |label| self.gateway.as_ref().and_then(|gateway| gateway.grouping().get(label));
        let diagnostics = Arc::new(Diagnostics::default());
        diagnostics.start_thread()?;
        let stages = Arc::new(StageTracker::new(LayerSettings {
            namespace: self.namespace.clone(),
            policy: self.policy,
            max_series: self.max_series,
            buckets,
            native_histograms,
            #[cfg(feature = "trace-id")]
            exemplars,
            expected_stages: self.expected_stages,
            profile: grouping(schema::PROFILE).map(str::to_owned),
            run_id: grouping(schema::RUN_ID).map(str::to_owned),
            run_id_label: self.run_id_label,
            stage_cpu: self.stage_cpu,
            on_cpu_time,
            error_texts: true,
            on_run_info,
            target,
            clock: quanta::Clock::new(),
            diagnostics: Arc::clone(&diagnostics),
        }));
        events.warn(&diagnostics);
        #[cfg(feature = "resource-usage")]
        let resources = {
            let node = self.node.unwrap_or_else(process::hostname);
            Some(crate::run::resource::Resources::new(node))
        };
        let textfile_labels = match &self.gateway {
            Some(gateway) => gateway.grouping().all_labels(),
            None if self.job.is_none() && self.grouping.is_empty() => Vec::new(),
            None => {
                let job = ("job".to_owned(), self.job.unwrap_or_else(executable_name));
                std::iter::once(job).chain(self.grouping).collect()
            }
        };
        let totals = self.cumulative_totals.then(|| {
            let profile = match &self.gateway {
                Some(gateway) => gateway.grouping().get(schema::PROFILE),
                None => {
                    textfile_labels.iter().find(|(name, _)| name == schema::PROFILE).map(|(_, value)| value.as_str())
                }
            };
            Arc::new(CumulativeTotals::new(&self.namespace, constant.clone(), profile.map(str::to_owned)))
        });
        let metrics = Arc::new(RunMetrics::new(
            Arc::clone(&stages),
            exposition,
            &self.namespace,
            constant,
            totals.clone(),
            #[cfg(feature = "resource-usage")]
            resources,
        ));
        let config = DeliveryConfig {
            gateway: self.gateway,
            textfile,
            textfile_labels,
            #[cfg(feature = "otlp")]
            exporter: otlp.exporter,
            totals,
            spool,
            push_interval: self.push_interval,
            #[cfg(feature = "resource-usage")]
            sample_interval: Some(self.resource_interval),
            #[cfg(not(feature = "resource-usage"))]
            sample_interval: None,
            #[cfg(feature = "http")]
            listener,
        };
        #[cfg(unix)]
        let signals = if self.flush_on_signals { Some(SignalHandler::new()?) } else { None };
        let delivery = DeliveryThread::new(config, Arc::clone(&metrics) as _)?;
        let flusher = Arc::new(Flusher::new(metrics, delivery, self.flush_timeout, self.report)?);
        if let Some(recorder) = recorder {
            // The last step that can fail, since it cannot be undone.
            install(recorder)?;
        }
        #[cfg(feature = "http")]
        let listening = flusher.delivery.listen_addr;
        #[cfg(not(feature = "http"))]
        let listening = None;
        events.started(listening, &diagnostics);
        flusher.delivery.start();
        #[cfg(unix)]
        if let Some(signals) = signals {
            signals.start(&flusher);
        }
        if self.flush_on_panic_abort && cfg!(panic = "abort") {
            panic_hook::flush_in_panic_hook(&flusher);
        }
        Ok((MetricsLayer::over(stages), FlushGuard::new(flusher)))
    }

    /// Builds the recorder and the exporter of OpenTelemetry that the settings select.
    #[cfg(feature = "otlp")]
    fn otlp(&mut self, bounds: &[(String, Vec<f64>)], constant: Labels) -> Result<otlp::OtlpPipeline, Error> {
        let Some(otlp) = self.otlp.take() else { return Ok(otlp::OtlpPipeline::default()) };
        if self.exposition.is_some() {
            return Err(Error::config(
                "`with_exposition` delivers a recorder of the application, but OTLP needs the recorder of this crate: leave \
                 one of them out (OTEL_METRICS_EXPORTER switches OTLP on too)",
            ));
        }
        let job = match &self.gateway {
            Some(gateway) => Some(gateway.grouping().job()),
            None => self.job.as_deref(),
        };
        otlp.build(otlp::PipelineConfig {
            namespace: &self.namespace,
            max_series: self.max_series,
            bounds: otlp::OtlpBounds {
                by_name: bounds.iter().cloned().collect(),
                default: DEFAULT_HISTOGRAM_BUCKETS.to_vec(),
            },
            constant,
            service: job.map_or_else(executable_name, str::to_owned),
        })
    }
}
