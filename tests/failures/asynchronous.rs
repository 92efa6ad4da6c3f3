//! Asynchronous stages: the same rules, and futures that are dropped.

use tracing::instrument::WithSubscriber;
use tracing::{Instrument, error, info_span, instrument};

use super::{OK, POLICIES, Pipeline, end_of};

type Answer = Result<u32, String>;

#[instrument(fields(stage_id = "a"), err, ret)]
async fn stage(answer: Answer) -> Answer {
    tokio::task::yield_now().await;
    answer
}

fn no() -> Answer {
    Err("no".to_owned())
}

/// How the stage `a` of this future ends under each policy.
async fn ends<F: Future>(future: impl Fn() -> F) -> Vec<String> {
    let mut ends = Vec::new();
    for policy in POLICIES {
        let pipeline = Pipeline::under(policy);
        future().with_subscriber(pipeline.dispatch()).await;
        ends.push(end_of(&pipeline, "a"));
    }
    ends
}

#[tokio::test]
async fn what_an_async_stage_returns() {
    assert_eq!(ends(|| stage(Ok(1))).await, [OK, OK, OK, OK]);
    assert_eq!(ends(|| stage(no())).await, ["error", "error", "error", "error"]);
}

#[tokio::test]
async fn only_err_or_only_ret() {
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
    assert_eq!(ends(|| only_err(Ok(1))).await, [OK, OK, OK, "cancelled"]);
    assert_eq!(ends(|| only_err(no())).await, ["error", "error", "error", "error"]);
    assert_eq!(ends(only_ret).await, [OK, OK, OK, OK]);
}

#[tokio::test]
async fn an_error_that_was_logged_and_survived() {
    #[instrument(fields(stage_id = "a"), err, ret)]
    async fn survived() -> Answer {
        error!(error = "no");
        tokio::task::yield_now().await;
        Ok(1)
    }
    assert_eq!(ends(survived).await, ["error", OK, "error", OK]);
}

#[tokio::test]
async fn a_future_that_was_dropped_is_cancelled_only_where_success_must_be_proven() {
    let lost = || async {
        tokio::select! {
            biased;
            _ = stage_that_waits() => unreachable!("it waits for ever"),
            () = tokio::task::yield_now() => (),
        }
    };
    assert_eq!(ends(lost).await, [OK, OK, OK, "cancelled"]);
}

#[instrument(fields(stage_id = "a"), err, ret)]
async fn stage_that_waits() -> Answer {
    std::future::pending::<()>().await;
    Ok(1)
}

#[tokio::test]
async fn a_future_that_was_dropped_after_an_error() {
    #[instrument(fields(stage_id = "a"), err, ret)]
    async fn waits() -> Answer {
        error!("slow");
        std::future::pending::<()>().await;
        Ok(1)
    }
    let lost = || async {
        tokio::select! {
            biased;
            _ = waits() => unreachable!("it waits for ever"),
            () = tokio::task::yield_now() => (),
        }
    };
    assert_eq!(ends(lost).await, ["error", OK, "error", "cancelled"]);
}

#[tokio::test]
async fn an_aborted_task() {
    for (policy, end) in POLICIES.into_iter().zip([OK, OK, OK, "cancelled"]) {
        let pipeline = Pipeline::under(policy);
        let task = tokio::spawn(stage_that_waits().with_subscriber(pipeline.dispatch()));
        tokio::task::yield_now().await;
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert_eq!(end_of(&pipeline, "a"), end);
    }
}

#[tokio::test]
async fn a_future_that_was_never_polled() {
    let pipeline = Pipeline::start();
    drop(stage(Ok(1)));
    assert!(pipeline.now().totals().is_empty(), "an async function that never began opens no span");
    drop(async {}.instrument(info_span!("x", stage_id = "a")));
    assert_eq!(pipeline.now().totals(), ["a 1 0"]);
}

#[tokio::test]
async fn a_failed_child_does_not_fail_its_parent() {
    let family = || async { stage_of("b", no()).await.unwrap_or(1) }.instrument(info_span!("x", stage_id = "a"));
    assert_eq!(ends(family).await, [OK, OK, OK, "cancelled"]);
}

#[instrument(skip(answer), err, ret)]
async fn stage_of(stage_id: &str, answer: Answer) -> Answer {
    tokio::task::yield_now().await;
    answer
}
