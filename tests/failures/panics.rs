//! A panic that unwinds through the stage, and what only looks like one.

use tracing::instrument::WithSubscriber;
use tracing::{Instrument, error, info_span, instrument};

use super::{OK, POLICIES, Pipeline, end_of, ends, panicking};

const PANIC: [&str; 4] = ["panic", "panic", "panic", "panic"];
const NONE: [&str; 4] = [OK, OK, OK, "cancelled"];

#[test]
fn through_an_instrumented_function() {
    #[instrument(fields(stage_id = "a"), err, ret)]
    fn stage() -> Result<u32, u32> {
        panic!("on purpose")
    }
    assert_eq!(ends(|| panicking(stage)), PANIC);
}

#[test]
fn through_in_scope_and_an_entered_guard() {
    assert_eq!(ends(|| panicking(|| info_span!("x", stage_id = "a").in_scope(|| panic!("on purpose")))), PANIC);
    let entered = || {
        let _entered = info_span!("x", stage_id = "a").entered();
        panic!("on purpose")
    };
    assert_eq!(ends(|| panicking(entered)), PANIC);
}

#[test]
fn through_all_the_stages_around() {
    let pipeline = Pipeline::start();
    panicking(|| {
        info_span!("x", stage_id = "a").in_scope(|| {
            info_span!("plain").in_scope(|| info_span!("y", stage_id = "b").in_scope(|| panic!("on purpose")))
        });
    });
    assert_eq!(pipeline.now().failures(), ["a,,panic 1", "b,,panic 1"]);
}

#[test]
fn wins_over_an_error() {
    let scenario = || {
        info_span!("x", stage_id = "a").in_scope(|| {
            error!("it broke");
            panic!("on purpose")
        });
    };
    assert_eq!(ends(|| panicking(scenario)), PANIC);
}

#[test]
fn caught_inside_is_none() {
    let scenario = || info_span!("x", stage_id = "a").in_scope(|| panicking(|| panic!("on purpose")));
    assert_eq!(ends(scenario), NONE);
}

#[test]
fn outside_while_the_stage_is_open_but_not_entered() {
    let scenario = || {
        let stage = info_span!("x", stage_id = "a");
        stage.in_scope(|| ());
        panicking(|| panic!("on purpose"));
    };
    assert_eq!(ends(scenario), NONE);
    // It closes while the thread unwinds, having been left before.
    let closes = || {
        let stage = info_span!("x", stage_id = "a");
        stage.in_scope(|| ());
        let _stage = stage;
        panic!("on purpose")
    };
    assert_eq!(ends(|| panicking(closes)), NONE);
}

/// Opens stages in its drop, which runs while the thread unwinds.
struct Cleanup<F: FnMut()>(F);

impl<F: FnMut()> Drop for Cleanup<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[test]
fn a_stage_opened_in_a_drop_during_unwinding_is_not_panicking() {
    let unwinding = |clean: fn()| {
        ends(move || {
            panicking(|| {
                let _cleanup = Cleanup(clean);
                panic!("on purpose")
            });
        })
    };
    assert_eq!(unwinding(|| info_span!("x", stage_id = "a").in_scope(|| ())), NONE);
    assert_eq!(unwinding(|| drop(info_span!("x", stage_id = "a").entered())), NONE);
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
        NONE
    );
}

/// The page on stages says why. `Mutex` and `thread::panicking` know no more.
#[test]
fn a_stage_opened_in_a_drop_during_unwinding_hides_a_panic_that_is_caught_there() {
    let scenario = || {
        panicking(|| {
            let _cleanup =
                Cleanup(|| panicking(|| info_span!("x", stage_id = "a").in_scope(|| panic!("on purpose, once more"))));
            panic!("on purpose")
        });
    };
    assert_eq!(ends(scenario), NONE);
}

#[test]
fn a_stage_entered_again_during_unwinding_is_still_panicking() {
    let scenario = || {
        let stage = info_span!("x", stage_id = "a");
        let again = stage.clone();
        panicking(|| {
            let _entered = stage.enter();
            let _cleanup = Cleanup(move || again.in_scope(|| ()));
            panic!("on purpose")
        });
    };
    assert_eq!(ends(scenario), PANIC);
}

#[test]
fn stages_on_other_threads_are_not_panicking() {
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
fn after_a_panic_all_is_as_before() {
    let pipeline = Pipeline::start();
    panicking(|| info_span!("x", stage_id = "a").in_scope(|| panic!("on purpose")));
    info_span!("x", stage_id = "a").in_scope(|| ());
    let now = pipeline.now();
    assert_eq!((now.totals(), now.failures()), (vec!["a 1 1".to_owned()], vec!["a,,panic 1".to_owned()]));
}

#[tokio::test]
async fn in_a_task_whose_panic_the_runtime_catches() {
    #[instrument(fields(stage_id = "a"), err, ret)]
    async fn stage() -> Result<u32, u32> {
        tokio::task::yield_now().await;
        panic!("on purpose")
    }
    for policy in POLICIES {
        let pipeline = Pipeline::under(policy);
        let joined = tokio::spawn(stage().with_subscriber(pipeline.dispatch())).await;
        assert!(joined.unwrap_err().is_panic());
        assert_eq!(end_of(&pipeline, "a"), "panic");
    }
}

#[tokio::test]
async fn a_future_dropped_by_the_panic_of_another_is_not_panicking() {
    for (policy, end) in POLICIES.into_iter().zip(NONE) {
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
        assert_eq!((end_of(&pipeline, "a").as_str(), end_of(&pipeline, "b").as_str()), (end, "panic"));
    }
}
