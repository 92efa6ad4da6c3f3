//! The layer inside `Option`, `Box`, `Vec` and `reload`, two layers at once, and spans that opened without the layer.

use std::time::Instant;

use tracing::subscriber::with_default;
use tracing::{Dispatch, error, info_span};
use tracing_stage_metrics::MetricsLayer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, Registry, reload};

use super::support::pipeline::Measured;
use super::{Log, assert_all_spans_measured, assert_debug_spans_hidden, broken, fmt_layer, program, run_program_under};

#[test]
fn layer_works_in_option() {
    assert_all_spans_measured(&run_program_under(|layer, _| Registry::default().with(Some(layer)).into()));
    assert_debug_spans_hidden(&run_program_under(|layer, _| {
        Registry::default().with(Some(layer.with_filter(LevelFilter::INFO))).into()
    }));
    with_default(Registry::default().with(None::<MetricsLayer>), program);
}

#[test]
fn layer_works_in_box() {
    let log = Log::default();
    assert_all_spans_measured(&run_program_under(|layer, _| {
        Registry::default().with(layer.boxed()).with(fmt_layer!(log)).into()
    }));
    assert_all_spans_measured(&run_program_under(|layer, _| {
        let layer: Box<dyn Layer<Registry> + Send + Sync> = Box::new(layer);
        Registry::default().with(layer).into()
    }));
    assert_debug_spans_hidden(&run_program_under(|layer, _| {
        Registry::default().with(layer.with_filter(LevelFilter::INFO).boxed()).into()
    }));
}

#[test]
fn layer_works_in_vec() {
    let log = Log::default();
    assert_all_spans_measured(&run_program_under(|layer, heard| {
        let fmt = fmt_layer!(log).with_filter(LevelFilter::WARN);
        Registry::default().with(vec![fmt.boxed(), layer.boxed(), heard.boxed()]).into()
    }));
    assert_eq!(broken(&log), 1);
}

#[test]
fn layer_works_with_and_then() {
    let log = Log::default();
    assert_all_spans_measured(&run_program_under(|layer, _| {
        Registry::default().with(layer.and_then(fmt_layer!(log))).into()
    }));
    assert_debug_spans_hidden(&run_program_under(|layer, _| {
        Registry::default().with(layer.and_then(fmt_layer!(log)).with_filter(LevelFilter::INFO)).into()
    }));
    assert_eq!(broken(&log), 2);
}

#[test]
fn layer_works_in_reload() {
    assert_all_spans_measured(&run_program_under(|layer, _| {
        let (layer, _) = reload::Layer::new(layer);
        Registry::default().with(layer).into()
    }));
}

#[test]
fn layer_removed_and_restored_ignores_spans_opened_meanwhile() {
    let mut handle = None;
    // A second layer is needed: spans that no layer enables are not opened.
    let pipeline = run_program_under(|layer, heard| {
        let (layer, reload) = reload::Layer::new(Some(layer));
        handle = Some(reload);
        Registry::default().with(layer).with(heard).into()
    });
    let handle = handle.unwrap();
    assert_all_spans_measured(&pipeline);

    let before = info_span!("x", stage_id = "before").entered();
    let mut taken = None;
    handle.modify(|layer| taken = layer.take()).unwrap();
    let without = info_span!("x", stage_id = "without", profile = "without").entered();
    without.record("profile", "late");
    handle.modify(|layer| *layer = taken.take()).unwrap();
    // The current span opened without the layer.
    error!("it broke");
    without.record("profile", "later");
    info_span!("x", stage_id = "inside").in_scope(|| ());
    drop(without);
    drop(before);
    let totals = pipeline.now().totals();
    assert_eq!(totals, ["a 1 0", "b 1 0", "before 1 0", "fine 1 0", "inside 1 0"]);
}

