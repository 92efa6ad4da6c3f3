//! A layer with its guard under a subscriber of its own, and what its metrics say of the stages that ran.
//!
//! [`Pipeline::start`] makes the subscriber the default of the calling thread until the pipeline is dropped, so that
//! tests side by side do not see each other's spans.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use tempfile::TempDir;
use tracing::field::{Field, Visit};
use tracing::subscriber::DefaultGuard;
use tracing::{Dispatch, Event, Subscriber};
use tracing_stage_metrics::{FailurePolicy, FlushGuard, MetricsLayer, MetricsLayerBuilder};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::{Layer, Registry};

use super::exposition::{self, Exposition};
use super::log::NO_SUCCESS;

/// The events of the crate itself that reach this layer, as text: level, message, then the other fields.
#[derive(Clone, Default)]
pub struct Heard(Arc<Mutex<Vec<String>>>);

impl Heard {
    /// All but the warning of a run that is no success, which [`no_success`](Self::no_success) has: most tests are about
    /// something else.
    pub fn all(&self) -> Vec<String> {
        let mut all = self.0.lock().unwrap().clone();
        all.retain(|line| no_success(line).is_none());
        all
    }

    /// The reasons in the warnings of a run that is no success.
    pub fn no_success(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().filter_map(|line| no_success(line).map(str::to_owned)).collect()
    }
}

fn no_success(line: &str) -> Option<&str> {
    line.strip_prefix("WARN ")?.strip_prefix(NO_SUCCESS)
}

struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else {
            self.fields.push_str(&format!(" {}={value:?}", field.name()));
        }
    }
}

impl<S: Subscriber> Layer<S> for Heard {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == "tracing_stage_metrics" {
            let mut text = Text { message: String::new(), fields: String::new() };
            event.record(&mut text);
            // The event that says where the metrics go is not one of the run.
            if !text.message.starts_with("metrics go ") {
                let line = format!("{} {}{}", event.metadata().level(), text.message, text.fields);
                self.0.lock().unwrap().push(line);
            }
        }
    }
}

pub struct Pipeline {
    guard: FlushGuard,
    heard: Heard,
    dispatch: Dispatch,
    file: TempDir,
    default: DefaultGuard,
}

impl Pipeline {
    /// The layer alone in a registry, with the defaults.
    pub fn start() -> Self {
        Self::with(|builder| builder)
    }

    pub fn under(policy: FailurePolicy) -> Self {
        Self::with(|builder| builder.with_failure_policy(policy))
    }

    pub fn with(configure: impl FnOnce(MetricsLayerBuilder) -> MetricsLayerBuilder) -> Self {
        Self::stacked(configure, |layer, heard| Registry::default().with(layer).with(heard).into())
    }

    /// The layer in the subscriber that `stack` makes of it.
    pub fn stacked(
        configure: impl FnOnce(MetricsLayerBuilder) -> MetricsLayerBuilder,
        stack: impl FnOnce(MetricsLayer, Heard) -> Dispatch,
    ) -> Self {
        let file = TempDir::new().unwrap();
        let builder = MetricsLayer::builder().with_textfile(file.path().join("last.prom"));
        let (layer, guard) = configure(builder).build().unwrap();
        let heard = Heard::default();
        let dispatch = stack(layer, heard.clone());
        let default = tracing::dispatcher::set_default(&dispatch);
        Self { guard, heard, dispatch, file, default }
    }

    /// For other threads.
    pub fn dispatch(&self) -> Dispatch {
        self.dispatch.clone()
    }

    pub fn guard(&self) -> &FlushGuard {
        &self.guard
    }

    /// The crate's own events so far. They come from a thread of their own; a flush returns when they are there.
    pub fn heard(&self) -> Vec<String> {
        self.guard.flush().unwrap();
        self.heard.all()
    }

    /// What the metrics say now.
    #[track_caller]
    pub fn now(&self) -> Measured {
        Measured::read(&self.guard.render())
    }

    /// Ends the run by `ending`, which consumes the guard.
    #[track_caller]
    pub fn end_by<T>(self, ending: impl FnOnce(FlushGuard) -> T) -> Ended<T> {
        let Self { guard, heard, dispatch, file, default } = self;
        let result = ending(guard);
        let last = std::fs::read_to_string(file.path().join("last.prom")).unwrap();
        Ended { result, last: Measured::read(&last), heard, dispatch, default }
    }

