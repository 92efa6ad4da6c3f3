//! What counts as a failure: the facts a span gathered while it was open, and the rule that decides over them.

use super::fields::Declared;

/// When a stage counts as failed.
///
/// A panic unwound through the span and an `otel.status_code` on it always decide, in this order; the policy says
/// what else does. Of several status codes the last one counts that was given before the span was first entered; from
/// then on `ok` is final, as in a trace. A failed child stage never fails its parent.
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
/// assert_eq!(guard.report().stage("ingest").unwrap().failures(), 1); // none by default: it is in a span below
/// # Ok(()) }
/// # #[cfg(feature = "pushgateway")]
/// # example().unwrap();
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailurePolicy {
    /// An event of level ERROR directly in the span, or one of any level that has an `error` field and no message
    /// before it, which is what `#[instrument(err)]` emits. The rule of `tracing-opentelemetry`: a stage that is red
    /// in the trace is red in the metric.
    #[default]
    ErrorEvents,
    /// Only the event of the span's own `#[instrument(err)]`. An error that was logged and survived is no failure.
    ReturnedError,
    /// As [`ErrorEvents`](Self::ErrorEvents), and also events in spans below that are not stages themselves.
    ErrorsWithin,
    /// Success only with the event of the span's own `#[instrument(ret)]`, which is emitted for `Ok` alone where
    /// `err` is there too; its own `err` event is the reason `error`, neither is `cancelled`.
    ///
    /// For code in which every stage has `#[instrument(err, ret)]`. The only policy that tells a dropped future (a
    /// timeout, a lost `select!`, an aborted task) from a finished one: **under the others it counts as a success.**
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

/// How a stage ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Success,
    Failure(Reason),
}

/// Why a stage failed: the label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Error,
    Panic,
    Cancelled,
    Interrupted,
    Unfinished,
}

impl Reason {
    /// In the order of their numbers.
    pub(crate) const ALL: [Self; 5] = [Self::Error, Self::Panic, Self::Cancelled, Self::Interrupted, Self::Unfinished];
    pub(crate) const COUNT: usize = Self::ALL.len();

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Panic => "panic",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
            Self::Unfinished => "unfinished",
        }
    }
}

/// What is known of an open span: a set of bits, so that a slot keeps it in one atomic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts(pub(crate) u32);

impl Facts {
    /// The callsite declares `stage_id`.
    pub(crate) const STAGE: Self = Self(1);
    /// It repeats the stage around it and is counted with that one.
    pub(crate) const PART_OF_STAGE: Self = Self(1 << 1);
    /// A panic unwound through it.
    pub(crate) const PANICKED: Self = Self(1 << 2);
    /// An event directly in it says error.
    pub(crate) const ERROR_EVENT: Self = Self(1 << 3);
    /// An event in a span below, which is no stage, says error.
    pub(crate) const ERROR_WITHIN: Self = Self(1 << 4);
    /// Its own `err` event.
    pub(crate) const RETURNED_ERROR: Self = Self(1 << 5);
    /// Its own `ret` event.
    pub(crate) const RETURNED_VALUE: Self = Self(1 << 6);
    /// Either of the two: its function is known to have returned.
    pub(crate) const RETURNED: Self = Self(Self::RETURNED_ERROR.0 | Self::RETURNED_VALUE.0);
    /// `otel.status_code`.
    pub(crate) const DECLARED_OK: Self = Self(1 << 7);
    pub(crate) const DECLARED_ERROR: Self = Self(1 << 8);

    /// A thread writes its trace.
    #[cfg(feature = "trace-id")]
    pub(crate) const TRACE_CLAIMED: Self = Self(1 << 9);
    /// Its trace is written.
    #[cfg(feature = "trace-id")]
    pub(crate) const TRACE_KNOWN: Self = Self(1 << 10);

    /// What may make it fail under some policy.
    #[cfg(feature = "trace-id")]
    pub(crate) const TROUBLE: Self = Self(
        Self::PANICKED.0 | Self::ERROR_EVENT.0 | Self::ERROR_WITHIN.0 | Self::RETURNED_ERROR.0 | Self::DECLARED_ERROR.0,
    );
    pub(crate) const DECLARED: Self = Self(Self::DECLARED_OK.0 | Self::DECLARED_ERROR.0);

    pub(crate) fn has(self, fact: Self) -> bool {
        self.0 & fact.0 != 0
    }

    /// A stage that is measured for itself.
    pub(crate) fn is_stage(self) -> bool {
        self.0 & (Self::STAGE.0 | Self::PART_OF_STAGE.0) == Self::STAGE.0
    }

    pub(crate) fn with(self, fact: Self) -> Self {
        Self(self.0 | fact.0)
    }

    pub(crate) fn without(self, fact: Self) -> Self {
        Self(self.0 & !fact.0)
    }

    /// With what the span says of itself. As in a trace: until it is `begun`, which is when it is first entered, its
    /// last word counts; from then on `ok` is final and an error is taken back by `ok` alone.
    pub(crate) fn declared(self, declared: Declared, begun: bool) -> Self {
        let rest = self.without(Self::DECLARED);
        match declared {
            Declared::Ok => rest.with(Self::DECLARED_OK),
            Declared::Error if begun && self.has(Self::DECLARED_OK) => self,
            Declared::Error => rest.with(Self::DECLARED_ERROR),
            Declared::Unset if begun => self,
            Declared::Unset => rest,
        }
    }
}

