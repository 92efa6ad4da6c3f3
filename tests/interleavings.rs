//! The table of open spans under all interleavings of its operations on up to three threads, tried by `loom`, which
//! also lets a thread see every value that the memory orderings allow.
//!
//! The table is the crate's own source, with `loom`'s atomics in place of those of the standard library, and a first
//! level of one bucket: few slots, so that threads meet in them.
#![allow(clippy::print_stdout, clippy::unwrap_used, dead_code, unreachable_pub, unused_imports)]

#[path = "interleavings/layer.rs"]
mod layer;
#[path = "../src/schema.rs"]
mod schema;

/// As `src/sync.rs`.
mod sync {
    use loom::sync::atomic::{AtomicUsize, Ordering};

    pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, fence};
    pub(crate) use loom::thread::yield_now;

    /// `loom` does not know the order of sequentially consistent accesses to different variables. What it gives follows
    /// from exchanges of the flag alone, which are in one order with each other.
    #[derive(Debug, Default)]
    pub(crate) struct Flag(AtomicUsize);

    impl Flag {
        pub(crate) fn raise(&self) -> bool {
            self.0.swap(1, Ordering::AcqRel) == 0
        }

        pub(crate) fn is_raised(&self) -> bool {
            self.0.fetch_add(0, Ordering::AcqRel) != 0
        }
    }

    /// A thread that spins waits for another.
    pub(crate) fn spin_loop() {
        yield_now();
    }
}

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;

use layer::index::place_of;
use layer::open::{NewSpan, SlotRef, SpanRef};
use layer::outcome::Facts;
use loom::sync::Arc;
use loom::thread::{self, JoinHandle};
use tracing::span::Id;

/// Places of the first level.
const FIRST: usize = 8;

type OpenSpans = layer::open::OpenSpans<FIRST>;

fn id(id: u64) -> Id {
    Id::from_u64(id)
}

/// A span that is told from others by `mark`.
fn span(mark: u64) -> NewSpan {
    NewSpan { started: mark, facts: Facts::STAGE, ..NewSpan::default() }
}

fn mark(found: SpanRef<'_>) -> u64 {
    found.started.load(Relaxed)
}

fn open(spans: &OpenSpans, at: u64, mark: u64) -> SlotRef {
    spans.claim(&id(at), span(mark)).unwrap().reference()
}

/// Closes it as the layer does: counts it if nobody did, and frees the slot. Returns what was counted.
fn close(spans: &OpenSpans, at: u64) -> Option<u64> {
    let found = spans.find(&id(at)).unwrap();
    let counted = mark(found);
    let is_finished = found.try_finish(found.reference());
    spans.release(found);
    is_finished.then_some(counted)
}

/// Ends the run and goes over the open spans, as the layer does. Returns what was counted.
fn end(spans: &OpenSpans) -> Vec<u64> {
    let mut counted = Vec::new();
    assert!(spans.end(), "it ends once");
    for found in spans.taken() {
        let reference = found.reference();
        let mark = mark(found);
        if found.try_finish(reference) {
            counted.push(mark);
        }
    }
    counted
}

/// Opens a span with the id 1 and closes it, unless the run is over; what was counted.
fn open_and_close(spans: &OpenSpans, mark: u64) -> Option<u64> {
    spans.claim(&id(1), span(mark))?;
    close(spans, 1)
}

/// Runs it on a thread of its own.
fn beside<T: 'static>(spans: &Arc<OpenSpans>, work: impl FnOnce(&OpenSpans) -> T + 'static) -> JoinHandle<T> {
    let spans = Arc::clone(spans);
    thread::spawn(move || work(&spans))
}

/// Ids with the same home in the first level.
fn neighbours(count: usize) -> Vec<u64> {
    let home = |id| place_of(id, FIRST);
    (1..).filter(|id| home(*id) == home(1)).take(count).collect()
}

