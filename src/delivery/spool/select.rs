//! Selects the next payload, and checks what other processes do with a group.

use std::io::{BufRead, BufReader, Read, Seek};
use std::sync::Arc;

use bytes::Bytes;

use super::format::{MAX_HEAD, Payload, Unreadable};
use super::last_success::LastSuccesses;
use super::lock::{self, Unavailable};
use super::names::{self, CORRUPT, EXTENSION, FileName, TEMPORARY};
use super::store::{Entry, MAX_SPOOL_BYTES, Spool};
use crate::delivery::pushgateway::{EncodedState, Grouping, PushFormat, Pushgateway};

/// The groups of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::delivery) enum Scope {
    /// The group that this process pushes to.
    OwnGroup,
    OtherGroups,
    /// Of a process that pushes to no group itself.
    #[cfg(feature = "cli")]
    AllGroups,
}

impl Scope {
    fn has(self, is_own: bool) -> bool {
        match self {
            Self::OwnGroup => is_own,
            Self::OtherGroups => !is_own,
            #[cfg(feature = "cli")]
            Self::AllGroups => true,
        }
    }
}

/// Selects payloads by gateway and group.
#[derive(Clone, Debug)]
pub(super) struct Query {
    gateway: String,
    own_group: Grouping,
    scope: Scope,
}

/// The payloads of the own group that this run could not deliver, and their last successes.
#[derive(Clone, Debug, Default)]
pub(in crate::delivery) struct CarriedOver {
    successes: LastSuccesses,
    names: Vec<String>,
}

impl CarriedOver {
    #[cfg(test)]
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    /// Adds the last successes of the payloads to a state of this run, except those that the state has itself.
    pub(in crate::delivery) fn complete(&self, state: EncodedState, format: PushFormat) -> EncodedState {
        let complete = self.successes.complete(&state.families);
        complete.map_or(state, |families| EncodedState::new(Arc::new(families), format))
    }
}

impl Query {
    pub(super) fn new(gateway: &Pushgateway, scope: Scope) -> Self {
        Self { gateway: gateway.endpoint().to_owned(), own_group: gateway.grouping().clone(), scope }
    }

    /// A payload of format 1 is for the gateway of this process.
    pub(super) fn is_for_gateway(&self, payload: &Payload) -> bool {
        payload.gateway.as_ref().is_none_or(|gateway| *gateway == self.gateway)
    }

    fn is_in_scope(&self, group: &Grouping) -> bool {
        self.scope.has(group.identity() == self.own_group.identity())
    }
}

impl Spool {
    /// Returns the oldest payload that no other process works with. Skips the payloads behind a locked one of their
    /// group, so that the payloads of a group are sent in order. Quarantines corrupt files.
    pub(super) fn next(&self, query: &Query) -> Option<Entry> {
        let own = names::group_hash(&query.own_group);
        self.select(query, None, |hash| query.scope.has(hash == Some(&own)))
    }

    /// Returns the payload behind this one in its group.
    pub(super) fn next_behind(&self, name: &str, query: &Query) -> Option<Entry> {
        let group = FileName::parse(name)?.group;
        self.select(query, Some(name), |hash| hash == Some(group))
    }

    /// Selects the first free payload.
    fn select(&self, query: &Query, after: Option<&str>, has_group: impl Fn(Option<&str>) -> bool) -> Option<Entry> {
        let names = self.payload_names().unwrap_or_default();
        let mut skipped = self.state().retain(&names).skipped_groups.clone();
        for name in names {
            // A file that another program named has no group, and is most likely quarantined when it is read.
            let group = FileName::parse(&name).map(|name| name.group);
            let is_candidate = has_group(group)
                && after.is_none_or(|after| name.as_str() > after)
                && !group.is_some_and(|group| skipped.contains(group))
                && !self.state().ignored_files.contains(&name);
            if !is_candidate {
                continue;
            }
            let file = match self.lock(&name) {
                // A file system without locks gives a file that this process works with.
                Ok(file) if !self.is_in_use(&name) => file,
                Ok(_) | Err(Unavailable::Locked) => {
                    skipped.extend(group.map(str::to_owned));
                    continue;
                }
                Err(Unavailable::Gone) => continue,
                Err(Unavailable::Denied(error)) => {
                    self.ignore(&name, error);
                    continue;
                }
            };
            match read(&file) {
                Ok(Ok(payload)) if query.is_for_gateway(&payload) && query.is_in_scope(&payload.group) => {
                    let _in_use = self.set_in_use(&name);
                    return Some(Entry { name, file, _in_use, payload });
                }
                Ok(Ok(_) | Err(Unreadable::LaterFormat)) => drop(self.state().ignored_files.insert(name)),
                Ok(Err(Unreadable::Corrupt)) => self.set_damaged_aside(&name),
                Err(error) => self.ignore(&name, error),
            }
        }
        None
    }

