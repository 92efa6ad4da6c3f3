//! Retries a request while another try can help and there is time.

use std::hash::{BuildHasher, RandomState};
#[cfg(feature = "otlp")]
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

use super::error::RequestError;
use crate::error::{Error, Kind};

/// Longest wait before the second try. It doubles with each try.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// Longest wait before a try.
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// Shortest time for a try after a failed one. A try that the deadline cuts has no result: the error before it says
/// more.
const MIN_TRY_TIME: Duration = Duration::from_millis(100);
/// How long the final request of a process is retried while the server is unreachable.
const MAX_UNREACHABLE_TIME: Duration = Duration::from_secs(1);

/// The limits on the tries of a request.
#[derive(Clone, Debug)]
pub(in crate::delivery) struct RetryBudget {
    pub(in crate::delivery) deadline: Instant,
    /// Whether the process waits for the request before it ends.
    pub(in crate::delivery) is_final: bool,
    /// Notified when a newer state waits: there is no further request then.
    pub(in crate::delivery) superseded: Arc<Notify>,
}

impl RetryBudget {
    /// Returns whether a newer state waits. Takes the notification.
    #[cfg(feature = "otlp")]
    pub(in crate::delivery) fn take_superseded(&self) -> bool {
        pin!(self.superseded.notified()).enable()
    }
}

/// Returns the middle of the time that is left: what comes before a request leaves time for the request.
pub(in crate::delivery) fn half_time(deadline: Instant) -> Instant {
    let now = Instant::now();
    now + deadline.saturating_duration_since(now) / 2
}

/// Calls `attempt` until it succeeds, is refused for good, or the time is over. `server` names the server in errors.
pub(in crate::delivery) async fn retry<T, F: Future<Output = Result<T, RequestError>>>(
    server: &str,
    budget: &RetryBudget,
    attempt: impl Fn() -> F,
) -> Result<T, Error> {
    let start = Instant::now();
    let mut earlier = None;
    for tries in 0.. {
        let err = match timeout_at(budget.deadline, attempt()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(err)) => err,
            Err(_) => return Err(out_of_time(server, start, earlier)),
        };
        let wait = backoff(tries).max(err.retry_after.unwrap_or_default());
        let stays_unreachable =
            budget.is_final && err.error.kind() == Kind::Unreachable && start.elapsed() + wait > MAX_UNREACHABLE_TIME;
        if !is_retryable(&err.error) || stays_unreachable || Instant::now() + wait + MIN_TRY_TIME > budget.deadline {
            return Err(err.error);
        }
        if timeout(wait, budget.superseded.notified()).await.is_ok() {
            return Err(err.error);
        }
        earlier = Some(err.error);
    }
    Err(out_of_time(server, start, earlier))
}

/// Returns the error of a request whose time is over. Its source is the error of the try before, if there was one.
fn out_of_time(server: &str, start: Instant, earlier: Option<Error>) -> Error {
    let elapsed = start.elapsed();
    let error = Error::new(Kind::Timeout, format!("{server} gave no answer in the {elapsed:.1?} allowed"));
    match earlier {
        Some(earlier) => error.with_source(earlier),
        None => error,
    }
}

/// Returns whether another try can succeed. A refusal is final, except for the statuses that mean "later".
pub(in crate::delivery) fn is_retryable(error: &Error) -> bool {
    match error.kind() {
        Kind::Refused(status) => matches!(status, 408 | 425 | 429 | 500..),
        Kind::Unreachable | Kind::Timeout | Kind::Delivery => true,
        Kind::Config => false,
    }
}

/// Returns whether a refusal is about the payload, which is then not sent again. Other refusals are about this client,
/// for instance its address or its password.
pub(in crate::delivery) fn is_payload_rejected(error: &Error) -> bool {
    matches!(error.kind(), Kind::Refused(400 | 413 | 422))
}

