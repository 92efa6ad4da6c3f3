//! The table of open spans, and the words of an exemplar, under all interleavings of their operations on up to three threads.
//! `loom` explores them, and every value that the memory orderings allow a thread to read.
//!
//! The models compile the crate's own source with `loom`'s atomics in place of those of the standard library. The first
//! level of the table has one bucket, so that threads contend for few slots.
#![allow(clippy::print_stdout, clippy::unwrap_used, dead_code, unreachable_pub, unused_imports)]

#[path = "interleavings/layer.rs"]
mod layer;
#[path = "../../src/schema.rs"]
mod schema;
#[path = "interleavings/series.rs"]
mod series;

/// Replaces `src/layer/span/sync.rs`.
mod sync {
    use loom::sync::atomic::{AtomicUsize, Ordering};

    pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, fence};
    pub(crate) use loom::thread::yield_now;

    /// `loom` does not model the total order of sequentially consistent accesses to different variables.
    /// Read-modify-write operations on the flag alone give the same guarantee, since they have one modification order.
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

    /// A spinning thread waits for another thread, so that `loom` switches to it.
    pub(crate) fn spin_loop() {
        yield_now();
    }
}

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;

use layer::span::flags::SpanFlags;
use layer::span::state::{NewSpan, SlotRef, SpanRef};
use loom::sync::Arc;
use loom::thread::{self, JoinHandle};
use series::append_only_map::fibonacci_hash;
use series::seqlock::Seqlock;
use series::trace_id::TraceId;
use tracing::span::Id;

/// The number of places of the first level.
const FIRST: usize = 8;

type OpenSpans = layer::span::table::OpenSpans<FIRST>;

fn id(id: u64) -> Id {
    Id::from_u64(id)
}

/// A span that `mark` identifies.
fn span(mark: u64) -> NewSpan {
    NewSpan { started: mark, flags: SpanFlags::STAGE, ..NewSpan::default() }
}

fn mark(span: SpanRef<'_>) -> u64 {
    span.started.load(Relaxed)
}

fn open(spans: &OpenSpans, at: u64, mark: u64) -> SlotRef {
    spans.claim(&id(at), span(mark)).unwrap().reference()
}

/// Closes a span as the layer does: counts it unless it is counted already, and frees the slot. Returns the counted
/// mark.
fn close(spans: &OpenSpans, at: u64) -> Option<u64> {
    let span = spans.find(&id(at)).unwrap();
    let counted = mark(span);
    let is_finished = span.try_finish(span.reference());
    spans.release(span);
    is_finished.then_some(counted)
}

/// Ends the run and visits the open spans, as the layer does. Returns the counted marks.
fn end(spans: &OpenSpans) -> Vec<u64> {
    let mut counted = Vec::new();
    assert!(spans.end(), "the run ends once");
    for span in spans.taken() {
        let reference = span.reference();
        let mark = mark(span);
        if span.try_finish(reference) {
            counted.push(mark);
        }
    }
    counted
}

/// Opens and closes a span with the id 1, unless the run is over. Returns the counted mark.
fn open_and_close(spans: &OpenSpans, mark: u64) -> Option<u64> {
    spans.claim(&id(1), span(mark))?;
    close(spans, 1)
}

/// Runs `work` on a thread of its own.
fn spawn<T: 'static>(spans: &Arc<OpenSpans>, work: impl FnOnce(&OpenSpans) -> T + 'static) -> JoinHandle<T> {
    let spans = Arc::clone(spans);
    thread::spawn(move || work(&spans))
}

/// Ids with the same home in the first level.
fn ids_of_a_home(count: usize) -> Vec<u64> {
    let home = |id| fibonacci_hash(id, FIRST);
    (1..).filter(|id| home(*id) == home(1)).take(count).collect()
}

/// Whether a look-up of each of these ids ends at its home: no key is there, and no span is counted as displaced.
fn are_absent(spans: &OpenSpans, ids: &[u64]) -> bool {
    ids.iter().all(|at| !spans.may_have(&id(*at)))
}

/// Explores a model with up to three preemptions in an execution; two or three reveal the bugs of such structures. Its
/// executions must have exactly the listed results: a result that never occurs proves nothing.
fn model<T: Ord + std::fmt::Debug + Send + 'static>(
    name: &str,
    run: impl Fn() -> T + Sync + Send + 'static,
    expected: &[T],
) {
    model_with(3, name, run, expected);
}

fn model_with<T: Ord + std::fmt::Debug + Send + 'static>(
    preemptions: usize,
    name: &str,
    run: impl Fn() -> T + Sync + Send + 'static,
    expected: &[T],
) {
    let executions = std::sync::Arc::new(Mutex::new(BTreeMap::new()));
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    // High enough for a visit of all slots.
    builder.max_branches = 100_000;
    let tally = std::sync::Arc::clone(&executions);
    builder.check(move || {
        let result = run();
        *tally.lock().unwrap().entry(result).or_insert(0) += 1;
    });
    let executions = executions.lock().unwrap();
    println!("{name}: {executions:?}");
    assert_eq!(executions.keys().collect::<Vec<_>>(), expected.iter().collect::<Vec<_>>(), "{name}");
    assert!(executions.values().sum::<usize>() > 50, "{name}: the threads interleave in more than 50 ways");
}

