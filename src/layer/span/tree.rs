//! Inheritance from ancestors: the profile and the run id of the nearest span that has them, and the rule for a span that
//! repeats the id of its nearest stage.
//!
//! Each slot keeps the results together with their epoch. A late `Span::record` of a profile or a run id begins a new epoch,
//! and results of an older epoch are resolved again. Records of other fields cost nothing. So a child of an unchanged parent
//! copies two integers, and no span walks up a long chain.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::flags::SpanFlags;
use super::state::{Slot, SlotRef, SpanRef};
use super::table::OpenSpans;
use crate::series::interner::{Interner, LabelId, SpanLabels, ValueHashes};

const EPOCH_MASK: u64 = (1 << (u64::BITS - 2 * LabelId::BITS)) - 1;

/// The source of the values of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The span or an ancestor.
    Spans,
    /// A value that is fixed for the process.
    Fixed(LabelId),
}

/// The period between two late records of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Epoch(u64);

impl Epoch {
    /// Returns whether the content of a slot is of this epoch.
    #[inline]
    fn is_of(self, packed: u64) -> bool {
        packed >> (2 * LabelId::BITS) == self.0 && self.0 != 0
    }
}

/// The open spans, each with the slot of its nearest ancestor, and the labels that they inherit.
pub(crate) struct SpanTree {
    pub(crate) open: OpenSpans,
    interner: Arc<Interner>,
    epoch: AtomicU64,
    profile: Origin,
    run_id: Origin,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ContextLabels {
    pub(crate) profile: LabelId,
    pub(crate) run_id: LabelId,
}

impl ContextLabels {
    /// Packs both labels into one integer.
    #[inline]
    pub(crate) fn bits(self) -> u64 {
        u64::from(self.profile.bits()) << LabelId::BITS | u64::from(self.run_id.bits())
    }

    /// Packs the labels and the epoch into the word of a slot.
    #[inline]
    pub(crate) fn pack(self, epoch: Epoch) -> u64 {
        epoch.0 << (2 * LabelId::BITS) | self.bits()
    }

    /// Unpacks the labels of a slot, of any epoch.
    #[inline]
    fn labels_of(packed: u64) -> Self {
        Self {
            profile: LabelId::from_bits((packed >> LabelId::BITS) as u32),
            run_id: LabelId::from_bits(packed as u32),
        }
    }

    /// Unpacks the labels of a slot if they are of this epoch.
    #[inline]
    fn unpack(packed: u64, epoch: Epoch) -> Option<Self> {
        epoch.is_of(packed).then(|| Self::labels_of(packed))
    }

    /// Returns these labels, and `other` for a missing one.
    fn or(self, other: Self) -> Self {
        Self { profile: self.profile.or(other.profile), run_id: self.run_id.or(other.run_id) }
    }
}

impl Origin {
    /// Returns the fixed value, or the span's own.
    fn or(self, own: LabelId) -> LabelId {
        match self {
            Self::Fixed(label) => label,
            Self::Spans => own,
        }
    }

    /// Returns the fixed value, else none.
    pub(crate) fn fixed(self) -> LabelId {
        self.or(LabelId::NONE)
    }

    pub(crate) fn is_spans(self) -> bool {
        self == Self::Spans
    }
}

impl SpanTree {
    pub(crate) fn new(interner: Arc<Interner>, profile: Origin, run_id: Origin) -> Self {
        // An empty slot holds epoch zero.
        Self { open: OpenSpans::new(), interner, epoch: AtomicU64::new(1), profile, run_id }
    }

    /// Makes all results in the slots stale. Pairs with [`epoch`](Self::epoch): a thread that reads the new epoch also sees
    /// what the caller changed before.
    pub(crate) fn begin_epoch(&self) {
        self.epoch.fetch_add(1, Ordering::Release);
    }

