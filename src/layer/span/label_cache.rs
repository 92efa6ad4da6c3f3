//! What spans gave before, and what it came to.
//!
//! The spans of a stage bring the same values again and again. One look-up by the bytes of all of them, and by what
//! the span inherits, gives their labels, and the series when the stage closes: no value is looked up for itself.

use std::hash::{BuildHasher, Hasher};

use rapidhash::fast::RandomState;

use crate::layer::fields::FieldOffsets;
use crate::layer::span::inherit::ContextLabels;
use crate::series::CachedSeries;
use crate::series::append_only_map::{AppendOnlyMap, EntryId};
use crate::series::interner::SpanLabels;

/// The values of a span as they were given, and what it inherits where it lacks one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CacheKey<'a> {
    pub(crate) text: &'a str,
    pub(crate) offsets: FieldOffsets,
    pub(crate) inherited: ContextLabels,
}

/// What that is.
pub(crate) struct Meaning {
    text: Box<str>,
    offsets: FieldOffsets,
    inherited: ContextLabels,
    pub(crate) values: SpanLabels,
    pub(crate) resolved: ContextLabels,
    /// The series that its stages are counted in.
    pub(crate) series: CachedSeries,
}

impl Meaning {
    fn is_of(&self, given: &CacheKey<'_>) -> bool {
        self.offsets == given.offsets && self.inherited == given.inherited && *self.text == *given.text
    }
}

/// Kept for good, up to a limit: what comes later is span out each time.
pub(crate) struct LabelCache {
    meanings: AppendOnlyMap<Meaning>,
    hasher: RandomState,
    limit: usize,
}

impl LabelCache {
    /// `max_series`: the limit on label sets. As many spans that are no stages may bring values, and more is not needed
    /// where the values are those of the series.
    pub(crate) fn new(max_series: usize) -> Self {
        Self { meanings: AppendOnlyMap::new(), hasher: RandomState::default(), limit: 2 * max_series }
    }

    #[cfg(all(test, feature = "pushgateway"))]
    pub(crate) fn lock(&self) -> impl Sized {
        self.meanings.lock()
    }

    #[inline]
    fn hash(&self, given: &CacheKey<'_>) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(given.text.as_bytes());
        hasher.write_u64(given.offsets.bits());
        hasher.write_u64(given.inherited.bits());
        hasher.finish()
    }

    /// Its cached, if it is known.
    #[inline]
    pub(crate) fn find(&self, given: &CacheKey<'_>) -> Option<(EntryId, &Meaning)> {
        self.meanings.find(self.hash(given), |cached| cached.is_of(given))
    }

    pub(crate) fn get(&self, number: EntryId) -> Option<&Meaning> {
        self.meanings.get(number)
    }

    /// Keeps a cached, while there is room.
    #[cold]
    pub(crate) fn add(&self, given: &CacheKey<'_>, values: SpanLabels, resolved: ContextLabels) -> Option<EntryId> {
        if self.meanings.len() >= self.limit {
            return None;
        }
        let cached = || Meaning {
            text: given.text.into(),
            offsets: given.offsets,
            inherited: given.inherited,
            values,
            resolved,
            series: CachedSeries::new(),
        };
        Some(self.meanings.find_or_insert(self.hash(given), |cached| cached.is_of(given), cached).0)
    }
}
