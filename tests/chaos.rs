//! Runs finish, fail and are killed at random while the gateway is frozen, stopped and restarted at random. In the end
//! the gateway shows the final state of the last run and the last success, and the totals count every run once.
//!
//! The test makes 48 runs; `TSM_CHAOS_RUNS=200` makes more. It prints its seed to stderr; `TSM_CHAOS_SEED` sets it. The
//! seed determines the runs and the faults of the gateway; their timing depends on the machine.
#![cfg(all(feature = "pushgateway", target_os = "linux"))]
#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod support;

#[allow(dead_code)] // The tests of the spool use the rest.
#[path = "spool/directory.rs"]
mod directory;
#[path = "chaos/harness.rs"]
mod harness;
#[path = "chaos/history.rs"]
mod history;
#[path = "chaos/job.rs"]
mod job;
#[path = "chaos/last_success.rs"]
mod last_success;
#[path = "chaos/late_push.rs"]
mod late_push;
#[path = "chaos/plan.rs"]
mod plan;
#[path = "chaos/totals.rs"]
mod totals;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant, SystemTime};

use harness::{Harness, SLOTS};
use history::{Certainty, Rule, Run, Violation};
use support::measured::{Measured, measured};
use support::random::Random;
use support::{WAIT_TIMEOUT, servers};
use tracing_stage_metrics::{MetricsLayer, Pushgateway};

const DEFAULT_RUNS: usize = 48;
/// Runs of each slot between two checks of all groups.
const ROUND: usize = 6;
/// A temporary file up to this age may belong to a live process and stays.
const TEMPORARY_FILE_GRACE: Duration = Duration::from_secs(60);

/// The number in an environment variable; `None` if the variable is not set.
fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number: {text:?}")))
}

fn print_to_stderr(text: &str) {
    // Not `eprintln!`: the test harness captures its output for passing tests.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Delivers the spooled payloads from a process of another group, and returns the violations found in the directory.
fn drain_spool(url: &str, spool: &Path) -> Vec<Violation> {
    let builder = MetricsLayer::builder()
        .with_pushgateway(Pushgateway::new(url, "sweeper").unwrap())
        .with_push_interval(job::PUSH_INTERVAL)
        .with_flush_timeout(Duration::from_secs(20))
        .with_spool_dir(spool);
    let Measured { guard, log, default: _default } = measured(builder);
    let deadline = Instant::now() + WAIT_TIMEOUT;
    while !directory::payloads(spool).is_empty() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    guard.shutdown().unwrap();
    let mut violations = Vec::new();
    let payloads = directory::payloads(spool);
    if !payloads.is_empty() {
        violations.push((Rule::SpoolEmpties, format!("{payloads:?} after {WAIT_TIMEOUT:?}; {}", log.text())));
    }
    for name in directory::names(spool).into_iter().filter(|name| !name.ends_with(".spool")) {
        let modified = fs::metadata(spool.join(&name)).and_then(|metadata| metadata.modified());
        // A file without metadata has been removed meanwhile.
        let age = modified.map_or(Duration::ZERO, |time| SystemTime::now().duration_since(time).unwrap_or_default());
        if !name.ends_with(".tmp") || age > TEMPORARY_FILE_GRACE {
            violations.push((Rule::NothingIsLeftOver, format!("{name}, {age:?} old")));
        }
    }
    violations
}

/// The number of violations of each rule, and the number of runs by outcome.
fn summary(harness: &Harness, elapsed: Duration) -> String {
    let runs = harness.runs();
    let count = |condition: &dyn Fn(&Run) -> bool| runs.iter().filter(|run| condition(run)).count();
    let mut rules: BTreeMap<Rule, usize> = BTreeMap::new();
    harness.violations().iter().for_each(|(_, (rule, _))| *rules.entry(*rule).or_default() += 1);
    let broken: Vec<String> = rules.iter().map(|(rule, times)| format!("{rule}: {times} times")).collect();
    format!(
        "chaos: {} runs in {elapsed:.0?}: with final flush {}, perhaps {}, without {}; final flush Ok {}, acknowledged {}; \
         succeeded {}, perhaps {}; broken rules: {broken:?}",
        runs.len(),
        count(&|run| run.flushed == Certainty::Yes),
        count(&|run| run.flushed == Certainty::Perhaps),
        count(&|run| run.flushed == Certainty::No),
        count(&|run| run.is_delivered),
        count(&|run| run.is_acknowledged),
        count(&|run| run.succeeded == Certainty::Yes),
        count(&|run| run.succeeded == Certainty::Perhaps),
    )
}

#[test]
fn gateway_shows_the_latest_state_and_the_last_success() {
    if !servers::installed(servers::PUSHGATEWAY) {
        return;
    }
    let start = Instant::now();
    let seed = variable("TSM_CHAOS_SEED").unwrap_or_else(|| job::unix_time().to_bits() >> 8 & 0xffff_ffff);
    let count = variable("TSM_CHAOS_RUNS").map_or(DEFAULT_RUNS, |count| count as usize);
    print_to_stderr(&format!("chaos: TSM_CHAOS_SEED={seed} TSM_CHAOS_RUNS={count}"));

    let harness = Harness::new();
    let mut random = [0, 1, 2].map(|part| Random::new(seed.wrapping_add(part)));
    let [faults, slots @ ..] = &mut random;
    let per_slot = count.div_ceil(SLOTS);
    for first in (0..per_slot).step_by(ROUND) {
        let (harness, is_over) = (&harness, AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| harness.inject_faults(faults, &is_over));
            let indices = || first..per_slot.min(first + ROUND);
            let run_slot = |(slot, random)| scope.spawn(move || harness.run_slot(slot, random, indices()));
            let slots: Vec<_> = slots.iter_mut().enumerate().map(run_slot).collect();
            let results: Vec<_> = slots.into_iter().map(ScopedJoinHandle::join).collect();
            is_over.store(true, Ordering::Relaxed);
            results.into_iter().for_each(Result::unwrap);
        });
        harness.await_idle_gateway();
        let is_last = first + ROUND >= per_slot;
        harness.end_groups(is_last);
        for spool in harness.spools() {
            let violations = drain_spool(harness.url(), spool);
            violations.into_iter().for_each(|violation| harness.record("sweeper", violation));
        }
        harness.check();
    }

    let summary = summary(&harness, start.elapsed());
    print_to_stderr(&summary);
    let violations = harness.violations();
    let groups: BTreeSet<&str> = violations.iter().map(|(group, _)| *group).collect();
    let histories: String = groups.iter().map(|group| harness.history(group)).collect();
    assert!(violations.is_empty(), "TSM_CHAOS_SEED={seed}: {violations:#?}\n{summary}\n{histories}");
}
