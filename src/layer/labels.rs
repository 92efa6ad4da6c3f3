//! Label values, each stored once and known by a small number from then on.
//!
//! A span carries the numbers of its values, a child takes its ancestor's over as integers, and a series is found by
//! three of them. Strings are compared once, when a span opens.

use std::hash::{BuildHasher, Hasher};

use rapidhash::fast::RandomState;

use super::index::InsertOnly;

/// Longest label value in bytes; a longer one is cut.
pub(crate) const MAX_VALUE_BYTES: usize = 256;
/// The mark at the end of a value that was cut.
const CUT: &str = "…";
/// What stands for values beyond a limit.
pub(crate) const OVERFLOW: &str = "_overflow";
/// Different values kept. Beyond, a new one is taken as [`OVERFLOW`], so that memory stays bounded where a field
/// takes new values for ever; see [`Role`].
pub(crate) const MAX_LABELS: u32 = (1 << Label::BITS) - 2 - MARGIN;
/// Threads that may add a value at the same moment, each having found that there is room for one.
const MARGIN: u32 = 1_024;

/// What a value stands for: decides how much of the room it may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Stage,
    Profile,
    RunId,
}

/// The number of a label value; zero is "no value".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Label(u32);

impl Label {
    /// How many bits of the number are used.
    pub(crate) const BITS: u32 = 17;
    pub(crate) const NONE: Self = Self(0);
    pub(crate) const EMPTY: Self = Self(1);
    pub(crate) const OVERFLOW: Self = Self(2);

    pub(crate) fn from_bits(bits: u32) -> Self {
        Self(bits & ((1 << Self::BITS) - 1))
    }

    pub(crate) fn bits(self) -> u32 {
        self.0
    }

    pub(crate) fn is_none(self) -> bool {
        self == Self::NONE
    }

    /// This value, or the other where this is none.
    pub(crate) fn or(self, other: Self) -> Self {
        if self.is_none() { other } else { self }
    }
}

/// The labels a span has, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Values {
    pub(crate) stage: Label,
    pub(crate) profile: Label,
    pub(crate) run_id: Label,
}

impl Values {
    /// The three labels as one number.
    #[inline]
    pub(crate) fn pack(self) -> u64 {
        let [stage, profile, run_id] = [self.stage, self.profile, self.run_id].map(|label| u64::from(label.bits()));
        stage | profile << Label::BITS | run_id << (2 * Label::BITS)
    }

    #[inline]
    pub(crate) fn unpack(packed: u64) -> Self {
        let label = |n| Label::from_bits((packed >> (n * Label::BITS)) as u32);
        Self { stage: label(0), profile: label(1), run_id: label(2) }
    }

    /// These labels, or the others where there is none.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            stage: self.stage.or(other.stage),
            profile: self.profile.or(other.profile),
            run_id: self.run_id.or(other.run_id),
        }
    }

    pub(crate) fn contain(self, label: Label) -> bool {
        [self.stage, self.profile, self.run_id].contains(&label)
    }
}

/// The hashes of a span's values, where their labels are [`Label::OVERFLOW`]; of no meaning otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ValueHashes {
    pub(crate) stage: u64,
    pub(crate) profile: u64,
    pub(crate) run_id: u64,
}

pub(crate) struct Labels {
    values: InsertOnly<Box<str>>,
    hasher: RandomState,
    /// How many values there may be before a new one of this role is beyond the limit.
    limits: [u32; 3],
}

impl Labels {
    /// `max_series`: the limit on label sets. There is room for so many different run ids, and where that leaves room,
    /// so much is kept for profiles and for stage ids alone: neither run ids nor profiles can use it up.
    pub(crate) fn new(max_series: usize) -> Self {
        Self::with_limit(MAX_LABELS, u32::try_from(max_series).unwrap_or(MAX_LABELS))
    }

    fn with_limit(limit: u32, max_series: u32) -> Self {
        let reserved = max_series.min(limit.saturating_sub(max_series) / 2);
        let limits = [limit, limit - reserved, limit - 2 * reserved];
        let labels = Self { values: InsertOnly::new(), hasher: RandomState::default(), limits };
        for (value, number) in [("", Label::EMPTY), (OVERFLOW, Label::OVERFLOW)] {
            let label = labels.intern(Role::Stage, value);
            debug_assert_eq!(label, number);
        }
        labels
    }

    #[cfg(all(test, feature = "pushgateway"))]
    pub(crate) fn lock(&self) -> impl Sized {
        self.values.lock()
    }

    /// The number of this value, cut where it is too long.
    #[inline]
    pub(crate) fn intern(&self, role: Role, value: &str) -> Label {
        if value.len() > MAX_VALUE_BYTES {
            return self.intern_exact(role, &cut(value));
        }
        self.intern_exact(role, value)
    }

    /// The number of this value, if it has one.
    pub(crate) fn find(&self, value: &str) -> Option<Label> {
        if value.len() > MAX_VALUE_BYTES {
            return self.find_exact(&cut(value)).ok();
        }
        self.find_exact(value).ok()
    }

