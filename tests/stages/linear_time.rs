//! Nested spans of one stage id take linear time.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tracing::field::Empty;
use tracing::{Span, error, info_span};
use tracing_stage_metrics::FailurePolicy;

use super::Pipeline;

/// Returns the CPU time of this thread: the load of the machine does not change it.
fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap()
}

/// Measures `depth` nested spans of one stage id. `use_span` is called with each of them while all are open.
fn time_nested(depth: usize, open: impl Fn(&Span) -> Span, use_span: impl Fn(&Span)) -> Duration {
    let start = cpu_time();
    let mut spans = vec![info_span!("x", stage_id = "a")];
    while spans.len() < depth {
        let span = open(&spans[spans.len() - 1]);
        spans.push(span);
    }
    spans.iter().for_each(use_span);
    // The innermost span closes first: the registry closes a parent within the close of its last child.
    while spans.pop().is_some() {}
    cpu_time() - start
}

/// Asserts linear time: eight times as many spans take about eight times as long. With quadratic time they take 64 times as
/// long.
fn assert_linear(run: impl Fn(usize) -> Duration) {
    // The first run grows the table of open spans.
    run(4_000);
    let [few, many] = [500, 4_000].map(|depth| (0..3).map(|_| run(depth)).min().unwrap());
    assert!(many < 24 * few, "500 nested spans take {few:?}, 4 000 take {many:?}");
}

#[test]
fn nested_spans_of_the_same_stage_take_linear_time() {
    let pipeline = Pipeline::start();
    let open = |parent: &Span| info_span!(parent: parent, "x", stage_id = "a");
    assert_linear(|depth| time_nested(depth, open, |_| ()));
    assert_eq!(pipeline.now().totals(), ["a 7 0"]);
}

#[test]
fn nested_spans_whose_stage_id_is_recorded_late_take_linear_time() {
    let pipeline = Pipeline::start();
    let open = |parent: &Span| info_span!(parent: parent, "x", stage_id = Empty);
    let record = |span: &Span| {
        span.record("stage_id", "a");
    };
    assert_linear(|depth| time_nested(depth, open, record));
    assert_eq!(pipeline.now().totals(), ["a 7 0"]);
}

#[test]
fn errors_in_nested_spans_of_the_same_stage_take_linear_time() {
    let pipeline = Pipeline::under(FailurePolicy::ErrorsWithin);
    let open = |parent: &Span| info_span!(parent: parent, "x", stage_id = "a");
    assert_linear(|depth| time_nested(depth, open, |span| error!(parent: span, "inside")));
    assert_eq!(pipeline.now().totals(), ["a 0 7"]);
}