    /// Renames a payload whose checksum is wrong, and reports it. A file that cannot be renamed is ignored from now on.
    fn set_damaged_aside(&self, name: &str) {
        let damaged = std::io::Error::new(std::io::ErrorKind::InvalidData, "its checksum is wrong");
        if self.quarantine(name, CORRUPT) {
            self.notice(format!("payload {:?} is damaged: it is renamed to *.{CORRUPT}", self.path(name)), damaged);
        } else {
            self.ignore(name, damaged);
        }
    }

    /// Ignores a file that cannot be read from now on, and reports it.
    fn ignore(&self, name: &str, error: std::io::Error) {
        if self.state().ignored_files.insert(name.to_owned()) {
            self.notice(format!("cannot read payload {:?}: it is left where it is", self.path(name)), error);
        }
    }

    /// Removes a payload that the gateway has, or leaves its group to a later process: it would be sent again and again.
    /// Returns whether the file is removed. The caller may be gone by then.
    pub(super) fn remove_or_skip(&self, entry: &Entry) -> bool {
        let is_removed = self.remove(entry);
        if !is_removed {
            self.skip_group(&entry.name);
        }
        is_removed
    }

    /// Leaves the group of this payload to a later process.
    pub(super) fn skip_group(&self, name: &str) {
        if let Some(name) = FileName::parse(name) {
            self.state().skipped_groups.insert(name.group.to_owned());
        }
    }

    /// Returns whether this process delivered a payload of this group for the run that began then. Such a run precedes
    /// those of the waiting payloads.
    pub(super) fn has_delivered(&self, name: &str, run_start: f64) -> bool {
        let delivered =
            |name: FileName| self.state().delivered_runs.contains(&(name.group.to_owned(), run_start.to_bits()));
        FileName::parse(name).is_some_and(delivered)
    }

    /// Records that the payload of a run is delivered.
    pub(super) fn set_delivered(&self, entry: &Entry) {
        if let (Some(name), Some(run_start)) = (FileName::parse(&entry.name), entry.payload.run_start) {
            self.state().delivered_runs.insert((name.group.to_owned(), run_start.to_bits()));
        }
    }

    /// Keeps the lock of a payload after its entry is dropped, because its request may have no response. Returns
    /// whether the lock was not kept before.
    pub(super) fn keep_locked(&self, entry: &Entry) -> bool {
        let mut state = self.state();
        if state.unanswered.contains_key(&entry.name) {
            return false;
        }
        // Without a free file handle, dropping the entry releases the lock.
        let copy = entry.file.try_clone().map(|file| state.unanswered.insert(entry.name.clone(), file));
        copy.is_ok()
    }

    /// Stops keeping the lock of a payload whose request had a response: dropping the entry releases the lock.
    pub(super) fn release(&self, entry: &Entry) {
        self.state().unanswered.remove(&entry.name);
    }

    /// Returns whether a request of the payload had no response.
    pub(super) fn is_unanswered(&self, name: &str) -> bool {
        self.state().unanswered.contains_key(name)
    }

    /// Returns whether another process ends a run of this payload's group: it writes or pushes a later file of the group.
    pub(super) fn is_run_ending(&self, name: &str) -> bool {
        FileName::parse(name).is_some_and(|own| {
            let is_later = |other: FileName| matches!(other.extension, EXTENSION | TEMPORARY) && other.stem > own.stem;
            self.is_locked_elsewhere(own.group, is_later)
        })
    }

