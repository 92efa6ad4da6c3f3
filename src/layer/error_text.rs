//! The text of the error event by which a stage fails, for the run report.

use std::collections::HashMap;
use std::fmt::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing::Event;
use tracing::field::{Field, Visit};

use super::fields::{MAX_KEPT, Truncating};
use super::span::state::SlotRef;
use crate::recorder::suppress_instrumentation;
use crate::series::interner::{CUT, MAX_VALUE_BYTES, prefix};

/// Number of open stages with a text. When it is reached, the texts of closed stages that succeeded all the same are dropped. If
/// there are none, the next stage has no text.
const MAX_OPEN: usize = 1_024;

/// The fields that hold an error by convention.
const ERROR_FIELDS: [&str; 2] = ["error", "err"];

/// The texts of the stages that are open. Allocates nothing once it has as many texts as there are at a time.
#[derive(Default)]
pub(super) struct ErrorTexts(Mutex<Texts>);

#[derive(Default)]
struct Texts {
    open: HashMap<SlotRef, String>,
    unused: Vec<String>,
}

impl ErrorTexts {
    fn texts(&self) -> MutexGuard<'_, Texts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the text of an event in place of an earlier one.
    pub(super) fn keep(&self, stage: SlotRef, event: &Event<'_>, is_open: impl Fn(SlotRef) -> bool) {
        let mut text = self.texts().unused.pop().unwrap_or_default();
        // Without the lock: this runs the application's code, which may emit an error itself. If it panics, the text before is
        // kept: a program without another subscriber of the text must not end here.
        let _ = catch_unwind(AssertUnwindSafe(|| suppress_instrumentation(|| text_of(event, &mut text))));
        let Texts { open, unused } = &mut *self.texts();
        if open.len() >= MAX_OPEN && !open.contains_key(&stage) {
            open.retain(|stage, text| {
                let is_open = is_open(*stage);
                unused.extend((!is_open).then(|| std::mem::take(text)));
                is_open
            });
        }
        let has_room = open.len() < MAX_OPEN || open.contains_key(&stage);
        let left = if has_room && !text.is_empty() { open.insert(stage, text) } else { Some(text) };
        unused.extend(left);
    }

    /// Passes on the text of a stage that failed, if there is one.
    pub(super) fn take(&self, stage: SlotRef, pass_on: impl FnOnce(&str)) {
        let Some(text) = self.texts().open.remove(&stage) else { return };
        pass_on(&text);
        self.texts().unused.push(text);
    }
}

/// Writes the message of an event and its error, of an event without both all fields.
fn text_of(event: &Event<'_>, text: &mut String) {
    let fields = event.metadata().fields();
    let has = |name: &str| fields.field(name).is_some();
    let takes_all = !has("message") && !ERROR_FIELDS.into_iter().any(has);
    text.clear();
    event.record(&mut ErrorText { takes_all, text });
    if text.len() > MAX_VALUE_BYTES {
        text.truncate(prefix(text, MAX_VALUE_BYTES - CUT.len()).len());
        text.push_str(CUT);
    }
}

struct ErrorText<'a> {
    takes_all: bool,
    text: &'a mut String,
}

impl ErrorText<'_> {
    fn add(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        let is_message = field.name() == "message";
        if !(self.takes_all || is_message || ERROR_FIELDS.contains(&field.name())) {
            return;
        }
        // The message comes first, also if the callsite has it after its fields.
        let error = if is_message && !self.text.is_empty() { std::mem::take(self.text) } else { String::new() };
        let mut text = Truncating { room: MAX_KEPT.saturating_sub(self.text.len()), text: self.text };
        let separator = match (text.text.is_empty(), self.takes_all) {
            (true, _) => "",
            (_, true) => " ",
            (_, false) => ": ",
        };
        // The text before an error of `Debug` is kept.
        let _ = match self.takes_all {
            true => write!(text, "{separator}{field}={value}"),
            false => write!(text, "{separator}{value}"),
        };
        if !error.is_empty() {
            let _ = write!(text, ": {error}");
        }
    }
}

impl Visit for ErrorText<'_> {
    /// A text without the quotes of its `Debug`.
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format_args!("{value:?}"));
    }
}
