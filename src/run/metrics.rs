//! The metrics of the run: its stages, its end, the resources of the process, and the recorder that holds them.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
#[cfg(feature = "resource-usage")]
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use metrics::Counter;
use tracing::{info, warn};

use super::added_metrics;
use super::exit_reason::{ExitReason, Run};
use super::report::RunReport;
#[cfg(feature = "resource-usage")]
use super::resource::Resources;
use crate::delivery::{BoxFuture, CumulativeTotals, DeliveryEvent, ExpositionSource, StageCounts, StageKey};
use crate::error::{Error, Kind};
#[cfg(feature = "otlp")]
use crate::exposition::SeriesExemplars;
use crate::exposition::{Families, Labels, MetricKind, Problems, parse};
use crate::layer::StageTracker;
use crate::recorder::ForeignRecorder;
use crate::recorder::StageRecorder;
use crate::recorder::suppress_instrumentation;
use crate::schema;
use crate::schema::OWN_TARGET;
use crate::series::HistogramTotals;

/// The recorder that holds the metrics.
pub(crate) enum Exposition {
    /// A recorder of this crate.
    Own {
        recorder: Arc<StageRecorder>,
        /// Held while the latest values are recorded and read.
        rendering: Mutex<()>,
    },
    /// A recorder of the application.
    Foreign(ForeignRecorder),
}

pub(crate) struct RunMetrics {
    pub(crate) stages: Arc<StageTracker>,
    run: Run,
    exposition: Exposition,
    /// Labels of every series that has none of the same name.
    constant: Labels,
    totals: Option<Arc<CumulativeTotals>>,
    #[cfg(feature = "resource-usage")]
    resources: Option<Resources>,
    pushed: Pushes,
    namespace: String,
    /// The kinds of the crate's own metrics, by full name.
    own: HashMap<String, MetricKind>,
    /// Problems in the text of the application's recorder.
    problems: Mutex<Problems>,
}

/// Returns the full names of this crate's own metrics, with their kinds.
pub(crate) fn own_metrics(namespace: &str) -> impl Iterator<Item = (String, MetricKind)> {
    schema::METRICS.iter().map(move |metric| {
        let kind = match metric.kind {
            schema::InstrumentKind::Counter | schema::InstrumentKind::Seconds => MetricKind::Counter,
            schema::InstrumentKind::Gauge => MetricKind::Gauge,
            schema::InstrumentKind::Histogram => MetricKind::Histogram,
        };
        (metric.name(namespace), kind)
    })
}

struct Pushes {
    success: Counter,
    failure: Counter,
}

impl RunMetrics {
    pub(crate) fn new(
        stages: Arc<StageTracker>,
        exposition: Exposition,
        namespace: &str,
        constant: Labels,
        totals: Option<Arc<CumulativeTotals>>,
        #[cfg(feature = "resource-usage")] resources: Option<Resources>,
    ) -> Self {
        let run = Run::begin(&stages);
        let pushes = |result| stages.recorder().counter(&schema::PUSH_TOTAL, &[result]);
        let pushed = Pushes { success: pushes("success"), failure: pushes("failure") };
        Self {
            run,
            exposition,
            constant,
            totals,
            #[cfg(feature = "resource-usage")]
            resources,
            pushed,
            namespace: namespace.to_owned(),
            own: own_metrics(namespace).collect(),
            problems: Mutex::default(),
            stages,
        }
    }

    /// Samples the resources if that never happened, so that the first reading has them.
    fn sample_first(&self) {
        #[cfg(feature = "resource-usage")]
        if let Some(resources) =
            self.resources.as_ref().filter(|resources| !resources.sampled.swap(true, Ordering::Relaxed))
        {
            resources.sample(&self.stages);
        }
    }

    /// Returns the state of this moment as text, in a stable order. A text of the application's recorder that cannot be parsed
    /// is returned unchanged.
    pub(crate) fn render(&self) -> String {
        self.sample_first();
        match &self.exposition {
            Exposition::Own { recorder, rendering } => self.with_totals(self.read(recorder, rendering)).to_text(),
            Exposition::Foreign(foreign) => {
                let text = foreign.render();
                self.parse(&text).map_or(text, |families| self.with_totals(families).to_text())
            }
        }
    }

    fn with_totals(&self, families: Families) -> Arc<Families> {
        match &self.totals {
            Some(totals) => totals.completed(&families, self.stage_counts()),
            None => Arc::new(families),
        }
    }

    /// Returns the state of this moment.
    fn families(&self) -> Result<Families, Error> {
        self.sample_first();
        match &self.exposition {
            Exposition::Own { recorder, rendering } => Ok(self.read(recorder, rendering)),
            Exposition::Foreign(foreign) => self.parse(&foreign.render()),
        }
    }

