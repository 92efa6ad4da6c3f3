//! Runs that are killed, that fail and that finish, while the gateway is frozen, stopped and restarted, all at random: what
//! the gateway shows in the end is what was true last.
//!
//! Four dozen runs by default; `TSM_CHAOS_RUNS=200` for the long form. The seed goes to stderr; `TSM_CHAOS_SEED` gives it
//! back. The same seed plans the same runs and the same gateway; their timing is the machine's.
#![cfg(all(feature = "pushgateway", target_os = "linux"))]
#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod support;

#[allow(dead_code)] // The tests of the spool use the rest.
#[path = "spool/directory.rs"]
mod directory;
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
#[path = "chaos/world.rs"]
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant, SystemTime};

use history::{Certainty, Rule, Run, Violation};
use support::measured::{Measured, measured};
use support::random::Random;
use support::{PATIENCE, servers};
use tracing_stage_metrics::{MetricsLayer, Pushgateway};
use world::{SLOTS, World};

const DEFAULT_RUNS: usize = 48;
/// Runs of each slot between two checks of all groups.
const ROUND: usize = 6;
/// The age up to which a temporary file may belong to a process that is alive, and is left alone.
const YOUNG: Duration = Duration::from_secs(60);

/// The value of a variable that is set, as a number.
fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text:?}")))
}

fn tell(text: &str) {
    // Not `eprintln!`: the harness swallows what a passing test prints with it.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Delivers what the runs left, as a process of another group does, and says what is wrong with the directory then.
fn deliver_the_rest(url: &str, spool: &Path) -> Vec<Violation> {
    let builder = MetricsLayer::builder()
        .with_pushgateway(Pushgateway::new(url, "sweeper").unwrap())
        .with_push_interval(job::PUSH_INTERVAL)
        .with_flush_timeout(Duration::from_secs(20))
        .with_spool_dir(spool);
    let Measured { guard, log, default: _default } = measured(builder);
    let deadline = Instant::now() + PATIENCE;
    while !directory::payloads(spool).is_empty() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    guard.shutdown().unwrap();
    let mut violations = Vec::new();
    let left = directory::payloads(spool);
    if !left.is_empty() {
        violations.push((Rule::SpoolEmpties, format!("{left:?} after {PATIENCE:?}; {}", log.text())));
    }
    for name in directory::names(spool).into_iter().filter(|name| !name.ends_with(".spool")) {
        let modified = fs::metadata(spool.join(&name)).and_then(|metadata| metadata.modified());
        // One that cannot be looked at is gone.
        let age = modified.map_or(Duration::ZERO, |time| SystemTime::now().duration_since(time).unwrap_or_default());
        if !name.ends_with(".tmp") || age > YOUNG {
            violations.push((Rule::NothingIsLeftOver, format!("{name}, {age:?} old")));
        }
    }
    violations
}

/// How often each rule was broken, and how the runs ended.
fn summary(world: &World, elapsed: Duration) -> String {
    let runs = world.runs();
    let count = |condition: &dyn Fn(&Run) -> bool| runs.iter().filter(|run| condition(run)).count();
    let mut rules: BTreeMap<Rule, usize> = BTreeMap::new();
    world.violations().iter().for_each(|(_, (rule, _))| *rules.entry(*rule).or_default() += 1);
    let broken: Vec<String> = rules.iter().map(|(rule, times)| format!("{rule}: {times} times")).collect();
    format!(
        "chaos: {} runs in {elapsed:.0?}: final flush made {}, perhaps made {}, killed before {}; delivered at once {}, \
         acknowledged {}; succeeded {}, perhaps {}; broken rules: {broken:?}",
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
fn gateway_shows_the_latest_state_and_the_true_last_success() {
    if !servers::installed(servers::PUSHGATEWAY) {
        return;
    }
    let begun = Instant::now();
    let seed = variable("TSM_CHAOS_SEED").unwrap_or_else(|| job::unix_time().to_bits() >> 8 & 0xffff_ffff);
    let count = variable("TSM_CHAOS_RUNS").map_or(DEFAULT_RUNS, |count| count as usize);
    tell(&format!("chaos: TSM_CHAOS_SEED={seed} TSM_CHAOS_RUNS={count}"));

    let world = World::new();
    let mut random = [0, 1, 2].map(|part| Random::new(seed.wrapping_add(part)));
    let [weather, slots @ ..] = &mut random;
    let per_slot = count.div_ceil(SLOTS);
    for first in (0..per_slot).step_by(ROUND) {
        let (world, is_over) = (&world, AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| world.rage(weather, &is_over));
            let indices = || first..per_slot.min(first + ROUND);
            let run_slot = |(slot, random)| scope.spawn(move || world.run_slot(slot, random, indices()));
            let slots: Vec<_> = slots.iter_mut().enumerate().map(run_slot).collect();
            let results: Vec<_> = slots.into_iter().map(ScopedJoinHandle::join).collect();
            is_over.store(true, Ordering::Relaxed);
            results.into_iter().for_each(Result::unwrap);
        });
        world.calm();
        for spool in world.spools() {
            let violations = deliver_the_rest(world.url(), spool);
            violations.into_iter().for_each(|violation| world.violate("sweeper", violation));
        }
        world.check();
    }

    let summary = summary(&world, begun.elapsed());
    tell(&summary);
    let violations = world.violations();
    let groups: BTreeSet<&str> = violations.iter().map(|(group, _)| *group).collect();
    let histories: String = groups.iter().map(|group| world.history(group)).collect();
    assert!(violations.is_empty(), "TSM_CHAOS_SEED={seed}: {violations:#?}\n{summary}\n{histories}");
}
