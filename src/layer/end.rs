//! The end of the run: each open stage is counted once, and nothing is measured after it.

use std::time::{Duration, Instant};

use super::span::flags::SpanFlags;
use super::span::state::SlotRef;
use super::span::table::OpenSpans;
use super::stages::Stages;
use super::warnings;
use crate::series::outcome::{Outcome, Reason};

/// Maximum wait for stages that are closing.
const CLOSING_TIME: Duration = Duration::from_millis(100);

/// Ends the run. `is_aborted`: the process ends by a signal, a panic or a non-zero exit. `grace` is the time that a stage which
/// closes at this moment has to be counted.
pub(super) fn end(stages: &Stages, is_aborted: bool, grace: Duration) {
    let open = &stages.spans.open;
    if !open.end() {
        return;
    }
    if let Some(cpu) = &stages.cpu {
        cpu.count_current_thread(&stages.spans);
    }
    let now = stages.clock.raw();
    let mut closing = Vec::new();
    for span in open.taken().filter(|span| span.flags().has(SpanFlags::STAGE)) {
        let reference = span.reference();
        stages.ensure_stage_id(span);
        let flags = span.flags();
        if !flags.is_stage() {
            continue;
        }
        let outcome = stages.policy.outcome_at_end(flags, span.entered.is_entered(), is_aborted);
        let runs_until_now = outcome == Outcome::Failure(Reason::Interrupted);
        let last_exit = span.last_exit().filter(|_| !runs_until_now);
        let Some(ended) = stages.count_unclosed(span, reference, outcome, last_exit.unwrap_or(now)) else {
            closing.push(reference);
            continue;
        };
        match outcome {
            Outcome::Success => {}
            // The function returned; a handle keeps the span open.
            Outcome::Failure(Reason::Error) => {
                #[cfg(feature = "trace-id")]
                stages.warn_first_failure(ended);
            }
            Outcome::Failure(reason) => warnings::open_at_end(&stages.diagnostics, stages.failed(&ended, reason)),
        }
    }
    await_closed(open, &closing, grace.min(CLOSING_TIME));
    stages.diagnostics.emit_waiting();
}

/// Waits until other threads have counted these stages. The wait is bounded: one of the threads may be the one that ends the
/// run, inside a recorder.
fn await_closed(open: &OpenSpans, closing: &[SlotRef], grace: Duration) {
    let deadline = Instant::now() + grace;
    for reference in closing {
        while open.get(*reference).is_some() && Instant::now() < deadline {
            std::thread::yield_now();
        }
    }
}