    fn read(&self, recorder: &StageRecorder, rendering: &Mutex<()>) -> Families {
        let _rendering = rendering.lock().unwrap_or_else(PoisonError::into_inner);
        #[cfg(feature = "trace-id")]
        let exemplars = self.stages.exemplars();
        let mut families = recorder.families(self.stages.publish());
        #[cfg(feature = "trace-id")]
        families.set_exemplars(exemplars, &self.constant);
        added_metrics::add(&mut families, &self.stages, &self.namespace, &self.constant, &mut self.problems());
        families
    }

    fn parse(&self, text: &str) -> Result<Families, Error> {
        let problems = &mut *self.problems();
        let mut families = parse(text, |name| self.own.get(name).copied(), problems)
            .map_err(|lines| {
                Error::new(
                    Kind::Delivery,
                    format!("the text of `with_exposition` is not in the Prometheus text format 0.0.4: {lines}"),
                )
            })?
            .with_labels(&self.constant, problems);
        added_metrics::add(&mut families, &self.stages, &self.namespace, &self.constant, problems);
        Ok(families)
    }

    fn problems(&self) -> MutexGuard<'_, Problems> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports metrics that are not written as they were recorded. Emits events, so it must not be called in a callback of a
    /// layer.
    fn report_problems(&self) {
        let mut problems = self.problems().take();
        if let Exposition::Own { recorder, .. } = &self.exposition {
            problems.extend(recorder.take_problems());
        }
        for problem in problems {
            self.on_event(DeliveryEvent::MetricProblem(problem));
        }
    }

    pub(crate) fn report(&self) -> RunReport {
        RunReport::new(self.stages.states(), self.run.reasons(&self.stages))
    }

    pub(crate) fn fail(&self) {
        self.run.fail();
    }

    /// Ends the run: counts the open stages, sets the gauges of the run, and warns if it is no success. The gauges are missing if a recorder of the
    /// application does not take them by the deadline. `grace` is the time that a stage which closes at this moment has to be
    /// counted.
    pub(crate) fn end(self: &Arc<Self>, reason: ExitReason, grace: Duration, deadline: Instant) {
        self.run.ends_by(reason);
        self.end_stages(reason, grace, deadline);
        self.run.warn(&self.stages);
    }

    fn end_stages(self: &Arc<Self>, reason: ExitReason, grace: Duration, deadline: Instant) {
        let end = move |metrics: &Self| {
            metrics.run.end(&metrics.stages, reason, grace);
            #[cfg(feature = "resource-usage")]
            if let Some(resources) = &metrics.resources {
                resources.end(&metrics.stages);
            }
        };
        let Exposition::Foreign(foreign) = &self.exposition else { return self.record(end) };
        if foreign.is_current_thread() {
            return;
        }
        if foreign.is_overridden(deadline) {
            let _ = catch_unwind(AssertUnwindSafe(|| end(self)));
        } else {
            self.record(end);
            foreign.wait_idle(deadline);
        }
    }

    /// Whether the caller is the thread that calls the recorder of the application.
    pub(crate) fn is_foreign_thread(&self) -> bool {
        matches!(&self.exposition, Exposition::Foreign(foreign) if foreign.is_current_thread())
    }

    /// Stops all waiting for the thread of the recorder if the caller is that thread.
    pub(crate) fn abandon_foreign_thread(&self) {
        if let Exposition::Foreign(foreign) = &self.exposition {
            foreign.abandon_current_thread();
        }
    }

    /// Records into the recorder: at once if it is of this crate, else on the recorder's thread. The call is dropped if too many
    /// calls wait for a recorder that does not return.
    fn record(self: &Arc<Self>, work: impl FnOnce(&Self) + Send + 'static) {
        match &self.exposition {
            // A panic must not reach the caller, which may be the drop of the guard.
            Exposition::Own { .. } => drop(catch_unwind(AssertUnwindSafe(|| work(self)))),
            Exposition::Foreign(foreign) => {
                let metrics = Arc::clone(self);
                foreign.post(move || work(&metrics));
            }
        }
    }

    async fn foreign_families(self: Arc<Self>, deadline: tokio::time::Instant) -> Result<Arc<Families>, Error> {
        let Exposition::Foreign(foreign) = &self.exposition else { return self.families().map(Arc::new) };
        let (metrics, reporter) = (Arc::clone(&self), Arc::clone(&self));
        let on_failing = move |error| reporter.on_event(DeliveryEvent::RecorderFailing(error));
        let families = foreign.read(move || metrics.families(), on_failing, deadline).await;
        self.report_problems();
        families
    }
}