/// Tries a model. What is seen in its executions must be all that is listed and nothing else: what never happens proves
/// nothing.
fn model<T: Ord + std::fmt::Debug + Send + 'static>(
    name: &str,
    run: impl Fn() -> T + Sync + Send + 'static,
    seen: &[T],
) {
    let executions = std::sync::Arc::new(Mutex::new(BTreeMap::new()));
    let mut builder = loom::model::Builder::new();
    // The most interruptions of one execution. Bugs in such structures show with two or three.
    builder.preemption_bound = Some(3);
    // For those who go over all slots.
    builder.max_branches = 100_000;
    let tally = std::sync::Arc::clone(&executions);
    builder.check(move || {
        let result = run();
        *tally.lock().unwrap().entry(result).or_insert(0) += 1;
    });
    let executions = executions.lock().unwrap();
    println!("{name}: {executions:?}");
    assert_eq!(executions.keys().collect::<Vec<_>>(), seen.iter().collect::<Vec<_>>(), "{name}");
    assert!(executions.values().sum::<usize>() > 50, "{name}: the threads hardly meet");
}

/// Whether a look-up of each of these ids ends at its home: no key is there, and no span is counted as displaced.
fn are_absent(spans: &OpenSpans, ids: &[u64]) -> bool {
    ids.iter().all(|at| !spans.may_have(&id(*at)))
}

/// Two threads open and close spans with the same home.
fn neighbours_do_not_meet() {
    let spans = Arc::new(OpenSpans::new());
    let work = |at| {
        move |spans: &OpenSpans| {
            open(spans, at, at);
            assert_eq!(mark(spans.find(&id(at)).unwrap()), at);
            assert_eq!(close(spans, at), Some(at));
            assert!(spans.find(&id(at)).is_none());
        }
    };
    let threads: Vec<_> = neighbours(2).into_iter().map(|at| beside(&spans, work(at))).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(spans.iter().count(), 0);
    assert!(are_absent(&spans, &neighbours(2)));
}

/// A span is displaced, since a neighbour has their home. The neighbour closes and another one opens and closes, at home or
/// displaced as well. The displaced span is found throughout, and once all are closed none is counted.
fn displaced_span_is_found_while_its_neighbours_change() {
    let spans = Arc::new(OpenSpans::new());
    let ids = neighbours(3);
    let [first, displaced, next] = [ids[0], ids[1], ids[2]];
    open(&spans, first, first);
    open(&spans, displaced, displaced);
    let changing = beside(&spans, move |spans| {
        assert_eq!(close(spans, first), Some(first));
        open(spans, next, next);
        assert_eq!(close(spans, next), Some(next));
    });
    let looking = beside(&spans, move |spans| {
        assert_eq!(mark(spans.find(&id(displaced)).unwrap()), displaced);
        assert_eq!(close(spans, displaced), Some(displaced));
    });
    changing.join().unwrap();
    looking.join().unwrap();
    assert!(are_absent(&spans, &ids));
}

/// A thread looks for an id that no span has while two others open and close displaced spans with its home.
fn absent_id_is_not_found_while_displaced_spans_come_and_go() {
    let spans = Arc::new(OpenSpans::new());
    let ids = neighbours(4);
    let absent = ids[3];
    open(&spans, ids[0], ids[0]);
    let work = |at| {
        move |spans: &OpenSpans| {
            open(spans, at, at);
            assert_eq!(close(spans, at), Some(at));
        }
    };
    let threads = [ids[1], ids[2]].map(|at| beside(&spans, work(at)));
    assert!(spans.find(&id(absent)).is_none());
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(close(&spans, ids[0]), Some(ids[0]));
    assert!(are_absent(&spans, &ids));
}

/// An id is used again while another thread holds a reference to the span that had it before, as a child that reads what it
/// inherits, and counts what it refers to. It reads the first span's values, or finds that it is gone.
fn a_reference_does_not_reach_the_next_span_with_the_id() -> [Option<u64>; 2] {
    let spans = Arc::new(OpenSpans::new());
    let reference = open(&spans, 1, 1);
    let closing = beside(&spans, |spans| {
        let first = close(spans, 1);
        [first, open_and_close(spans, 2)]
    });
    let looking = beside(&spans, move |spans| {
        let Some(found) = spans.get(reference) else { return [None, None] };
        let seen = mark(found);
        let is_current = found.is_current(reference);
        [is_current.then_some(seen), found.try_finish(reference).then_some(seen)]
    });
    let [seen, counted] = looking.join().unwrap();
    let [first, second] = closing.join().unwrap();
    assert_eq!(counted.into_iter().chain(first).collect::<Vec<_>>(), [1], "the first span counts once");
    assert_eq!(second, Some(2), "the second span is its own");
    assert_eq!(spans.get(reference).map(mark), None);
    [seen, counted]
}

