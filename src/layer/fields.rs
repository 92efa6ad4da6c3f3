//! Reads the fields of a span: label values, and what the span says of its own outcome.

use std::cell::Cell;
use std::fmt::{self, Write};

use tracing::field::{Field, FieldSet, Visit};

use super::callsite::Inherited;
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

/// Which field of a callsite is which: found by name once, told by position after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Positions {
    /// One more than the position; zero: it has no such field.
    of: [usize; Role::ALL.len()],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Stage,
    Profile,
    RunId,
    StatusCode,
    StatusDescription,
}

impl Role {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Stage, STAGE_ID),
        (Self::Profile, PROFILE),
        (Self::RunId, RUN_ID),
        (Self::StatusCode, "otel.status_code"),
        (Self::StatusDescription, "otel.status_description"),
    ];
}

impl Positions {
    /// A label that does not come from spans is not read.
    pub(crate) fn of(fields: &FieldSet, inherited: &Inherited) -> Self {
        let read = |role| match role {
            Role::Profile => inherited.profile,
            Role::RunId => inherited.run_id,
            _ => true,
        };
        let position = |name| fields.field(name).map_or(0, |field| field.index() + 1);
        Self { of: Role::ALL.map(|(role, name)| if read(role) { position(name) } else { 0 }) }
    }

    #[inline]
    fn role(&self, field: &Field) -> Option<Role> {
        let position = field.index() + 1;
        Role::ALL.iter().zip(self.of).find(|(_, of)| *of == position).map(|((role, _), _)| *role)
    }
}

/// The fields that matter, of those one call brought.
pub(crate) struct SpanFields<'a> {
    labels: &'a Labels,
    positions: &'a Positions,
    /// Whether a run id seen for the first time has a place: not once the metric that shows it has all its label sets.
    new_run_ids: bool,
    pub(crate) stage: Label,
    pub(crate) profile: Label,
    pub(crate) run_id: Label,
    pub(crate) declared: Option<Declared>,
}

impl<'a> SpanFields<'a> {
    pub(crate) fn new(labels: &'a Labels, positions: &'a Positions, new_run_ids: bool) -> Self {
        Self {
            labels,
            positions,
            new_run_ids,
            stage: Label::NONE,
            profile: Label::NONE,
            run_id: Label::NONE,
            declared: None,
        }
    }

    #[inline]
    fn take(&mut self, role: Role, value: &str) {
        match role {
            Role::Stage => self.stage = self.labels.intern(value),
            Role::Profile => self.profile = self.labels.intern(value),
            Role::RunId if self.new_run_ids => self.run_id = self.labels.intern(value),
            Role::RunId => self.run_id = self.labels.find(value).unwrap_or(Label::OVERFLOW),
            Role::StatusCode => self.declared = Some(Declared::from_code(value)),
            Role::StatusDescription => self.declared = Some(Declared::Error),
        }
    }
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
        if let Some(role) = self.positions.role(field) {
            self.take(role, value);
        }
    }

    /// `%display`, `?debug`, and numbers and bools by the trait's defaults: the label is what they print.
    #[inline]
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let Some(role) = self.positions.role(field) else { return };
        let mut text = SCRATCH.try_with(Cell::take).unwrap_or_default();
        text.clear();
        // A `Debug` that fails prints what it printed until then.
        let _ = write!(text, "{value:?}");
        self.take(role, &text);
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
