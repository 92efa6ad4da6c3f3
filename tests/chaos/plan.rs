//! What is to happen, drawn from the seed. The plan of a slot and that of the gateway are the same in every run with one
//! seed; how they meet in time is not.

use std::time::Duration;

use super::job::{Ending, FLUSH_TIMEOUT, Job};
use super::support::child::Signal;
use super::support::random::Random;

/// When the parent sends a signal.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Interruption {
    None,
    /// So long after the child said that it has started.
    AtWork(Signal, Duration),
    /// SIGKILL, so long after the child said that it ends.
    AtTheEnd(Duration),
}

/// One run to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Index of the group.
    pub(crate) group: usize,
    pub(crate) job: Job,
    pub(crate) interruption: Interruption,
}

impl Plan {
    /// `groups`: those that this slot may write.
    pub(crate) fn draw(random: &mut Random, number: u32, groups: &[usize]) -> Self {
        let group = groups[random.below(groups.len() as u64) as usize];
        let steps = 1 + random.below(30) as u32;
        let flush_after = random.one_in(3).then(|| 1 + random.below(u64::from(steps)) as u32);
        let by_itself = [Ending::FinishOk, Ending::ShutdownOk, Ending::FinishErr, Ending::ShutdownFailed];
        let some_ending = by_itself[random.below(4) as usize];
        let (ending, interruption) = match random.below(10) {
            0..=4 => (some_ending, Interruption::None),
            5 => (Ending::Never, Interruption::AtWork(Signal::TERM, random.millis(0, 400))),
            6 => (Ending::Never, Interruption::AtWork(Signal::KILL, random.millis(0, 400))),
            // Most of a healthy flush is over in a few milliseconds; one at a frozen gateway takes all of its time.
            7 => (some_ending, Interruption::AtTheEnd(random.millis(0, FLUSH_TIMEOUT.as_millis() as u64))),
            _ => (some_ending, Interruption::AtTheEnd(random.millis(0, 20))),
        };
        Self { group, job: Job { number, steps, flush_after, ending }, interruption }
    }
}

/// What happens to the gateway next, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Weather {
    Fair(Duration),
    Frozen(Duration),
    /// Frozen, and stopped before it could read its backlog.
    FrozenThenStopped(Duration),
    Stopped(Duration),
    Restarted,
}

impl Weather {
    pub(crate) fn draw(random: &mut Random) -> Self {
        let short = random.millis(50, 400);
        let long = random.millis(400, 2_500);
        match random.below(20) {
            0..=7 => Self::Fair(short),
            8 => Self::Fair(long),
            9..=12 => Self::Frozen(short),
            13..=14 => Self::Frozen(long),
            15 => Self::FrozenThenStopped(short),
            16..=17 => Self::Stopped(short),
            18 => Self::Stopped(long),
            _ => Self::Restarted,
        }
    }
}
