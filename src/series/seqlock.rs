//! Words that are read as they were written, together. No thread waits for another one.

use std::sync::atomic::Ordering;

use super::sync::{AtomicU64, fence, yield_now};

pub(crate) struct Seqlock<const WORDS: usize> {
    /// Odd while a thread writes.
    version: AtomicU64,
    words: [AtomicU64; WORDS],
}

impl<const WORDS: usize> Default for Seqlock<WORDS> {
    /// All words are zero.
    fn default() -> Self {
        Self { version: AtomicU64::new(0), words: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl<const WORDS: usize> Seqlock<WORDS> {
    /// Writes the words, unless another thread writes at the same moment or `is_wanted` is false for the words of now, which it
    /// may see in part.
    #[inline]
    pub(crate) fn set(&self, words: [u64; WORDS], is_wanted: impl FnOnce([u64; WORDS]) -> bool) {
        // Pairs with the last store: `is_wanted` sees no words that are older than this version.
        let version = self.version.load(Ordering::Acquire);
        if is_odd(version)
            || !is_wanted(self.load())
            || self.version.compare_exchange(version, version + 1, Ordering::Acquire, Ordering::Relaxed).is_err()
        {
            return;
        }
        // Pairs with the fence in `get`: a reader that sees one of these words also sees the odd version.
        fence(Ordering::Release);
        for (to, word) in self.words.iter().zip(words) {
            to.store(word, Ordering::Relaxed);
        }
        // Pairs with the first load in `get`.
        self.version.store(version + 2, Ordering::Release);
    }

    /// Returns the words. `None` if writers disturb all of so many reads.
    pub(crate) fn get(&self, max_reads: usize) -> Option<[u64; WORDS]> {
        for _ in 0..max_reads {
            let version = self.version.load(Ordering::Acquire);
            let words = self.load();
            // Keeps the loads above from moving past the check of the version. Pairs with the fence in `set`.
            fence(Ordering::Acquire);
            if !is_odd(version) && self.version.load(Ordering::Relaxed) == version {
                return Some(words);
            }
            yield_now();
        }
        None
    }

    #[inline]
    fn load(&self) -> [u64; WORDS] {
        self.words.each_ref().map(|word| word.load(Ordering::Relaxed))
    }
}

fn is_odd(version: u64) -> bool {
    version & 1 == 1
}