/// The removed layer gets no callback in the meantime.
#[test]
fn stage_closed_without_the_layer_is_removed_from_the_active_gauge() {
    let mut handle = None;
    let pipeline = run_program_under(|layer, heard| {
        let (layer, reload) = reload::Layer::new(Some(layer));
        handle = Some(reload);
        Registry::default().with(layer).with(heard).into()
    });
    let handle = handle.unwrap();
    let start = Instant::now();
    let [lost, left] = ["lost", "left"].map(|stage_id| info_span!(parent: None, "x", stage_id));
    let kept = info_span!(parent: None, "x", stage_id = "kept");
    left.in_scope(|| ());
    let left_after = start.elapsed();
    let entered = lost.entered();
    let mut taken = None;
    handle.modify(|layer| taken = layer.take()).unwrap();
    drop((entered, left));
    handle.modify(|layer| *layer = taken.take()).unwrap();
    assert_eq!(pipeline.now().active(), ["kept, 1", "left, 1", "lost, 1"]);
    // The next stage to be entered reveals the closed spans.
    info_span!(parent: None, "x", stage_id = "next").in_scope(|| ());
    let now = pipeline.now();
    assert_eq!(now.active(), ["kept, 1"]);
    // They fail as stages that are open at the end of the run do.
    assert_eq!(now.failures(), ["left,,unfinished 1", "lost,,interrupted 1"]);
    assert!(now.seconds("left") <= left_after.as_secs_f64(), "until it was left, not until it was found out");
    drop(kept);
    let totals = pipeline.end().last.totals();
    assert_eq!(totals[totals.len() - 4..], ["kept 1 0", "left 0 1", "lost 0 1", "next 1 0"]);
}

#[test]
fn replaced_layer_ends_its_open_stages_at_shutdown() {
    let (second, guard) = MetricsLayer::builder().build().unwrap();
    let mut handle = None;
    let pipeline = run_program_under(|layer, _| {
        let (layer, reload) = reload::Layer::new(layer);
        handle = Some(reload);
        Registry::default().with(layer).into()
    });
    let open = info_span!("x", stage_id = "open", profile = "p").entered();
    handle.unwrap().reload(second).unwrap();
    info_span!("x", stage_id = "new").in_scope(|| ());
    open.record("profile", "late");
    drop(open);
    assert_eq!(
        Measured::read(&guard.render()).runs(),
        ["new,, 1"],
        "the second layer ignores stages that the first opened"
    );
    assert!(pipeline.now().active().is_empty(), "the first layer gets no close of its open stage");
    let first = pipeline.end();
    // The last callback of the first layer found the stage entered.
    assert_eq!(first.last.failures(), ["open,p,interrupted 1"]);
    guard.shutdown().unwrap();
}

#[test]
fn two_layers_in_one_subscriber_measure_independently() {
    let (second, guard) = MetricsLayer::builder().with_namespace("second").build().unwrap();
    let pipeline = run_program_under(|layer, _| {
        let second = second.with_filter(LevelFilter::INFO);
        Registry::default().with(layer).with(second).into()
    });
    assert_all_spans_measured(&pipeline);
    let text = guard.render();
    assert!(text.contains("second_stage_total{stage_id=\"a\",status=\"failure\"} 1\n"), "{text}");
    assert!(!text.contains("\"fine\""), "{text}");
}

#[test]
fn two_subscribers_with_equal_span_ids_measure_independently() {
    let (first, second) = (layer_alone(), layer_alone());
    let spans: Vec<_> = (0..10)
        .map(|n| {
            let in_first =
                tracing::dispatcher::with_default(&first.1, || info_span!("x", stage_id = "one", profile = n));
            let in_second =
                tracing::dispatcher::with_default(&second.1, || info_span!("x", stage_id = "two", profile = n));
            assert_eq!(in_first.id(), in_second.id());
            (in_first, in_second)
        })
        .collect();
    for (n, (in_first, in_second)) in spans.into_iter().enumerate() {
        in_first.in_scope(|| in_second.in_scope(|| ()));
        in_second.record("profile", n + 100);
        drop((in_first, in_second));
    }
    assert_eq!(Measured::read(&first.0.render()).totals(), ["one 10 0"]);
    assert_eq!(Measured::read(&second.0.render()).runs()[0], "two,100, 1");
}

fn layer_alone() -> (tracing_stage_metrics::FlushGuard, Dispatch) {
    let (layer, guard) = MetricsLayer::builder().build().unwrap();
    (guard, Dispatch::new(Registry::default().with(layer)))
}

#[test]
fn layer_is_accepted_by_generic_code() {
    fn generic<S>(layer: MetricsLayer) -> impl Layer<S> + Send + Sync + 'static
    where
        S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    {
        layer
    }
    assert_all_spans_measured(&run_program_under(|layer, _| Registry::default().with(generic(layer)).into()));
}
