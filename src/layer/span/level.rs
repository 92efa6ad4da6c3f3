//! A level of the table of open spans: keys, their slots, and the counts of displaced spans.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use super::state::{Slot, SpanRef};
use super::sync::{AtomicU32, AtomicU64};
use crate::series::append_only_map::fibonacci_hash;

/// Places of a bucket.
pub(super) const BUCKET: usize = 8;

/// Takes a place if it is free.
#[inline]
pub(super) fn try_take(key: &AtomicU64, id: u64) -> bool {
    // Sequentially consistent, as are the accesses of `OpenSpans::ended` and the loads in `OpenSpans::phase_now`: the key
    // is written before the flag is read here, and the end of the run raises the flag before it reads the keys. So
    // either this span is refused or the end of the run sees its key.
    key.load(Ordering::Relaxed) == 0 && key.compare_exchange(0, id, Ordering::SeqCst, Ordering::Relaxed).is_ok()
}

#[derive(Clone, Copy)]
pub(super) struct Level<'a> {
    /// Zero: free.
    pub(super) keys: &'a [AtomicU64],
    /// How many open spans have their home here and their key elsewhere: in the same bucket or in a level further on.
    pub(super) displaced: &'a [AtomicU32],
    pub(super) slots: &'a [Slot],
    /// Slots in the levels before.
    pub(super) before: usize,
}

impl<'a> Level<'a> {
    #[inline]
    pub(super) fn home_of(self, id: u64) -> usize {
        fibonacci_hash(id, self.keys.len())
    }

    /// The places of a home's bucket other than the home.
    pub(super) fn neighbours(home: usize) -> impl Iterator<Item = usize> {
        let bucket = home & !(BUCKET - 1);
        (bucket..bucket + BUCKET).filter(move |place| *place != home)
    }

    pub(super) fn has_key(self, place: usize, id: u64) -> bool {
        self.keys.get(place).is_some_and(|key| key.load(Ordering::Acquire) == id)
    }

    pub(super) fn try_take(self, place: usize, id: u64) -> bool {
        self.keys.get(place).is_some_and(|key| try_take(key, id))
    }

    /// Breaks where no level further on has the span.
    pub(super) fn find(self, id: u64) -> ControlFlow<Option<SpanRef<'a>>> {
        let home = self.home_of(id);
        if self.has_key(home, id) {
            return ControlFlow::Break(self.span(home));
        }
        // Relaxed: see `claim`.
        if self.displaced.get(home).is_none_or(|displaced| displaced.load(Ordering::Relaxed) == 0) {
            return ControlFlow::Break(None);
        }
        match Self::neighbours(home).find(|place| self.has_key(*place, id)) {
            Some(place) => ControlFlow::Break(self.span(place)),
            None => ControlFlow::Continue(()),
        }
    }

    /// Takes a place for a span. `None`: the bucket is full, and the span is counted as displaced.
    pub(super) fn claim(self, id: u64) -> Option<SpanRef<'a>> {
        let home = self.home_of(id);
        if self.try_take(home, id) {
            return self.span(home);
        }
        // Relaxed: a thread that looks for an open span has its id from the thread that opened it, so that this addition
        // happens before its load. The load then reads the result of this addition or a later one, and all of these count
        // the span until it is released. A thread that has the id from elsewhere may miss the span, as if it had asked
        // before the span opened.
        self.displaced.get(home)?.fetch_add(1, Ordering::Relaxed);
        let place = Self::neighbours(home).find(|place| self.try_take(*place, id))?;
        self.span(place)
    }

    #[inline]
    pub(super) fn span(self, place: usize) -> Option<SpanRef<'a>> {
        Some(SpanRef { slot: self.slots.get(place)?, index: self.before + place })
    }
}

/// A level that is made when a span is displaced from the one before.
pub(super) struct FurtherLevel {
    pub(super) keys: Box<[AtomicU64]>,
    pub(super) displaced: Box<[AtomicU32]>,
    pub(super) slots: Box<[Slot]>,
}

impl FurtherLevel {
    pub(super) fn new(places: usize) -> Self {
        Self {
            keys: (0..places).map(|_| AtomicU64::new(0)).collect(),
            displaced: (0..places).map(|_| AtomicU32::new(0)).collect(),
            slots: (0..places).map(|_| Slot::default()).collect(),
        }
    }
}
