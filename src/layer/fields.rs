//! Reads the fields of a span: label values, and what the span says of its own outcome.

use std::cell::Cell;
use std::fmt::{self, Write};

use tracing::field::{Field, Visit};

use super::labels::{Label, Labels};
use crate::schema::{PROFILE, RUN_ID, STAGE_ID};

thread_local! {
    /// Where values that are not strings are printed. Taken out while in use: printing may run the user's code, and
    /// that may come back here.
    static SCRATCH: Cell<String> = const { Cell::new(String::new()) };
}

/// `otel.status_code` and `otel.status_description`, as `tracing-opentelemetry` reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Declared {
    Ok,
    Error,
    /// A code that is neither: as if nothing was said.
    Unset,
}

/// The fields that matter, of those one call brought.
pub(crate) struct SpanFields<'a> {
    labels: &'a Labels,
    pub(crate) stage: Label,
    pub(crate) profile: Label,
    pub(crate) run_id: Label,
    pub(crate) declared: Option<Declared>,
}

impl<'a> SpanFields<'a> {
    pub(crate) fn new(labels: &'a Labels) -> Self {
        Self { labels, stage: Label::NONE, profile: Label::NONE, run_id: Label::NONE, declared: None }
    }

    #[inline]
    fn take(&mut self, field: &Field, value: &str) {
        match field.name() {
            STAGE_ID => self.stage = self.labels.intern(value),
            PROFILE => self.profile = self.labels.intern(value),
            RUN_ID => self.run_id = self.labels.intern(value),
            "otel.status_code" => self.declared = Some(Declared::from_code(value)),
            "otel.status_description" => self.declared = Some(Declared::Error),
            _ => {}
        }
    }
}

fn matters(field: &Field) -> bool {
    matches!(field.name(), STAGE_ID | PROFILE | RUN_ID | "otel.status_code" | "otel.status_description")
}

impl Declared {
    fn from_code(code: &str) -> Self {
        if code.eq_ignore_ascii_case("ok") {
            Self::Ok
        } else if code.eq_ignore_ascii_case("error") {
            Self::Error
        } else {
            Self::Unset
        }
    }
}

impl Visit for SpanFields<'_> {
    #[inline]
    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, value);
    }

    /// `%display`, `?debug`, and numbers and bools by the trait's defaults: the label is what they print.
    #[inline]
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if !matters(field) {
            return;
        }
        let mut text = SCRATCH.try_with(Cell::take).unwrap_or_default();
        text.clear();
        // A `Debug` that fails prints what it printed until then.
        let _ = write!(text, "{value:?}");
        self.take(field, &text);
        let _ = SCRATCH.try_with(|scratch| scratch.set(text));
    }
}

/// Whether an event sets its field `error`.
#[derive(Default)]
pub(crate) struct HasError(pub(crate) bool);

impl Visit for HasError {
    fn record_debug(&mut self, field: &Field, _: &dyn fmt::Debug) {
        self.0 |= field.name() == "error";
    }
}