    /// The current epoch. Read it before the values: a value that is recorded in between then makes the result stale at
    /// once.
    #[inline]
    pub(crate) fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::Acquire) & EPOCH_MASK)
    }

    /// Returns whether a span that has these two labels of its own inherits one.
    #[inline]
    pub(crate) fn is_inheriting(&self, profile: bool, run_id: bool) -> bool {
        (!profile && self.profile.is_spans()) || (!run_id && self.run_id.is_spans())
    }

    /// Resolves the labels of a span from its own values and the inherited labels.
    #[inline]
    pub(crate) fn resolved(&self, own: SpanLabels, inherited: ContextLabels) -> ContextLabels {
        ContextLabels {
            profile: self.profile.or(own.profile).or(inherited.profile),
            run_id: self.run_id.or(own.run_id).or(inherited.run_id),
        }
    }

    /// Returns the labels in the slot if they are of the current epoch.
    #[inline]
    fn current(&self, slot: &Slot) -> Option<ContextLabels> {
        ContextLabels::unpack(slot.resolved.load(Ordering::Acquire), self.epoch())
    }

    /// Returns the labels of a span and keeps them in its slot. For callers that hold the span's id, and for the end of the run,
    /// after which no slot gets another span. Other callers use [`look`](Self::look).
    #[inline]
    pub(crate) fn resolve(&self, slot: &Slot) -> ContextLabels {
        self.current(slot).unwrap_or_else(|| self.resolve_slow(slot))
    }

    #[cold]
    fn resolve_slow(&self, slot: &Slot) -> ContextLabels {
        let epoch = self.epoch();
        let resolved = self.find(slot, epoch);
        if ContextLabels::labels_of(slot.resolved.load(Ordering::Relaxed)) != resolved {
            // Before the new epoch is stored: a reader that sees the new epoch does not see a stale cache entry.
            slot.clear_cached();
        }
        // Pairs with the load in `nearest_stage`: a reader that sees the new epoch also sees this. The search goes on at
        // the parent, which is right in every epoch.
        slot.set_enclosing_stage(slot.parent());
        slot.resolved.store(resolved.pack(epoch), Ordering::Release);
        resolved
    }

    /// Returns the labels of a span without a write to its slot, which may belong to another span by now. The caller must check
    /// that.
    pub(crate) fn look(&self, slot: &Slot) -> ContextLabels {
        self.find(slot, self.epoch())
    }

    fn find(&self, slot: &Slot, epoch: Epoch) -> ContextLabels {
        let own = self.resolved(slot.values(), ContextLabels::default());
        if own.profile.is_none() || own.run_id.is_none() {
            return self.resolved(slot.values(), self.inherited_from(slot.parent(), epoch));
        }
        own
    }

    /// Returns the labels that a span inherits whose nearest ancestor with a slot is `nearest`. A label without a value is the
    /// empty string.
    pub(crate) fn inherited_from(&self, mut nearest: SlotRef, epoch: Epoch) -> ContextLabels {
        let mut labels = self.resolved(SpanLabels::default(), ContextLabels::default());
        while let Some(ancestor) = self.open.get(nearest) {
            if let Some(resolved) = ContextLabels::unpack(ancestor.resolved.load(Ordering::Relaxed), epoch) {
                labels = labels.or(resolved);
                break;
            }
            let own = ancestor.values();
            labels = labels.or(ContextLabels { profile: own.profile, run_id: own.run_id });
            nearest = ancestor.parent();
        }
        labels.or(ContextLabels { profile: LabelId::EMPTY, run_id: LabelId::EMPTY })
    }

    /// Finds the nearest stage: `from` itself or an ancestor. The caller has read `epoch` before.
    ///
    /// Every slot keeps the result for its parent, so that the search skips the spans between it and that stage: a span
    /// nested ten thousand deep costs as much as the first. What is kept goes wrong when a nested span of the same stage
    /// becomes a stage of its own, since the search has to end there now: [`update_nested`](Self::update_nested) begins
    /// a new epoch then. A stage that becomes a nested span does no harm: the search goes on from there.
    #[inline]
    pub(crate) fn nearest_stage(&self, from: SlotRef, epoch: Epoch) -> Option<SpanRef<'_>> {
        let mut next = from;
        while let Some(span) = self.open.get(next) {
            if span.flags().is_stage() {
                return Some(span);
            }
            let is_current = epoch.is_of(span.resolved.load(Ordering::Acquire));
            next = if is_current { span.enclosing_stage() } else { span.parent() };
        }
        None
    }

    /// Whether a span is within another one.
    pub(crate) fn is_within(&self, span: SpanRef<'_>, other: SlotRef) -> bool {
        let mut next = span.parent();
        while let Some(ancestor) = self.open.get(next).filter(|_| next != other) {
            next = ancestor.parent();
        }
        next == other
    }

    /// Whether a span with these values, whose nearest stage this is, is a nested span of the same stage: it has the same id,
    /// and no profile or run id of its own that differs. `hashes`: of the values, where one of them is beyond a limit.
    #[inline]
    pub(crate) fn is_same_stage(&self, stage: SpanRef<'_>, own: SpanLabels, hashes: Option<&ValueHashes>) -> bool {
        let label = stage.stage();
        let may_be_same = own.stage == label || own.stage == LabelId::OVERFLOW || label == LabelId::OVERFLOW;
        may_be_same && self.has_equal_values(stage, own, hashes.copied().unwrap_or_default())
    }

    /// Compares hashes where a label is `_overflow`: different values beyond a limit share that label, and a value that has it
    /// may have had a label of its own before.
    #[inline(never)]
    fn has_equal_values(&self, stage: SpanRef<'_>, own: SpanLabels, hashes: ValueHashes) -> bool {
        let hash_of = |label: LabelId, beyond: u64| {
            if label == LabelId::OVERFLOW { beyond } else { self.interner.hash(self.interner.text(label)) }
        };
        let is_same = |own: LabelId, hash: u64, other: LabelId, other_hash: &dyn Fn() -> u64| {
            if own == LabelId::OVERFLOW || other == LabelId::OVERFLOW {
                return hash_of(own, hash) == hash_of(other, other_hash());
            }
            own == other
        };
        let stage_labels = self.look(stage.slot);
        let (profile, run_id) = (self.profile.or(own.profile), self.run_id.or(own.run_id));
        let stage_profile = || self.inherited_hash(stage, |slot| (slot.profile(), slot.hashes().profile));
        let stage_run_id = || self.inherited_hash(stage, |slot| (slot.run_id(), slot.hashes().run_id));
        is_same(own.stage, hashes.stage, stage.stage(), &|| stage.hashes().stage)
            && (profile.is_none() || is_same(profile, hashes.profile, stage_labels.profile, &stage_profile))
            && (run_id.is_none() || is_same(run_id, hashes.run_id, stage_labels.run_id, &stage_run_id))
    }

    /// Determines whether a span is a nested span of the same stage, after its stage id was recorded late.
    pub(crate) fn update_nested(&self, slot: &Slot) {
        let stage = self.nearest_stage(slot.parent(), self.epoch());
        // Shortens the search of descendants if ancestors became nested spans.
        slot.set_enclosing_stage(stage.map_or(SlotRef::NONE, |stage| stage.reference()));
        let same = stage.filter(|stage| self.is_same_stage(*stage, slot.values(), Some(&slot.hashes())));
        if let Some(stage) = same
            && slot.flags().has(SpanFlags::ERROR_EVENT.with(SpanFlags::ERROR_WITHIN))
        {
            // These errors happened before the id was known, in what is now an ordinary span of that stage.
            stage.set_flag(SpanFlags::ERROR_WITHIN);
        }
        let is_nested = same.is_some();
        let before = slot.update_flags(|flags| {
            if is_nested {
                flags.with(SpanFlags::NESTED_SAME_STAGE)
            } else {
                flags.without(SpanFlags::NESTED_SAME_STAGE)
            }
        });
        if before.has(SpanFlags::NESTED_SAME_STAGE) && !is_nested {
            self.begin_epoch();
        }
    }

    /// Returns the hash of the value that this span has or inherits.
    fn inherited_hash(&self, span: SpanRef<'_>, own: impl Fn(&Slot) -> (LabelId, u64)) -> u64 {
        let mut next = Some(span);
        while let Some(span) = next {
            let (label, hash) = own(span.slot);
            if !label.is_none() {
                return hash;
            }
            next = self.open.get(span.parent());
        }
        0
    }
}
