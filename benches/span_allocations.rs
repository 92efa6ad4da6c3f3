//! Allocations of a stage span. Fails if the layer allocates once per span.
//!
//! Uses the cases of `span_cost` in a program of its own, because counting slows down every allocation.

#[path = "span_cost/by_hand.rs"]
mod by_hand;
#[allow(dead_code, reason = "shared, and used in part")]
#[path = "span_cost/cases.rs"]
mod cases;
#[allow(dead_code, reason = "shared, and used in part")]
#[path = "span_cost/peers.rs"]
mod peers;
#[path = "span_cost/process.rs"]
mod process;

use std::error::Error;
use std::io::Write;

use cases::{Case, Stack, Work};
use process::Child;

/// Iterations of each case: the exporter allocates a block for every 64 samples, and its tables grow now and then.
const ITERATIONS: u64 = 64_000;

/// Allocations per span that the layer may cause with the exporter: that block, and few others.
const EXPORTER_ALLOCATIONS: f64 = 1.5 / 64.0;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    if arguments.next().as_deref() == Some("--child") {
        let name = arguments.next().ok_or("--child takes the name of a case")?;
        return process::serve(Case::named(&name)?, |run| Some(allocation_counter::measure(run).count_total));
    }
    let mut out = std::io::stdout().lock();
    let mut failed = Vec::new();
    writeln!(out, "{:<60} {:>12}", "allocations", "each time")?;
    // The counter covers one thread.
    for case in cases::all().into_iter().filter(|case| !matches!(case.work, Work::Threads(_))) {
        let mut child = Child::start(case)?;
        // Warm-up until every label set exists and every table has its final size.
        child.run(ITERATIONS)?;
        let each = child.allocations(ITERATIONS)? as f64 / ITERATIONS as f64;
        child.finish(case)?;
        writeln!(out, "{:<60} {each:>12.4}", case.name())?;
        let limit = match case.stack {
            Stack::Silent => 0.0,
            // A duration of another magnitude than those before allocates its counters.
            Stack::Layer | Stack::Native => EXPORTER_ALLOCATIONS,
            _ => f64::INFINITY,
        };
        if each > limit {
            failed.push(format!("{} allocates {each} times a span, {limit} are allowed", case.name()));
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(failed.join("; ").into()) }
}
