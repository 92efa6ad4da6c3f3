//! Records the part of this run's totals that the gateway has.

use super::base::Base;
use super::model::{Increments, Totals};
use super::replay::SpooledIncrements;

/// The totals of a push.
#[derive(Clone, Debug, Default)]
pub(in crate::delivery) struct OutgoingTotals {
    /// The totals in the body; `None` while the base is unknown.
    pub(in crate::delivery) totals: Option<Totals>,
    /// The runs and stages since the base.
    pub(super) increments: Increments,
}

/// The totals in the last push of this run that was answered.
#[derive(Debug, Default)]
pub(in crate::delivery) struct Ledger {
    confirmed: Option<Totals>,
}

impl Ledger {
    /// A push was answered.
    pub(in crate::delivery) fn confirm(&mut self, pushed: &OutgoingTotals) {
        if let Some(totals) = &pushed.totals {
            self.confirmed = Some(totals.clone());
        }
    }

    /// Returns the part of the final state, which is about to be sent, that the gateway may lack.
    pub(in crate::delivery) fn spooled(&self, last: &OutgoingTotals, base: Option<&Base>) -> SpooledIncrements {
        let increments = match (&last.totals, &self.confirmed, base) {
            (Some(totals), Some(confirmed), _) => totals.since(confirmed),
            // With the limit on label sets.
            (Some(totals), None, Some(base)) => totals.since(&base.totals()),
            _ => last.increments.clone(),
        };
        SpooledIncrements {
            increments,
            has_killed_run: self.confirmed.is_none() && base.is_some_and(|base| base.killed_run.is_some()),
            is_confirmed: self.confirmed.is_some(),
            may_have_arrived: last.totals.is_some(),
        }
    }
}
