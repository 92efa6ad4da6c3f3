//! Profile and run id of a span: its own, or those of the nearest span around it that has them.
//!
//! What was found out is kept in the span's slot together with the epoch. A late `Span::record` begins a new epoch;
//! a span whose slot is of an older one looks again. So a child of an unchanged parent takes two integers over, and
//! nobody walks up.

use std::sync::atomic::{AtomicU64, Ordering};

use super::labels::Label;
use super::open::{Found, OpenSpans, Slot};
use super::outcome::Facts;

const EPOCH_MASK: u64 = (1 << (u64::BITS - 2 * Label::BITS)) - 1;

/// Where a label's value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The span, or one around it.
    Spans,
    /// The same for the whole process.
    Fixed(Label),
}

pub(crate) struct Inheritance {
    epoch: AtomicU64,
    profile: Origin,
    run_id: Origin,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub(crate) profile: Label,
    pub(crate) run_id: Label,
}

impl Resolved {
    fn pack(self, epoch: u64) -> u64 {
        epoch << (2 * Label::BITS) | u64::from(self.profile.bits()) << Label::BITS | u64::from(self.run_id.bits())
    }

    /// What a slot holds, if it is of this epoch.
    fn unpack(packed: u64, epoch: u64) -> Option<Self> {
        let resolved =
            Self { profile: Label::from_bits((packed >> Label::BITS) as u32), run_id: Label::from_bits(packed as u32) };
        (packed >> (2 * Label::BITS) == epoch && epoch != 0).then_some(resolved)
    }
}

impl Origin {
    /// The value where it is fixed, else what the span says.
    fn or(self, own: Label) -> Label {
        match self {
            Self::Fixed(label) => label,
            Self::Spans => own,
        }
    }

    pub(crate) fn is_spans(self) -> bool {
        self == Self::Spans
    }
}

impl Inheritance {
    pub(crate) fn new(profile: Origin, run_id: Origin) -> Self {
        // Zero is what an empty slot holds.
        Self { epoch: AtomicU64::new(1), profile, run_id }
    }

    /// A value was recorded late: whatever was found out before may no longer hold.
    pub(crate) fn begin_epoch(&self) {
        self.epoch.fetch_add(1, Ordering::Release);
    }

    /// The labels of this span under the values known now, which are kept in its slot. For whoever has the span's id;
    /// others [`look`](Self::look).
    #[inline]
    pub(crate) fn resolve(&self, open: &OpenSpans, slot: &Slot) -> Resolved {
        // Before the values are read: one recorded meanwhile makes what is stored here out of date at once.
        let epoch = self.epoch.load(Ordering::Acquire) & EPOCH_MASK;
        if let Some(resolved) = Resolved::unpack(slot.resolved.load(Ordering::Relaxed), epoch) {
            return resolved;
        }
        let resolved = self.find(open, slot, epoch);
        slot.resolved.store(resolved.pack(epoch), Ordering::Relaxed);
        resolved
    }

    /// The same, without writing: the slot may be another span's by now, which the caller has to find out.
    pub(crate) fn look(&self, open: &OpenSpans, slot: &Slot) -> Resolved {
        let epoch = self.epoch.load(Ordering::Acquire) & EPOCH_MASK;
        self.find(open, slot, epoch)
    }

    /// A value that is nowhere is the empty string.
    fn find(&self, open: &OpenSpans, slot: &Slot, epoch: u64) -> Resolved {
        let mut profile = self.profile.or(slot.profile());
        let mut run_id = self.run_id.or(slot.run_id());
        let mut parent = slot.parent();
        while (profile.is_none() || run_id.is_none())
            && let Some(around) = open.get(parent)
        {
            if let Some(known) = Resolved::unpack(around.resolved.load(Ordering::Relaxed), epoch) {
                profile = profile.or(known.profile);
                run_id = run_id.or(known.run_id);
                break;
            }
            profile = profile.or(around.profile());
            run_id = run_id.or(around.run_id());
            parent = around.parent();
        }
        Resolved { profile: profile.or(Label::EMPTY), run_id: run_id.or(Label::EMPTY) }
    }
}

/// The nearest stage around a span.
pub(crate) fn stage_around<'a>(open: &'a OpenSpans, slot: &Slot) -> Option<Found<'a>> {
    let mut next = open.get(slot.parent());
    while let Some(around) = next {
        if around.facts().is_stage() {
            return Some(around);
        }
        next = open.get(around.parent());
    }
    None
}

impl Inheritance {
    /// Decides whether a stage span repeats the stage around it: the same id, and no profile or run id of its own
    /// that differs. Called when its stage id becomes known.
    pub(crate) fn decide_part(&self, open: &OpenSpans, slot: &Slot) {
        let part_of = stage_around(open, slot).filter(|around| {
            let known = self.look(open, around.slot);
            // Two values beyond a limit may be any two.
            let same = |own: Label, around: Label| own.is_none() || (own == around && own != Label::OVERFLOW);
            slot.stage() == around.stage()
                && same(self.profile.or(slot.profile()), known.profile)
                && same(self.run_id.or(slot.run_id()), known.run_id)
        });
        if let Some(stage) = part_of
            && slot.facts().has(Facts::ERROR_EVENT.with(Facts::ERROR_WITHIN))
        {
            // From before its id was known. They happened in an ordinary span of that stage, as it turns out.
            stage.add_fact(Facts::ERROR_WITHIN);
        }
        let part = part_of.is_some();
        slot.update_facts(
            |facts| {
                if part { facts.with(Facts::PART_OF_STAGE) } else { facts.without(Facts::PART_OF_STAGE) }
            },
        );
    }
}
