//! The failure rules for asynchronous stages and cancelled futures.

use tracing::instrument::WithSubscriber;
use tracing::{Instrument, error, info_span, instrument};

use super::{OK, POLICIES, Pipeline, outcome_of};

type Answer = Result<u32, String>;

#[instrument(fields(stage_id = "a"), err, ret)]
async fn stage(answer: Answer) -> Answer {
    tokio::task::yield_now().await;
    answer
}

fn no() -> Answer {
    Err("no".to_owned())
}

/// The outcomes of the stage `a` of this future under each policy.
async fn outcomes<F: Future>(future: impl Fn() -> F) -> Vec<String> {
    let mut outcomes = Vec::new();
    for policy in POLICIES {
        let pipeline = Pipeline::under(policy);
        future().with_subscriber(pipeline.dispatch()).await;
        outcomes.push(outcome_of(&pipeline, "a"));
    }
    outcomes
}

#[tokio::test]
async fn result_of_an_async_function_decides() {
    assert_eq!(outcomes(|| stage(Ok(1))).await, [OK, OK, OK, OK]);
    assert_eq!(outcomes(|| stage(no())).await, ["error", "error", "error", "error"]);
}

#[tokio::test]
async fn err_without_ret_proves_no_success() {
    #[instrument(fields(stage_id = "a"), err(Debug, level = "debug"))]
    async fn only_err(answer: Answer) -> Answer {
        tokio::task::yield_now().await;
        answer
    }
    #[instrument(fields(stage_id = "a"), ret)]
    async fn only_ret() -> u32 {
        tokio::task::yield_now().await;
        1
    }
    assert_eq!(outcomes(|| only_err(Ok(1))).await, [OK, OK, OK, "cancelled"]);
    assert_eq!(outcomes(|| only_err(no())).await, ["error", "error", "error", "error"]);
    assert_eq!(outcomes(only_ret).await, [OK, OK, OK, OK]);
}

#[tokio::test]
async fn logged_error_fails_a_stage_only_where_events_count() {
    #[instrument(fields(stage_id = "a"), err, ret)]
    async fn survived() -> Answer {
        error!(error = "no");
        tokio::task::yield_now().await;
        Ok(1)
    }
    assert_eq!(outcomes(survived).await, ["error", OK, "error", OK]);
}

#[tokio::test]
async fn dropped_future_is_cancelled_only_under_proven_success() {
    let dropped = || async {
        tokio::select! {
            biased;
            _ = stage_that_waits() => unreachable!("the future never completes"),
            () = tokio::task::yield_now() => (),
        }
    };
    assert_eq!(outcomes(dropped).await, [OK, OK, OK, "cancelled"]);
}

#[instrument(fields(stage_id = "a"), err, ret)]
async fn stage_that_waits() -> Answer {
    std::future::pending::<()>().await;
    Ok(1)
}

#[tokio::test]
async fn dropped_future_fails_with_an_earlier_error_event() {
    #[instrument(fields(stage_id = "a"), err, ret)]
    async fn waits() -> Answer {
        error!("slow");
        std::future::pending::<()>().await;
        Ok(1)
    }
    let dropped = || async {
        tokio::select! {
            biased;
            _ = waits() => unreachable!("the future never completes"),
            () = tokio::task::yield_now() => (),
        }
    };
    assert_eq!(outcomes(dropped).await, ["error", OK, "error", "cancelled"]);
}

#[tokio::test]
async fn aborted_task_is_cancelled_only_under_proven_success() {
    for (policy, outcome) in POLICIES.into_iter().zip([OK, OK, OK, "cancelled"]) {
        let pipeline = Pipeline::under(policy);
        let task = tokio::spawn(stage_that_waits().with_subscriber(pipeline.dispatch()));
        tokio::task::yield_now().await;
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert_eq!(outcome_of(&pipeline, "a"), outcome);
    }
}

#[tokio::test]
async fn unpolled_future_is_a_success() {
    let pipeline = Pipeline::start();
    drop(stage(Ok(1)));
    assert!(pipeline.now().totals().is_empty(), "an async function opens its span at the first poll");
    drop(async {}.instrument(info_span!("x", stage_id = "a")));
    assert_eq!(pipeline.now().totals(), ["a 1 0"]);
}

#[tokio::test]
async fn failed_child_does_not_fail_its_parent() {
    let nested = || async { stage_of("b", no()).await.unwrap_or(1) }.instrument(info_span!("x", stage_id = "a"));
    assert_eq!(outcomes(nested).await, [OK, OK, OK, "cancelled"]);
}

#[instrument(skip(answer), err, ret)]
async fn stage_of(stage_id: &str, answer: Answer) -> Answer {
    tokio::task::yield_now().await;
    answer
}
