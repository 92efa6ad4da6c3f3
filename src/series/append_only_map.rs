//! An insert-only hash map whose reads take no lock.
//!
//! Callsites, and what spans gave before, are found on every span and added a few times in a process. They are never
//! removed, so an item keeps its number and its place for as long as the map lives, and a reader needs neither a lock
//! nor a reference count: one load finds the number, a second the item.
//!
//! A level is an open-addressing table of words, each the upper half of a hash and the number of an item plus one.
//! When a level is half full the next, eight times as large, takes the new items; nothing is ever moved. Those who
//! insert bound what they insert, far below the five million items that all levels hold.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Words of the first level.
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

/// The number of an item: dense, from zero, in the order of insertion.
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

    pub(crate) fn get(&self, number: EntryId) -> Option<&T> {
        self.items.get(number as usize)
    }

    /// How many items there are, or a few more while some are being added.
    pub(crate) fn len(&self) -> usize {
        self.items.count()
    }

    /// The items in the order of their insertion.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.items.iter().map(|(_, item)| item)
    }

    /// Finds the item with this hash for which `is` holds.
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
                    let number = (word as u32) - 1;
                    if let Some(item) = self.items.get(number as usize)
                        && is(item)
                    {
                        return Some((number, item));
                    }
                }
                at = (at + 1) & mask;
            }
        }
        None
    }

    /// Finds the item, or adds what `make` returns.
    ///
    /// `make` runs under a lock: it must not call anything that may come back here.
    pub(crate) fn find_or_insert(&self, hash: u64, is: impl Fn(&T) -> bool, make: impl FnOnce() -> T) -> (EntryId, &T) {
        let _inserting = self.inserting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = self.find(hash, is) {
            return found;
        }
        let number = self.items.push(make());
        if let Some((level, words)) = self.level_for(number) {
            Self::enter(level, words, hash, number as EntryId);
        }
        (number as EntryId, &self.items[number])
    }

    /// Keeps all others from inserting.
    #[cfg(all(test, feature = "pushgateway"))]
    pub(crate) fn lock(&self) -> std::sync::MutexGuard<'_, ()> {
        self.inserting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(level: usize, words: &OnceLock<Box<[AtomicU64]>>, hash: u64, number: EntryId) {
        let words = words.get_or_init(|| (0..level_words(level)).map(|_| AtomicU64::new(0)).collect());
        let mask = words.len() - 1;
        let mut at = hash as usize & mask;
        while words[at].load(Ordering::Relaxed) != 0 {
            at = (at + 1) & mask;
        }
        words[at].store((hash >> 32) << 32 | u64::from(number + 1), Ordering::Release);
    }

    /// The level in which the item after `count` others goes: they fill one after the other.
    fn level_for(&self, count: usize) -> Option<(usize, &OnceLock<Box<[AtomicU64]>>)> {
        let mut room = 0;
        self.levels.iter().enumerate().find(|(level, _)| {
            room += level_capacity(*level);
            count < room
        })
    }
}

/// A place for an integer among so many, a power of two. Multiplying by the golden ratio spreads those that follow each
/// other over the upper bits, which are taken.
#[inline(always)]
pub(crate) fn fibonacci_hash(value: u64, places: usize) -> usize {
    (value.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - places.ilog2())) as usize
}

/// Spreads integers that are alike (addresses, small numbers) over all bits.
#[inline]
pub(crate) fn splitmix64(value: u64) -> u64 {
    // The finalizer of SplitMix64: both halves of the result are used, the upper as a tag.
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use crate::series::append_only_map::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn finds_what_was_inserted_across_levels() {
        let map = AppendOnlyMap::new();
        for n in 0..5_000_u64 {
            let (number, _) = map.find_or_insert(splitmix64(n), |item| *item == n, || n);
            assert_eq!(u64::from(number), n);
        }
        for n in 0..5_000_u64 {
            let (number, item) = map.find(splitmix64(n), |item| *item == n).unwrap();
            assert_eq!((u64::from(number), *item), (n, n));
        }
        assert!(map.find(splitmix64(5_000), |item| *item == 5_000).is_none());
        assert_eq!(map.iter().count(), 5_000);
    }

    #[test]
    fn equal_hashes_are_told_apart_by_the_item() {
        let map = AppendOnlyMap::new();
        for n in 0..100_u32 {
            map.find_or_insert(42, |item| *item == n, || n);
        }
        for n in 0..100_u32 {
            assert_eq!(map.find(42, |item| *item == n), Some((n, &n)));
        }
    }

    #[test]
    fn threads_that_insert_the_same_get_one_item() {
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
                        let (number, item) = map.find_or_insert(splitmix64(n), |item| *item == n, make);
                        assert_eq!(*item, n);
                        assert_eq!(map.get(number), Some(&n));
                    }
                });
            }
        });
        assert_eq!(made.into_inner(), 2_000);
    }
}