    /// Returns whether another process still delivers an earlier payload of the group. Its request may reach the gateway
    /// after the push of this one.
    pub(in crate::delivery) fn is_group_in_use(&self, entry: &Entry) -> bool {
        FileName::parse(&entry.name).is_some_and(|own| {
            self.is_locked_elsewhere(own.group, |other| other.extension == EXTENSION && other.stem < own.stem)
        })
    }

    /// Returns whether another process holds the lock of a file of the group that `is_candidate` selects.
    pub(super) fn is_locked_elsewhere(&self, group: &str, is_candidate: impl Fn(FileName) -> bool) -> bool {
        let names = self.names().unwrap_or_default();
        let is_locked = |file: &String| {
            FileName::parse(file).is_some_and(|name| name.group == group && is_candidate(name))
                && !self.is_in_use(file)
                && !self.state().unanswered.contains_key(file)
                && matches!(lock::open_locked(&self.path(file)), Err(Unavailable::Locked))
        };
        names.iter().any(is_locked)
    }

    /// Reads the payloads of the own group, whose last successes the pushes of this run carry over.
    pub(in crate::delivery) fn carry_over(&self, gateway: &Pushgateway) -> CarriedOver {
        let query = Query::new(gateway, Scope::OwnGroup);
        let own = names::group_hash(gateway.grouping());
        let mut carried = CarriedOver::default();
        for name in self.payload_names().unwrap_or_default() {
            // Locked payloads too, since they are only read.
            let Some(payload) = FileName::parse(&name)
                .filter(|name| name.group == own)
                .and_then(|_| lock::open_regular(&self.path(&name)).ok())
                .and_then(|file| read(&file).ok()?.ok())
            else {
                continue;
            };
            // The successes of a later version's payload cannot be read: it stays.
            let is_readable = payload.format().is_some() && payload.namespace.is_some();
            if is_readable && query.is_for_gateway(&payload) && query.is_in_scope(&payload.group) {
                carried.successes.add(&payload);
                // The pushes of this run do not have the increments.
                if payload.increments.is_none() || self.state().settled.contains(&name) {
                    carried.names.push(name);
                }
            }
        }
        carried
    }

    /// Reads the head of a file.
    pub(super) fn head(&self, name: &str) -> Option<Payload> {
        let file = lock::open_regular(&self.path(name)).ok()?;
        let mut lines = BufReader::new(file).take(MAX_HEAD as u64);
        let mut head = Vec::new();
        // A line that is empty but for its end is the last one.
        while lines.read_until(b'\n', &mut head).ok()? > 1 {}
        Payload::parse_head(&head).ok().map(|(payload, _)| payload)
    }

    /// Removes payloads that were carried over, once the gateway has the final state of this run. Locked payloads stay.
    pub(in crate::delivery) fn remove_carried_over(&self, carried: &CarriedOver) {
        for name in &carried.names {
            if self.lock(name).is_ok() {
                let _ = std::fs::remove_file(self.path(name));
                self.state().unanswered.remove(name);
            }
        }
    }

    /// Returns the run starts of the payloads for the same gateway and group among these files.
    pub(super) fn run_starts(&self, names: &[String], payload: &Payload) -> Vec<f64> {
        let group = names::group_hash(&payload.group);
        let run_start = |file: &String| {
            FileName::parse(file).filter(|name| name.group == group && name.extension == EXTENSION)?;
            let earlier = self.head(file)?;
            earlier.run_start.filter(|_| earlier.gateway == payload.gateway)
        };
        names.iter().filter_map(run_start).collect()
    }
}

fn read(mut file: &std::fs::File) -> std::io::Result<Result<Payload, Unreadable>> {
    // A handle that was kept with its lock was read before.
    file.rewind()?;
    let mut content = Vec::new();
    Read::by_ref(&mut file).take(MAX_SPOOL_BYTES + MAX_HEAD as u64).read_to_end(&mut content)?;
    Ok(Payload::parse(Bytes::from(content)))
}
