//! Cost of a stage span, compared with a registry that measures nothing, with hand-written metrics, and with published
//! alternatives.
//!
//! Every case runs in a process of its own, with the global subscriber and the global recorder of an application. The
//! processes take turns of a few milliseconds, round after round: a disturbance of the machine slows every case down, so
//! the ratios of one run hold even if its nanoseconds do not. (`criterion` and `divan` finish one case before they start
//! the next, and print no ratios between cases; hence a `main` of its own.) After the last round each process reports its
//! number of recorded stages, which must equal the number of stages it ran.
//!
//! ```text
//! cargo bench -p benches --bench span_cost                           the table
//! cargo bench -p benches --bench span_cost -- --rounds 500           more rounds than the default
//! cargo bench -p benches --bench span_cost -- sets                   the cases whose name contains `sets`
//! cargo bench -p benches --bench span_cost -- --alone layer/own 1000000      one case in this process, for a profiler
//! ```
//!
//! `span_allocations` counts allocations, because counting slows them down. `benches/instructions` counts instructions:
//! it runs this program under valgrind.

mod by_hand;
mod cases;
mod peers;
mod process;
mod table;

use std::error::Error;
use std::io::Write;
use std::time::Duration;

use cases::{Case, Work};
use process::Child;
use table::Measured;

/// Duration of a case's turn.
const TURN: Duration = Duration::from_millis(3);

/// Duration with many label sets: each label set must occur several times in a turn.
const LONG_TURN: Duration = Duration::from_millis(20);

struct Options {
    rounds: usize,
    wanted: String,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut options = Options { rounds: 0, wanted: String::new() };
    let mut is_bench = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} takes a value"));
        match argument.as_str() {
            "--bench" => is_bench = true,
            "--rounds" => options.rounds = value()?.parse()?,
            "--child" => return process::serve(Case::named(&value()?)?, |_| None),
            "--alone" => {
                let case = Case::named(&value()?)?;
                let times = value()?.parse()?;
                case.alone(times);
                return Ok(());
            }
            _ => options.wanted = argument,
        }
    }
    if options.rounds == 0 {
        // `cargo test --benches` only checks that it works.
        options.rounds = if is_bench { 150 } else { 2 };
    }
    measure(&options)
}

/// Warms a case up, and finds how many iterations fit into a turn.
fn calibrate(child: &mut Child, turn: Duration) -> Result<u64, Box<dyn Error>> {
    let mut times = 64;
    while child.run(times)? < turn {
        times *= 2;
    }
    let elapsed = child.run(times)?;
    Ok((times as f64 * turn.as_secs_f64() / elapsed.as_secs_f64()).ceil() as u64)
}

fn measure(options: &Options) -> Result<(), Box<dyn Error>> {
    let cases = cases::all().into_iter().filter(|case| case.name().contains(&options.wanted));
    let mut cases = cases.map(|case| Ok((case, Child::start(case)?))).collect::<Result<Vec<_>, Box<dyn Error>>>()?;
    let mut times = Vec::new();
    for (case, child) in &mut cases {
        let turn = if matches!(case.work, Work::Sets(_)) { LONG_TURN } else { TURN };
        times.push(calibrate(child, turn)?);
    }
    let mut measured: Vec<_> = cases.iter().map(|(case, _)| Measured::new(*case)).collect();
    for _ in 0..options.rounds {
        for (((_, child), times), measured) in cases.iter_mut().zip(&times).zip(&mut measured) {
            measured.add(child.run(*times)?, *times);
        }
    }
    for (case, child) in cases {
        child.finish(case)?;
    }
    let mut out = std::io::stdout().lock();
    table::print(&mut out, &measured)?;
    writeln!(out, "\n{} rounds; ratios are of the minima, and hold within one run.", options.rounds)?;
    Ok(())
}
