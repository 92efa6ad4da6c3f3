//! The cumulative totals of a gateway's group: their base, and what the gateway has of this run.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::{Instant, timeout_at};

use super::event::DeliveryEvent;
use super::http::retry;
use super::pushgateway::Pushgateway;
use super::source::ExpositionSource;
use super::totals::{CumulativeTotals, Ledger, OutgoingTotals, SpooledIncrements, Totals};
use crate::error::{Error, Kind};

/// How many pushes without the totals succeed before that is reported.
const MANY_PUSHES: u32 = 3;

pub(super) struct GatewayTotals {
    pub(super) totals: Arc<CumulativeTotals>,
    ledger: Mutex<Ledger>,
    /// Whether the gateway answers and does not show its state.
    is_hidden: AtomicBool,
    /// Why the base could not be read, until that is reported.
    error: Mutex<Option<Error>>,
    is_reported: AtomicBool,
    /// The successful pushes without the totals.
    missed: AtomicU32,
}

impl GatewayTotals {
    pub(super) fn new(totals: Arc<CumulativeTotals>) -> Self {
        Self {
            totals,
            ledger: Mutex::default(),
            is_hidden: AtomicBool::new(false),
            error: Mutex::default(),
            is_reported: AtomicBool::new(false),
            missed: AtomicU32::new(0),
        }
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether the base is unknown, and the gateway may show it later.
    pub(super) fn awaits_base(&self) -> bool {
        self.totals.base().is_none() && !self.is_hidden.load(Ordering::Relaxed)
    }

    /// Reads the base from the state of the group. A gateway that shows none is reported. `written` has the totals that this
    /// process has added payloads to, and the run of the last one.
    pub(super) async fn read_base(
        &self,
        gateway: &Pushgateway,
        written: Option<(Totals, Option<f64>)>,
        source: &Arc<dyn ExpositionSource>,
        until: Instant,
    ) {
        let state = gateway.group_state(Some(self.totals.namespace()), self.totals.constant());
        let failed = |what: &str| Error::new(Kind::Delivery, format!("gateway {} {what}", gateway.endpoint()));
        let (is_hidden, error) = match timeout_at(until, state).await {
            Ok(Ok(Some(state))) => match state.into_base() {
                Some(base) => return self.totals.set_base(base.after_replay(written)),
                None => (true, failed("shows totals of this group that are no counts")),
            },
            Ok(Ok(None)) => (true, failed("shows no metrics of a Pushgateway")),
            Ok(Err(err)) => {
                let is_hidden = err.error.is_refused() && !retry::is_retryable(&err.error);
                (is_hidden, failed("does not show its metrics").with_source(err.error))
            }
            Err(_) => (false, failed("did not show its metrics in the time allowed")),
        };
        self.set_unknown(is_hidden, error);
        if is_hidden {
            self.report(source);
        }
    }

    /// Leaves the base unknown, since the totals on the gateway lack the increments of a payload.
    pub(super) fn defer_base(&self) {
        self.set_unknown(false, Error::new(Kind::Delivery, "a payload of an earlier run still waits in the spool"));
    }

    fn set_unknown(&self, is_hidden: bool, error: Error) {
        self.is_hidden.store(is_hidden, Ordering::Relaxed);
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    /// Counts a successful push without the totals, and reports that reads fail if it is the last one of the run or one of
    /// many: a gateway that is just back may answer the next read.
    pub(super) fn report_missed(&self, source: &Arc<dyn ExpositionSource>, is_final: bool) {
        if self.missed.fetch_add(1, Ordering::Relaxed) + 1 >= MANY_PUSHES || is_final {
            self.report(source);
        }
    }

    /// Reports once why the base is unknown.
    fn report(&self, source: &Arc<dyn ExpositionSource>) {
        let error = self.error.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(error) = error.filter(|_| !self.is_reported.swap(true, Ordering::Relaxed)) {
            source.on_event(DeliveryEvent::TotalsUnknown(error));
        }
    }

    /// Returns the part of the final state that the gateway may lack.
    pub(super) fn spooled(&self, last: &OutgoingTotals) -> SpooledIncrements {
        self.ledger().spooled(last, self.totals.base().as_deref())
    }
}