/// Two threads open and close spans with the same home.
fn spans_with_one_home_are_independent() {
    let spans = Arc::new(OpenSpans::new());
    let work = |at| {
        move |spans: &OpenSpans| {
            open(spans, at, at);
            assert_eq!(mark(spans.find(&id(at)).unwrap()), at);
            assert_eq!(close(spans, at), Some(at));
            assert!(spans.find(&id(at)).is_none());
        }
    };
    let threads: Vec<_> = ids_of_a_home(2).into_iter().map(|at| spawn(&spans, work(at))).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(spans.iter().count(), 0);
    assert!(are_absent(&spans, &ids_of_a_home(2)));
}

/// A span is displaced, since an earlier one has their home. The earlier span closes and another one opens and closes, at
/// home or displaced as well. The displaced span is found throughout, and once all are closed none is counted.
fn displaced_span_is_found_while_spans_with_its_home_change() {
    let spans = Arc::new(OpenSpans::new());
    let ids = ids_of_a_home(3);
    let [first, displaced, next] = [ids[0], ids[1], ids[2]];
    open(&spans, first, first);
    open(&spans, displaced, displaced);
    let changing = spawn(&spans, move |spans| {
        assert_eq!(close(spans, first), Some(first));
        open(spans, next, next);
        assert_eq!(close(spans, next), Some(next));
    });
    let looking = spawn(&spans, move |spans| {
        assert_eq!(mark(spans.find(&id(displaced)).unwrap()), displaced);
        assert_eq!(close(spans, displaced), Some(displaced));
    });
    changing.join().unwrap();
    looking.join().unwrap();
    assert!(are_absent(&spans, &ids));
}

/// Two threads open and close displaced spans with one home, and look up an id there that no span has.
fn absent_id_is_not_found_while_displaced_spans_come_and_go() {
    let spans = Arc::new(OpenSpans::new());
    let ids = ids_of_a_home(4);
    let absent = ids[3];
    open(&spans, ids[0], ids[0]);
    let work = move |spans: &OpenSpans, at| {
        open(spans, at, at);
        assert!(spans.find(&id(absent)).is_none());
        assert_eq!(close(spans, at), Some(at));
    };
    let (here, there) = (ids[1], ids[2]);
    let other = spawn(&spans, move |spans| work(spans, there));
    work(&spans, here);
    other.join().unwrap();
    assert_eq!(close(&spans, ids[0]), Some(ids[0]));
    assert!(are_absent(&spans, &ids));
}

/// The registry reuses an id while another thread holds a reference to the first span with that id, reads its values as
/// a child does, and counts it. The thread reads the values of the first span, or finds that the span is gone.
fn reference_does_not_reach_the_next_span_with_its_id() -> [Option<u64>; 2] {
    let spans = Arc::new(OpenSpans::new());
    let reference = open(&spans, 1, 1);
    let closing = spawn(&spans, |spans| {
        let first = close(spans, 1);
        [first, open_and_close(spans, 2)]
    });
    let looking = spawn(&spans, move |spans| {
        let Some(span) = spans.get(reference) else { return [None, None] };
        let seen = mark(span);
        let is_current = span.is_current(reference);
        [is_current.then_some(seen), span.try_finish(reference).then_some(seen)]
    });
    let [seen, counted] = looking.join().unwrap();
    let [first, second] = closing.join().unwrap();
    assert_eq!(counted.into_iter().chain(first).collect::<Vec<_>>(), [1], "the first span counts once");
    assert_eq!(second, Some(2), "the second span counts once");
    assert_eq!(spans.get(reference).map(mark), None);
    [seen, counted]
}

/// The run ends while one span closes and another, with the same id and in the same slot, opens and closes. Returns the
/// marks that each thread counted. The second span is counted unless it is refused.
fn ending_run_counts_each_span_once() -> (Vec<u64>, [Option<u64>; 2]) {
    let spans = Arc::new(OpenSpans::new());
    open(&spans, 1, 1);
    let working = spawn(&spans, |spans| {
        let first = close(spans, 1);
        let is_open = spans.claim(&id(1), span(2)).is_some();
        (first, is_open, is_open.then(|| close(spans, 1)).flatten())
    });
    let ending = spawn(&spans, end);
    let by_end = ending.join().unwrap();
    let (first, is_open, second) = working.join().unwrap();
    let mut counted: Vec<_> = by_end.iter().copied().chain(first).chain(second).collect();
    counted.sort_unstable();
    assert_eq!(counted, if is_open { vec![1, 2] } else { vec![1] });
    (by_end, [first, second])
}

