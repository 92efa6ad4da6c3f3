//! Which payload is next, and what other processes do with a group.

use std::io::{Read, Seek};

use bytes::Bytes;

use super::format::{MAX_HEAD, Payload, Unreadable};
use super::last_success::LastSuccesses;
use super::lock::{self, Unavailable};
use super::names::{self, CORRUPT, EXTENSION, Name, TEMPORARY};
use super::store::{Entry, MAX_SPOOL_BYTES, Spool};
use crate::delivery::pushgateway::Grouping;
use crate::delivery::pushgateway::Pushgateway;

/// Which groups are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The group that this process pushes to.
    OwnGroup,
    OtherGroups,
}

/// Which payloads are looked for.
#[derive(Clone, Debug)]
pub(super) struct Query {
    gateway: String,
    own_group: Grouping,
    scope: Scope,
}

/// What was found.
#[derive(Debug)]
pub(super) enum Selected {
    Entry(Box<Entry>),
    /// Another process works with a payload that comes first.
    Locked,
    Nothing,
}

/// The own group's payloads that this run could not deliver, and what must not be lost of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct CarriedOver {
    successes: LastSuccesses,
    names: Vec<String>,
}

impl CarriedOver {
    #[cfg(test)]
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    /// A state of this run with the last successes of the payloads, as far as it has none itself.
    pub(crate) fn complete(&self, exposition: Bytes) -> Bytes {
        match std::str::from_utf8(&exposition) {
            Ok(text) if !self.successes.is_empty() => self.successes.complete(text).into(),
            _ => exposition,
        }
    }
}

impl Query {
    pub(super) fn new(gateway: &Pushgateway, scope: Scope) -> Self {
        Self { gateway: gateway.endpoint().to_owned(), own_group: gateway.grouping().clone(), scope }
    }

    /// Files of format 1 are for whatever gateway this process has.
    fn is_for_gateway(&self, payload: &Payload) -> bool {
        payload.gateway.as_ref().is_none_or(|gateway| *gateway == self.gateway)
    }

    fn is_in_scope(&self, group: &Grouping) -> bool {
        (group.identity() == self.own_group.identity()) == (self.scope == Scope::OwnGroup)
    }
}

impl Spool {
    /// The oldest payload that no other process works with. One behind another of its group that is locked is left too,
    /// so that a group's payloads are sent in their order. Sets corrupt files aside.
    pub(super) fn next(&self, query: &Query) -> Selected {
        let own = names::group_hash(&query.own_group);
        match query.scope {
            Scope::OwnGroup => self.select(query, None, |hash| hash == Some(&own), true),
            Scope::OtherGroups => self.select(query, None, |hash| hash != Some(&own), false),
        }
    }

    /// The payload behind this one in its group.
    pub(super) fn next_behind(&self, name: &str, query: &Query) -> Selected {
        let Some(group) = Name::parse(name).map(|name| name.group) else { return Selected::Nothing };
        self.select(query, Some(name), |hash| hash == Some(group), true)
    }

    /// `is_one_group`: a locked payload ends the search, since all others are behind it.
    fn select(
        &self,
        query: &Query,
        after: Option<&str>,
        wanted: impl Fn(Option<&str>) -> bool,
        is_one_group: bool,
    ) -> Selected {
        let names = self.payload_names().unwrap_or_default();
        let mut skipped = self.state().retain(&names).passed_over.clone();
        for name in names {
            // A file that this crate did not name has none, and is most likely set aside when it is read.
            let group = Name::parse(&name).map(|name| name.group);
            let is_wanted = wanted(group)
                && after.is_none_or(|after| name.as_str() > after)
                && !group.is_some_and(|group| skipped.contains(group))
                && !self.state().left_alone.contains(&name);
            if !is_wanted {
                continue;
            }
            let file = match self.lock(&name) {
                Ok(file) => file,
                Err(Unavailable::Locked) if is_one_group => return Selected::Locked,
                Err(Unavailable::Locked) => {
                    skipped.extend(group.map(str::to_owned));
                    continue;
                }
                Err(Unavailable::Gone) => continue,
                Err(Unavailable::Denied(error)) => {
                    self.leave_alone(&name, error);
                    continue;
                }
            };
            match read(&file) {
                Ok(Ok(payload)) if query.is_for_gateway(&payload) && query.is_in_scope(&payload.group) => {
                    let _held = self.hold(&name);
                    return Selected::Entry(Box::new(Entry { name, file, _held, payload }));
                }
                Ok(Ok(_) | Err(Unreadable::LaterFormat)) => drop(self.state().left_alone.insert(name)),
                Ok(Err(Unreadable::Corrupt)) => drop(self.quarantine(&name, CORRUPT)),
                Err(error) => self.leave_alone(&name, error),
            }
        }
        Selected::Nothing
    }

    fn leave_alone(&self, name: &str, error: std::io::Error) {
        if self.state().left_alone.insert(name.to_owned()) {
            self.notice(format!("cannot read payload {:?}: it is left where it is", self.path(name)), error);
        }
    }

    /// Leaves the group of this payload to a later process.
    pub(super) fn skip_group(&self, name: &str) {
        if let Some(name) = Name::parse(name) {
            self.state().passed_over.insert(name.group.to_owned());
        }
    }

