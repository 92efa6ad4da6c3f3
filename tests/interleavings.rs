//! The table of open spans under all interleavings of its operations on up to three threads, tried by `loom`, which
//! also lets a thread see every value that the memory orderings allow.
//!
//! The table is the crate's own source, with `loom`'s atomics in place of those of the standard library, and a first
//! level of two buckets: few slots, so that threads meet in them.
#![allow(clippy::print_stdout, clippy::unwrap_used, dead_code, unreachable_pub, unused_imports)]

#[path = "interleavings/layer.rs"]
mod layer;
#[path = "../src/schema.rs"]
mod schema;

/// As `src/sync.rs`.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, fence};
    pub(crate) use loom::thread::yield_now;

    /// A thread that spins waits for another.
    pub(crate) fn spin_loop() {
        yield_now();
    }
}

use std::sync::atomic::{AtomicUsize as Tally, Ordering::Relaxed};

use layer::index::place_of;
use layer::open::{Found, NewSpan, SlotRef};
use layer::outcome::Facts;
use loom::sync::Arc;
use loom::sync::atomic::AtomicUsize;
use loom::thread::{self, JoinHandle};
use tracing::span::Id;

/// Buckets of the first level.
const FIRST: usize = 2;

type OpenSpans = layer::open::OpenSpans<FIRST>;

fn id(id: u64) -> Id {
    Id::from_u64(id)
}

/// A span that is told from others by `mark`.
fn span(mark: u64) -> NewSpan {
    NewSpan { started: mark, facts: Facts::STAGE, ..NewSpan::default() }
}

fn mark(found: Found<'_>) -> u64 {
    found.started.load(Relaxed)
}

fn open(spans: &OpenSpans, at: u64, mark: u64) -> SlotRef {
    spans.claim(&id(at), span(mark), || true).unwrap().reference()
}

/// Closes it as the layer does: counts it if nobody did, and frees the slot. Returns what was counted.
fn close(spans: &OpenSpans, at: u64) -> Option<u64> {
    let found = spans.find(&id(at)).unwrap();
    let counted = mark(found);
    let is_settled = found.settle(found.reference());
    spans.release(found);
    is_settled.then_some(counted)
}

/// Goes over the open spans as the end of the run does. Returns what was counted.
fn end(spans: &OpenSpans) -> Vec<u64> {
    let mut counted = Vec::new();
    for found in spans.taken() {
        let reference = found.reference();
        let mark = mark(found);
        if found.settle(reference) {
            counted.push(mark);
        }
    }
    counted
}

/// Closes the span with the id 1 and has another with it; what was counted of the two.
fn close_and_reuse(spans: &OpenSpans) -> [Option<u64>; 2] {
    let first = close(spans, 1);
    open(spans, 1, 2);
    [first, close(spans, 1)]
}

/// Runs it on a thread of its own.
fn beside<T: 'static>(spans: &Arc<OpenSpans>, work: impl FnOnce(&OpenSpans) -> T + 'static) -> JoinHandle<T> {
    let spans = Arc::clone(spans);
    thread::spawn(move || work(&spans))
}

/// Ids of the same bucket.
fn neighbours(count: usize) -> Vec<u64> {
    let bucket = |id| place_of(id, FIRST);
    (1..).filter(|id| bucket(*id) == bucket(1)).take(count).collect()
}

/// Tries a model, and says how many executions there were.
fn model(name: &str, run: impl Fn() + Sync + Send + 'static) {
    static EXECUTIONS: Tally = Tally::new(0);
    EXECUTIONS.store(0, Relaxed);
    let mut builder = loom::model::Builder::new();
    // The most interruptions of one execution. Bugs in such structures show with two or three.
    builder.preemption_bound = Some(3);
    // For those who go over all slots.
    builder.max_branches = 100_000;
    builder.check(move || {
        EXECUTIONS.fetch_add(1, Relaxed);
        run();
    });
    println!("{name}: {} executions", EXECUTIONS.load(Relaxed));
    assert!(EXECUTIONS.load(Relaxed) > 50, "{name}: the threads hardly meet");
}

