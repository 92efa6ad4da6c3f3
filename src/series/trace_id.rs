//! The id of a trace.

use std::fmt;
use std::num::NonZeroU128;

use opentelemetry::trace::SpanContext;

/// `Display` prints 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TraceId(NonZeroU128);

impl TraceId {
    pub(crate) fn new(id: u128) -> Option<Self> {
        NonZeroU128::new(id).map(Self)
    }

    pub(crate) fn get(self) -> u128 {
        self.0.get()
    }

    /// Of a trace that is recorded.
    pub(crate) fn of(span: &SpanContext) -> Option<Self> {
        if span.is_sampled() { Self::new(u128::from_be_bytes(span.trace_id().to_bytes())) } else { None }
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}
