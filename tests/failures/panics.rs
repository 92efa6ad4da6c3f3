//! Panics that unwind through a stage, and panics that do not.

use tracing::instrument::WithSubscriber;
use tracing::{Instrument, error, info_span, instrument};

use super::{OK, POLICIES, Pipeline, outcome_of, outcomes, panicking};

const PANIC: [&str; 4] = ["panic", "panic", "panic", "panic"];
const NO_PANIC: [&str; 4] = [OK, OK, OK, "cancelled"];

#[test]
fn panic_in_an_instrumented_function_is_a_failure() {
    #[instrument(fields(stage_id = "a"), err, ret)]
    fn stage() -> Result<u32, u32> {
        panic!("on purpose")
    }
    assert_eq!(outcomes(|| panicking(stage)), PANIC);
}

#[test]
fn panic_in_a_scope_or_under_an_entered_guard_is_a_failure() {
    assert_eq!(outcomes(|| panicking(|| info_span!("x", stage_id = "a").in_scope(|| panic!("on purpose")))), PANIC);
    let entered = || {
        let _entered = info_span!("x", stage_id = "a").entered();
        panic!("on purpose")
    };
    assert_eq!(outcomes(|| panicking(entered)), PANIC);
}

#[test]
fn panic_fails_all_enclosing_stages() {
    let pipeline = Pipeline::start();
    panicking(|| {
        info_span!("x", stage_id = "a").in_scope(|| {
            info_span!("plain").in_scope(|| info_span!("y", stage_id = "b").in_scope(|| panic!("on purpose")))
        });
    });
    assert_eq!(pipeline.now().failures(), ["a,,panic 1", "b,,panic 1"]);
}

#[test]
fn panic_overrides_an_error_event() {
    let scenario = || {
        info_span!("x", stage_id = "a").in_scope(|| {
            error!("it broke");
            panic!("on purpose")
        });
    };
    assert_eq!(outcomes(|| panicking(scenario)), PANIC);
}

#[test]
fn panic_caught_inside_the_stage_is_no_failure() {
    let scenario = || info_span!("x", stage_id = "a").in_scope(|| panicking(|| panic!("on purpose")));
    assert_eq!(outcomes(scenario), NO_PANIC);
}

#[test]
fn panic_outside_an_open_stage_is_no_failure() {
    let scenario = || {
        let stage = info_span!("x", stage_id = "a");
        stage.in_scope(|| ());
        panicking(|| panic!("on purpose"));
    };
    assert_eq!(outcomes(scenario), NO_PANIC);
    // The stage closes while the thread unwinds, after its last exit.
    let closes = || {
        let stage = info_span!("x", stage_id = "a");
        stage.in_scope(|| ());
        let _stage = stage;
        panic!("on purpose")
    };
    assert_eq!(outcomes(|| panicking(closes)), NO_PANIC);
}

/// Calls its closure on drop, while the thread unwinds.
struct Cleanup<F: FnMut()>(F);

impl<F: FnMut()> Drop for Cleanup<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[test]
fn stage_opened_during_unwinding_has_no_panic() {
    let unwinding = |cleanup: fn()| {
        outcomes(move || {
            panicking(|| {
                let _cleanup = Cleanup(cleanup);
                panic!("on purpose")
            });
        })
    };
    assert_eq!(unwinding(|| info_span!("x", stage_id = "a").in_scope(|| ())), NO_PANIC);
    assert_eq!(unwinding(|| drop(info_span!("x", stage_id = "a").entered())), NO_PANIC);
    assert_eq!(
        unwinding(|| info_span!("x", stage_id = "a").in_scope(|| error!("it broke"))),
        ["error", OK, "error", "cancelled"]
    );
    assert_eq!(
        unwinding(|| {
            info_span!("x", stage_id = "a").in_scope(|| {
                for _ in 0..3 {
                    info_span!("y", stage_id = "b").in_scope(|| info_span!("z", stage_id = "c").in_scope(|| ()));
                }
            });
        }),
        NO_PANIC
    );
}

/// A known limit, which the page on stages explains: `thread::panicking` does not tell the two panics apart, nor does
/// `Mutex`.
#[test]
fn panic_caught_inside_a_stage_opened_during_unwinding_is_missed() {
    let scenario = || {
        panicking(|| {
            let _cleanup =
                Cleanup(|| panicking(|| info_span!("x", stage_id = "a").in_scope(|| panic!("on purpose, once more"))));
            panic!("on purpose")
        });
    };
    assert_eq!(outcomes(scenario), NO_PANIC);
}

#[test]
fn stage_reentered_during_unwinding_keeps_its_panic() {
    let scenario = || {
        let stage = info_span!("x", stage_id = "a");
        let again = stage.clone();
        panicking(|| {
            let _entered = stage.enter();
            let _cleanup = Cleanup(move || again.in_scope(|| ()));
            panic!("on purpose")
        });
    };
    assert_eq!(outcomes(scenario), PANIC);
}

#[test]
fn panic_does_not_fail_stages_on_other_threads() {
    let pipeline = Pipeline::start();
    let (dispatch, stage) = (pipeline.dispatch(), info_span!("x", stage_id = "a").entered());
    let other = move || {
        tracing::dispatcher::with_default(&dispatch, || {
            panicking(|| info_span!("y", stage_id = "b").in_scope(|| panic!("on purpose")));
        });
    };
    std::thread::spawn(other).join().unwrap();
    drop(stage);
    assert_eq!(pipeline.now().totals(), ["a 1 0", "b 0 1"]);
}

#[test]
fn stage_after_a_caught_panic_is_a_success() {
    let pipeline = Pipeline::start();
    panicking(|| info_span!("x", stage_id = "a").in_scope(|| panic!("on purpose")));
    info_span!("x", stage_id = "a").in_scope(|| ());
    let now = pipeline.now();
    assert_eq!((now.totals(), now.failures()), (vec!["a 1 1".to_owned()], vec!["a,,panic 1".to_owned()]));
}

#[tokio::test]
async fn panic_caught_by_the_runtime_is_a_failure() {
    #[instrument(fields(stage_id = "a"), err, ret)]
    async fn stage() -> Result<u32, u32> {
        tokio::task::yield_now().await;
        panic!("on purpose")
    }
    for policy in POLICIES {
        let pipeline = Pipeline::under(policy);
        let joined = tokio::spawn(stage().with_subscriber(pipeline.dispatch())).await;
        assert!(joined.unwrap_err().is_panic());
        assert_eq!(outcome_of(&pipeline, "a"), "panic");
    }
}

#[tokio::test]
async fn future_dropped_by_the_panic_of_another_has_no_panic() {
    for (policy, outcome) in POLICIES.into_iter().zip(NO_PANIC) {
        let pipeline = Pipeline::under(policy);
        let task = async {
            let waiting = std::future::pending::<()>().instrument(info_span!("x", stage_id = "a"));
            let failing = async {
                tokio::task::yield_now().await;
                panic!("on purpose")
            };
            let failing = failing.instrument(info_span!("y", stage_id = "b"));
            tokio::join!(waiting, failing)
        };
        let joined = tokio::spawn(task.with_subscriber(pipeline.dispatch())).await;
        assert!(joined.unwrap_err().is_panic());
        assert_eq!((outcome_of(&pipeline, "a").as_str(), outcome_of(&pipeline, "b").as_str()), (outcome, "panic"));
    }
}
