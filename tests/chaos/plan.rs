//! The runs of each slot and the faults of the gateway, drawn from the seed. The seed determines both sequences, but
//! not how they interleave.

use std::time::Duration;

use super::job::{Ending, FLUSH_TIMEOUT, Job};
use super::support::child::Signal;
use super::support::random::Random;

/// The time at which the parent sends a signal.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Interruption {
    None,
    /// The signal, this long after the child has started.
    AtWork(Signal, Duration),
    /// SIGKILL, this long after the child has begun to end.
    AtTheEnd(Duration),
}

/// One planned run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// The index of the group.
    pub(crate) group: usize,
    pub(crate) job: Job,
    pub(crate) interruption: Interruption,
}

impl Plan {
    /// Draws a run. `groups` are the groups that the slot may write.
    pub(crate) fn draw(random: &mut Random, number: u32, groups: &[usize]) -> Self {
        let group = groups[random.below(groups.len() as u64) as usize];
        let steps = 1 + random.below(30) as u32;
        let flush_after = random.one_in(3).then(|| 1 + random.below(u64::from(steps)) as u32);
        let endings = [Ending::FinishOk, Ending::ShutdownOk, Ending::FinishErr, Ending::ShutdownFailed];
        let some_ending = endings[random.below(4) as usize];
        let (ending, interruption) = match random.below(10) {
            0..=4 => (some_ending, Interruption::None),
            5 => (Ending::Never, Interruption::AtWork(Signal::TERM, random.millis(0, 400))),
            6 => (Ending::Never, Interruption::AtWork(Signal::KILL, random.millis(0, 400))),
            // A flush to a healthy gateway takes a few milliseconds, one to a frozen gateway the whole timeout.
            7 => (some_ending, Interruption::AtTheEnd(random.millis(0, FLUSH_TIMEOUT.as_millis() as u64))),
            _ => (some_ending, Interruption::AtTheEnd(random.millis(0, 20))),
        };
        Self { group, job: Job { number, steps, flush_after, ending }, interruption }
    }
}

/// The next fault of the gateway, and how long it lasts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    None(Duration),
    Freeze(Duration),
    /// The gateway restarts without having read its backlog.
    FreezeAndRestart(Duration),
    Stop(Duration),
    Restart,
}

impl Fault {
    pub(crate) fn draw(random: &mut Random) -> Self {
        let short = random.millis(50, 400);
        let long = random.millis(400, 2_500);
        match random.below(20) {
            0..=7 => Self::None(short),
            8 => Self::None(long),
            9..=12 => Self::Freeze(short),
            13..=14 => Self::Freeze(long),
            15 => Self::FreezeAndRestart(short),
            16..=17 => Self::Stop(short),
            18 => Self::Stop(long),
            _ => Self::Restart,
        }
    }
}