/// One thread looks up a span while another thread initializes its slot, as a stage looks up its parent. The lookup
/// returns the initialized span or none. `is_displaced`: another span has the home.
fn lookup_returns_an_initialized_span_or_none(is_displaced: bool) -> Option<u64> {
    let spans = Arc::new(OpenSpans::new());
    if is_displaced {
        let other = ids_of_a_home(2)[1];
        open(&spans, other, other);
    }
    // An earlier span of the slot.
    open(&spans, 1, 1);
    close(&spans, 1);
    let opening = spawn(&spans, |spans| open(spans, 1, 2));
    let looking = spawn(&spans, |spans| {
        let reference = spans.get_initialized(&id(1))?.reference();
        spans.get(reference).map(mark)
    });
    opening.join().unwrap();
    let seen = looking.join().unwrap();
    assert_eq!(close(&spans, 1), Some(2));
    seen
}

/// Two threads open spans in a bucket with one free slot: one of the spans goes to the next level.
fn full_bucket_overflows_into_the_next_level() {
    let spans = Arc::new(OpenSpans::new());
    let ids = ids_of_a_home(9);
    ids[..7].iter().for_each(|at| {
        open(&spans, *at, *at);
    });
    let work = |at| {
        move |spans: &OpenSpans| {
            open(spans, at, at);
            assert_eq!(mark(spans.find(&id(at)).unwrap()), at);
        }
    };
    let threads = [ids[7], ids[8]].map(|at| spawn(&spans, work(at)));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(spans.iter().count(), 9);
    ids.iter().for_each(|at| assert_eq!(close(&spans, *at), Some(*at)));
    assert_eq!(spans.iter().count(), 0);
    assert!(are_absent(&spans, &ids));
}

/// A span opens while the run ends: the table refuses it, or the end of the run counts it.
fn span_opened_while_the_run_ends_is_counted_or_refused() -> bool {
    let spans = Arc::new(OpenSpans::new());
    let opening = spawn(&spans, |spans| spans.claim(&id(1), span(1)).is_some());
    let ending = spawn(&spans, end);
    let is_open = opening.join().unwrap();
    assert_eq!(ending.join().unwrap(), if is_open { vec![1] } else { vec![] });
    is_open
}

/// Two threads write words, while another one reads them. Returns what it read, and what is there at last.
fn words_are_read_as_they_were_written() -> (Option<[u64; 2]>, u64) {
    let words = Arc::new(Seqlock::<2>::default());
    let write = |word: u64| {
        let words = Arc::clone(&words);
        thread::spawn(move || words.set([word; 2], |_| true))
    };
    let writing = [write(1), write(2)];
    let reading = thread::spawn({
        let words = Arc::clone(&words);
        move || words.get(1)
    });
    writing.into_iter().for_each(|thread| thread.join().unwrap());
    let read = reading.join().unwrap();
    let [last, same] = words.get(1).unwrap();
    assert_eq!(last, same);
    (read, last)
}

/// The trace of an open span is replaced, as at its first exit, while the end of the run reads it. Returns the halves of
/// what that read.
fn trace_is_read_whole_or_not_at_all() -> Option<[u64; 2]> {
    let trace = |half: u128| TraceId::new(half << u64::BITS | half);
    let spans = Arc::new(OpenSpans::new());
    open(&spans, 1, 1);
    let working = spawn(&spans, move |spans| {
        let span = spans.find(&id(1)).unwrap();
        span.set_trace(trace(1));
        span.replace_trace(trace(2));
        assert_eq!(span.trace(), trace(2));
    });
    let reading = spawn(&spans, |spans| spans.find(&id(1)).unwrap().trace().map(TraceId::get));
    working.join().unwrap();
    let read = reading.join().unwrap();
    read.map(|trace| [(trace >> u64::BITS) as u64, trace as u64])
}

fn main() {
    model("spans with one home are independent", spans_with_one_home_are_independent, &[()]);
    model(
        "displaced span is found while spans with its home change",
        displaced_span_is_found_while_spans_with_its_home_change,
        &[()],
    );
    // Each thread has so many steps that three preemptions take minutes.
    model_with(
        2,
        "absent id is not found while displaced spans come and go",
        absent_id_is_not_found_while_displaced_spans_come_and_go,
        &[()],
    );
    model(
        "reference does not reach the next span with its id",
        reference_does_not_reach_the_next_span_with_its_id,
        &[[None, None], [Some(1), None], [Some(1), Some(1)]],
    );
    model(
        "ending run counts each span once",
        ending_run_counts_each_span_once,
        &[(vec![], [Some(1), None]), (vec![], [Some(1), Some(2)]), (vec![1], [None, None]), (vec![2], [Some(1), None])],
    );
    for is_displaced in [false, true] {
        model(
            "lookup returns an initialized span or none",
            move || lookup_returns_an_initialized_span_or_none(is_displaced),
            &[None, Some(2)],
        );
    }
    model("full bucket overflows into the next level", full_bucket_overflows_into_the_next_level, &[()]);
    model(
        "span opened while the run ends is counted or refused",
        span_opened_while_the_run_ends_is_counted_or_refused,
        &[false, true],
    );
    let read = [None, Some([0; 2]), Some([1; 2]), Some([2; 2])];
    let expected: Vec<_> = read.into_iter().flat_map(|read| [(read, 1), (read, 2)]).collect();
    model("words are read as they were written", words_are_read_as_they_were_written, &expected);
    model("trace is read whole or not at all", trace_is_read_whole_or_not_at_all, &[None, Some([1; 2]), Some([2; 2])]);
}
