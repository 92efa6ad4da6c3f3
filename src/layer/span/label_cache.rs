//! A cache of the labels of spans.
//!
//! The spans of a stage have the same values again and again. One lookup by the bytes of all values, and by the inherited
//! labels, finds their label ids, and the series when the stage closes.

use std::hash::{BuildHasher, Hasher};

use rapidhash::fast::RandomState;

use super::tree::ContextLabels;
use crate::layer::fields::FieldOffsets;
use crate::series::CachedSeries;
use crate::series::append_only_map::{AppendOnlyMap, EntryId};
use crate::series::interner::SpanLabels;

/// The values of a span as bytes, and its inherited labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CacheKey<'a> {
    pub(crate) text: &'a str,
    pub(crate) offsets: FieldOffsets,
    pub(crate) inherited: ContextLabels,
}

/// A key, and the labels and the series of its spans.
pub(crate) struct CachedLabels {
    text: Box<str>,
    offsets: FieldOffsets,
    inherited: ContextLabels,
    pub(crate) values: SpanLabels,
    pub(crate) resolved: ContextLabels,
    /// The series in which its stages are counted.
    pub(crate) series: CachedSeries,
}

impl CachedLabels {
    fn has_key(&self, key: &CacheKey<'_>) -> bool {
        self.offsets == key.offsets && self.inherited == key.inherited && *self.text == *key.text
    }
}

/// Keeps entries for ever, up to a limit. Spans without an entry are resolved each time.
pub(crate) struct LabelCache {
    entries: AppendOnlyMap<CachedLabels>,
    hasher: RandomState,
    limit: usize,
}

impl LabelCache {
    /// Creates an empty cache. Its limit is twice that on label sets: as many spans that are not stages may have values.
    pub(crate) fn new(max_series: usize) -> Self {
        Self { entries: AppendOnlyMap::new(), hasher: RandomState::default(), limit: 2 * max_series }
    }

    #[cfg(all(test, feature = "pushgateway"))]
    pub(crate) fn lock(&self) -> impl Sized {
        self.entries.lock()
    }

    #[inline]
    fn hash(&self, key: &CacheKey<'_>) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(key.text.as_bytes());
        hasher.write_u64(key.offsets.bits());
        hasher.write_u64(key.inherited.bits());
        hasher.finish()
    }

    /// Finds the entry of a key.
    #[inline]
    pub(crate) fn find(&self, key: &CacheKey<'_>) -> Option<(EntryId, &CachedLabels)> {
        self.entries.find(self.hash(key), |cached| cached.has_key(key))
    }

    pub(crate) fn get(&self, id: EntryId) -> Option<&CachedLabels> {
        self.entries.get(id)
    }

    /// Adds an entry, unless the cache is full.
    #[cold]
    pub(crate) fn add(&self, key: &CacheKey<'_>, values: SpanLabels, resolved: ContextLabels) -> Option<EntryId> {
        if self.entries.len() >= self.limit {
            return None;
        }
        let new = || CachedLabels {
            text: key.text.into(),
            offsets: key.offsets,
            inherited: key.inherited,
            values,
            resolved,
            series: CachedSeries::new(),
        };
        Some(self.entries.find_or_insert(self.hash(key), |cached| cached.has_key(key), new).0)
    }
}
