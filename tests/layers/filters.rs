//! Filters for all, and filters of one layer.

use tracing_subscriber::filter::{EnvFilter, LevelFilter, Targets, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, Registry};

use super::{Log, all_seen, debug_hidden, fmt_layer, stacked};

#[test]
fn in_any_order() {
    let log = Log::default();
    all_seen(&stacked(|layer, _| Registry::default().with(layer).with(fmt_layer!(log)).into()));
    all_seen(&stacked(|layer, _| Registry::default().with(fmt_layer!(log)).with(layer).into()));
    all_seen(&stacked(|layer, heard| Registry::default().with(heard).with(fmt_layer!(log)).with(layer).into()));
    assert_eq!(log.text().matches("it broke").count(), 3);
}

#[test]
fn on_top_of_the_fmt_subscriber() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || writer.clone());
    all_seen(&stacked(|layer, _| subscriber.finish().with(layer).into()));
    assert!(log.text().contains("it broke"));
}

#[test]
fn a_filter_for_all_hides_from_the_metrics_too() {
    debug_hidden(&stacked(|layer, _| Registry::default().with(EnvFilter::new("info")).with(layer).into()));
    debug_hidden(&stacked(|layer, _| Registry::default().with(layer).with(EnvFilter::new("info")).into()));
    debug_hidden(&stacked(|layer, _| Registry::default().with(layer).with(LevelFilter::INFO).into()));
    all_seen(&stacked(|layer, _| Registry::default().with(EnvFilter::new("debug")).with(layer).into()));
    let none = stacked(|layer, _| Registry::default().with(EnvFilter::new("off")).with(layer).into());
    assert!(none.now().totals().is_empty());
}

#[test]
fn a_filter_by_span_and_field() {
    let pipeline = stacked(|layer, _| {
        let filter = EnvFilter::new("warn,[{stage_id=b}]=info,[pipeline]=info");
        Registry::default().with(filter).with(layer).into()
    });
    let totals = pipeline.now().totals();
    assert!(totals.contains(&"b 1 0".to_owned()), "{totals:?}");
}

#[test]
fn its_own_filter() {
    let log = Log::default();
    let info = || LevelFilter::INFO;
    debug_hidden(&stacked(|layer, _| Registry::default().with(layer.with_filter(info())).into()));
    debug_hidden(&stacked(|layer, _| Registry::default().with(fmt_layer!(log)).with(layer.with_filter(info())).into()));
    debug_hidden(&stacked(|layer, _| Registry::default().with(layer.with_filter(info())).with(fmt_layer!(log)).into()));
    debug_hidden(&stacked(|layer, _| {
        let fmt = fmt_layer!(log).with_filter(LevelFilter::DEBUG);
        Registry::default().with(layer.with_filter(EnvFilter::new("info"))).with(fmt).into()
    }));
    assert_eq!(log.text().matches("it broke").count(), 3);
}

#[test]
fn the_filters_of_other_layers_hide_nothing() {
    let log = Log::default();
    all_seen(&stacked(|layer, _| {
        Registry::default().with(fmt_layer!(log).with_filter(LevelFilter::OFF)).with(layer).into()
    }));
    all_seen(&stacked(|layer, _| {
        Registry::default().with(layer).with(fmt_layer!(log).with_filter(EnvFilter::new("warn,[pipeline]=off"))).into()
    }));
    assert_eq!(log.text().matches("it broke").count(), 1, "{}", log.text());
    assert!(!log.text().contains("fine"));
}

#[test]
fn filtered_to_stages_and_their_context_alone_inner_errors_land_on_the_stage() {
    let own = |metadata: &tracing::Metadata<'_>| {
        let fields = metadata.fields();
        metadata.is_event() || fields.iter().any(|field| matches!(field.name(), "stage_id" | "run_id"))
    };
    let pipeline = stacked(|layer, _| Registry::default().with(layer.with_filter(filter_fn(own))).into());
    let now = pipeline.now();
    assert_eq!(now.runs(), ["a,p,r 1", "b,p,r 1", "fine,p,r 1"]);
    assert_eq!(now.failures(), ["a,p,error 1"]);
}

#[test]
fn where_errors_are_filtered_away_they_are_not_seen() {
    let quiet = || filter_fn(|metadata| metadata.is_span());
    let pipeline = stacked(|layer, _| Registry::default().with(layer.with_filter(quiet())).into());
    tracing::info_span!("x", stage_id = "c").in_scope(|| tracing::error!("it broke"));
    assert_eq!(pipeline.now().totals(), ["a 1 0", "b 1 0", "c 1 0", "fine 1 0"]);
}

#[test]
fn a_filter_by_target() {
    let targets = Targets::new().with_target("layers", LevelFilter::INFO);
    let pipeline = stacked(|layer, _| Registry::default().with(layer.with_filter(targets)).into());
    tracing::info_span!(target: "elsewhere", "x", stage_id = "c").in_scope(|| ());
    debug_hidden(&pipeline);
}
