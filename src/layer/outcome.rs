//! The failure policy: the rule that derives the outcome of a stage from the facts about its span.

use super::callsite::InstrumentEvent;
use super::span::flags::SpanFlags;
use crate::series::outcome::{Outcome, Reason};

/// The rule by which a stage fails.
///
/// A panic that unwinds through the span decides first, then an `otel.status_code` on the span, then the policy. Before the
/// span is first entered, the last of several status codes counts; from then on `ok` is final, as in a trace. A failed child
/// stage never fails its parent.
///
/// ```
/// # #[cfg(feature = "pushgateway")]
/// # fn example() -> Result<(), tracing_stage_metrics::Error> {
/// # use tracing_subscriber::prelude::*;
/// use tracing_stage_metrics::{FailurePolicy, MetricsLayer};
///
/// let (layer, guard) = MetricsLayer::builder().with_failure_policy(FailurePolicy::ErrorsWithin).build()?;
/// # let _default = tracing_subscriber::registry().with(layer).set_default();
/// tracing::info_span!("ingest", stage_id = "ingest").in_scope(|| {
///     tracing::info_span!("a file of many").in_scope(|| tracing::error!("cannot be read"));
/// });
/// assert_eq!(guard.report().stage("ingest").unwrap().failures(), 1); // 0 by default: the event is in a child span
/// # Ok(()) }
/// # #[cfg(feature = "pushgateway")]
/// # example().unwrap();
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailurePolicy {
    /// A stage fails by an event of level ERROR directly in the span, or by one of any level that has an `error` field and no
    /// message before it, such as `#[instrument(err)]` emits. This is the rule of `tracing-opentelemetry`: a stage fails in
    /// the metrics if it fails in the trace.
    #[default]
    ErrorEvents,
    /// A stage fails only by the event of the span's own `#[instrument(err)]`. An error that is logged and handled is not a
    /// failure.
    ReturnedError,
    /// A stage fails as by [`ErrorEvents`](Self::ErrorEvents), and by such events in descendants that are not stages.
    ErrorsWithin,
    /// A stage succeeds only by the event of the span's own `#[instrument(ret)]`, which is emitted for `Ok` alone if `err` is
    /// present. Its own `err` event is a failure with the reason `error`; a stage without either event has the reason
    /// `cancelled`.
    ///
    /// For code in which every stage has `#[instrument(err, ret)]`. This is the only policy that distinguishes a dropped future
    /// (a timeout, a lost `select!`, an aborted task) from a finished one: **the other policies count it as a success.**
    ///
    /// ```
    /// # #[cfg(feature = "pushgateway")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tracing_stage_metrics::Error> {
    /// # use tracing_subscriber::prelude::*;
    /// # use tracing_stage_metrics::{FailurePolicy, MetricsLayer};
    /// #[tracing::instrument(fields(stage_id = "download"), err, ret)]
    /// async fn download() -> Result<usize, std::io::Error> {
    ///     std::future::pending().await
    /// }
    ///
    /// # let (layer, guard) = MetricsLayer::builder().with_failure_policy(FailurePolicy::ProvenSuccess).build()?;
    /// # let _default = tracing_subscriber::registry().with(layer).set_default();
    /// let _ = tokio::time::timeout(std::time::Duration::from_millis(1), download()).await;
    /// assert_eq!(guard.report().stage("download").unwrap().failures(), 1); // the reason is `cancelled`
    /// # Ok(()) }
    /// # #[cfg(not(feature = "pushgateway"))]
    /// # fn main() {}
    /// ```
    ProvenSuccess,
}

impl FailurePolicy {
    /// Returns the outcome of a stage that closed.
    pub(crate) fn outcome(self, flags: SpanFlags) -> Outcome {
        // One test for most stages.
        if !flags.has(SpanFlags::TROUBLE) && self != Self::ProvenSuccess {
            return Outcome::Success;
        }
        if flags.has(SpanFlags::PANICKED) {
            return Outcome::Failure(Reason::Panic);
        }
        if flags.has(SpanFlags::DECLARED_ERROR) {
            return Outcome::Failure(Reason::Error);
        }
        if flags.has(SpanFlags::DECLARED_OK) {
            return Outcome::Success;
        }
        let failed = match self {
            Self::ErrorEvents => flags.has(SpanFlags::ERROR_EVENT),
            Self::ErrorsWithin => flags.has(SpanFlags::ERROR_EVENT.with(SpanFlags::ERROR_WITHIN)),
            Self::ReturnedError => flags.has(SpanFlags::RETURNED_ERROR),
            Self::ProvenSuccess if flags.has(SpanFlags::RETURNED_VALUE) => false,
            Self::ProvenSuccess if flags.has(SpanFlags::RETURNED_ERROR) => true,
            Self::ProvenSuccess => return Outcome::Failure(Reason::Cancelled),
        };
        if failed { Outcome::Failure(Reason::Error) } else { Outcome::Success }
    }

