//! Tries a push again, as long as that can help and there is time.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

use crate::delivery::http::error::RequestError;
use crate::error::{Error, Kind};

/// The wait before the second try, on average; it doubles with each one.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How long the last push of a process tries where nobody listens or the name is unknown.
const UNREACHABLE_PATIENCE: Duration = Duration::from_secs(1);

/// How long a push may take.
#[derive(Clone, Debug)]
pub(crate) struct RetryBudget {
    pub(crate) deadline: Instant,
    /// Somebody waits for the process to end.
    pub(crate) is_final: bool,
    /// Told when a newer state is to be pushed: there is no other try then.
    pub(crate) superseded: Arc<Notify>,
}

/// Tries until it succeeds, is refused for good, or the time is over. `whom`: who is asked.
pub(crate) async fn retry<T, F: Future<Output = Result<T, RequestError>>>(
    whom: &str,
    budget: &RetryBudget,
    attempt: impl Fn() -> F,
) -> Result<T, Error> {
    let begun = Instant::now();
    let mut earlier = None;
    for tries in 0.. {
        let failure = match timeout_at(budget.deadline, attempt()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(failure)) => failure,
            Err(_) => return Err(out_of_time(whom, begun, earlier)),
        };
        let wait = wait_before(tries).max(failure.retry_after.unwrap_or_default());
        let out_of_patience = budget.is_final
            && failure.error.kind() == Kind::Unreachable
            && begun.elapsed() + wait > UNREACHABLE_PATIENCE;
        if !is_retryable(&failure.error) || out_of_patience || Instant::now() + wait >= budget.deadline {
            return Err(failure.error);
        }
        if timeout(wait, budget.superseded.notified()).await.is_ok() {
            return Err(failure.error);
        }
        earlier = Some(failure.error);
    }
    Err(out_of_time(whom, begun, earlier))
}

/// What the try before met with, if there was one, is the cause.
fn out_of_time(whom: &str, begun: Instant, earlier: Option<Error>) -> Error {
    let allowed = begun.elapsed();
    let error = Error::new(Kind::Timeout, format!("{whom} gave no answer in the {allowed:.1?} allowed"));
    match earlier {
        Some(earlier) => error.with_source(earlier),
        None => error,
    }
}

/// Whether another try can end otherwise: not after a refusal, but for those that say "later".
pub(crate) fn is_retryable(error: &Error) -> bool {
    match error.kind() {
        Kind::Refused(status) => matches!(status, 408 | 425 | 429 | 500..),
        Kind::Unreachable | Kind::Timeout | Kind::Delivery => true,
        Kind::Config => false,
    }
}

/// Whether a refusal is of what was sent, which is then not to be sent again. Others speak of this client: its address, its
/// password.
pub(crate) fn is_payload_rejected(error: &Error) -> bool {
    matches!(error.kind(), Kind::Refused(400 | 413 | 422))
}

/// Doubles with every try, and spreads over the upper half, so that processes that lost the gateway together do not
/// come back together.
fn wait_before(tries: u32) -> Duration {
    let longest = FIRST_WAIT.saturating_mul(2_u32.saturating_pow(tries.min(16))).min(LONGEST_WAIT);
    let random = RandomState::new().hash_one(tries) as u32;
    longest.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use crate::delivery::http::retry::*;

    #[test]
    fn waits_double_with_jitter_up_to_a_limit() {
        let bounds = [(50, 100), (100, 200), (200, 400), (400, 800), (800, 1_600), (1_600, 3_200), (2_500, 5_000)];
        let at_the_limit = std::iter::repeat_n((2_500, 5_000), 40);
        for (tries, (shortest, longest)) in (0..).zip(bounds.into_iter().chain(at_the_limit)) {
            let wait = wait_before(tries);
            let bounds = Duration::from_millis(shortest)..=Duration::from_millis(longest);
            assert!(bounds.contains(&wait), "{tries}: {wait:?} is not in {bounds:?}");
        }
        let different: std::collections::HashSet<_> = (0..100).map(|_| wait_before(3)).collect();
        assert!(different.len() > 90, "{}", different.len());
    }

    #[test]
    fn a_refusal_is_final_unless_it_says_later() {
        for (status, again) in [
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
            assert_eq!(is_retryable(&Error::new(Kind::Refused(status), "refused")), again, "{status}");
        }
        for (kind, again) in
            [(Kind::Unreachable, true), (Kind::Timeout, true), (Kind::Delivery, true), (Kind::Config, false)]
        {
            assert_eq!(is_retryable(&Error::new(kind, "x")), again, "{kind:?}");
        }
    }
}
