//! Beside other layers: in any order, filtered or not, wrapped, and beside layers that log themselves.
#![cfg(feature = "pushgateway")]
// Clippy's exemption for tests reaches `#[test]` functions only, not the functions they share.
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
use support::pipeline::Heard;
use tracing::{debug_span, error, info_span};
use tracing_stage_metrics::MetricsLayer;

/// A place to write a log to.
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

/// A layer that writes the log.
macro_rules! fmt_layer {
    ($log:expr) => {{
        let log = $log.clone();
        tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || log.clone())
    }};
}
use fmt_layer;

/// Stages and ordinary spans of several levels, with an error in one.
fn program() {
    info_span!("pipeline", profile = "p", run_id = "r").in_scope(|| {
        info_span!("x", stage_id = "a").in_scope(|| {
            debug_span!("y", stage_id = "fine").in_scope(|| ());
            debug_span!("plain", profile = "q").in_scope(|| error!("it broke"));
        });
        info_span!("x", stage_id = "b").in_scope(|| tracing::info!("fine"));
    });
}

/// Checks what the layer says where it sees all of the program.
#[track_caller]
fn all_seen(pipeline: &Pipeline) {
    let now = pipeline.now();
    assert_eq!(now.runs(), ["a,p,r 1", "b,p,r 1", "fine,p,r 1"]);
    assert_eq!(now.totals(), ["a 1 0", "b 1 0", "fine 1 0"]);
}

/// Checks what it says where the spans of level DEBUG are hidden from it: the error lands on the stage around.
#[track_caller]
fn debug_hidden(pipeline: &Pipeline) {
    let now = pipeline.now();
    assert_eq!(now.runs(), ["a,p,r 1", "b,p,r 1"]);
    assert_eq!(now.failures(), ["a,p,error 1"]);
}

/// Runs the program in a pipeline with this stack.
fn stacked(stack: impl FnOnce(MetricsLayer, Heard) -> tracing::Dispatch) -> Pipeline {
    let pipeline = Pipeline::stacked(|builder| builder, stack);
    program();
    pipeline
}
