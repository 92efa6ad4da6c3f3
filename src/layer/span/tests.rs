//! Tests of the table of open spans.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use tracing::span::Id;

use super::flags::SpanFlags;
use super::state::{NewSpan, Slot, SpanRef};
use super::table::*;
use proptest::prelude::*;

fn claim(open: &OpenSpans, id: u64, mark: u64) -> SpanRef<'_> {
    evict(open, id);
    let span = NewSpan { started: mark, flags: SpanFlags::STAGE, ..NewSpan::default() };
    open.claim(&Id::from_u64(id), span).unwrap()
}

fn evict(open: &OpenSpans, id: u64) {
    if let Some(left) = open.find(&Id::from_u64(id)) {
        open.release(left);
    }
}

fn mark(open: &OpenSpans, id: u64) -> Option<u64> {
    open.find(&Id::from_u64(id)).map(|span| span.started.load(Ordering::Relaxed))
}

/// Whether there is no key and no count: every look-up ends after two loads.
fn is_empty<const FIRST: usize>(open: &OpenSpans<FIRST>) -> bool {
    open.levels().all(|level| {
        level.keys.iter().all(|key| key.load(Ordering::Relaxed) == 0)
            && level.displaced.iter().all(|displaced| displaced.load(Ordering::Relaxed) == 0)
    })
}

#[derive(Clone, Debug)]
enum Step {
    Open(u64),
    Close(u64),
    Look(u64),
}

fn step() -> impl Strategy<Value = Step> {
    // Few ids, so that they are used again; many steps, so that buckets overflow into the next level.
    let id = 1..400_u64;
    prop_oneof![id.clone().prop_map(Step::Open), id.clone().prop_map(Step::Close), id.prop_map(Step::Look)]
}

proptest! {
    #[test]
    fn behaves_like_a_map(steps in prop::collection::vec(step(), 1..3_000)) {
        let open = OpenSpans::<PLACES>::new();
        let mut model = HashMap::new();
        for (n, step) in steps.into_iter().enumerate() {
            let n = n as u64 + 1;
            match step {
                Step::Open(id) => {
                    claim(&open, id, n);
                    model.insert(id, n);
                }
                Step::Close(id) => {
                    if let Some(span) = open.find(&Id::from_u64(id)) {
                        open.release(span);
                    }
                    model.remove(&id);
                }
                Step::Look(id) => prop_assert_eq!(mark(&open, id), model.get(&id).copied()),
            }
        }
        let mut left: Vec<_> = open.iter().map(|span| span.started.load(Ordering::Relaxed)).collect();
        let mut expected: Vec<_> = model.into_values().collect();
        left.sort_unstable();
        expected.sort_unstable();
        prop_assert_eq!(left, expected);
        (1..400).for_each(|id| evict(&open, id));
        prop_assert!(is_empty(&open));
    }
}

#[test]
fn span_has_its_slot_from_claim_to_release() {
    let open = OpenSpans::<PLACES>::new();
    let mut earlier = Vec::new();
    for mark in 1..=3 {
        let span = claim(&open, 7, mark);
        let reference = span.reference();
        assert!(span.is_open() && span.is_current(reference));
        assert_eq!((open.iter().count(), open.taken().count()), (1, 1));
        assert!(earlier.iter().all(|earlier| open.get(*earlier).is_none() && !span.is_current(*earlier)));
        assert!(span.try_finish(reference) && !span.try_finish(reference), "it is counted once");
        assert!(!span.is_open() && !span.is_current(reference));
        assert_eq!((open.iter().count(), open.taken().count()), (0, 1));
        assert_eq!(span.reference(), reference);
        assert!(open.get(reference).is_some() && open.get_initialized(&Id::from_u64(7)).is_some());
        open.release(span);
        assert!(open.get(reference).is_none() && open.find(&Id::from_u64(7)).is_none());
        earlier.push(reference);
    }
}

#[test]
fn slot_takes_two_cache_lines() {
    assert_eq!(size_of::<Slot>(), 128);
}