    #[inline]
    fn intern_exact(&self, role: Role, value: &str) -> Label {
        self.find_exact(value).unwrap_or_else(|hash| self.add(role, hash, value))
    }

    /// The hash of this value, which tells it from others where both are beyond a limit.
    pub(crate) fn hash(&self, value: &str) -> u64 {
        if value.len() > MAX_VALUE_BYTES { self.hash_exact(&cut(value)) } else { self.hash_exact(value) }
    }

    #[inline]
    fn hash_exact(&self, value: &str) -> u64 {
        // The bytes alone: `hash_one` adds a mark for the end, which a value that stands alone does not need.
        let mut hasher = self.hasher.build_hasher();
        hasher.write(value.as_bytes());
        hasher.finish()
    }

    /// The number, or the hash to add it with.
    #[inline]
    fn find_exact(&self, value: &str) -> Result<Label, u64> {
        let hash = self.hash_exact(value);
        match self.values.find(hash, |known| **known == *value) {
            Some((number, _)) => Ok(Label(number + 1)),
            None => Err(hash),
        }
    }

    #[cold]
    fn add(&self, role: Role, hash: u64, value: &str) -> Label {
        if self.values.get(self.limits[role as usize] - 1).is_some() {
            return Label::OVERFLOW;
        }
        Label(self.values.find_or_insert(hash, |known| **known == *value, || value.into()).0 + 1)
    }

    /// The text of a value; "no value" is the empty string.
    pub(crate) fn text(&self, label: Label) -> &str {
        label.0.checked_sub(1).and_then(|number| self.values.get(number)).map_or("", |value| value)
    }
}

/// Cuts at a character boundary; the mark is within the limit.
fn cut(value: &str) -> String {
    format!("{}{CUT}", prefix(value, MAX_VALUE_BYTES - CUT.len()))
}

/// At most so many bytes, in whole characters.
#[cold]
pub(crate) fn prefix(value: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(value.len())).rev().find(|end| value.is_char_boundary(*end));
    &value[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_value_has_one_number_and_none_is_empty() {
        let labels = Labels::new(2_000);
        let a = labels.intern(Role::Stage, "foundation.ingest");
        assert_eq!(labels.intern(Role::RunId, "foundation.ingest"), a, "whatever it stands for");
        assert_ne!(labels.intern(Role::Stage, "alpha.policy"), a);
        assert_eq!(labels.text(a), "foundation.ingest");
        assert_eq!(labels.intern(Role::Stage, ""), Label::EMPTY);
        assert_eq!(labels.intern(Role::Stage, "_overflow"), Label::OVERFLOW);
        assert_eq!(labels.text(Label::NONE), "");
        assert_eq!(Label::NONE.or(a), a);
        assert_eq!(a.or(Label::EMPTY), a);
    }

    #[test]
    fn beyond_the_limit_new_values_overflow_and_known_ones_stay() {
        let labels = Labels::with_limit(10, 0);
        let known: Vec<_> = (0..8).map(|n| labels.intern(Role::RunId, &n.to_string())).collect();
        assert!(!known.contains(&Label::OVERFLOW));
        assert_eq!(labels.intern(Role::Stage, "8"), Label::OVERFLOW);
        assert_eq!(labels.intern(Role::Stage, "3"), known[3]);
    }

    #[test]
    fn run_ids_and_profiles_leave_room_for_stage_ids() {
        // Two are there from the beginning.
        let labels = Labels::with_limit(12, 3);
        let interned = |role, prefix: &str| {
            let values = (0..20).map(|n| labels.intern(role, &format!("{prefix}{n}")));
            values.filter(|label| *label != Label::OVERFLOW).count()
        };
        assert_eq!(interned(Role::RunId, "run"), 4);
        assert_eq!(interned(Role::Profile, "profile"), 3);
        assert_eq!(interned(Role::Stage, "stage"), 3);
    }

    #[test]
    fn there_is_room_for_as_many_run_ids_as_label_sets() {
        for max_series in [1, 2_000, 100_000] {
            let [stages, profiles, run_ids] = Labels::new(max_series).limits;
            assert_eq!(stages, MAX_LABELS);
            assert!(run_ids as usize >= max_series && run_ids < profiles && profiles < stages, "{max_series}");
        }
    }

    #[test]
    fn the_numbers_fit_their_bits() {
        let last = Label(MAX_LABELS + MARGIN + 1);
        assert_eq!(Label::from_bits(last.bits()), last);
    }

    proptest! {
        #[test]
        fn a_long_value_is_cut_at_a_character_and_marked(value in "\\PC{0,400}") {
            let labels = Labels::new(2_000);
            let text = labels.text(labels.intern(Role::Stage, &value)).to_owned();
            if value.len() <= MAX_VALUE_BYTES {
                prop_assert_eq!(text, value);
            } else {
                prop_assert!(text.len() <= MAX_VALUE_BYTES && text.len() > MAX_VALUE_BYTES - CUT.len() - 4);
                let kept = text.strip_suffix(CUT).unwrap();
                prop_assert!(value.starts_with(kept));
            }
        }
    }
}
