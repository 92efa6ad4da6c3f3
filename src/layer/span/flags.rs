//! The facts about an open span that determine its outcome, as a set of bits.

/// `otel.status_code` and `otel.status_description`, as `tracing-opentelemetry` reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StatusCode {
    Ok,
    Error,
    /// Any other code: no status.
    Unset,
}

impl StatusCode {
    pub(crate) fn from_code(code: &str) -> Self {
        if code.eq_ignore_ascii_case("ok") {
            Self::Ok
        } else if code.eq_ignore_ascii_case("error") {
            Self::Error
        } else {
            Self::Unset
        }
    }
}

/// Facts about an open span. A set of bits, so that a slot keeps them in one atomic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SpanFlags(pub(crate) u32);

impl SpanFlags {
    /// The callsite declares `stage_id`.
    pub(crate) const STAGE: Self = Self(1);
    /// The span repeats the id of its nearest stage and is an ordinary span of that stage.
    pub(crate) const NESTED_SAME_STAGE: Self = Self(1 << 1);
    /// A panic unwound through the span.
    pub(crate) const PANICKED: Self = Self(1 << 2);
    /// An error event directly in the span.
    pub(crate) const ERROR_EVENT: Self = Self(1 << 3);
    /// An error event in a descendant that is not a stage.
    pub(crate) const ERROR_WITHIN: Self = Self(1 << 4);
    /// The span's own `err` event.
    pub(crate) const RETURNED_ERROR: Self = Self(1 << 5);
    /// The span's own `ret` event.
    pub(crate) const RETURNED_VALUE: Self = Self(1 << 6);
    /// The `err` or the `ret` event: the function has returned.
    pub(crate) const RETURNED: Self = Self(Self::RETURNED_ERROR.0 | Self::RETURNED_VALUE.0);
    /// `otel.status_code`.
    pub(crate) const DECLARED_OK: Self = Self(1 << 7);
    pub(crate) const DECLARED_ERROR: Self = Self(1 << 8);

    /// A thread writes the trace of the span.
    #[cfg(feature = "trace-id")]
    pub(crate) const TRACE_CLAIMED: Self = Self(1 << 9);
    /// The trace of the span is written.
    #[cfg(feature = "trace-id")]
    pub(crate) const TRACE_KNOWN: Self = Self(1 << 10);
    /// The trace was another one, or is being replaced.
    #[cfg(feature = "trace-id")]
    pub(crate) const TRACE_REPLACED: Self = Self(1 << 11);

    /// Facts that make a stage fail under some policy.
    pub(crate) const TROUBLE: Self = Self(
        Self::PANICKED.0 | Self::ERROR_EVENT.0 | Self::ERROR_WITHIN.0 | Self::RETURNED_ERROR.0 | Self::DECLARED_ERROR.0,
    );
    pub(crate) const DECLARED: Self = Self(Self::DECLARED_OK.0 | Self::DECLARED_ERROR.0);

    pub(crate) fn has(self, flag: Self) -> bool {
        self.0 & flag.0 != 0
    }

    /// Returns whether the span is a stage that is counted on its own.
    pub(crate) fn is_stage(self) -> bool {
        self.0 & (Self::STAGE.0 | Self::NESTED_SAME_STAGE.0) == Self::STAGE.0
    }

    pub(crate) fn with(self, flag: Self) -> Self {
        Self(self.0 | flag.0)
    }

    pub(crate) fn without(self, flag: Self) -> Self {
        Self(self.0 & !flag.0)
    }

    /// Applies a status that the span declares, by the rule of traces. Before the span is first entered, the last status
    /// counts. From then on (`has_started`) `ok` is final, and only `ok` replaces an error.
    pub(crate) fn with_status(self, status: StatusCode, has_started: bool) -> Self {
        let rest = self.without(Self::DECLARED);
        match status {
            StatusCode::Ok => rest.with(Self::DECLARED_OK),
            StatusCode::Error if has_started && self.has(Self::DECLARED_OK) => self,
            StatusCode::Error => rest.with(Self::DECLARED_ERROR),
            StatusCode::Unset if has_started => self,
            StatusCode::Unset => rest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_status_counts_until_the_span_is_entered() {
        let [none, is_ok, is_error] = [SpanFlags::STAGE, SpanFlags::DECLARED_OK, SpanFlags::DECLARED_ERROR];
        let [is_ok, is_error] = [is_ok, is_error].map(|flag| none.with(flag));
        let status = |statuses: [StatusCode; 2], has_started| {
            none.with_status(statuses[0], has_started).with_status(statuses[1], has_started)
        };
        let [ok, error, unset] = [StatusCode::Ok, StatusCode::Error, StatusCode::Unset];
        for (words, before, after) in [
            ([error, ok], is_ok, is_ok),
            ([ok, error], is_error, is_ok),
            ([ok, unset], none, is_ok),
            ([error, unset], none, is_error),
            ([unset, error], is_error, is_error),
        ] {
            assert_eq!([status(words, false), status(words, true)], [before, after], "{words:?}");
        }
    }
}
