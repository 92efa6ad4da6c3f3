//! Layers that emit events from their own callbacks, and this crate's warnings under the filters of other layers.

use std::cell::Cell;

use tracing::span::{Attributes, Id, Record};
use tracing::{Dispatch, Event, Subscriber, debug, error, info, info_span, warn};
use tracing_stage_metrics::FailurePolicy;
use tracing_subscriber::filter::{EnvFilter, LevelFilter, filter_fn};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, Registry};

use super::support::pipeline::Heard;
use super::{Log, Pipeline, fmt_layer, program};

thread_local! {
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
    static EMITTED: Cell<u32> = const { Cell::new(0) };
}

/// Emits events from every callback.
struct LoggingLayer {
    errors: bool,
}

impl LoggingLayer {
    fn emit(&self, about: &str) {
        if IN_CALLBACK.replace(true) {
            return;
        }
        EMITTED.set(EMITTED.get() + 1);
        info!("{about}");
        if self.errors {
            error!("{about}");
            info!(error = about);
        }
        IN_CALLBACK.set(false);
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for LoggingLayer {
    fn on_new_span(&self, _: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        self.emit("new span");
    }
    fn on_record(&self, _: &Id, _: &Record<'_>, _: Context<'_, S>) {
        self.emit("record");
    }
    fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
        self.emit("event");
    }
    fn on_enter(&self, _: &Id, _: Context<'_, S>) {
        self.emit("enter");
    }
    fn on_exit(&self, _: &Id, _: Context<'_, S>) {
        self.emit("exit");
    }
    fn on_close(&self, _: Id, _: Context<'_, S>) {
        self.emit("close");
    }
}

#[test]
fn events_of_other_layers_do_not_change_metrics() {
    for first in [true, false] {
        let logging_layer = LoggingLayer { errors: false };
        EMITTED.set(0);
        let pipeline = super::run_program_under(|layer, _| match first {
            true => Registry::default().with(layer).with(logging_layer).into(),
            false => Registry::default().with(logging_layer).with(layer).into(),
        });
        super::assert_all_spans_measured(&pipeline);
        assert!(EMITTED.get() > 20, "{}", EMITTED.get());
    }
}

#[test]
fn errors_logged_by_other_layers_do_not_count_stages_twice() {
    for first in [true, false] {
        for policy in [FailurePolicy::ErrorEvents, FailurePolicy::ErrorsWithin, FailurePolicy::ProvenSuccess] {
            let logging_layer = LoggingLayer { errors: true };
            let pipeline = Pipeline::stacked(
                |builder| builder.with_failure_policy(policy).with_max_series(1),
                |layer, _| match first {
                    true => Registry::default().with(layer).with(logging_layer).into(),
                    false => Registry::default().with(logging_layer).with(layer).into(),
                },
            );
            program();
            let open = info_span!("x", stage_id = "open").entered();
            let counted: u64 = pipeline.guard().report().stages().map(|stage| stage.runs()).sum();
            assert_eq!(counted, 3);
            let ended = pipeline.end();
            drop(open);
            assert!(
                ended.last.failures().iter().any(|line| line.contains("interrupted")),
                "{:?}",
                ended.last.failures()
            );
        }
    }
}

/// Provokes each of the crate's warnings: an overflow, stages without proof of success, a stage open at the end, and
/// a stage opened after the end. Application events in between must still pass the filters.
fn warnings(stack: impl FnOnce(tracing_stage_metrics::MetricsLayer, Heard) -> Dispatch) -> Vec<String> {
    let pipeline = Pipeline::stacked(
        |builder| builder.with_failure_policy(FailurePolicy::ProvenSuccess).with_max_series(1),
        stack,
    );
    for run_id in 0..3 {
        info_span!("x", stage_id = "a", run_id).in_scope(|| events(1));
        events(1);
    }
    let open = info_span!("x", stage_id = "open");
    open.in_scope(|| events(1));
    let ended = pipeline.end();
    events(1);
    info_span!("x", stage_id = "late").in_scope(|| events(1));
    events(1);
    drop(open);
    ended.heard()
}

/// Number of `events` calls that [`warnings`] makes with an open pipeline or after it.
const EVENTS: usize = 10;

fn events(times: usize) {
    for _ in 0..times {
        debug!("of level debug");
        warn!("of level warn");
        error!("of level error");
    }
}

#[track_caller]
fn assert_all_warnings(heard: &[String]) {
    assert_eq!(heard.len(), 4, "{heard:#?}");
    for part in ["_overflow", "err, ret", "still open", "_guard"] {
        assert!(heard.iter().any(|line| line.contains(part)), "{part}: {heard:#?}");
    }
}

#[test]
fn own_warnings_pass_filters_of_other_layers() {
    let log = Log::default();
    macro_rules! strict {
        () => {
            fmt_layer!(log).with_filter(LevelFilter::ERROR)
        };
    }
    assert_all_warnings(&warnings(|layer, heard| Registry::default().with(layer).with(strict!()).with(heard).into()));
    assert_all_warnings(&warnings(|layer, heard| Registry::default().with(strict!()).with(heard).with(layer).into()));
    assert_all_warnings(&warnings(|layer, heard| {
        let layer = layer.with_filter(LevelFilter::INFO);
        Registry::default().with(layer).with(strict!()).with(heard.with_filter(LevelFilter::WARN)).into()
    }));
    let text = log.text();
    assert_eq!(text.matches("of level error").count(), 3 * EVENTS, "{text}");
    assert_eq!(text.matches("of level").count(), 3 * EVENTS, "only errors: {text}");
    assert!(!text.contains("WARN"), "{text}");
}

#[test]
fn own_warnings_appear_in_the_log() {
    let log = Log::default();
    warnings(|layer, heard| {
        let fmt = fmt_layer!(log).with_filter(EnvFilter::new("warn"));
        Registry::default().with(layer.with_filter(LevelFilter::INFO)).with(fmt).with(heard).into()
    });
    let text = log.text();
    assert_eq!(text.matches(" tracing_stage_metrics:").count(), 5, "{text}");
    assert_eq!(text.matches(" tracing_stage_metrics: the run is not a success: ").count(), 1, "{text}");
    assert_eq!(text.matches("of level warn").count(), EVENTS, "{text}");
    assert_eq!(text.matches("of level debug").count(), 0, "{text}");
}

#[test]
fn filtered_own_warnings_do_not_disturb_other_events() {
    let log = Log::default();
    let heard = warnings(|layer, heard| {
        let silent = filter_fn(|metadata| metadata.target() != "tracing_stage_metrics");
        Registry::default().with(silent).with(layer).with(heard).with(fmt_layer!(log)).into()
    });
    assert!(heard.is_empty(), "{heard:#?}");
    assert_eq!(log.text().matches("of level debug").count(), EVENTS);
    let heard =
        warnings(|layer, heard| Registry::default().with(EnvFilter::new("error")).with(layer).with(heard).into());
    assert!(heard.is_empty(), "the filter hides the INFO spans, so no warning is due: {heard:#?}");
}
