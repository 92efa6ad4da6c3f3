//! The text of the error by which a stage failed, in the run report.

use std::fmt;

use tracing::field::Empty;
use tracing::{error, info, info_span, instrument, warn};

use super::{POLICIES, Pipeline, panicking};

/// Runs the scenario under each policy and returns the last error of its stage `a`.
#[track_caller]
fn texts<T>(scenario: impl Fn() -> T) -> [Option<String>; 4] {
    POLICIES.map(|policy| {
        let pipeline = Pipeline::under(policy);
        drop(scenario());
        pipeline.guard().report().stage("a").unwrap().last_error().map(str::to_owned)
    })
}

/// Under `ErrorEvents`, `ReturnedError`, `ErrorsWithin` and `ProvenSuccess`.
fn shown(texts: [&str; 4]) -> [Option<String>; 4] {
    texts.map(|text| Some(text.to_owned()).filter(|text| !text.is_empty()))
}

#[instrument(fields(stage_id = "a"), err)]
fn fails(error: &str) -> Result<(), String> {
    error!("cannot read {}", "prices.csv");
    Err(error.to_owned())
}

#[test]
fn returned_error_is_the_last_error_under_each_policy() {
    assert_eq!(texts(|| fails("no such file")), shown(["no such file"; 4]));
    let twice = || (fails("first"), fails("second"));
    assert_eq!(texts(twice), shown(["second"; 4]));
}

#[test]
fn event_has_its_message_and_its_error() {
    let in_stage = |event: fn()| texts(|| info_span!("x", stage_id = "a").in_scope(event));
    let by_events = |text| shown([text, "", text, ""]);
    assert_eq!(in_stage(|| error!(rows = 3, "cannot read {}", 7)), by_events("cannot read 7"));
    assert_eq!(in_stage(|| error!(error = "gone", path = "x", "cannot read")), by_events("cannot read: gone"));
    assert_eq!(in_stage(|| error!(err = ?Some(1), "cannot read")), by_events("cannot read: Some(1)"));
    let io = || {
        let error = std::io::Error::other("disk full");
        error!(error = &error as &dyn std::error::Error);
    };
    assert_eq!(in_stage(io), by_events("disk full"));
    assert_eq!(in_stage(|| error!(path = "x", rows = 3)), by_events("path=x rows=3"));
    assert_eq!(in_stage(|| info!(error = %"not of level ERROR")), by_events("not of level ERROR"));
    assert_eq!(in_stage(|| warn!(error = %"handled", "a message first")), by_events(""));
}

#[test]
fn text_is_cut_at_a_character() {
    for (length, cut) in [(128, false), (129, true)] {
        let [text, ..] = texts(|| fails(&"ä".repeat(length)));
        let text = text.unwrap();
        assert_eq!((text.len() <= 256, text.ends_with('…')), (true, cut), "{text}");
        assert!(text.len() > 250, "{text}");
    }
    let [text, ..] = texts(|| info_span!("x", stage_id = "a").in_scope(|| error!("{}", "x".repeat(1 << 20))));
    assert_eq!(text.unwrap(), "x".repeat(253) + "…");
}

#[test]
fn event_within_belongs_to_the_stage_that_it_fails() {
    let within = || info_span!("x", stage_id = "a").in_scope(|| info_span!("file").in_scope(|| error!("in a file")));
    assert_eq!(texts(within), shown(["", "", "in a file", ""]));
    let inner =
        || info_span!("x", stage_id = "a").in_scope(|| info_span!("y", stage_id = "b").in_scope(|| error!("b")));
    assert_eq!(texts(inner), shown([""; 4]));
    let named_late = || {
        let span = info_span!("x", stage_id = Empty);
        span.in_scope(|| error!("early"));
        span.record("stage_id", "a");
    };
    assert_eq!(texts(named_late), shown(["early", "", "early", ""]));
}

