//! What spans gave before, and what it came to.
//!
//! The spans of a stage bring the same values again and again. One look-up by the bytes of all of them, and by what
//! the span inherits, gives their labels, and the series when the stage closes: no value is looked up for itself.

use std::hash::{BuildHasher, Hasher};

use rapidhash::fast::RandomState;

use crate::layer::fields::Shape;
use crate::layer::span::inherit::Resolved;
use crate::series::append_only_map::{InsertOnly, Number};
use crate::series::interner::Values;
use crate::series::stage_series::KeptSeries;

/// The values of a span as they were given, and what it inherits where it lacks one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Given<'a> {
    pub(crate) text: &'a str,
    pub(crate) shape: Shape,
    pub(crate) inherited: Resolved,
}

/// What that is.
pub(crate) struct Meaning {
    text: Box<str>,
    shape: Shape,
    inherited: Resolved,
    pub(crate) values: Values,
    pub(crate) resolved: Resolved,
    /// The series that its stages are counted in.
    pub(crate) series: KeptSeries,
}

impl Meaning {
    fn is_of(&self, given: &Given<'_>) -> bool {
        self.shape == given.shape && self.inherited == given.inherited && *self.text == *given.text
    }
}

/// Kept for good, up to a limit: what comes later is found out each time.
pub(crate) struct Memory {
    meanings: InsertOnly<Meaning>,
    hasher: RandomState,
    limit: usize,
}

impl Memory {
    /// `max_series`: the limit on label sets. As many spans that are no stages may bring values, and more is not needed
    /// where the values are those of the series.
    pub(crate) fn new(max_series: usize) -> Self {
        Self { meanings: InsertOnly::new(), hasher: RandomState::default(), limit: 2 * max_series }
    }

    #[cfg(all(test, feature = "pushgateway"))]
    pub(crate) fn lock(&self) -> impl Sized {
        self.meanings.lock()
    }

    #[inline]
    fn hash(&self, given: &Given<'_>) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(given.text.as_bytes());
        hasher.write_u64(given.shape.bits());
        hasher.write_u64(given.inherited.bits());
        hasher.finish()
    }

    /// Its meaning, if it is known.
    #[inline]
    pub(crate) fn find(&self, given: &Given<'_>) -> Option<(Number, &Meaning)> {
        self.meanings.find(self.hash(given), |meaning| meaning.is_of(given))
    }

    pub(crate) fn get(&self, number: Number) -> Option<&Meaning> {
        self.meanings.get(number)
    }

    /// Keeps a meaning, while there is room.
    #[cold]
    pub(crate) fn add(&self, given: &Given<'_>, values: Values, resolved: Resolved) -> Option<Number> {
        if self.meanings.len() >= self.limit {
            return None;
        }
        let meaning = || Meaning {
            text: given.text.into(),
            shape: given.shape,
            inherited: given.inherited,
            values,
            resolved,
            series: KeptSeries::new(),
        };
        Some(self.meanings.find_or_insert(self.hash(given), |meaning| meaning.is_of(given), meaning).0)
    }
}