/// Two threads open and close spans of the same bucket.
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
}

/// An id is used again while another thread holds a reference to the span that had it before.
fn a_reference_does_not_reach_the_next_span_with_the_id() {
    let spans = Arc::new(OpenSpans::new());
    let reference = open(&spans, 1, 1);
    let closing = beside(&spans, close_and_reuse);
    // As a child reads what it inherits, and as the end of the run counts what it refers to.
    let looking = beside(&spans, move |spans| {
        spans.get(reference).and_then(|found| {
            let seen = mark(found);
            if found.is_still(reference) {
                assert_eq!(seen, 1, "the values of another span");
            }
            found.settle(reference).then_some(seen)
        })
    });
    let counted = looking.join().unwrap();
    let [first, second] = closing.join().unwrap();
    assert_eq!([counted, first].into_iter().flatten().collect::<Vec<_>>(), [1], "the first span counts once");
    assert_eq!(second, Some(2), "the second span is its own");
    assert!(spans.get(reference).is_none());
}

/// The run ends while one span closes and another, in the same slot, opens and closes.
fn at_the_end_of_the_run_each_span_counts_once() {
    let spans = Arc::new(OpenSpans::new());
    open(&spans, 1, 1);
    let working = beside(&spans, close_and_reuse);
    let ending = beside(&spans, end);
    let ended = ending.join().unwrap();
    let of_thread = working.join().unwrap();
    let mut counted: Vec<_> = ended.into_iter().chain(of_thread.into_iter().flatten()).collect();
    counted.sort_unstable();
    assert_eq!(counted, [1, 2]);
}

/// One thread looks for a span that another is giving its slot: as a stage looks for its parent.
fn what_is_found_is_whole() {
    let spans = Arc::new(OpenSpans::new());
    // What the slot had before.
    open(&spans, 1, 1);
    close(&spans, 1);
    let opening = beside(&spans, |spans| open(spans, 1, 2));
    let looking = beside(&spans, |spans| {
        if let Some(found) = spans.find_whole(&id(1)) {
            let reference = found.reference();
            assert_eq!(spans.get(reference).map(mark), Some(2));
        }
    });
    opening.join().unwrap();
    looking.join().unwrap();
    assert_eq!(close(&spans, 1), Some(2));
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
}

/// A span that is opened while the run ends is either not opened or seen by who goes over the open spans.
fn a_span_that_opens_at_the_end_is_counted_or_refused() {
    let spans = Arc::new(OpenSpans::new());
    let ended = Arc::new(AtomicUsize::new(0));
    let opening = {
        let (spans, ended) = (Arc::clone(&spans), Arc::clone(&ended));
        // The layer's order is sequentially consistent on these two variables, which `loom` does not know: here both
        // sides exchange the same one.
        thread::spawn(move || {
            spans.claim(&id(1), span(1), || ended.fetch_add(0, std::sync::atomic::Ordering::AcqRel) == 0).is_some()
        })
    };
    let ending = {
        let (spans, ended) = (Arc::clone(&spans), Arc::clone(&ended));
        thread::spawn(move || {
            ended.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
            end(&spans)
        })
    };
    let is_open = opening.join().unwrap();
    let counted = ending.join().unwrap();
    assert_eq!(counted, if is_open { vec![1] } else { vec![] });
}

fn main() {
    model("neighbours do not meet", neighbours_do_not_meet);
    model("a reference does not reach the next span with the id", a_reference_does_not_reach_the_next_span_with_the_id);
    model("at the end of the run each span counts once", at_the_end_of_the_run_each_span_counts_once);
    model("what is found is whole", what_is_found_is_whole);
    model("a full bucket overflows into the next level", a_full_bucket_overflows_into_the_next_level);
    model("a span that opens at the end is counted or refused", a_span_that_opens_at_the_end_is_counted_or_refused);
}
