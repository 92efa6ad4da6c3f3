//! How many allocations a stage span makes. Fails where the layer makes one a span.
//!
//! Beside `span_cost` and with its cases, in a program of its own since counting slows down whoever allocates.

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

/// Each case that often: the exporter takes a block for every 64 samples, and so do its neighbours now and then.
const TIMES: u64 = 64_000;

/// What the layer may allocate a span with the exporter: that block, and no more than a stray one beside it.
const OF_THE_EXPORTER: f64 = 1.5 / 64.0;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    if arguments.next().as_deref() == Some("--child") {
        let name = arguments.next().ok_or("--child takes the name of a case")?;
        return process::serve(Case::named(&name)?, |run| Some(allocation_counter::measure(run).count_total));
    }
    let mut out = std::io::stdout().lock();
    let mut failed = Vec::new();
    writeln!(out, "{:<60} {:>12}", "allocations", "each time")?;
    // The counter sees one thread.
    for case in cases::all().into_iter().filter(|case| !matches!(case.work, Work::Threads(_))) {
        let mut child = Child::start(case)?;
        // Until every label set is known and every table has its size.
        child.run(TIMES)?;
        let each = child.allocations(TIMES)? as f64 / TIMES as f64;
        child.finish(case)?;
        writeln!(out, "{:<60} {each:>12.4}", case.name())?;
        let allowed = match case.stack {
            Stack::Silent => 0.0,
            Stack::Layer => OF_THE_EXPORTER,
            _ => f64::INFINITY,
        };
        if each > allowed {
            failed.push(format!("{} allocates {each} times a span, {allowed} are allowed", case.name()));
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(failed.join("; ").into()) }
}