impl FailurePolicy {
    /// The outcome of a stage that closed.
    pub(crate) fn outcome(self, facts: Facts) -> Outcome {
        if facts.has(Facts::PANICKED) {
            return Outcome::Failure(Reason::Panic);
        }
        if facts.has(Facts::DECLARED_ERROR) {
            return Outcome::Failure(Reason::Error);
        }
        if facts.has(Facts::DECLARED_OK) {
            return Outcome::Success;
        }
        let failed = match self {
            Self::ErrorEvents => facts.has(Facts::ERROR_EVENT),
            Self::ErrorsWithin => facts.has(Facts::ERROR_EVENT.with(Facts::ERROR_WITHIN)),
            Self::ReturnedError => facts.has(Facts::RETURNED_ERROR),
            Self::ProvenSuccess if facts.has(Facts::RETURNED_VALUE) => false,
            Self::ProvenSuccess if facts.has(Facts::RETURNED_ERROR) => true,
            Self::ProvenSuccess => return Outcome::Failure(Reason::Cancelled),
        };
        if failed { Outcome::Failure(Reason::Error) } else { Outcome::Success }
    }

    /// The outcome of a stage that is still open at the end of the run. `cut_off`: the process ends by a signal, a panic
    /// or a non-zero exit.
    pub(crate) fn outcome_at_end(self, facts: Facts, entered: bool, cut_off: bool) -> Outcome {
        if facts.has(Facts::PANICKED) {
            Outcome::Failure(Reason::Panic)
        } else if facts.has(Facts::RETURNED) && !entered {
            // It returned; only a child or a kept handle holds its span open.
            self.outcome(facts)
        } else if entered || cut_off {
            Outcome::Failure(Reason::Interrupted)
        } else {
            Outcome::Failure(Reason::Unfinished)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::FailurePolicy::{ErrorEvents, ErrorsWithin, ProvenSuccess, ReturnedError};
    use super::Outcome::{Failure, Success};
    use super::*;

    const POLICIES: [FailurePolicy; 4] = [ErrorEvents, ReturnedError, ErrorsWithin, ProvenSuccess];

    #[test]
    fn each_policy_reads_its_own_facts() {
        let error = Failure(Reason::Error);
        let cancelled = Failure(Reason::Cancelled);
        for (facts, expected) in [
            (Facts::default(), [Success, Success, Success, cancelled]),
            (Facts::ERROR_EVENT, [error, Success, error, cancelled]),
            (Facts::ERROR_WITHIN, [Success, Success, error, cancelled]),
            (Facts::ERROR_EVENT.with(Facts::RETURNED_ERROR), [error, error, error, error]),
            (Facts::RETURNED_VALUE, [Success; 4]),
            (Facts::RETURNED_VALUE.with(Facts::ERROR_EVENT), [error, Success, error, Success]),
        ] {
            assert_eq!(POLICIES.map(|policy| policy.outcome(facts)), expected, "{facts:?}");
        }
    }

    #[test]
    fn a_panic_wins_over_a_declared_status_and_that_over_the_policy() {
        for policy in POLICIES {
            let all = Facts::ERROR_EVENT.with(Facts::RETURNED_ERROR);
            assert_eq!(policy.outcome(all.with(Facts::DECLARED_OK)), Success);
            assert_eq!(policy.outcome(Facts::RETURNED_VALUE.with(Facts::DECLARED_ERROR)), Failure(Reason::Error));
            assert_eq!(policy.outcome(Facts::PANICKED.with(Facts::DECLARED_OK)), Failure(Reason::Panic));
        }
    }

    #[test]
    fn the_last_declared_status_counts_until_the_span_is_entered() {
        let [none, is_ok, is_error] = [Facts::STAGE, Facts::DECLARED_OK, Facts::DECLARED_ERROR];
        let [is_ok, is_error] = [is_ok, is_error].map(|fact| none.with(fact));
        let said = |words: [Declared; 2], begun| none.declared(words[0], begun).declared(words[1], begun);
        let [ok, error, unset] = [Declared::Ok, Declared::Error, Declared::Unset];
        for (words, before, after) in [
            ([error, ok], is_ok, is_ok),
            ([ok, error], is_error, is_ok),
            ([ok, unset], none, is_ok),
            ([error, unset], none, is_error),
            ([unset, error], is_error, is_error),
        ] {
            assert_eq!([said(words, false), said(words, true)], [before, after], "{words:?}");
        }
    }

    #[test]
    fn a_stage_open_at_the_end_is_interrupted_or_unfinished_unless_it_returned() {
        for policy in POLICIES {
            let logged = Facts::ERROR_EVENT;
            assert_eq!(policy.outcome_at_end(logged, true, false), Failure(Reason::Interrupted));
            assert_eq!(policy.outcome_at_end(logged, false, true), Failure(Reason::Interrupted));
            assert_eq!(policy.outcome_at_end(logged, false, false), Failure(Reason::Unfinished));
            for cut_off in [false, true] {
                assert_eq!(policy.outcome_at_end(Facts::RETURNED_VALUE, false, cut_off), Success);
                assert_eq!(policy.outcome_at_end(Facts::RETURNED_VALUE, true, cut_off), Failure(Reason::Interrupted));
                assert_eq!(policy.outcome_at_end(Facts::PANICKED, false, cut_off), Failure(Reason::Panic));
                let returned_error = logged.with(Facts::RETURNED_ERROR);
                assert_eq!(policy.outcome_at_end(returned_error, false, cut_off), Failure(Reason::Error));
                assert_eq!(policy.outcome_at_end(returned_error, true, cut_off), Failure(Reason::Interrupted));
            }
        }
    }
}
