//! The gateway, the groups of runs, and the log of all events.

use std::fmt::Write as _;
use std::ops::Range;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::directory;
use super::history::{Certainty, Run, State, Violation, check_after_flush, check_at_the_end};
use super::job::{self, Ending, Job, Progress, unix_time};
use super::plan::{Fault, Interruption, Plan};
use super::support::child::{self, Ended, Signal};
use super::support::random::Random;
use super::support::{Pushgateway, exposition, sockets};
use super::totals::{Totals, check_totals};

/// Runs at a time. Each slot has one group of its own and shares the other groups.
pub(crate) const SLOTS: usize = 2;
/// The name of a group, and the index of its spool directory.
const GROUPS: [(&str, usize); 5] = [("own0", 0), ("own1", 0), ("shared0", 0), ("shared1", 0), ("shared2", 1)];
pub(crate) const SPOOLS: usize = 2;

const GATEWAY: &str = "gateway";

struct Event {
    at: Duration,
    /// `GATEWAY`, or the name of a group.
    subject: &'static str,
    text: String,
}

pub(crate) struct Group {
    pub(crate) name: &'static str,
    spool: usize,
    /// In the order of their starts. Locked while a run is alive, so that a group has one run at a time.
    runs: Mutex<Vec<Run>>,
    /// The number of runs at the last check.
    checked: AtomicUsize,
}

