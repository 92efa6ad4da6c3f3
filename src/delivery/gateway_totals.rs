//! The cumulative totals of a gateway's group: their base, and what the gateway has of this run.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::{Instant, timeout_at};

use super::event::DeliveryEvent;
use super::http::retry;
use super::pushgateway::Pushgateway;
use super::source::ExpositionSource;
use super::totals::{CumulativeTotals, Ledger, OutgoingTotals, SpooledIncrements, Totals};
use crate::error::{Error, Kind};

pub(super) struct GatewayTotals {
    pub(super) totals: Arc<CumulativeTotals>,
    ledger: Mutex<Ledger>,
    /// Whether the gateway answers and does not show its state.
    is_hidden: AtomicBool,
    is_reported: AtomicBool,
}

impl GatewayTotals {
    pub(super) fn new(totals: Arc<CumulativeTotals>) -> Self {
        Self {
            totals,
            ledger: Mutex::default(),
            is_hidden: AtomicBool::new(false),
            is_reported: AtomicBool::new(false),
        }
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether the base is unknown, and the gateway may show it later.
    pub(super) fn awaits_base(&self) -> bool {
        self.totals.base().is_none() && !self.is_hidden.load(Ordering::Relaxed)
    }

    /// Reads the base from the state of the group. A gateway that shows none is reported once. `written` has the totals
    /// that this process has added payloads to, and the run of the last one.
    pub(super) async fn read_base(
        &self,
        gateway: &Pushgateway,
        written: Option<(Totals, Option<f64>)>,
        source: &Arc<dyn ExpositionSource>,
        until: Instant,
    ) {
        let state = gateway.group_state(Some(self.totals.namespace()), self.totals.constant());
        let hidden = match timeout_at(until, state).await {
            Ok(Ok(Some(state))) => match state.into_base() {
                Some(base) => return self.totals.set_base(base.after_replay(written)),
                None => self.hidden(gateway, "shows totals of this group that are no counts"),
            },
            Ok(Ok(None)) => self.hidden(gateway, "shows no metrics of a Pushgateway"),
            Ok(Err(err)) if err.error.is_refused() && !retry::is_retryable(&err.error) => {
                self.hidden(gateway, "does not show its metrics").with_source(err.error)
            }
            // The pushes report it too.
            Ok(Err(_)) | Err(_) => return self.is_hidden.store(false, Ordering::Relaxed),
        };
        self.is_hidden.store(true, Ordering::Relaxed);
        if !self.is_reported.swap(true, Ordering::Relaxed) {
            source.on_event(DeliveryEvent::TotalsUnknown(hidden));
        }
    }

    fn hidden(&self, gateway: &Pushgateway, what: &str) -> Error {
        Error::new(Kind::Delivery, format!("gateway {} {what}", gateway.endpoint()))
    }

    /// Returns the part of the final state that the gateway may lack; `None` if no later run could add it either.
    pub(super) fn spooled(&self, last: &OutgoingTotals) -> Option<SpooledIncrements> {
        let base = self.totals.base();
        (base.is_some() || self.awaits_base()).then(|| self.ledger().spooled(last, base.as_deref()))
    }
}