    #[track_caller]
    pub fn end(self) -> Ended<()> {
        self.end_by(|guard| guard.shutdown().unwrap())
    }
}

/// After the guard is gone; the layer is still there.
pub struct Ended<T> {
    pub result: T,
    /// What the final flush delivered.
    pub last: Measured,
    heard: Heard,
    dispatch: Dispatch,
    default: DefaultGuard,
}

impl<T> Ended<T> {
    pub fn heard(&self) -> Vec<String> {
        self.heard.all()
    }

    /// The reasons in the warnings of a run that is no success.
    pub fn no_success(&self) -> Vec<String> {
        self.heard.no_success()
    }

    pub fn dispatch(&self) -> Dispatch {
        self.dispatch.clone()
    }
}

/// One exposition, read for its stages. Reading checks that its metrics agree with each other.
#[derive(Clone, Debug)]
pub struct Measured {
    pub exposition: Exposition,
}

impl Measured {
    /// Panics where the text is no valid exposition, or where its metrics tell different stories.
    #[track_caller]
    pub fn read(text: &str) -> Self {
        let measured = Self { exposition: exposition::parse(text) };
        measured.check();
        measured
    }

    /// Stages, successes, failures: `"a 2 1"`, by stage id.
    pub fn totals(&self) -> Vec<String> {
        self.by_stage().into_iter().map(|(stage, [good, bad])| format!("{stage} {good} {bad}")).collect()
    }

    /// Durations recorded by stage, profile and run id: `"a,crypto,42 3"`.
    pub fn runs(&self) -> Vec<String> {
        self.lines("quant_stage_duration_seconds_count", &["stage_id", "profile", "run_id"])
    }

    /// Failures by stage, profile and reason, those that are zero left out: `"a,crypto,error 1"`.
    pub fn failures(&self) -> Vec<String> {
        let mut lines = self.lines("quant_stage_failures_total", &["stage_id", "profile", "reason"]);
        lines.retain(|line| !line.ends_with(" 0"));
        lines
    }

    /// Active stages by stage and profile, those that are zero left out: `"a,crypto 1"`.
    pub fn active(&self) -> Vec<String> {
        let mut lines = self.lines("quant_stage_active", &["stage_id", "profile"]);
        lines.retain(|line| !line.ends_with(" 0"));
        lines
    }

    /// The sum of the durations of a stage, in seconds.
    pub fn seconds(&self, stage: &str) -> f64 {
        let sums = self.exposition.matching("quant_stage_duration_seconds_sum", &[("stage_id", stage)]);
        assert!(!sums.is_empty(), "no durations of {stage}");
        sums.iter().map(|sample| sample.value).sum()
    }

    pub fn has(&self, metric: &str) -> bool {
        !self.exposition.matching(metric, &[]).is_empty()
    }

    fn lines(&self, name: &str, labels: &[&str]) -> Vec<String> {
        let samples = self.exposition.matching(name, &[]);
        let line = |sample: &exposition::Sample| {
            assert_eq!(sample.labels.len(), labels.len(), "{sample}");
            let values: Vec<&str> = labels.iter().map(|label| sample.labels[*label].as_str()).collect();
            format!("{} {}", values.join(","), sample.value)
        };
        let mut lines: Vec<String> = samples.into_iter().map(line).collect();
        lines.sort();
        lines
    }

    fn by_stage(&self) -> BTreeMap<String, [f64; 2]> {
        let mut stages = BTreeMap::new();
        for sample in self.exposition.matching("quant_stage_total", &[]) {
            let stage = &sample.labels["stage_id"];
            let total =
                |status| self.exposition.expect("quant_stage_total", &[("stage_id", stage), ("status", status)]);
            stages.insert(stage.clone(), [total("success"), total("failure")]);
        }
        stages
    }

    fn sum(&self, name: &str) -> f64 {
        self.exposition.matching(name, &[]).iter().map(|sample| sample.value).sum()
    }

    /// Each finished stage has a duration, and each failure a reason.
    #[track_caller]
    fn check(&self) {
        let [good, bad] = self.by_stage().into_values().fold([0.0; 2], |sum, one| [sum[0] + one[0], sum[1] + one[1]]);
        assert_eq!(self.sum("quant_stage_duration_seconds_count"), good + bad, "finished stages and durations");
        assert_eq!(self.sum("quant_stage_failures_total"), bad, "failures and their reasons");
    }
}
