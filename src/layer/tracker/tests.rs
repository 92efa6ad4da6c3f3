use crate::exposition::Labels;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use tracing::field::Empty;
use tracing::{Dispatch, dispatcher, error, info_span};
use tracing_subscriber::Registry;
use tracing_subscriber::layer::SubscriberExt;

use super::*;
use crate::layer::MetricsLayer;
use crate::layer::span::state::Slot;
use crate::recorder::{RecorderTarget, StageRecorder};

/// Stages of all kinds, whose values are known after the first time.
fn stages() {
    let _root = info_span!("pipeline", profile = "p", run_id = "r").entered();
    info_span!("x", stage_id = "a").in_scope(|| info_span!("helper", stage_id = "a").in_scope(|| ()));
    info_span!("plain").in_scope(|| info_span!("x", stage_id = "b", run_id = 7).in_scope(|| ()));
    let late = info_span!("x", stage_id = Empty, profile = Empty);
    late.record("stage_id", "c");
    late.record("profile", "q");
    late.in_scope(|| ());
    drop(info_span!("x", stage_id = "never entered"));
    error!("of no stage");
}

/// A tracker as `build()` makes it, without a guard.
fn tracker() -> Arc<StageTracker> {
    Arc::new(StageTracker::new(LayerSettings {
        max_series: 100,
        buckets: Some(vec![1.0]),
        target: RecorderTarget::Own(Arc::new(StageRecorder::new([], [], false, Labels::default()))),
        ..LayerSettings::default()
    }))
}

fn dispatch(tracker: &Arc<StageTracker>) -> Dispatch {
    Dispatch::new(Registry::default().with(MetricsLayer::over(Arc::clone(tracker))))
}

fn slot<'a>(tracker: &'a StageTracker, span: &tracing::Span) -> Option<&'a Slot> {
    Some(tracker.stages.spans.open.find(&span.id()?)?.slot)
}

#[test]
fn late_record_of_a_field_that_is_no_label_keeps_the_cache() {
    let tracker = tracker();
    let _default = dispatcher::set_default(&dispatch(&tracker));
    let span = info_span!("x", stage_id = "a", profile = Empty, rows = Empty, otel.status_code = Empty);
    let (slot, epoch) = (slot(&tracker, &span).unwrap(), tracker.stages.spans.epoch());
    let cached = slot.cached();
    assert!(cached.is_some());
    span.record("rows", 17);
    span.record("otel.status_code", "error");
    assert_eq!((slot.cached(), tracker.stages.spans.epoch()), (cached, epoch));
    assert!(slot.flags().has(SpanFlags::DECLARED_ERROR));
    span.record("profile", "p");
    assert_eq!(slot.cached(), None);
    assert_ne!(tracker.stages.spans.epoch(), epoch);
}

#[test]
fn late_record_of_a_label_keeps_the_cache_of_spans_that_do_not_inherit_it() {
    let tracker = tracker();
    let _default = dispatcher::set_default(&dispatch(&tracker));
    let root = info_span!("pipeline", profile = Empty);
    let child = root.in_scope(|| info_span!("x", stage_id = "a"));
    let other = info_span!("x", stage_id = "a");
    let [child, other] = [&child, &other].map(|span| slot(&tracker, span).unwrap());
    let cached = other.cached();
    assert_eq!((cached.is_some(), child.cached()), (true, cached));
    root.record("profile", "late");
    let profiles =
        [child, other].map(|slot| tracker.stages.labels.text(tracker.stages.spans.resolve(slot).profile).to_owned());
    assert_eq!(profiles, ["late", ""]);
    assert_eq!((child.cached(), other.cached()), (None, cached));
}

/// Another thread closed the span and opened the next one in its slot.
#[test]
fn missed_close_is_not_counted_for_the_next_span_in_the_slot() {
    let tracker = tracker();
    let _default = dispatcher::set_default(&dispatch(&tracker));
    drop(info_span!("x", stage_id = "a"));
    let (open, id) = (&tracker.stages.spans.open, Id::from_u64(17));
    let new = NewSpan { flags: SpanFlags::STAGE, ..NewSpan::default() };
    let span = open.claim(&id, new).unwrap();
    let reference = span.reference();
    open.release(span);
    let next = open.claim(&id, new).unwrap();
    assert!(std::ptr::eq(next.slot, span.slot));
    tracker.stages.count_missed(next, reference);
    assert!(next.is_open() && next.stage().is_none());
    tracker.stages.count_missed(next, next.reference());
    assert!(!next.is_open());
}

/// Every lock of the layer is held while another thread runs stages.
#[test]
fn no_lock_is_taken_for_a_stage_that_goes_well() {
    let layer_of = tracker();
    let dispatch = dispatch(&layer_of);
    let run = move || dispatcher::with_default(&dispatch, || (0..100).for_each(|_| stages()));
    run();
    let locks = (
        layer_of.stages.callsites.lock(),
        layer_of.stages.labels.lock(),
        layer_of.stages.spans.open.lock(),
        layer_of.stages.series.lock(),
    );
    let (done, is_done) = channel();
    let thread = std::thread::spawn(move || {
        run();
        done.send(()).unwrap();
    });
    let result = is_done.recv_timeout(Duration::from_secs(30));
    drop(locks);
    thread.join().unwrap();
    assert_eq!(result, Ok(()), "it waited for a lock");
    let succeeded: u64 = layer_of.stages.series.totals().map(|(_, totals)| totals.succeeded).sum();
    assert_eq!(succeeded, 2 * 100 * 4);
}