pub(crate) struct Harness {
    /// Locked while the gateway does not answer.
    gateway: Mutex<Pushgateway>,
    url: String,
    pub(crate) groups: Vec<Group>,
    spools: Vec<TempDir>,
    start: Instant,
    events: Mutex<Vec<Event>>,
    violations: Mutex<Vec<(&'static str, Violation)>>,
    _persistence: TempDir,
}

/// Ignores poison: a panic leaves none of the guarded values half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Harness {
    pub(crate) fn new() -> Self {
        let persistence = tempfile::tempdir().unwrap();
        let file = format!("--persistence.file={}", persistence.path().join("groups").display());
        let gateway = Pushgateway::start_with(&[&file]);
        let groups =
            GROUPS.map(|(name, spool)| Group { name, spool, runs: Mutex::default(), checked: AtomicUsize::new(0) });
        Self {
            url: gateway.url(),
            gateway: Mutex::new(gateway),
            groups: groups.into(),
            spools: (0..SPOOLS).map(|_| tempfile::tempdir().unwrap()).collect(),
            start: Instant::now(),
            events: Mutex::default(),
            violations: Mutex::default(),
            _persistence: persistence,
        }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn spools(&self) -> impl Iterator<Item = &Path> {
        self.spools.iter().map(TempDir::path)
    }

    pub(crate) fn runs(&self) -> Vec<Run> {
        self.groups.iter().flat_map(|group| lock(&group.runs).clone()).collect()
    }

    fn log(&self, subject: &'static str, text: impl Into<String>) {
        lock(&self.events).push(Event { at: self.start.elapsed(), subject, text: text.into() });
    }

    pub(crate) fn record(&self, group: &'static str, violation: Violation) {
        self.log(group, format!("VIOLATED: {}: {}", violation.0, violation.1));
        lock(&self.violations).push((group, violation));
    }

    pub(crate) fn violations(&self) -> Vec<(&'static str, Violation)> {
        lock(&self.violations).clone()
    }

    /// Makes the runs of one slot, one after the other.
    pub(crate) fn run_slot(&self, slot: usize, random: &mut Random, indices: Range<usize>) {
        let shared = SLOTS..GROUPS.len();
        let groups: Vec<usize> = [slot].into_iter().chain(shared).collect();
        for index in indices {
            let number = (index * SLOTS + slot + 1) as u32;
            self.run(Plan::draw(random, number, &groups));
        }
    }

    fn run(&self, plan: Plan) {
        let group = &self.groups[plan.group];
        let mut runs = lock(&group.runs);
        let number = plan.job.number;
        self.log(group.name, format!("run {number} begins: {:?}, {:?}", plan.job, plan.interruption));
        let spool = self.spools[group.spool].path();
        let command = job::command(plan.job, &self.url, group.name, spool);
        let (ended, signalled) = start_and_end(command, plan.interruption);
        let run = run_of(plan, &ended, signalled, spool);
        let progress: Vec<String> = Progress::all_of(&ended.stdout).iter().map(Progress::to_string).collect();
        let stderr = ended.stderr.trim_end().replace('\n', "\n      ");
        self.log(group.name, format!("run {number} is over, {}: {progress:?}; {run:?}\n      {stderr}", ended.status));
        if run.is_delivered {
            let state = self.state_of(group.name);
            self.log(group.name, format!("the gateway shows {state:?}"));
            check_after_flush(&run, &state).into_iter().for_each(|violation| self.record(group.name, violation));
        }
        runs.push(run);
    }

    /// The state that the gateway shows of a group. Waits until the gateway answers.
    fn state_of(&self, group: &str) -> State {
        let text = lock(&self.gateway).metrics();
        State::of(group, &exposition::parse(&text))
    }

    /// Freezes, thaws, stops and restarts the gateway until the runs are over.
    pub(crate) fn inject_faults(&self, random: &mut Random, is_over: &AtomicBool) {
        while !is_over.load(Ordering::Relaxed) {
            let fault = Fault::draw(random);
            if let Fault::None(duration) = fault {
                thread::sleep(duration);
                continue;
            }
            let mut gateway = lock(&self.gateway);
            self.log(GATEWAY, format!("{fault:?}"));
            match fault {
                Fault::None(_) => unreachable!("handled above"),
                Fault::Freeze(duration) => {
                    gateway.freeze();
                    thread::sleep(duration);
                    gateway.thaw();
                }
                Fault::FreezeAndRestart(duration) => {
                    gateway.freeze();
                    thread::sleep(duration);
                    gateway.restart();
                }
                Fault::Stop(duration) => {
                    gateway.stop();
                    thread::sleep(duration);
                    gateway.restart();
                }
                Fault::Restart => gateway.restart(),
            }
            self.log(GATEWAY, "answers again");
        }
    }

    /// Waits until the gateway has processed its backlog. No run is alive.
    pub(crate) fn await_idle_gateway(&self) {
        sockets::await_idle(lock(&self.gateway).addr());
        self.log(GATEWAY, "is idle");
    }

    /// Makes one run without a fault in each group whose payloads wait for the end of a killed run; in all groups if
    /// `is_last`.
    pub(crate) fn end_groups(&self, is_last: bool) {
        for (index, group) in self.groups.iter().enumerate() {
            let last = lock(&group.runs).last().cloned();
            let Some(last) = last.filter(|run| is_last || run.flushed != Certainty::Yes) else { continue };
            let line = format!("\ngroup: /metrics/job/{}\n", group.name);
            let waits = |payload: &std::path::PathBuf| {
                String::from_utf8_lossy(&std::fs::read(payload).unwrap_or_default()).contains(&line)
            };
            if is_last || directory::payloads(self.spools[group.spool].path()).iter().any(waits) {
                let number = 1_000_000 + last.number;
                let job = Job { number, steps: 1, flush_after: None, ending: Ending::FinishOk };
                self.run(Plan { group: index, job, interruption: Interruption::None });
            }
        }
    }

    /// Checks each group that has had runs since its last check.
    pub(crate) fn check(&self) {
        for group in &self.groups {
            let runs = lock(&group.runs);
            if group.checked.swap(runs.len(), Ordering::Relaxed) == runs.len() {
                continue;
            }
            let state = self.state_of(group.name);
            self.log(group.name, format!("after all deliveries, the gateway shows {state:?}"));
            let violations = check_at_the_end(&runs, &state);
            violations.into_iter().for_each(|violation| self.record(group.name, violation));
            let shown = Totals::of(group.name, &exposition::parse(&lock(&self.gateway).metrics()));
            self.log(group.name, format!("its totals are {shown:?}"));
            check_totals(&runs, &shown).into_iter().for_each(|violation| self.record(group.name, violation));
        }
    }

    /// The events of this group and of the gateway, one per line.
    pub(crate) fn history(&self, group: &str) -> String {
        let mut text = format!("--- {group}\n");
        for event in lock(&self.events).iter().filter(|event| [group, GATEWAY].contains(&event.subject)) {
            let _ = writeln!(text, "{:>9.3} s  {}: {}", event.at.as_secs_f64(), event.subject, event.text);
        }
        text
    }
}

/// Runs a child to its end; returns its output and the time at which it got a signal. The random pause before the
/// signal is part of the plan: it waits for no event.
fn start_and_end(command: std::process::Command, interruption: Interruption) -> (Ended, Option<f64>) {
    let mut running = child::start(command);
    let (signal, pause) = match interruption {
        Interruption::None => return (running.wait(), None),
        Interruption::AtWork(signal, pause) => {
            running.await_line(&Progress::Started(0.0).to_string()[..7]);
            (signal, pause)
        }
        Interruption::AtTheEnd(pause) => {
            running.await_line(&Progress::Ending(0.0).to_string()[..6]);
            (Signal::KILL, pause)
        }
    };
    thread::sleep(pause);
    let signalled = unix_time();
    running.signal(signal);
    (running.wait(), Some(signalled))
}

/// The facts about a run, from the output of the child, its exit status and the spool.
#[track_caller]
fn run_of(plan: Plan, ended: &Ended, signalled: Option<f64>, spool: &Path) -> Run {
    let exited = unix_time();
    let progress = Progress::all_of(&ended.stdout);
    let start = progress.iter().find_map(|step| if let Progress::Started(start) = step { Some(*start) } else { None });
    let start = start.unwrap_or_else(|| panic!("the run did not start: {ended:?}"));
    let ending = progress.iter().find_map(|step| if let Progress::Ending(time) = step { Some(*time) } else { None });
    let has_returned = progress.iter().any(|step| matches!(step, Progress::Ended(_)));
    let is_delivered = progress.contains(&Progress::Ended(Some(true)));
    let signal = ended.status.signal().and_then(Signal::from_named_raw);
    let flushed = match signal {
        _ if has_returned => Certainty::Yes,
        Some(Signal::TERM) => Certainty::Yes,
        Some(Signal::KILL) if ending.is_none() => Certainty::No,
        Some(Signal::KILL) if is_in_spool(start, spool) => Certainty::Yes,
        Some(Signal::KILL) => Certainty::Perhaps,
        _ => panic!("the run did not end as planned: {ended:?}"),
    };
    // A signal may come before the last step.
    let is_whole = flushed == Certainty::Yes && plan.job.ending != Ending::Never;
    let flushed_after = plan.job.flush_after.filter(|_| progress.contains(&Progress::Counted(true))).unwrap_or(0);
    Run {
        number: plan.job.number,
        stages: (if is_whole { plan.job.steps } else { flushed_after }, plan.job.steps),
        start,
        flushed,
        succeeded: if plan.job.ending.is_success() { flushed } else { Certainty::No },
        is_acknowledged: is_delivered || progress.contains(&Progress::Flushed(true)),
        is_delivered,
        is_over: ending.is_some(),
        end: (ending.or(signalled).unwrap_or(exited), exited),
    }
}

/// Whether the spool has the last state of the run with this start time. Another process may have delivered the
/// payload.
fn is_in_spool(start: f64, spool: &Path) -> bool {
    let line = format!("quant_run_start_timestamp_seconds {start}\n");
    directory::payloads(spool).iter().any(|payload| {
        let text = std::fs::read_to_string(payload).unwrap_or_default();
        text.contains(&line) && text.contains("\nquant_run_duration_seconds ")
    })
}
