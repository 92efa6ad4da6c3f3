//! `ProvenSuccess` warns once for each callsite whose stages cannot prove their success.

use tracing::{Span, info_span, instrument};
use tracing_stage_metrics::FailurePolicy;

use super::{POLICIES, Pipeline};

#[instrument(fields(stage_id = "proves"), err, ret)]
fn proves() -> Result<u32, u32> {
    Ok(1)
}

#[instrument(fields(stage_id = "silent.function"), err)]
fn silent() -> Result<u32, u32> {
    Ok(1)
}

fn silent_span(stage_id: &str) -> Span {
    info_span!("by_hand", stage_id)
}

#[test]
fn unprovable_stages_warn_once_for_each_callsite() {
    let pipeline = Pipeline::under(FailurePolicy::ProvenSuccess);
    for _ in 0..3 {
        proves().unwrap();
        silent().unwrap();
        drop(silent_span("first"));
        drop(silent_span("second"));
    }
    assert_eq!(pipeline.now().totals(), ["first 0 3", "proves 3 0", "second 0 3", "silent.function 0 3"]);
    assert_eq!(
        pipeline.now().failures(),
        ["first,,cancelled 3", "second,,cancelled 3", "silent.function,,cancelled 3"]
    );
    let events = pipeline.heard();
    assert_eq!(events.len(), 2, "{events:#?}");
    assert!(events[0].starts_with("WARN") && events[0].contains("silent.function"), "{events:#?}");
    assert!(events[1].starts_with("WARN") && events[1].contains("first"), "{events:#?}");
    for warning in events {
        assert!(warning.contains("err, ret") && warning.contains("proven.rs"), "{warning}");
    }
}

#[test]
fn threads_share_the_warning_of_a_callsite() {
    let pipeline = Pipeline::under(FailurePolicy::ProvenSuccess);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let dispatch = pipeline.dispatch();
            scope.spawn(move || tracing::dispatcher::with_default(&dispatch, || drop(silent_span("a"))));
        }
    });
    assert_eq!(pipeline.heard().len(), 1);
}

#[test]
fn other_policies_do_not_warn() {
    for policy in POLICIES.into_iter().filter(|policy| *policy != FailurePolicy::ProvenSuccess) {
        let pipeline = Pipeline::under(policy);
        drop(silent_span("a"));
        silent().unwrap();
        assert!(pipeline.heard().is_empty(), "{policy:?}");
    }
}

#[test]
fn failed_stages_do_not_warn() {
    #[instrument(fields(stage_id = "a"), err, ret)]
    fn fails() -> Result<u32, u32> {
        Err(1)
    }
    let pipeline = Pipeline::under(FailurePolicy::ProvenSuccess);
    fails().unwrap_err();
    drop(info_span!("x", stage_id = "b", otel.status_code = "error"));
    std::panic::catch_unwind(|| silent_span("c").in_scope(|| panic!("on purpose"))).unwrap_err();
    assert_eq!(pipeline.now().totals(), ["a 0 1", "b 0 1", "c 0 1"]);
    assert!(pipeline.heard().is_empty());
}
