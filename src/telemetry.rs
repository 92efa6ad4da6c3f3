//! What is delivered: the stages, the run, the process's resources and the recorder that holds their metrics.

use std::panic::{AssertUnwindSafe, catch_unwind};
#[cfg(feature = "resource-usage")]
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metrics::Counter;
use tracing::{info, warn};

use crate::delivery::{DeliveryEvent, Source};
use crate::error::{Error, Kind};
use crate::exposition;
use crate::layer::{OWN_TARGET, Stages, outward};
use crate::recorder::StageRecorder;
use crate::report::RunReport;
use crate::run::{Ending, Run};
use crate::schema;

/// Where the text comes from.
pub(crate) enum Exposition {
    /// The recorder this crate built.
    Own {
        recorder: Arc<StageRecorder>,
        /// One at a time gives the recorder the latest values and reads it.
        rendering: Mutex<()>,
    },
    /// A recorder the application has.
    Foreign(Box<dyn Fn() -> String + Send + Sync>),
}

pub(crate) struct Telemetry {
    pub(crate) stages: Arc<Stages>,
    run: Run,
    exposition: Exposition,
    #[cfg(feature = "resource-usage")]
    resources: Option<Resources>,
    pushed: Pushes,
    /// The names of the crate's own metrics.
    own: Vec<String>,
}

struct Pushes {
    success: Counter,
    failure: Counter,
}

/// The process's resources, and the node they are reported for.
#[cfg(feature = "resource-usage")]
pub(crate) struct Resources {
    meter: crate::resource::Meter,
    node: String,
    sampled: AtomicBool,
}

#[cfg(feature = "resource-usage")]
impl Resources {
    pub(crate) fn new(node: String) -> Self {
        Self { meter: crate::resource::Meter::new(), node, sampled: AtomicBool::new(false) }
    }

    /// The gauges exist from the first sample on: a zero before would be no measurement.
    fn sample(&self, stages: &Stages) {
        self.sampled.store(true, Ordering::Relaxed);
        let sample = self.meter.sample();
        let set = |resource, value| stages.set_gauge(&schema::RESOURCE_USAGE, &[resource, &self.node], value);
        if let Some(cores) = sample.cores {
            set("cpu", cores);
        }
        if let Some(bytes) = sample.resident_bytes {
            set("mem", bytes as f64);
        }
    }

    fn end(&self, stages: &Stages) {
        self.sample(stages);
        if let Some(used) = self.meter.cpu_used() {
            stages.set_gauge(&schema::RUN_CPU, &[], used.as_secs_f64());
        }
        if let Some(bytes) = self.meter.peak_bytes() {
            stages.set_gauge(&schema::RUN_PEAK_MEMORY, &[], bytes as f64);
        }
    }
}

impl Telemetry {
    pub(crate) fn new(
        stages: Arc<Stages>,
        exposition: Exposition,
        namespace: &str,
        #[cfg(feature = "resource-usage")] resources: Option<Resources>,
    ) -> Self {
        let run = Run::begin(&stages);
        let pushes = |result| stages.series.sink.counter(&schema::PUSH_TOTAL, &[result]);
        let pushed = Pushes { success: pushes("success"), failure: pushes("failure") };
        Self {
            run,
            exposition,
            #[cfg(feature = "resource-usage")]
            resources,
            pushed,
            own: schema::METRICS.iter().map(|metric| metric.name(namespace)).collect(),
            stages,
        }
    }

    /// There is a sample of the resources before anyone looks.
    fn sample_first(&self) {
        #[cfg(feature = "resource-usage")]
        if let Some(resources) =
            self.resources.as_ref().filter(|resources| !resources.sampled.swap(true, Ordering::Relaxed))
        {
            resources.sample(&self.stages);
        }
    }

    /// The state of this moment as text, in a stable order.
    pub(crate) fn render(&self) -> String {
        self.sample_first();
        match &self.exposition {
            Exposition::Own { recorder, rendering } => {
                let _rendering = rendering.lock().unwrap_or_else(PoisonError::into_inner);
                recorder.render(self.stages.publish())
            }
            Exposition::Foreign(render) => exposition::in_order(&render()),
        }
    }

    pub(crate) fn report(&self) -> RunReport {
        RunReport::new(self.stages.states())
    }

    pub(crate) fn fail(&self) {
        self.run.fail();
    }

    /// The run is over: what is still open is counted, and the gauges of the run are set.
    /// `patience`: how long a stage that closes at this moment may take to be counted.
    pub(crate) fn end(&self, ending: Ending, patience: Duration) {
        guarded(|| self.run.end(&self.stages, ending, patience));
        #[cfg(feature = "resource-usage")]
        if let Some(resources) = &self.resources {
            guarded(|| resources.end(&self.stages));
        }
    }
}

/// Calls what may be the application's recorder where a panic of it must not come through: on the delivery thread, which
/// has to go on, and when the guard is dropped.
fn guarded(work: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(work));
}

impl Source for Telemetry {
    fn exposition(&self) -> Result<String, Error> {
        // With `with_exposition` this is the application's code, on the delivery thread, which must go on.
        catch_unwind(AssertUnwindSafe(|| self.render()))
            .map_err(|_| Error::new(Kind::Delivery, "the function given to `with_exposition` panicked"))
    }

    #[cfg(feature = "otlp")]
    fn publish(&self) {
        guarded(|| {
            self.sample_first();
            drop(self.stages.publish());
        });
    }

    fn own_families(&self, exposition: &str) -> String {
        exposition::only(exposition, |name| self.own.iter().any(|own| own == name))
    }

    fn sample(&self) {
        #[cfg(feature = "resource-usage")]
        if let Some(resources) = &self.resources {
            guarded(|| resources.sample(&self.stages));
        }
    }

    fn pushed(&self, result: &Result<(), Error>, took: Duration) {
        guarded(|| {
            outward(|| match result {
                Ok(()) => self.pushed.success.increment(1),
                Err(_) => self.pushed.failure.increment(1),
            });
            self.stages.set_gauge(&schema::LAST_PUSH_DURATION, &[], took.as_secs_f64());
        });
    }

    fn spooled(&self, files: usize, dropped: u64) {
        guarded(|| {
            self.stages.set_gauge(&schema::SPOOL_FILES, &[], files as f64);
            let counter = self.stages.series.sink.counter(&schema::SPOOL_DROPPED, &[]);
            outward(|| counter.absolute(dropped));
        });
    }

    fn on_event(&self, event: DeliveryEvent) {
        self.stages.voice.speak(|| match event {
            DeliveryEvent::Failing(error) if error.is_loss() => {
                warn!(target: OWN_TARGET, error = ?error, "metrics are lost: they are not sent again");
            }
            DeliveryEvent::Failing(error) => {
                warn!(target: OWN_TARGET, error = ?error, "metrics are not delivered; tried again on the interval");
            }
            DeliveryEvent::Recovered => info!(target: OWN_TARGET, "metrics are delivered again"),
            DeliveryEvent::NotSpooled(error) => {
                warn!(target: OWN_TARGET, error = ?error, "the last state of the metrics is not in the spool");
            }
            DeliveryEvent::SpoolFull => {
                warn!(target: OWN_TARGET, "the spool directory is full: its oldest payloads are dropped, undelivered");
            }
            DeliveryEvent::ReplayRefused(error) => {
                warn!(
                    target: OWN_TARGET,
                    error = ?error,
                    "the gateway refused what an earlier run had left in the spool; it is set aside as *.refused"
                );
            }
        });
    }
}
