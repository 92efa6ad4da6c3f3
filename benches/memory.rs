//! Memory of many spans without a scrape, and of one more label set. Linux only.
//!
//! Uses the cases of `span_cost`, each in a process of its own.
//!
//! `cargo bench -p benches --bench memory`

#[allow(dead_code, reason = "shared, and used in part")]
#[path = "span_cost/by_hand.rs"]
mod by_hand;
#[allow(dead_code, reason = "shared, and used in part")]
#[path = "span_cost/cases.rs"]
mod cases;
#[allow(dead_code, reason = "shared, and used in part")]
#[path = "support/child.rs"]
mod child;
#[path = "support/memory.rs"]
mod memory;
#[allow(dead_code, reason = "shared, and used in part")]
#[path = "span_cost/peers.rs"]
mod peers;

use std::error::Error;
use std::io::Write;

use cases::{Case, Stack, Work};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const MIB: f64 = 1_048_576.0;

/// Goal for the growth by many spans.
const MAX_MIB: f64 = 4.0;

/// Powers of two, as the cases require.
const FEW_SETS: usize = 1_024;
const MANY_SETS: usize = 8_192;

fn main() -> Result<()> {
    if let Some(arguments) = child::arguments() {
        let [figure, stack, number] = &arguments[..] else { return Err("--child FIGURE STACK NUMBER".into()) };
        let mut out = std::io::stdout().lock();
        let bytes = match figure.as_str() {
            "spans" => of_spans(stack, number.parse()?)?,
            "sets" => of_sets(stack, number.parse()?)?,
            _ => return Err(format!("unknown figure {figure}").into()),
        };
        return Ok(writeln!(out, "{bytes}")?);
    }
    let mut out = std::io::stdout().lock();
    let spans: u64 = if child::is_bench() { 10_000_000 } else { 100_000 };
    writeln!(out, "{:<66} {:>10}", format!("{spans} spans without a scrape"), "peak MiB")?;
    for (stack, name, goal) in [
        ("layer", "the layer", Some(MAX_MIB)),
        ("silent", "the layer, no recorder behind it", Some(MAX_MIB)),
        ("keptpair", "kept handles of the exporter, no upkeep", None),
    ] {
        let [bytes] = child::run(&["spans", stack, &spans.to_string()])?.numbers::<u64, 1>()?;
        let mib = bytes as f64 / MIB;
        let goal = goal.map(|goal| format!("  <= {goal} {}", if mib <= goal { "met" } else { "NOT MET" }));
        writeln!(out, "{name:<66} {mib:>10.2}{}", goal.unwrap_or_default())?;
    }
    writeln!(out, "\n{:<66} {:>10}", format!("a label set, from {FEW_SETS} to {MANY_SETS}"), "bytes")?;
    // The floor keeps the label sets to open spans with. The hand-written cases keep them in their handles.
    let floor = a_set_more("floor")?;
    writeln!(out, "{:<66} {:>10.0}", "the layer", a_set_more("layer")? - floor)?;
    writeln!(out, "{:<66} {:>10.0}", "the layer, native histograms too", a_set_more("native")? - floor)?;
    writeln!(out, "{:<66} {:>10.0}", "the layer, no recorder behind it", a_set_more("silent")? - floor)?;
    writeln!(out, "{:<66} {:>10.0}", "kept handles of the exporter: histogram, counter", a_set_more("keptpair")?)?;
    writeln!(out, "{:<66} {:>10.0}", "kept handles of the exporter: the full set", a_set_more("keptfull")?)?;
    Ok(())
}

/// Growth of the peak over the memory after the first spans.
fn of_spans(stack: &str, spans: u64) -> Result<u64> {
    let case = Case::named(&format!("{stack}/own"))?;
    let mut prepared = case.prepare();
    prepared.warm_up();
    let warm = prepared.recorded();
    let start = memory::resident()?;
    memory::forget_peak()?;
    prepared.run(spans);
    let peak = memory::peak()?;
    let recorded = prepared.recorded() - warm;
    if recorded != case.stages_in(spans) {
        return Err(format!("{recorded} stages are recorded, of {spans}").into());
    }
    Ok(peak.saturating_sub(start))
}

/// Resident memory after this many label sets have been seen once each.
fn of_sets(stack: &str, sets: usize) -> Result<u64> {
    let stack = Case::named(&format!("{stack}/own"))?.stack;
    let before = memory::resident()?;
    let case = Case { work: Work::Sets(sets), stack };
    let mut prepared = case.prepare();
    prepared.run(sets as u64);
    let after = memory::resident()?;
    if stack != Stack::Floor && prepared.recorded() != sets as u64 {
        return Err(format!("{} stages are recorded, of {sets}", prepared.recorded()).into());
    }
    Ok(after.saturating_sub(before))
}

fn a_set_more(stack: &str) -> Result<f64> {
    let resident = |sets: usize| child::run(&["sets", stack, &sets.to_string()])?.numbers::<u64, 1>();
    let ([few], [many]) = (resident(FEW_SETS)?, resident(MANY_SETS)?);
    Ok((many as f64 - few as f64) / (MANY_SETS - FEW_SETS) as f64)
}
