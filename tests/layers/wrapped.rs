//! Inside `Option`, `Box`, `Vec` and `reload`, twice, and where spans are unknown to it.

use tracing::subscriber::with_default;
use tracing::{Dispatch, error, info_span};
use tracing_stage_metrics::MetricsLayer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, Registry, reload};

use super::support::pipeline::Measured;
use super::{Log, all_seen, debug_hidden, fmt_layer, program, stacked};

#[test]
fn in_an_option() {
    all_seen(&stacked(|layer, _| Registry::default().with(Some(layer)).into()));
    debug_hidden(&stacked(|layer, _| Registry::default().with(Some(layer.with_filter(LevelFilter::INFO))).into()));
    with_default(Registry::default().with(None::<MetricsLayer>), program);
}

#[test]
fn in_a_box() {
    let log = Log::default();
    all_seen(&stacked(|layer, _| Registry::default().with(layer.boxed()).with(fmt_layer!(log)).into()));
    all_seen(&stacked(|layer, _| {
        let layer: Box<dyn Layer<Registry> + Send + Sync> = Box::new(layer);
        Registry::default().with(layer).into()
    }));
    debug_hidden(&stacked(|layer, _| Registry::default().with(layer.with_filter(LevelFilter::INFO).boxed()).into()));
}

#[test]
fn in_a_vec() {
    let log = Log::default();
    all_seen(&stacked(|layer, heard| {
        let fmt = fmt_layer!(log).with_filter(LevelFilter::WARN);
        Registry::default().with(vec![fmt.boxed(), layer.boxed(), heard.boxed()]).into()
    }));
    assert_eq!(log.text().matches("it broke").count(), 1);
}

#[test]
fn composed_with_another_layer() {
    let log = Log::default();
    all_seen(&stacked(|layer, _| Registry::default().with(layer.and_then(fmt_layer!(log))).into()));
    debug_hidden(&stacked(|layer, _| {
        Registry::default().with(layer.and_then(fmt_layer!(log)).with_filter(LevelFilter::INFO)).into()
    }));
    assert_eq!(log.text().matches("it broke").count(), 2);
}

#[test]
fn reloadable() {
    all_seen(&stacked(|layer, _| {
        let (layer, _) = reload::Layer::new(layer);
        Registry::default().with(layer).into()
    }));
}

#[test]
fn taken_out_while_stages_run_and_put_back() {
    let mut handle = None;
    // With another layer, since spans that no layer wants are not opened.
    let pipeline = stacked(|layer, heard| {
        let (layer, reload) = reload::Layer::new(Some(layer));
        handle = Some(reload);
        Registry::default().with(layer).with(heard).into()
    });
    let handle = handle.unwrap();
    all_seen(&pipeline);

    let before = info_span!("x", stage_id = "before").entered();
    let mut taken = None;
    handle.modify(|layer| taken = layer.take()).unwrap();
    let without = info_span!("x", stage_id = "without", profile = "without").entered();
    without.record("profile", "late");
    handle.modify(|layer| *layer = taken.take()).unwrap();
    // Of this one the layer knows nothing.
    error!("it broke");
    without.record("profile", "later");
    info_span!("x", stage_id = "inside").in_scope(|| ());
    drop(without);
    drop(before);
    let totals = pipeline.now().totals();
    assert_eq!(totals, ["a 1 0", "b 1 0", "before 1 0", "fine 1 0", "inside 1 0"]);
}

