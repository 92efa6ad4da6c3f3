//! Trace ids in warnings and in the run report.

use opentelemetry::trace::Status;
use opentelemetry_sdk::trace::Sampler;
use tracing::{error, info_span};
use tracing_stage_metrics::FailurePolicy::{ErrorsWithin, ProvenSuccess};

use super::{ORDERS, Traced};

fn failing_stage(stage_id: &str) {
    info_span!("x", stage_id, profile = "crypto", run_id = 42).in_scope(|| error!("it broke"));
}

#[test]
fn first_failure_of_each_stage_logs_one_warning() {
    for first in ORDERS {
        let traced = Traced::start(first);
        for stage in ["a", "b", "a", "a", "b"] {
            failing_stage(stage);
        }
        info_span!("x", stage_id = "c").in_scope(|| ());
        let heard = traced.pipeline.heard();
        assert_eq!(heard.len(), 2, "{heard:?}");
        for (line, stage) in heard.iter().zip(["a", "b"]) {
            let trace = &traced.exported(stage)[0];
            assert_eq!(
                *line,
                format!(
                    "WARN stage {stage} failed (error), in the trace {trace}; later failures are not logged; see the run \
                     report stage_id=\"{stage}\" profile=\"crypto\" run_id=\"42\" reason=\"error\" \
                     trace_id={trace}"
                )
            );
        }
    }
}

#[test]
fn threads_share_one_warning() {
    for first in ORDERS {
        let traced = Traced::start(first);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let dispatch = traced.pipeline.dispatch();
                scope.spawn(move || tracing::dispatcher::with_default(&dispatch, || failing_stage("a")));
            }
        });
        assert_eq!(traced.pipeline.heard().len(), 1, "{:?}", traced.pipeline.heard());
        assert!(traced.exported("a").contains(&traced.reported("a").unwrap()));
    }
}

/// The warning comes from a thread of its own, so it belongs to no span.
#[test]
fn warning_fails_no_span_and_no_stage() {
    for first in ORDERS {
        let traced = Traced::with(first, ErrorsWithin, Sampler::AlwaysOn);
        info_span!("x", stage_id = "around").in_scope(|| failing_stage("a"));
        assert_eq!(traced.pipeline.now().totals(), ["a 0 1", "around 1 0"]);
        assert_eq!(traced.pipeline.heard().len(), 1);
        let spans = traced.spans.get_finished_spans().unwrap();
        let outer = spans.last().unwrap();
        assert_eq!(outer.status, Status::Unset);
        assert!(outer.events.is_empty(), "{:?}", outer.events);
    }
}

/// The two warnings say different things.
#[test]
fn cancelled_stage_has_both_warnings() {
    for first in ORDERS {
        let traced = Traced::with(first, ProvenSuccess, Sampler::AlwaysOn);
        for _ in 0..2 {
            info_span!("x", stage_id = "a").in_scope(|| ());
        }
        let heard = traced.pipeline.heard();
        assert_eq!(heard.len(), 2, "{heard:?}");
        assert!(heard[0].contains("without having returned") && heard[1].contains("reason=\"cancelled\""), "{heard:?}");
    }
}

#[test]
fn report_has_the_trace_below_the_stage() {
    for first in ORDERS {
        let traced = Traced::start(first);
        failing_stage("a");
        info_span!("x", stage_id = "b").in_scope(|| ());
        failing_stage("c");
        let trace = |stage| traced.exported(stage).concat();
        let text = traced.pipeline.guard().report().to_string();
        let lines: Vec<_> = text.lines().collect();
        let starts = ["stage ", "a ", "  error: ", "  its last", "b ", "c ", "  error: ", "  its last"];
        assert!(lines.len() == 8 && lines.iter().zip(starts).all(|(line, start)| line.starts_with(start)), "{text}");
        assert_eq!(lines[3], format!("  its last failure is in the trace {}", trace("a")));
        assert_eq!(lines[7], format!("  its last failure is in the trace {}", trace("c")));
        assert!(lines.iter().all(|line| line.chars().count() <= 80), "{text}");
    }
}
