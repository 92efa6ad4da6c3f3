//! The payloads whose increments the totals of their group may lack.

use std::fs::{self, File};
use std::io::Write;

use super::format::Payload;
use super::lock;
use super::names::{self, FileName, TEMPORARY};
use super::select::{Query, Scope};
use super::store::{Entry, Spool};
use crate::delivery::event::DeliveryEvent;
use crate::delivery::pushgateway::Pushgateway;
use crate::delivery::totals::Totals;
use crate::error::{Error, Kind};

impl Spool {
    /// Returns whether a payload of the own group has increments that the gateway may lack.
    pub(in crate::delivery) fn has_increments(&self, gateway: &Pushgateway) -> bool {
        let query = Query::new(gateway, Scope::OwnGroup);
        let own = names::group_hash(gateway.grouping());
        let waits = |name: &String| {
            FileName::parse(name).is_some_and(|name| name.group == own)
                && !self.state().settled.contains(name)
                && self.head(name).is_some_and(|payload| payload.increments.is_some() && query.is_for_gateway(&payload))
        };
        self.payload_names().unwrap_or_default().iter().any(waits)
    }

    /// Tries the payloads of the own group again.
    pub(in crate::delivery) fn retry_group(&self, gateway: &Pushgateway) {
        self.state().skipped_groups.remove(&names::group_hash(gateway.grouping()));
    }

    /// Returns the totals that a replay of the own group wrote last, and the run of its payload.
    pub(in crate::delivery) fn written(&self) -> Option<(Totals, Option<f64>)> {
        self.state().written.clone()
    }

    /// Records the totals that the gateway has accepted with a payload of the own group. Those of another namespace are not
    /// this run's.
    pub(super) fn set_written(&self, entry: &Entry, totals: Totals) {
        if entry.payload.namespace.as_deref() == Some(&self.namespace) {
            self.state().written = Some((totals, entry.payload.run_start));
        }
    }

    /// Records that the increments of a payload are decided on, although its file may stay.
    pub(super) fn settle(&self, name: &str) {
        self.state().settled.insert(name.to_owned());
    }

    /// Replaces the file of a payload that this process has locked. The new file, which this returns, is locked and on disk.
    pub(in crate::delivery) fn rewrite(&self, name: &str, payload: &Payload) -> Result<File, Error> {
        let path = self.path(name);
        let temporary = self.path(&format!(".{name}")).with_extension(TEMPORARY);
        let replace = || {
            // A process that was killed here has left it. The lock of the payload guards it too.
            let _ = fs::remove_file(&temporary);
            let mut file = lock::create(&temporary)?;
            self.report_lock(file.lock());
            file.write_all(payload.head().as_bytes())?;
            file.write_all(&payload.body)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            self.report_sync(lock::sync_directory(&self.directory));
            Ok(file)
        };
        replace().map_err(|error| {
            let _ = fs::remove_file(&temporary);
            self.failed("write to", error)
        })
    }

    /// Notes that the increments of a payload do not reach the totals.
    pub(super) fn drop_increments(&self, entry: &Entry) {
        if self.state().settled.insert(entry.name.clone()) {
            let text = format!("the totals of the group lack the run in payload {:?}", self.path(&entry.name));
            let error = Error::new(Kind::Delivery, text);
            self.state().notices.push(DeliveryEvent::TotalsIncomplete(error));
        }
    }
}
