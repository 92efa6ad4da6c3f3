//! The field visitor: reads the label values of a span and the status that it declares.

use std::cell::Cell;
use std::fmt::{self, Write};

use tracing::field::{Field, FieldSet, Visit};

use super::span::flags::StatusCode;
use crate::schema::{PROFILE, RUN_ID, STAGE_ID};
use crate::series::interner::{MAX_VALUE_BYTES, prefix};

thread_local! {
    /// The buffer for values. It is taken while in use, since formatting may run the application's code, which may open a span.
    static SCRATCH: Cell<String> = const { Cell::new(String::new()) };
}

/// The labels that come from spans. Other labels are fixed for the process or left out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inherited {
    pub(crate) profile: bool,
    pub(crate) run_id: bool,
}

/// The positions of the fields of a callsite that the layer reads, found by name once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Positions {
    /// The position plus one; zero if the callsite lacks the field.
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
    /// Finds the positions. A label that does not come from spans is not read.
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

/// The values of one callback: the text of each value, one after the other.
pub(crate) struct SpanFields<'a> {
    positions: &'a Positions,
    text: String,
    /// The ranges of stage, profile and run id in the text.
    values: [Option<(usize, usize)>; VALUES],
    is_repeated: bool,
    pub(crate) status: Option<StatusCode>,
}

/// The number of roles that are labels, which come first.
const VALUES: usize = 3;
/// How many bytes are kept of a value that is too long for a label: enough to see that it is too long.
pub(super) const MAX_KEPT: usize = MAX_VALUE_BYTES + 4;
/// The offsets of all values fit, and no value ends at the offset of [`FieldOffsets::NO_VALUE`].
const _: () = assert!(VALUES * MAX_KEPT < (1 << FieldOffsets::BITS) - 1);

/// The offsets of the values in a text. Texts with equal bytes and equal offsets have the same values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FieldOffsets(u64);

impl FieldOffsets {
    const BITS: u32 = 10;
    /// The offsets of an absent value, behind all others.
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
        Self { positions, text, values: [None; VALUES], is_repeated: false, status: None }
    }

    /// Whether one of the fields is a label.
    pub(crate) fn has_labels(&self) -> bool {
        self.values.iter().any(Option::is_some)
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

    /// Returns all values as one text with their offsets. `None` if a field was recorded twice.
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

    /// Assigns the text from `begin` on to this role.
    #[inline]
    fn take(&mut self, role: Role, begin: usize) {
        if let Some(value) = self.values.get_mut(role as usize) {
            self.is_repeated |= value.is_some();
            *value = Some((begin, self.text.len()));
            return;
        }
        self.status = Some(match role {
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

impl Visit for SpanFields<'_> {
    #[inline]
    fn record_str(&mut self, field: &Field, value: &str) {
        if let Some(role) = self.positions.role(field) {
            let begin = self.text.len();
            self.text.push_str(if value.len() <= MAX_KEPT { value } else { prefix(value, MAX_KEPT) });
            self.take(role, begin);
        }
    }

    /// Formats a `%display` or `?debug` value, and numbers and bools by the trait's defaults.
    #[inline]
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let Some(role) = self.positions.role(field) else { return };
        let begin = self.text.len();
        let mut text = Truncating { text: &mut self.text, room: MAX_KEPT };
        // The text before an error of `Debug` is kept.
        let _ = write!(text, "{value:?}");
        self.take(role, begin);
    }
}

/// Writes up to `room` bytes and drops the rest without an error: a `Debug` of the application might unwrap the result.
pub(super) struct Truncating<'a> {
    pub(super) text: &'a mut String,
    pub(super) room: usize,
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

/// Visits an event: whether its field `error` has a value.
#[derive(Default)]
pub(crate) struct HasError(pub(crate) bool);

impl Visit for HasError {
    fn record_debug(&mut self, field: &Field, _: &dyn fmt::Debug) {
        self.0 |= field.name() == "error";
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// The label cache finds an entry by both, so they must not be those of other values.
    #[test]
    fn text_and_offsets_identify_the_values() {
        let positions = Positions { of: [0; Role::ALL.len()] };
        let choices = [None, Some(""), Some("a"), Some("aa")];
        let mut known = HashMap::new();
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            for number in 0..choices.len().pow(3) {
                let values = [number, number / 4, number / 16].map(|number| choices[number % 4]);
                let mut fields = SpanFields::new(&positions);
                for at in order {
                    let begin = fields.text.len();
                    if let Some(value) = values[at] {
                        fields.text.push_str(value);
                        fields.take(Role::ALL[at].0, begin);
                    }
                }
                assert_eq!([fields.stage(), fields.profile(), fields.run_id()], values);
                let (text, offsets) = fields.compared().unwrap();
                let of = *known.entry((text.to_owned(), offsets.bits())).or_insert(values);
                assert_eq!(of, values, "{text:?}");
            }
        }
    }

    #[test]
    fn value_written_in_pieces_is_bounded() {
        let mut text = "before".to_owned();
        let mut truncating = Truncating { text: &mut text, room: 5 };
        for piece in ["ab", "", "cdä", "e", "f"] {
            truncating.write_str(piece).unwrap();
        }
        assert_eq!(text, "beforeabcde");
    }
}