    /// Whether this process delivered a payload of this group whose run began then: an earlier one than those that wait.
    pub(super) fn has_delivered(&self, name: &str, run_start: f64) -> bool {
        let delivered = |name: Name| self.state().delivered.contains(&(name.group.to_owned(), run_start.to_bits()));
        Name::parse(name).is_some_and(delivered)
    }

    pub(super) fn set_delivered(&self, entry: &Entry) {
        if let (Some(name), Some(run_start)) = (Name::parse(&entry.name), entry.payload.run_start) {
            self.state().delivered.insert((name.group.to_owned(), run_start.to_bits()));
        }
    }

    /// Keeps the lock of a payload when the entry is gone, because its request may be without an answer. Whether it was
    /// not kept before.
    pub(super) fn keep_locked(&self, entry: &Entry) -> bool {
        let mut state = self.state();
        if state.unanswered.contains_key(&entry.name) {
            return false;
        }
        // Without a file handle to be had, the lock goes with the entry.
        let copy = entry.file.try_clone().map(|file| state.unanswered.insert(entry.name.clone(), file));
        copy.is_ok()
    }

    /// The request of a payload was answered: the lock goes with the entry.
    pub(super) fn release(&self, entry: &Entry) {
        self.state().unanswered.remove(&entry.name);
    }

    pub(super) fn is_unanswered(&self, name: &str) -> bool {
        self.state().unanswered.contains_key(name)
    }

    /// Whether another process ends a run of this payload's group: a later file of it is being written or pushed.
    pub(super) fn is_run_ending(&self, name: &str) -> bool {
        Name::parse(name).is_some_and(|own| {
            let is_later = |other: Name| matches!(other.extension, EXTENSION | TEMPORARY) && other.stem > own.stem;
            self.is_locked_elsewhere(own.group, is_later)
        })
    }

    /// Whether another process still delivers a payload of the group that is earlier than this one. Its request may
    /// reach the gateway after this one's push.
    pub(crate) fn is_group_in_use(&self, entry: &Entry) -> bool {
        Name::parse(&entry.name).is_some_and(|own| {
            self.is_locked_elsewhere(own.group, |other| other.extension == EXTENSION && other.stem < own.stem)
        })
    }

    pub(super) fn is_locked_elsewhere(&self, group: &str, wanted: impl Fn(Name) -> bool) -> bool {
        let names = self.names().unwrap_or_default();
        let is_locked = |file: &String| {
            let is_wanted = Name::parse(file).is_some_and(|name| name.group == group && wanted(name));
            is_wanted
                && !self.is_held(file)
                && !self.state().unanswered.contains_key(file)
                && matches!(lock::open_locked(&self.path(file)), Err(Unavailable::Locked))
        };
        names.iter().any(is_locked)
    }

    /// What waits of the own group, to be carried over into this run's own pushes.
    pub(crate) fn carry_over(&self, gateway: &Pushgateway) -> CarriedOver {
        let query = Query::new(gateway, Scope::OwnGroup);
        let own = names::group_hash(gateway.grouping());
        let mut carried = CarriedOver::default();
        for name in self.payload_names().unwrap_or_default() {
            // Also those that another process works with: they are read, not changed.
            let Some(payload) = Name::parse(&name)
                .filter(|name| name.group == own)
                .and_then(|_| lock::open_regular(&self.path(&name)).ok())
                .and_then(|file| read(&file).ok()?.ok())
            else {
                continue;
            };
            if query.is_for_gateway(&payload) && query.is_in_scope(&payload.group) {
                carried.successes.add(&payload);
                carried.names.push(name);
            }
        }
        carried
    }

    /// Removes payloads that were carried over, when the gateway has this run's final state. Those that another process
    /// works with stay.
    pub(crate) fn remove_carried_over(&self, carried: &CarriedOver) {
        for name in &carried.names {
            if self.lock(name).is_ok() {
                let _ = std::fs::remove_file(self.path(name));
                self.state().unanswered.remove(name);
            }
        }
    }

    /// Starts of the runs whose payloads for the same gateway and group are among these files.
    pub(super) fn run_starts(&self, names: &[String], payload: &Payload) -> Vec<f64> {
        let group = names::group_hash(&payload.group);
        let run_start = |file: &String| {
            Name::parse(file).filter(|name| name.group == group && name.extension == EXTENSION)?;
            let mut head = Vec::new();
            lock::open_regular(&self.path(file)).ok()?.take(MAX_HEAD as u64).read_to_end(&mut head).ok()?;
            let (earlier, _) = Payload::parse_head(&head).ok()?;
            earlier.run_start.filter(|_| earlier.gateway == payload.gateway)
        };
        names.iter().filter_map(run_start).collect()
    }
}

fn read(mut file: &std::fs::File) -> std::io::Result<Result<Payload, Unreadable>> {
    // A handle that was kept with its lock has been read before.
    file.rewind()?;
    let mut content = Vec::new();
    Read::by_ref(&mut file).take(MAX_SPOOL_BYTES + MAX_HEAD as u64).read_to_end(&mut content)?;
    Ok(Payload::parse(Bytes::from(content)))
}