/// The run ends while one span closes and another, with the same id and in the same slot, opens and closes: who counted
/// which. The second is counted unless it is refused.
fn at_the_end_of_the_run_each_span_counts_once() -> (Vec<u64>, [Option<u64>; 2]) {
    let spans = Arc::new(OpenSpans::new());
    open(&spans, 1, 1);
    let working = beside(&spans, |spans| {
        let first = close(spans, 1);
        let is_open = spans.claim(&id(1), span(2)).is_some();
        (first, is_open, is_open.then(|| close(spans, 1)).flatten())
    });
    let ending = beside(&spans, end);
    let by_end = ending.join().unwrap();
    let (first, is_open, second) = working.join().unwrap();
    let mut counted: Vec<_> = by_end.iter().copied().chain(first).chain(second).collect();
    counted.sort_unstable();
    assert_eq!(counted, if is_open { vec![1, 2] } else { vec![1] });
    (by_end, [first, second])
}

/// One thread looks for a span that another is giving its slot: as a stage looks for its parent. It finds all of it or
/// nothing. `is_displaced`: a neighbour has the span's home.
fn what_is_found_is_whole(is_displaced: bool) -> Option<u64> {
    let spans = Arc::new(OpenSpans::new());
    if is_displaced {
        let neighbour = neighbours(2)[1];
        open(&spans, neighbour, neighbour);
    }
    // What the slot had before.
    open(&spans, 1, 1);
    close(&spans, 1);
    let opening = beside(&spans, |spans| open(spans, 1, 2));
    let looking = beside(&spans, |spans| {
        let reference = spans.get_initialized(&id(1))?.reference();
        spans.get(reference).map(mark)
    });
    opening.join().unwrap();
    let seen = looking.join().unwrap();
    assert_eq!(close(&spans, 1), Some(2));
    seen
}

/// Two threads open spans in a bucket that has one place left: one of them goes to the next level.
fn a_full_bucket_overflows_into_the_next_level() {
    let spans = Arc::new(OpenSpans::new());
    let ids = neighbours(9);
    ids[..7].iter().for_each(|at| {
        open(&spans, *at, *at);
    });
    let work = |at| {
        move |spans: &OpenSpans| {
            open(spans, at, at);
            assert_eq!(mark(spans.find(&id(at)).unwrap()), at);
        }
    };
    let threads = [ids[7], ids[8]].map(|at| beside(&spans, work(at)));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(spans.iter().count(), 9);
    ids.iter().for_each(|at| assert_eq!(close(&spans, *at), Some(*at)));
    assert_eq!(spans.iter().count(), 0);
    assert!(are_absent(&spans, &ids));
}

/// A span that is opened while the run ends is either not opened or seen by who goes over the open spans.
fn a_span_that_opens_at_the_end_is_counted_or_refused() -> bool {
    let spans = Arc::new(OpenSpans::new());
    let opening = beside(&spans, |spans| spans.claim(&id(1), span(1)).is_some());
    let ending = beside(&spans, end);
    let is_open = opening.join().unwrap();
    assert_eq!(ending.join().unwrap(), if is_open { vec![1] } else { vec![] });
    is_open
}

fn main() {
    model("neighbours do not meet", neighbours_do_not_meet, &[()]);
    model(
        "displaced span is found while its neighbours change",
        displaced_span_is_found_while_its_neighbours_change,
        &[()],
    );
    model(
        "absent id is not found while displaced spans come and go",
        absent_id_is_not_found_while_displaced_spans_come_and_go,
        &[()],
    );
    model(
        "a reference does not reach the next span with the id",
        a_reference_does_not_reach_the_next_span_with_the_id,
        &[[None, None], [Some(1), None], [Some(1), Some(1)]],
    );
    model(
        "at the end of the run each span counts once",
        at_the_end_of_the_run_each_span_counts_once,
        &[(vec![], [Some(1), None]), (vec![], [Some(1), Some(2)]), (vec![1], [None, None]), (vec![2], [Some(1), None])],
    );
    for is_displaced in [false, true] {
        model("what is found is whole", move || what_is_found_is_whole(is_displaced), &[None, Some(2)]);
    }
    model("a full bucket overflows into the next level", a_full_bucket_overflows_into_the_next_level, &[()]);
    model(
        "a span that opens at the end is counted or refused",
        a_span_that_opens_at_the_end_is_counted_or_refused,
        &[false, true],
    );
}
