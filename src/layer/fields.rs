//! Reads the fields of a span: label values, and what the span says of its own outcome.

use std::cell::Cell;
use std::fmt::{self, Write};

use tracing::field::{Field, FieldSet, Visit};

use super::callsite::Inherited;
use crate::schema::{PROFILE, RUN_ID, STAGE_ID};
use crate::series::interner::{MAX_VALUE_BYTES, prefix};

thread_local! {
    /// Where values are written. Taken out while in use: printing may run the user's code, and that may come back here.
    static SCRATCH: Cell<String> = const { Cell::new(String::new()) };
}

/// `otel.status_code` and `otel.status_description`, as `tracing-opentelemetry` reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StatusCode {
    Ok,
    Error,
    /// A code that is neither: as if nothing was said.
    Unset,
}

/// Which field of a callsite is which: span by name once, told by position after.
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

/// The fields that matter, of those one call brought: the text of each value, one after the other.
pub(crate) struct SpanFields<'a> {
    positions: &'a Positions,
    text: String,
    /// Where the values of stage, profile and run id are in the text.
    values: [Option<(usize, usize)>; VALUES],
    is_repeated: bool,
    pub(crate) declared: Option<StatusCode>,
}

/// The roles that are labels come first.
const VALUES: usize = 3;
/// What is kept of a value that is too long for a label: enough to see that it is.
const MAX_KEPT: usize = MAX_VALUE_BYTES + 4;
/// All values of one call fit what is compared. None ends where [`FieldOffsets::NO_VALUE`] does.
const _: () = assert!(VALUES * MAX_KEPT < (1 << FieldOffsets::BITS) - 1);

/// Which values a text has, and where. Texts that are equal in this and byte by byte have the same values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FieldOffsets(u64);

impl FieldOffsets {
    const BITS: u32 = 10;
    /// Of a value that begins and ends behind all that is compared.
    const NO_VALUE: u64 = u64::MAX >> (u64::BITS - 2 * Self::BITS);

    pub(crate) fn bits(self) -> u64 {
        self.0
    }
}

impl<'a> SpanFields<'a> {
    #[inline]
    pub(crate) fn new(positions: &'a Positions) -> Self {
        let mut text = SCRATCH.try_with(Cell::take).unwrap_or_default();
        text.clear();
        Self { positions, text, values: [None; VALUES], is_repeated: false, declared: None }
    }

    pub(crate) fn stage(&self) -> Option<&str> {
        self.value(Role::Stage)
    }

    pub(crate) fn profile(&self) -> Option<&str> {
        self.value(Role::Profile)
    }

    pub(crate) fn run_id(&self) -> Option<&str> {
        self.value(Role::RunId)
    }

    #[inline]
    fn value(&self, role: Role) -> Option<&str> {
        let (begin, end) = (*self.values.get(role as usize)?)?;
        self.text.get(begin..end)
    }

    /// All values as one text, where they can be compared so.
    #[inline]
    pub(crate) fn compared(&self) -> Option<(&str, FieldOffsets)> {
        if self.is_repeated {
            return None;
        }
        let offsets = self.values.iter().fold(0, |offsets, value| {
            let value = value.map_or(FieldOffsets::NO_VALUE, |(begin, end)| (begin << FieldOffsets::BITS | end) as u64);
            offsets << (2 * FieldOffsets::BITS) | value
        });
        Some((&self.text, FieldOffsets(offsets)))
    }

    /// What was written to the text since it was `begin` long is the value of this role.
    #[inline]
    fn take(&mut self, role: Role, begin: usize) {
        if let Some(value) = self.values.get_mut(role as usize) {
            self.is_repeated |= value.is_some();
            *value = Some((begin, self.text.len()));
            return;
        }
        self.declared = Some(match role {
            Role::StatusCode => StatusCode::from_code(self.text.get(begin..).unwrap_or_default()),
            _ => StatusCode::Error,
        });
        self.text.truncate(begin);
    }
}

impl Drop for SpanFields<'_> {
    #[inline]
    fn drop(&mut self) {
        let text = std::mem::take(&mut self.text);
        let _ = SCRATCH.try_with(|scratch| scratch.set(text));
    }
}

impl StatusCode {
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
            let begin = self.text.len();
            self.text.push_str(if value.len() <= MAX_KEPT { value } else { prefix(value, MAX_KEPT) });
            self.take(role, begin);
        }
    }

    /// `%display`, `?debug`, and numbers and bools by the trait's defaults: the label is what they print.
    #[inline]
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let Some(role) = self.positions.role(field) else { return };
        let begin = self.text.len();
        let mut text = Truncating { text: &mut self.text, room: MAX_KEPT };
        // A `Debug` that fails prints what it printed until then.
        let _ = write!(text, "{value:?}");
        self.take(role, begin);
    }
}

/// Writes as much as there is room for, and drops the rest. That is no error: a `Debug` of the application might take one
/// for impossible and panic.
struct Truncating<'a> {
    text: &'a mut String,
    room: usize,
}

impl Write for Truncating<'_> {
    #[inline]
    fn write_str(&mut self, more: &str) -> fmt::Result {
        let more = if more.len() <= self.room { more } else { prefix(more, self.room) };
        self.room -= more.len();
        self.text.push_str(more);
        Ok(())
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
