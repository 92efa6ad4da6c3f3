//! Label values, each stored once and named by a small integer.
//!
//! A span has the ids of its values, a child inherits them as integers, and a series is found by three of them. Strings are
//! compared once, when a span opens.

use std::hash::{BuildHasher, Hasher};

use rapidhash::fast::RandomState;

use super::append_only_map::AppendOnlyMap;
use crate::schema::OVERFLOW;

/// Longest label value in bytes; a longer one is cut.
pub(crate) const MAX_VALUE_BYTES: usize = 256;
/// The mark at the end of a value that was cut.
pub(crate) const CUT: &str = "…";
/// Maximum number of different values. A further one becomes [`OVERFLOW`], so that memory stays bounded if a field has new
/// values for ever; see [`Role`].
pub(crate) const MAX_LABELS: u32 = (1 << LabelId::BITS) - 2 - MARGIN;
/// Number of threads that may add a value at the same moment, each after it has seen room for one.
const MARGIN: u32 = 1_024;

/// The label of a value. It determines how much of the room the value may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Stage,
    Profile,
    RunId,
}

/// The id of a label value; zero is "no value".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct LabelId(u32);

impl LabelId {
    /// The number of bits of an id.
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

    /// Returns this value, or `other` if this one is none.
    pub(crate) fn or(self, other: Self) -> Self {
        if self.is_none() { other } else { self }
    }
}

/// The labels of a span; a label that it lacks is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SpanLabels {
    pub(crate) stage: LabelId,
    pub(crate) profile: LabelId,
    pub(crate) run_id: LabelId,
}

impl SpanLabels {
    /// The three labels as one number.
    #[inline]
    pub(crate) fn pack(self) -> u64 {
        let [stage, profile, run_id] = [self.stage, self.profile, self.run_id].map(|label| u64::from(label.bits()));
        stage | profile << LabelId::BITS | run_id << (2 * LabelId::BITS)
    }

    #[inline]
    pub(crate) fn unpack(packed: u64) -> Self {
        let label = |n| LabelId::from_bits((packed >> (n * LabelId::BITS)) as u32);
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

    pub(crate) fn contain(self, label: LabelId) -> bool {
        [self.stage, self.profile, self.run_id].contains(&label)
    }
}

/// The hashes of those values of a span whose labels are [`LabelId::OVERFLOW`]; the other hashes are unused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ValueHashes {
    pub(crate) stage: u64,
    pub(crate) profile: u64,
    pub(crate) run_id: u64,
}

/// Stores label values and assigns their ids.
pub(crate) struct Interner {
    values: AppendOnlyMap<Box<str>>,
    hasher: RandomState,
    /// By role: the number of values at which a new one is beyond the limit.
    limits: [u32; 3],
}

impl Interner {
    /// Creates an interner with room for `max_series` run ids. Up to as much again is reserved for profiles and for stage ids
    /// each, which run ids cannot use up.
    pub(crate) fn new(max_series: usize) -> Self {
        Self::with_limit(MAX_LABELS, u32::try_from(max_series).unwrap_or(MAX_LABELS))
    }

    fn with_limit(limit: u32, max_series: u32) -> Self {
        let reserved = max_series.min(limit.saturating_sub(max_series) / 2);
        let limits = [limit, limit - reserved, limit - 2 * reserved];
        let labels = Self { values: AppendOnlyMap::new(), hasher: RandomState::default(), limits };
        for (value, id) in [("", LabelId::EMPTY), (OVERFLOW, LabelId::OVERFLOW)] {
            let label = labels.intern(Role::Stage, value);
            debug_assert_eq!(label, id);
        }
        labels
    }

    #[cfg(all(test, feature = "pushgateway"))]
    pub(crate) fn lock(&self) -> impl Sized {
        self.values.lock()
    }

    /// Returns the id of a value. A value that is too long is cut.
    #[inline]
    pub(crate) fn intern(&self, role: Role, value: &str) -> LabelId {
        if value.len() > MAX_VALUE_BYTES {
            return self.intern_exact(role, &cut(value));
        }
        self.intern_exact(role, value)
    }

    /// Returns the id of a value that is stored.
    pub(crate) fn find(&self, value: &str) -> Option<LabelId> {
        if value.len() > MAX_VALUE_BYTES {
            return self.find_exact(&cut(value)).ok();
        }
        self.find_exact(value).ok()
    }

    #[inline]
    fn intern_exact(&self, role: Role, value: &str) -> LabelId {
        self.find_exact(value).unwrap_or_else(|hash| self.add(role, hash, value))
    }

    /// Returns the hash of a value, which distinguishes values beyond a limit.
    pub(crate) fn hash(&self, value: &str) -> u64 {
        if value.len() > MAX_VALUE_BYTES { self.hash_exact(&cut(value)) } else { self.hash_exact(value) }
    }

    #[inline]
    fn hash_exact(&self, value: &str) -> u64 {
        // `hash_one` would add an end mark, which a single value does not need.
        let mut hasher = self.hasher.build_hasher();
        hasher.write(value.as_bytes());
        hasher.finish()
    }