/// The layer hears nothing of what happens meanwhile.
#[test]
fn stage_that_closes_while_the_layer_is_taken_out_is_not_active_for_ever() {
    let mut handle = None;
    let pipeline = stacked(|layer, heard| {
        let (layer, reload) = reload::Layer::new(Some(layer));
        handle = Some(reload);
        Registry::default().with(layer).with(heard).into()
    });
    let handle = handle.unwrap();
    let [lost, left] = ["lost", "left"].map(|stage_id| info_span!(parent: None, "x", stage_id));
    let kept = info_span!(parent: None, "x", stage_id = "kept");
    left.in_scope(|| ());
    let entered = lost.entered();
    let mut taken = None;
    handle.modify(|layer| taken = layer.take()).unwrap();
    drop((entered, left));
    handle.modify(|layer| *layer = taken.take()).unwrap();
    assert_eq!(pipeline.now().active(), ["kept, 1", "left, 1", "lost, 1"]);
    // At the next stage that is entered it can be found out.
    info_span!(parent: None, "x", stage_id = "next").in_scope(|| ());
    let now = pipeline.now();
    assert_eq!(now.active(), ["kept, 1"]);
    // As a stage that is still open at the end of the run.
    assert_eq!(now.failures(), ["left,,unfinished 1", "lost,,interrupted 1"]);
    drop(kept);
    let totals = pipeline.end().last.totals();
    assert_eq!(totals[totals.len() - 4..], ["kept 1 0", "left 0 1", "lost 0 1", "next 1 0"]);
}

#[test]
fn replaced_by_another_while_stages_run() {
    let (second, guard) = MetricsLayer::builder().build().unwrap();
    let mut handle = None;
    let pipeline = stacked(|layer, _| {
        let (layer, reload) = reload::Layer::new(layer);
        handle = Some(reload);
        Registry::default().with(layer).into()
    });
    let open = info_span!("x", stage_id = "open", profile = "p").entered();
    handle.unwrap().reload(second).unwrap();
    info_span!("x", stage_id = "new").in_scope(|| ());
    open.record("profile", "late");
    drop(open);
    assert_eq!(Measured::read(&guard.render()).runs(), ["new,, 1"], "what the first had open, it does not know");
    assert!(pipeline.now().active().is_empty(), "the first does not know either when that closes");
    let first = pipeline.end();
    // It was entered when the first layer was told of it last.
    assert_eq!(first.last.failures(), ["open,p,interrupted 1"]);
    guard.shutdown().unwrap();
}

#[test]
fn two_in_one_subscriber_are_two_pipelines() {
    let (second, guard) = MetricsLayer::builder().with_namespace("second").build().unwrap();
    let pipeline = stacked(|layer, _| {
        let second = second.with_filter(LevelFilter::INFO);
        Registry::default().with(layer).with(second).into()
    });
    all_seen(&pipeline);
    let text = guard.render();
    assert!(text.contains("second_stage_total{stage_id=\"a\",status=\"failure\"} 1\n"), "{text}");
    assert!(!text.contains("\"fine\""), "{text}");
}

#[test]
fn two_subscribers_whose_span_ids_are_the_same() {
    let (first, second) = (stacked_quietly(), stacked_quietly());
    let spans: Vec<_> = (0..10)
        .map(|n| {
            let one = tracing::dispatcher::with_default(&first.1, || info_span!("x", stage_id = "one", profile = n));
            let two = tracing::dispatcher::with_default(&second.1, || info_span!("x", stage_id = "two", profile = n));
            assert_eq!(one.id(), two.id());
            (one, two)
        })
        .collect();
    for (n, (one, two)) in spans.into_iter().enumerate() {
        one.in_scope(|| two.in_scope(|| ()));
        two.record("profile", n + 100);
        drop((one, two));
    }
    assert_eq!(Measured::read(&first.0.render()).totals(), ["one 10 0"]);
    assert_eq!(Measured::read(&second.0.render()).runs()[0], "two,100, 1");
}

fn stacked_quietly() -> (tracing_stage_metrics::FlushGuard, Dispatch) {
    let (layer, guard) = MetricsLayer::builder().build().unwrap();
    (guard, Dispatch::new(Registry::default().with(layer)))
}

#[test]
fn it_goes_wherever_a_layer_goes() {
    fn generic<S>(layer: MetricsLayer) -> impl Layer<S> + Send + Sync + 'static
    where
        S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    {
        layer
    }
    all_seen(&stacked(|layer, _| Registry::default().with(generic(layer)).into()));
}
