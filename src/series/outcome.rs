//! How a stage ended.

/// How a stage ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Success,
    Failure(Reason),
}

/// The reason of a failure: the label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Error,
    Panic,
    Cancelled,
    Interrupted,
    Unfinished,
}

/// Numbers of failures, in the order of [`Reason::ALL`].
pub(crate) type FailuresByReason = [u64; Reason::COUNT];

impl Reason {
    /// All reasons, in the order of their discriminants.
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