#[test]
fn stage_that_succeeds_all_the_same_has_no_text() {
    let declared = || {
        let span = info_span!("x", stage_id = "a", otel.status_code = Empty);
        span.in_scope(|| error!("handled"));
        span.record("otel.status_code", "ok");
    };
    assert_eq!(texts(declared), shown([""; 4]));
    #[instrument(fields(stage_id = "a", otel.status_code = "ok"), err)]
    fn handled() -> Result<(), &'static str> {
        Err("handled")
    }
    assert_eq!(texts(handled), shown([""; 4]));
}

/// The message of a panic is in no span.
#[test]
fn panic_has_the_text_of_an_error_before_it() {
    let panics = || panicking(|| info_span!("x", stage_id = "a").in_scope(|| panic!("on purpose")));
    assert_eq!(texts(panics), shown([""; 4]));
    let logged = || {
        panicking(|| {
            info_span!("x", stage_id = "a").in_scope(|| {
                error!("before");
                panic!("on purpose")
            });
        });
    };
    assert_eq!(texts(logged), shown(["before", "", "before", ""]));
}

#[test]
fn reasons_of_failures_are_counted() {
    let pipeline = Pipeline::start();
    info_span!("x", stage_id = "a").in_scope(|| ());
    (0..2).for_each(|_| assert_eq!(fails("no"), Err("no".to_owned())));
    panicking(|| info_span!("x", stage_id = "a").in_scope(|| panic!("on purpose")));
    let report = pipeline.guard().report();
    let stage = report.stage("a").unwrap();
    assert_eq!(stage.failures_by_reason().collect::<Vec<_>>(), [("error", 2), ("panic", 1)]);
    assert_eq!((stage.runs(), stage.failures()), (4, 3));
    let text = report.to_string();
    assert_eq!(text.lines().nth(2), Some("  2 error, 1 panic: no"), "{text}");
}

/// A value whose formatting emits an error and opens a stage.
struct Emitting;

impl fmt::Display for Emitting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        info_span!("x", stage_id = "formatting").in_scope(|| error!(error = %Emitting));
        f.write_str("shown")
    }
}

#[test]
fn events_of_the_formatting_are_ignored() {
    let pipeline = Pipeline::start();
    info_span!("x", stage_id = "a").in_scope(|| error!(error = %Emitting));
    let report = pipeline.guard().report();
    assert_eq!(report.stage("a").unwrap().last_error(), Some("shown"));
    assert!(report.stage("formatting").is_none());
}

/// Stages that fail and succeed all the same leave nothing behind.
#[test]
fn texts_of_closed_stages_make_room() {
    let pipeline = Pipeline::start();
    let open: Vec<_> = (0..1_000).map(|_| info_span!("x", stage_id = "open")).collect();
    open.iter().for_each(|span| span.in_scope(|| error!("open")));
    for _ in 0..5_000 {
        info_span!("x", stage_id = "fine", otel.status_code = "ok").in_scope(|| error!("handled"));
    }
    fails("last").unwrap_err();
    drop(open);
    let report = pipeline.guard().report();
    let text = |stage| report.stage(stage).unwrap().last_error();
    assert_eq!([text("open"), text("fine"), text("a")], [Some("open"), None, Some("last")]);
}

/// A program whose subscriber has this layer alone formats its errors nowhere else.
#[test]
fn panic_while_an_error_is_formatted_ends_in_the_layer() {
    struct Panics;
    impl fmt::Display for Panics {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("before")?;
            panic!("on purpose")
        }
    }
    let pipeline = Pipeline::start();
    info_span!("x", stage_id = "a").in_scope(|| error!(error = %Panics, "cannot read"));
    let report = pipeline.guard().report();
    let stage = report.stage("a").unwrap();
    assert_eq!(stage.failures_by_reason().collect::<Vec<_>>(), [("error", 1)]);
    assert_eq!(stage.last_error(), Some("cannot read: before"));
    info_span!("x", stage_id = "a").in_scope(|| error!("another"));
    assert_eq!(pipeline.guard().report().stage("a").unwrap().last_error(), Some("another"));
}
