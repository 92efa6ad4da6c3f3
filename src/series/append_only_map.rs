//! An insert-only hash map whose reads take no lock.
//!
//! Callsites and cached labels are found on every span and added a few times in a process. They are never removed, so an
//! item keeps its id and its address for as long as the map lives. A reader needs neither a lock nor a reference count: one
//! load finds the id, a second one the item.
//!
//! A level is an open-addressing table of words. A word has the upper half of a hash, and the id of an item plus one. When a
//! level is half full, the next one, eight times as large, takes the new items; no item moves. The users of the map bound
//! their items, far below the five million of all levels.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Number of words in the first level.
const FIRST_LEVEL: usize = 256;
/// How many times larger the next level is, as a power of two.
const GROWTH: u32 = 3;
const LEVELS: usize = 6;

const fn level_words(level: usize) -> usize {
    FIRST_LEVEL << (GROWTH as usize * level)
}

const fn level_capacity(level: usize) -> usize {
    level_words(level) / 2
}

/// The id of an item. Ids are dense, from zero, in the order of insertion.
pub(crate) type EntryId = u32;

pub(crate) struct AppendOnlyMap<T> {
    items: boxcar::Vec<T>,
    levels: [OnceLock<Box<[AtomicU64]>>; LEVELS],
    inserting: Mutex<()>,
}

impl<T> AppendOnlyMap<T> {
    pub(crate) fn new() -> Self {
        Self { items: boxcar::Vec::new(), levels: [const { OnceLock::new() }; LEVELS], inserting: Mutex::new(()) }
    }

    pub(crate) fn get(&self, id: EntryId) -> Option<&T> {
        self.items.get(id as usize)
    }

    /// Returns the number of items. It may include items that are being inserted.
    pub(crate) fn len(&self) -> usize {
        self.items.count()
    }

    /// Iterates over the items in the order of their insertion.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.items.iter().map(|(_, item)| item)
    }

    /// Finds the item with this hash that matches `is`.
    #[inline]
    pub(crate) fn find(&self, hash: u64, is: impl Fn(&T) -> bool) -> Option<(EntryId, &T)> {
        for level in &self.levels {
            let words = level.get()?;
            let mask = words.len() - 1;
            let mut at = hash as usize & mask;
            loop {
                let word = words[at].load(Ordering::Acquire);
                if word == 0 {
                    break;
                }
                if word >> 32 == hash >> 32 {
                    let id = (word as u32) - 1;
                    if let Some(item) = self.items.get(id as usize)
                        && is(item)
                    {
                        return Some((id, item));
                    }
                }
                at = (at + 1) & mask;
            }
        }
        None
    }

    /// Finds the item, or inserts the result of `make`.
    ///
    /// `make` runs under a lock, so it must not use this map.
    pub(crate) fn find_or_insert(&self, hash: u64, is: impl Fn(&T) -> bool, make: impl FnOnce() -> T) -> (EntryId, &T) {
        let _inserting = self.inserting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(item) = self.find(hash, is) {
            return item;
        }
        let id = self.items.push(make());
        if let Some((level, words)) = self.level_for(id) {
            Self::enter(level, words, hash, id as EntryId);
        }
        (id as EntryId, &self.items[id])
    }

    /// Blocks all insertions.
    #[cfg(all(test, feature = "pushgateway"))]
    pub(crate) fn lock(&self) -> std::sync::MutexGuard<'_, ()> {
        self.inserting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(level: usize, words: &OnceLock<Box<[AtomicU64]>>, hash: u64, id: EntryId) {
        let words = words.get_or_init(|| (0..level_words(level)).map(|_| AtomicU64::new(0)).collect());
        let mask = words.len() - 1;
        let mut at = hash as usize & mask;
        while words[at].load(Ordering::Relaxed) != 0 {
            at = (at + 1) & mask;
        }
        words[at].store((hash >> 32) << 32 | u64::from(id + 1), Ordering::Release);
    }

    /// Returns the level for the item after `count` others. Levels fill one after the other.
    fn level_for(&self, count: usize) -> Option<(usize, &OnceLock<Box<[AtomicU64]>>)> {
        let mut room = 0;
        self.levels.iter().enumerate().find(|(level, _)| {
            room += level_capacity(*level);
            count < room
        })
    }
}

/// Maps an integer to one of `places`, a power of two. The multiplication by the golden ratio spreads consecutive integers
/// over the upper bits, which are the result.
#[inline(always)]
pub(crate) fn fibonacci_hash(value: u64, places: usize) -> usize {
    (value.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - places.ilog2())) as usize
}

/// Spreads similar integers (addresses, small numbers) over all bits.
#[inline]
pub(crate) fn splitmix64(value: u64) -> u64 {
    // The finalizer of SplitMix64. Both halves of the result are used, the upper one as a tag.
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn items_are_found_across_levels() {
        let map = AppendOnlyMap::new();
        for n in 0..5_000_u64 {
            let (id, _) = map.find_or_insert(splitmix64(n), |item| *item == n, || n);
            assert_eq!(u64::from(id), n);
        }
        for n in 0..5_000_u64 {
            let (id, item) = map.find(splitmix64(n), |item| *item == n).unwrap();
            assert_eq!((u64::from(id), *item), (n, n));
        }
        assert!(map.find(splitmix64(5_000), |item| *item == 5_000).is_none());
        assert_eq!(map.iter().count(), 5_000);
    }

    #[test]
    fn items_with_equal_hashes_are_distinguished() {
        let map = AppendOnlyMap::new();
        for n in 0..100_u32 {
            map.find_or_insert(42, |item| *item == n, || n);
        }
        for n in 0..100_u32 {
            assert_eq!(map.find(42, |item| *item == n), Some((n, &n)));
        }
    }

    #[test]
    fn concurrent_insertions_of_a_key_make_one_item() {
        let map = AppendOnlyMap::new();
        let made = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for n in 0..2_000_u64 {
                        let make = || {
                            made.fetch_add(1, Ordering::Relaxed);
                            n
                        };
                        let (id, item) = map.find_or_insert(splitmix64(n), |item| *item == n, make);
                        assert_eq!(*item, n);
                        assert_eq!(map.get(id), Some(&n));
                    }
                });
            }
        });
        assert_eq!(made.into_inner(), 2_000);
    }
}