    /// Returns whether a stage fails by an event directly in its span: unless a later one or a status of the span says otherwise.
    pub(crate) fn fails_by(self, is_error: bool, event: Option<InstrumentEvent>) -> bool {
        match self {
            Self::ErrorEvents | Self::ErrorsWithin => is_error,
            Self::ReturnedError | Self::ProvenSuccess => event == Some(InstrumentEvent::Error),
        }
    }

    /// Returns the outcome of a stage that is open at the end of the run. `is_aborted`: the process ends by a signal, a panic
    /// or a non-zero exit.
    pub(crate) fn outcome_at_end(self, flags: SpanFlags, entered: bool, is_aborted: bool) -> Outcome {
        if flags.has(SpanFlags::PANICKED) {
            Outcome::Failure(Reason::Panic)
        } else if flags.has(SpanFlags::RETURNED) && !entered {
            // The function returned; a child or a handle keeps the span open.
            self.outcome(flags)
        } else if entered || is_aborted {
            Outcome::Failure(Reason::Interrupted)
        } else {
            Outcome::Failure(Reason::Unfinished)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::FailurePolicy::{ErrorEvents, ErrorsWithin, ProvenSuccess, ReturnedError};
    use super::*;
    use crate::series::outcome::Outcome::{Failure, Success};

    const POLICIES: [FailurePolicy; 4] = [ErrorEvents, ReturnedError, ErrorsWithin, ProvenSuccess];

    #[test]
    fn each_policy_uses_its_own_flags() {
        let error = Failure(Reason::Error);
        let cancelled = Failure(Reason::Cancelled);
        for (flags, expected) in [
            (SpanFlags::default(), [Success, Success, Success, cancelled]),
            (SpanFlags::ERROR_EVENT, [error, Success, error, cancelled]),
            (SpanFlags::ERROR_WITHIN, [Success, Success, error, cancelled]),
            (SpanFlags::ERROR_EVENT.with(SpanFlags::RETURNED_ERROR), [error, error, error, error]),
            (SpanFlags::RETURNED_VALUE, [Success; 4]),
            (SpanFlags::RETURNED_VALUE.with(SpanFlags::ERROR_EVENT), [error, Success, error, Success]),
        ] {
            assert_eq!(POLICIES.map(|policy| policy.outcome(flags)), expected, "{flags:?}");
        }
    }

    #[test]
    fn panic_precedes_status_and_status_precedes_policy() {
        for policy in POLICIES {
            let all = SpanFlags::ERROR_EVENT.with(SpanFlags::RETURNED_ERROR);
            assert_eq!(policy.outcome(all.with(SpanFlags::DECLARED_OK)), Success);
            assert_eq!(
                policy.outcome(SpanFlags::RETURNED_VALUE.with(SpanFlags::DECLARED_ERROR)),
                Failure(Reason::Error)
            );
            assert_eq!(policy.outcome(SpanFlags::PANICKED.with(SpanFlags::DECLARED_OK)), Failure(Reason::Panic));
        }
    }

    #[test]
    fn a_stage_open_at_the_end_is_interrupted_or_unfinished_unless_it_returned() {
        for policy in POLICIES {
            let logged = SpanFlags::ERROR_EVENT;
            assert_eq!(policy.outcome_at_end(logged, true, false), Failure(Reason::Interrupted));
            assert_eq!(policy.outcome_at_end(logged, false, true), Failure(Reason::Interrupted));
            assert_eq!(policy.outcome_at_end(logged, false, false), Failure(Reason::Unfinished));
            for is_aborted in [false, true] {
                assert_eq!(policy.outcome_at_end(SpanFlags::RETURNED_VALUE, false, is_aborted), Success);
                assert_eq!(
                    policy.outcome_at_end(SpanFlags::RETURNED_VALUE, true, is_aborted),
                    Failure(Reason::Interrupted)
                );
                assert_eq!(policy.outcome_at_end(SpanFlags::PANICKED, false, is_aborted), Failure(Reason::Panic));
                let returned_error = logged.with(SpanFlags::RETURNED_ERROR);
                assert_eq!(policy.outcome_at_end(returned_error, false, is_aborted), Failure(Reason::Error));
                assert_eq!(policy.outcome_at_end(returned_error, true, is_aborted), Failure(Reason::Interrupted));
            }
        }
    }
}
