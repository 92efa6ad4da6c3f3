//! Decides what the replay of a payload does to the totals of its group.

use super::model::{Increments, Outcomes, Totals};

/// The part of a payload's totals that the gateway may lack.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::delivery) struct SpooledIncrements {
    /// The runs and stages since the last push that was answered.
    pub(in crate::delivery) increments: Increments,
    /// Whether the totals of the payload also count a run before this one, which was killed. No answered push has it.
    pub(in crate::delivery) has_killed_run: bool,
    /// Whether a push of the run with totals was answered.
    pub(in crate::delivery) is_confirmed: bool,
    /// Whether a request with these increments may have arrived.
    pub(in crate::delivery) may_have_arrived: bool,
}

impl SpooledIncrements {
    /// Returns all that the totals of the payload have beyond those of the last answered push.
    fn beyond_confirmed(&self) -> Increments {
        let mut all = self.increments.clone();
        all.runs.failure += u64::from(self.has_killed_run);
        all
    }
}

/// The state of the payload's group on the gateway.
#[derive(Clone, Copy, Debug)]
pub(in crate::delivery) struct Shown<'a> {
    pub(in crate::delivery) totals: &'a Totals,
    /// Whether the state is of the payload's run.
    pub(in crate::delivery) is_same_run: bool,
    /// Whether another run of the group may be at work, whose next push would replace what the replay writes.
    pub(in crate::delivery) is_other_run_open: bool,
}

#[derive(Debug, PartialEq)]
pub(in crate::delivery) enum Decision {
    /// Write these totals. The file must have them and these increments before the request is sent.
    Write(Totals, SpooledIncrements),
    /// The gateway has the increments.
    Keep,
    /// The gateway may have the increments or not: leave them out.
    Drop,
    /// The payload has to wait.
    Wait,
}

/// Decides on the totals of a payload. `after`: the totals in its body; `None` if its run did not know its base.
pub(in crate::delivery) fn decide(spooled: &SpooledIncrements, after: Option<&Totals>, shown: Shown<'_>) -> Decision {
    let Shown { totals, is_same_run, is_other_run_open } = shown;
    if is_other_run_open && !is_same_run {
        return Decision::Wait;
    }
    let sent = |totals, spooled: &SpooledIncrements| {
        Decision::Write(totals, SpooledIncrements { may_have_arrived: true, ..spooled.clone() })
    };
    let add = |increments: Increments| {
        let spooled = SpooledIncrements { increments, ..SpooledIncrements::default() };
        sent(totals.plus(&spooled.increments), &spooled)
    };
    let Some(after) = after else { return add(spooled.increments.clone()) };
    if is_same_run {
        // Else an earlier state of the run is there, or its last one and the increments of other payloads.
        let has_more = after.counts_are_at_most(totals) && !after.counts_are(totals);
        return if totals == after || has_more { Decision::Keep } else { sent(after.clone(), spooled) };
    }
    // With the seconds, which no other run has the same. Its counts may well be.
    if totals == after {
        return Decision::Keep;
    }
    let before = after.minus(&spooled.beyond_confirmed());
    // An unanswered push has part of the increments. A run that ended meanwhile would have added one to the runs.
    let is_part = spooled.may_have_arrived
        && before.counts_are_at_most(totals)
        && totals.counts_are_at_most(after)
        && totals.runs.sum() < after.runs.sum();
    if is_part || totals.counts_are(&before) {
        return sent(after.clone(), spooled);
    }
    if spooled.may_have_arrived {
        return Decision::Drop;
    }
    let mut increments = spooled.increments.clone();
    if spooled.is_confirmed && totals.runs.sum() > before.runs.sum() {
        // The other run saw this one without an end, and counted it as killed.
        increments.runs = Outcomes::default();
    }
    add(increments)
}

#[cfg(test)]
mod tests;
