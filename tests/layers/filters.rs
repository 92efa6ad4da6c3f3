//! Global filters and per-layer filters.

use tracing_subscriber::filter::{EnvFilter, LevelFilter, Targets, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, Registry};

use super::{Log, assert_all_spans_measured, assert_debug_spans_hidden, broken, fmt_layer, run_program_under};

#[test]
fn layer_measures_in_any_stack_order() {
    let log = Log::default();
    assert_all_spans_measured(&run_program_under(|layer, _| {
        Registry::default().with(layer).with(fmt_layer!(log)).into()
    }));
    assert_all_spans_measured(&run_program_under(|layer, _| {
        Registry::default().with(fmt_layer!(log)).with(layer).into()
    }));
    assert_all_spans_measured(&run_program_under(|layer, heard| {
        Registry::default().with(heard).with(fmt_layer!(log)).with(layer).into()
    }));
    assert_eq!(broken(&log), 3);
}

#[test]
fn layer_measures_on_top_of_fmt_subscriber() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || writer.clone());
    assert_all_spans_measured(&run_program_under(|layer, _| subscriber.finish().with(layer).into()));
    assert!(log.text().contains("it broke"));
}

#[test]
fn global_filter_hides_spans_from_metrics() {
    assert_debug_spans_hidden(&run_program_under(|layer, _| {
        Registry::default().with(EnvFilter::new("info")).with(layer).into()
    }));
    assert_debug_spans_hidden(&run_program_under(|layer, _| {
        Registry::default().with(layer).with(EnvFilter::new("info")).into()
    }));
    assert_debug_spans_hidden(&run_program_under(|layer, _| {
        Registry::default().with(layer).with(LevelFilter::INFO).into()
    }));
    assert_all_spans_measured(&run_program_under(|layer, _| {
        Registry::default().with(EnvFilter::new("debug")).with(layer).into()
    }));
    let none = run_program_under(|layer, _| Registry::default().with(EnvFilter::new("off")).with(layer).into());
    assert!(none.now().totals().is_empty());
}

#[test]
fn field_filter_keeps_matching_stage() {
    let pipeline = run_program_under(|layer, _| {
        let filter = EnvFilter::new("warn,[{stage_id=b}]=info,[pipeline]=info");
        Registry::default().with(filter).with(layer).into()
    });
    let totals = pipeline.now().totals();
    assert!(totals.contains(&"b 1 0".to_owned()), "{totals:?}");
}

#[test]
fn own_filter_hides_spans_from_metrics_alone() {
    let log = Log::default();
    let info = || LevelFilter::INFO;
    assert_debug_spans_hidden(&run_program_under(|layer, _| {
        Registry::default().with(layer.with_filter(info())).into()
    }));
    assert_debug_spans_hidden(&run_program_under(|layer, _| {
        Registry::default().with(fmt_layer!(log)).with(layer.with_filter(info())).into()
    }));
    assert_debug_spans_hidden(&run_program_under(|layer, _| {
        Registry::default().with(layer.with_filter(info())).with(fmt_layer!(log)).into()
    }));
    assert_debug_spans_hidden(&run_program_under(|layer, _| {
        let fmt = fmt_layer!(log).with_filter(LevelFilter::DEBUG);
        Registry::default().with(layer.with_filter(EnvFilter::new("info"))).with(fmt).into()
    }));
    assert_eq!(broken(&log), 3);
}

#[test]
fn filters_of_other_layers_do_not_hide_spans() {
    let log = Log::default();
    assert_all_spans_measured(&run_program_under(|layer, _| {
        Registry::default().with(fmt_layer!(log).with_filter(LevelFilter::OFF)).with(layer).into()
    }));
    assert_all_spans_measured(&run_program_under(|layer, _| {
        Registry::default().with(layer).with(fmt_layer!(log).with_filter(EnvFilter::new("warn,[pipeline]=off"))).into()
    }));
    assert_eq!(broken(&log), 1, "{}", log.text());
    assert!(!log.text().contains("fine"));
}

#[test]
fn filtered_inner_span_passes_its_error_to_the_stage() {
    let stages_and_context = |metadata: &tracing::Metadata<'_>| {
        let fields = metadata.fields();
        metadata.is_event() || fields.iter().any(|field| matches!(field.name(), "stage_id" | "run_id"))
    };
    let pipeline =
        run_program_under(|layer, _| Registry::default().with(layer.with_filter(filter_fn(stages_and_context))).into());
    let now = pipeline.now();
    assert_eq!(now.runs(), ["a,p,r 1", "b,p,r 1", "fine,p,r 1"]);
    assert_eq!(now.failures(), ["a,p,error 1"]);
}

#[test]
fn filtered_error_events_do_not_fail_stages() {
    let spans_only = || filter_fn(|metadata| metadata.is_span());
    let pipeline = run_program_under(|layer, _| Registry::default().with(layer.with_filter(spans_only())).into());
    tracing::info_span!("x", stage_id = "c").in_scope(|| tracing::error!("it broke"));
    assert_eq!(pipeline.now().totals(), ["a 1 0", "b 1 0", "c 1 0", "fine 1 0"]);
}

#[test]
fn target_filter_hides_other_targets() {
    let targets = Targets::new().with_target("layers", LevelFilter::INFO);
    let pipeline = run_program_under(|layer, _| Registry::default().with(layer.with_filter(targets)).into());
    tracing::info_span!(target: "elsewhere", "x", stage_id = "c").in_scope(|| ());
    assert_debug_spans_hidden(&pipeline);
}