    /// Returns the id, or the hash to insert the value with.
    #[inline]
    fn find_exact(&self, value: &str) -> Result<LabelId, u64> {
        let hash = self.hash_exact(value);
        match self.values.find(hash, |stored| **stored == *value) {
            Some((id, _)) => Ok(LabelId(id + 1)),
            None => Err(hash),
        }
    }

    #[cold]
    fn add(&self, role: Role, hash: u64, value: &str) -> LabelId {
        if self.values.get(self.limits[role as usize] - 1).is_some() {
            return LabelId::OVERFLOW;
        }
        LabelId(self.values.find_or_insert(hash, |stored| **stored == *value, || value.into()).0 + 1)
    }

    /// Returns the text of a value; "no value" is the empty string.
    pub(crate) fn text(&self, label: LabelId) -> &str {
        label.0.checked_sub(1).and_then(|id| self.values.get(id)).map_or("", |value| value)
    }
}

/// Cuts a value at a character boundary. The mark is within the limit.
fn cut(value: &str) -> String {
    format!("{}{CUT}", prefix(value, MAX_VALUE_BYTES - CUT.len()))
}

/// Returns at most this many bytes of a text, in whole characters.
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
    fn value_has_one_id_and_none_is_empty() {
        let labels = Interner::new(2_000);
        let a = labels.intern(Role::Stage, "foundation.ingest");
        assert_eq!(labels.intern(Role::RunId, "foundation.ingest"), a, "whatever it stands for");
        assert_ne!(labels.intern(Role::Stage, "alpha.policy"), a);
        assert_eq!(labels.text(a), "foundation.ingest");
        assert_eq!(labels.intern(Role::Stage, ""), LabelId::EMPTY);
        assert_eq!(labels.intern(Role::Stage, "_overflow"), LabelId::OVERFLOW);
        assert_eq!(labels.text(LabelId::NONE), "");
        assert_eq!(LabelId::NONE.or(a), a);
        assert_eq!(a.or(LabelId::EMPTY), a);
    }

    #[test]
    fn new_values_beyond_the_limit_overflow() {
        let labels = Interner::with_limit(10, 0);
        let known: Vec<_> = (0..8).map(|n| labels.intern(Role::RunId, &n.to_string())).collect();
        assert!(!known.contains(&LabelId::OVERFLOW));
        assert_eq!(labels.intern(Role::Stage, "8"), LabelId::OVERFLOW);
        assert_eq!(labels.intern(Role::Stage, "3"), known[3]);
    }

    #[test]
    fn run_ids_and_profiles_leave_room_for_stage_ids() {
        // Two values are stored from the beginning.
        let labels = Interner::with_limit(12, 3);
        let interned = |role, prefix: &str| {
            let values = (0..20).map(|n| labels.intern(role, &format!("{prefix}{n}")));
            values.filter(|label| *label != LabelId::OVERFLOW).count()
        };
        assert_eq!(interned(Role::RunId, "run"), 4);
        assert_eq!(interned(Role::Profile, "profile"), 3);
        assert_eq!(interned(Role::Stage, "stage"), 3);
    }

    #[test]
    fn every_label_set_may_have_its_run_id() {
        for max_series in [1, 2_000, 100_000] {
            let [stages, profiles, run_ids] = Interner::new(max_series).limits;
            assert_eq!(stages, MAX_LABELS);
            assert!(run_ids as usize >= max_series && run_ids < profiles && profiles < stages, "{max_series}");
        }
    }

    #[test]
    fn ids_fit_their_bits() {
        let last = LabelId(MAX_LABELS + MARGIN + 1);
        assert_eq!(LabelId::from_bits(last.bits()), last);
    }

    #[test]
    fn long_value_is_found_by_its_kept_part() {
        let labels = Interner::new(2_000);
        for (text, length) in [("x", MAX_VALUE_BYTES), ("y", MAX_VALUE_BYTES + 1), ("z", 2 * MAX_VALUE_BYTES)] {
            let value = text.repeat(length);
            assert_eq!(labels.find(&value), None);
            let label = labels.intern(Role::RunId, &value);
            assert_eq!(labels.text(label) == value, length == MAX_VALUE_BYTES);
            assert_eq!(labels.find(&value), Some(label));
            assert_eq!(labels.hash(&value), labels.hash(labels.text(label)));
        }
    }

    #[test]
    fn concurrent_insertions_of_a_value_get_one_id() {
        let labels = Interner::new(2_000);
        let all = || -> Vec<_> { (0..10_000).map(|n| labels.intern(Role::Stage, &n.to_string())).collect() };
        let [a, b] = std::thread::scope(|scope| [scope.spawn(all), scope.spawn(all)].map(|t| t.join().unwrap()));
        assert!(a == b);
    }

    proptest! {
        #[test]
        fn long_values_are_cut_at_a_character_and_marked(value in "\\PC{0,400}") {
            let labels = Interner::new(2_000);
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