impl ExpositionSource for RunMetrics {
    fn exposition(self: Arc<Self>, deadline: tokio::time::Instant) -> BoxFuture<'static, Result<Arc<Families>, Error>> {
        match &self.exposition {
            Exposition::Own { .. } => Box::pin(async move {
                let families = self.families().map(Arc::new);
                self.report_problems();
                families
            }),
            Exposition::Foreign(_) => Box::pin(self.foreign_families(deadline)),
        }
    }

    #[cfg(feature = "otlp")]
    fn publish(self: Arc<Self>) -> Vec<SeriesExemplars> {
        #[cfg(feature = "trace-id")]
        let exemplars = self.stages.exemplars();
        #[cfg(not(feature = "trace-id"))]
        let exemplars = Vec::new();
        self.record(|metrics| {
            metrics.sample_first();
            drop(metrics.stages.publish());
        });
        self.report_problems();
        exemplars
    }

    fn stage_counts(&self) -> Vec<(StageKey, StageCounts)> {
        let counts = |([stage_id, profile], totals): ([&str; 2], HistogramTotals)| {
            let counts = StageCounts::new(totals.succeeded, totals.failures(), totals.total_nanos);
            (StageKey::new(stage_id, profile), counts)
        };
        self.totals.iter().flat_map(|_| self.stages.pair_totals().map(counts)).collect()
    }

    fn is_own(&self, name: &str) -> bool {
        self.own.contains_key(name)
    }

    fn sample(self: Arc<Self>) {
        #[cfg(feature = "resource-usage")]
        self.record(|metrics| {
            if let Some(resources) = &metrics.resources {
                resources.sample(&metrics.stages);
            }
        });
    }

    fn pushed(self: Arc<Self>, is_success: bool, elapsed: Duration) {
        self.record(move |metrics| {
            let counter = if is_success { &metrics.pushed.success } else { &metrics.pushed.failure };
            suppress_instrumentation(|| counter.increment(1));
            metrics.stages.set_gauge(&schema::LAST_PUSH_DURATION, &[], elapsed.as_secs_f64());
        });
    }

    fn spooled(self: Arc<Self>, files: usize, dropped: u64) {
        self.record(move |metrics| {
            metrics.stages.set_gauge(&schema::SPOOL_FILES, &[], files as f64);
            let counter = metrics.stages.recorder().counter(&schema::SPOOL_DROPPED, &[]);
            suppress_instrumentation(|| counter.absolute(dropped));
        });
    }

    fn on_event(&self, event: DeliveryEvent) {
        self.stages.diagnostics().emit(move || match event {
            DeliveryEvent::Failing { destination, error } if error.is_loss() => {
                warn!(target: OWN_TARGET, destination, error = ?error, "metrics are lost: they are not sent again");
            }
            DeliveryEvent::Failing { destination, error } => {
                warn!(
                    target: OWN_TARGET,
                    destination, error = ?error, "metrics are not delivered; tried again on the interval"
                );
            }
            DeliveryEvent::Recovered { destination } => {
                info!(target: OWN_TARGET, destination, "metrics are delivered again");
            }
            DeliveryEvent::NotSpooled(error) => {
                warn!(target: OWN_TARGET, error = ?error, "the last state of the metrics is not in the spool");
            }
            DeliveryEvent::SpoolFull => {
                warn!(target: OWN_TARGET, "the spool directory is full: its oldest payloads are dropped, undelivered");
            }
            DeliveryEvent::SpoolDegraded(error) => {
                warn!(target: OWN_TARGET, error = ?error, "the spool does not work as it should");
            }
            DeliveryEvent::TotalsUnknown(error) => {
                warn!(
                    target: OWN_TARGET,
                    error = ?error, "the cumulative totals are left out until the gateway shows those of this group"
                );
            }
            DeliveryEvent::TotalsIncomplete(error) => {
                warn!(target: OWN_TARGET, error = ?error, "the cumulative totals lack earlier runs");
            }
            DeliveryEvent::MetricProblem(problem) => {
                let metric = problem.metric();
                warn!(target: OWN_TARGET, metric, "{problem}");
            }
            DeliveryEvent::ReplayRefused(error) => {
                warn!(
                    target: OWN_TARGET,
                    error = ?error,
                    "the gateway refused a payload that an earlier run left in the spool; it is renamed to *.refused"
                );
            }
            DeliveryEvent::RecorderFailing(error) => {
                warn!(
                    target: OWN_TARGET,
                    error = ?error, "the application's recorder cannot be rendered: its last rendering is delivered"
                );
            }
        });
    }

    fn events_taken(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.stages.diagnostics().taken())
    }
}
