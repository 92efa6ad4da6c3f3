//! The spans that no level of the table of open spans has a place for, behind a lock.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::state::Slot;
use super::sync::AtomicU64;

/// The spans for which the levels have no place. Slots are reused; their number grows to the most that were open at once.
pub(super) struct Crowd {
    pub(super) slots: boxcar::Vec<Slot>,
    pub(super) keys: boxcar::Vec<AtomicU64>,
    places: Mutex<CrowdPlaces>,
    pub(super) open: AtomicU64,
}

#[derive(Default)]
pub(super) struct CrowdPlaces {
    by_id: HashMap<u64, usize>,
    free: Vec<usize>,
}

impl Crowd {
    pub(super) fn new() -> Self {
        Self { slots: boxcar::Vec::new(), keys: boxcar::Vec::new(), places: Mutex::default(), open: AtomicU64::new(0) }
    }

    pub(super) fn places(&self) -> MutexGuard<'_, CrowdPlaces> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn find(&self, id: u64) -> Option<usize> {
        if self.open.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.places().by_id.get(&id).copied()
    }

    pub(super) fn claim(&self, id: u64) -> usize {
        let mut places = self.places();
        let place = places.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.keys.push(AtomicU64::new(0))
        });
        places.by_id.insert(id, place);
        self.open.fetch_add(1, Ordering::AcqRel);
        // Sequentially consistent: as in `try_take`.
        self.keys[place].store(id, Ordering::SeqCst);
        place
    }

    #[cold]
    pub(super) fn release(&self, place: usize) {
        let mut places = self.places();
        let id = self.keys[place].swap(0, Ordering::AcqRel);
        if places.by_id.remove(&id).is_some() {
            places.free.push(place);
            self.open.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// The number of places that were ever in use. Takes the lock, so that a span that takes a new place afterwards sees
    /// that the run has ended, if it has.
    pub(super) fn used(&self) -> usize {
        let _places = self.places();
        self.keys.count()
    }
}