#[test]
fn far_more_spans_than_the_first_level_holds() {
    let open = OpenSpans::<PLACES>::new();
    for id in 1..=20_000 {
        claim(&open, id, id);
    }
    for id in 1..=20_000 {
        assert_eq!(mark(&open, id), Some(id));
        let reference = open.find(&Id::from_u64(id)).unwrap().reference();
        assert_eq!(open.get(reference).unwrap().started.load(Ordering::Relaxed), id);
    }
    assert_eq!(open.iter().count(), 20_000);
    assert!(!is_empty(&open));
    (1..=20_000).for_each(|id| evict(&open, id));
    assert!(is_empty(&open));
}

#[test]
fn spans_beyond_all_levels_have_a_slot() {
    const SPANS: u64 = 100_000;
    let open = OpenSpans::<16>::new();
    let claim = |id, mark| {
        let span = NewSpan { started: mark, flags: SpanFlags::STAGE, ..NewSpan::default() };
        open.claim(&Id::from_u64(id), span).unwrap().reference()
    };
    let references: Vec<_> = (1..=SPANS).map(|id| claim(id, id)).collect();
    assert!(open.crowd.used() > 20_000, "{}", open.crowd.used());
    for (id, reference) in (1..).zip(&references) {
        let span = open.find(&Id::from_u64(id)).unwrap();
        assert_eq!((span.reference(), span.started.load(Ordering::Relaxed)), (*reference, id));
        assert_eq!(open.get(*reference).unwrap().started.load(Ordering::Relaxed), id);
    }
    assert_eq!(open.iter().count(), SPANS as usize);
    let used = open.crowd.used();
    for id in 1..=SPANS {
        open.release(open.find(&Id::from_u64(id)).unwrap());
    }
    assert!(references.iter().all(|reference| open.get(*reference).is_none()));
    assert_eq!((open.iter().count(), open.crowd.open.load(Ordering::Relaxed)), (0, 0));
    assert!(is_empty(&open), "a closed span is still counted as displaced");
    (1..=SPANS).for_each(|id| {
        claim(id, 2 * id);
    });
    assert_eq!(open.crowd.used(), used, "places are used again");
    assert!(open.end() && !open.end());
    assert!(open.claim(&Id::from_u64(SPANS + 1), NewSpan::default()).is_none());
    assert_eq!(open.taken().count(), SPANS as usize);
}

#[test]
fn a_reference_does_not_outlive_its_span() {
    let open = OpenSpans::<PLACES>::new();
    let first = claim(&open, 7, 1);
    let reference = first.reference();
    open.release(first);
    assert!(open.get(reference).is_none());
    let second = claim(&open, 7, 2);
    assert!(open.get(reference).is_none());
    assert!(!second.try_finish(reference));
    assert!(second.try_finish(second.reference()));
    assert!(!second.try_finish(second.reference()), "a span is counted once");
}

#[test]
fn a_span_whose_end_was_not_told_gives_way_to_the_next_with_its_id() {
    let open = OpenSpans::<PLACES>::new();
    let stale = claim(&open, 7, 1).reference();
    claim(&open, 7, 2);
    assert_eq!(mark(&open, 7), Some(2));
    assert!(open.get(stale).is_none());
    evict(&open, 7);
    assert_eq!(open.iter().count(), 0);
}

#[test]
fn threads_do_not_see_each_others_spans() {
    let open = OpenSpans::<PLACES>::new();
    std::thread::scope(|scope| {
        for thread in 0..8_u64 {
            let open = &open;
            scope.spawn(move || {
                for round in 1..20_000_u64 {
                    let ids = [thread * 1_000 + 1 + round % 37, thread * 1_000 + 500 + round % 11];
                    for id in ids {
                        claim(open, id, id << 32 | round);
                    }
                    for id in ids {
                        assert_eq!(mark(open, id), Some(id << 32 | round));
                        let span = open.find(&Id::from_u64(id)).unwrap();
                        assert!(span.try_finish(span.reference()));
                        open.release(span);
                    }
                }
            });
        }
    });
    assert_eq!(open.iter().count(), 0);
    assert!(is_empty(&open));
}
