//! `MetricsLayer` beside other layers: in any order, filtered, wrapped, and with layers that emit events of their
//! own.
#![cfg(feature = "pushgateway")]
// Clippy exempts `#[test]` functions only, not the functions they share.
#![allow(clippy::unwrap_used)]

mod support;

#[path = "layers/filters.rs"]
mod filters;
#[path = "layers/logging.rs"]
mod logging;
#[path = "layers/wrapped.rs"]
mod wrapped;

use std::io::Write;
use std::sync::{Arc, Mutex};

use support::Pipeline;
use support::log::NO_SUCCESS;
use support::pipeline::Heard;
use tracing::{debug_span, error, info_span};
use tracing_stage_metrics::MetricsLayer;

/// An in-memory log writer.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A `fmt` layer that writes to the given [`Log`].
macro_rules! fmt_layer {
    ($log:expr) => {{
        let log = $log.clone();
        tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || log.clone())
    }};
}
use fmt_layer;

/// Counts the events of the failed stages in a log, without the warning at the end, which quotes them.
fn broken(log: &Log) -> usize {
    log.text().lines().filter(|line| line.contains("it broke") && !line.contains(NO_SUCCESS)).count()
}

/// Opens stages and plain spans at several levels; one of them has an error.
fn program() {
    info_span!("pipeline", profile = "p", run_id = "r").in_scope(|| {
        info_span!("x", stage_id = "a").in_scope(|| {
            debug_span!("y", stage_id = "fine").in_scope(|| ());
            debug_span!("plain", profile = "q").in_scope(|| error!("it broke"));
        });
        info_span!("x", stage_id = "b").in_scope(|| tracing::info!("fine"));
    });
}

/// Asserts the metrics of [`program`] when no span is hidden from the layer.
#[track_caller]
fn assert_all_spans_measured(pipeline: &Pipeline) {
    let now = pipeline.now();
    assert_eq!(now.runs(), ["a,p,r 1", "b,p,r 1", "fine,p,r 1"]);
    assert_eq!(now.totals(), ["a 1 0", "b 1 0", "fine 1 0"]);
}

/// Asserts the metrics of [`program`] when DEBUG spans are hidden from the layer: the error counts for the enclosing
/// stage.
#[track_caller]
fn assert_debug_spans_hidden(pipeline: &Pipeline) {
    let now = pipeline.now();
    assert_eq!(now.runs(), ["a,p,r 1", "b,p,r 1"]);
    assert_eq!(now.failures(), ["a,p,error 1"]);
}

/// Runs [`program`] under the subscriber that `stack` builds.
fn run_program_under(stack: impl FnOnce(MetricsLayer, Heard) -> tracing::Dispatch) -> Pipeline {
    let pipeline = Pipeline::stacked(|builder| builder, stack);
    program();
    pipeline
}