/// Returns the wait before the next try. It doubles with every try. The jitter covers its upper half, so that processes
/// that lost the server at the same time do not retry at the same time.
fn backoff(tries: u32) -> Duration {
    let longest = FIRST_BACKOFF.saturating_mul(2_u32.saturating_pow(tries.min(16))).min(MAX_BACKOFF);
    let random = RandomState::new().hash_one(tries) as u32;
    longest.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn final_budget(time: Duration) -> RetryBudget {
        RetryBudget { deadline: Instant::now() + time, is_final: true, superseded: Arc::default() }
    }

    fn failure(kind: Kind) -> Result<(), RequestError> {
        Err(Error::new(kind, "on purpose").into())
    }

    /// Returns the number of tries and their total time when every try fails with this kind of error.
    async fn tries(kind: Kind, is_final: bool, time: Duration) -> (u32, Duration) {
        let (start, tries) = (Instant::now(), AtomicU32::new(0));
        let budget = RetryBudget { is_final, ..final_budget(time) };
        let attempt = || async {
            tries.fetch_add(1, Ordering::Relaxed);
            failure(kind)
        };
        assert_eq!(retry("x", &budget, attempt).await.unwrap_err().to_string(), "on purpose");
        (tries.into_inner(), start.elapsed())
    }

    /// The first wait takes 50 ms to 100 ms.
    #[tokio::test(start_paused = true)]
    async fn time_too_short_for_another_try_leaves_the_error_of_the_last_one() {
        let failing_in_20_ms = || async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            failure(Kind::Unreachable)
        };
        for time in 21..500 {
            let budget = final_budget(Duration::from_millis(time));
            let error = retry("x", &budget, failing_in_20_ms).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Unreachable, "{time} ms: {error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn try_that_gets_no_answer_is_a_timeout_whose_source_is_the_error_before() {
        let budget = final_budget(Duration::from_secs(1));
        let tries = AtomicU32::new(0);
        let attempt = || async {
            if tries.fetch_add(1, Ordering::Relaxed) > 0 {
                std::future::pending::<()>().await;
            }
            failure(Kind::Unreachable)
        };
        let error = retry("x", &budget, attempt).await.unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (Kind::Timeout, "x gave no answer in the 1.0s allowed"));
        assert_eq!(error.source().unwrap().to_string(), "on purpose");
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_final_request_to_an_unreachable_server_gives_up_early() {
        const TIME: Duration = Duration::from_secs(5);
        let (unreachable, failing, not_final) = tokio::join!(
            tries(Kind::Unreachable, true, TIME),
            tries(Kind::Delivery, true, TIME),
            tries(Kind::Unreachable, false, TIME),
        );
        // Three waits take at most 0.7 s. Five waits take 1.55 s to 3.1 s.
        assert!((4..=5).contains(&unreachable.0) && unreachable.1 <= MAX_UNREACHABLE_TIME, "{unreachable:?}");
        for until_the_deadline in [failing, not_final] {
            assert!(until_the_deadline.0 >= 6 && until_the_deadline.1 < TIME, "{until_the_deadline:?}");
        }
    }

    #[test]
    fn backoff_doubles_with_jitter_up_to_a_limit() {
        let bounds = [(50, 100), (100, 200), (200, 400), (400, 800), (800, 1_600), (1_600, 3_200), (2_500, 5_000)];
        let at_the_limit = std::iter::repeat_n((2_500, 5_000), 40);
        for (tries, (shortest, longest)) in (0..).zip(bounds.into_iter().chain(at_the_limit)) {
            let wait = backoff(tries);
            let bounds = Duration::from_millis(shortest)..=Duration::from_millis(longest);
            assert!(bounds.contains(&wait), "{tries}: {wait:?} is not in {bounds:?}");
        }
        let different: std::collections::HashSet<_> = (0..100).map(|_| backoff(3)).collect();
        assert!(different.len() > 90, "{}", different.len());
    }

    #[test]
    fn refusal_is_final_unless_its_status_means_later() {
        for (status, expected) in [
            (301, false),
            (400, false),
            (401, false),
            (404, false),
            (408, true),
            (413, false),
            (425, true),
            (429, true),
            (500, true),
            (502, true),
            (503, true),
            (504, true),
        ] {
            assert_eq!(is_retryable(&Error::new(Kind::Refused(status), "refused")), expected, "{status}");
        }
        for (kind, expected) in
            [(Kind::Unreachable, true), (Kind::Timeout, true), (Kind::Delivery, true), (Kind::Config, false)]
        {
            assert_eq!(is_retryable(&Error::new(kind, "x")), expected, "{kind:?}");
        }
    }
}
