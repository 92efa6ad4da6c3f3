//! A layer that records every event in order, for tests of the crate's own events.

use std::fmt::{Debug, Write as _};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// The target of the crate's own events.
pub const OWN_TARGET: &str = "tracing_stage_metrics";

/// The beginning of the warning of a run that is no success.
pub const NO_SUCCESS: &str = "the run is not a success: ";

#[derive(Clone, Debug)]
pub struct Entry {
    pub level: Level,
    pub target: String,
    /// The message, then the fields as `name=value`.
    pub text: String,
}

impl Entry {
    /// Whether this is the event that says where the metrics go, one for each `install()` or `build()`.
    pub fn is_start(&self) -> bool {
        self.target == OWN_TARGET && self.text.starts_with("metrics go ")
    }
}

/// A layer that records every event. Clones share the records.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<Entry>>>);

impl Log {
    pub fn entries(&self) -> Vec<Entry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The texts of the crate's own events after the start, without the warning of a run that is no success: most tests are about something
    /// else, and a run without a stage is none. `tests/open_stages/run_success.rs` is about that warning.
    pub fn own(&self) -> Vec<String> {
        let own = self.entries().into_iter().filter(|entry| entry.target == OWN_TARGET && !entry.is_start());
        own.map(|entry| entry.text).filter(|text| !text.starts_with(NO_SUCCESS)).collect()
    }

    /// The events that say where the metrics go.
    pub fn starts(&self) -> Vec<Entry> {
        self.entries().into_iter().filter(Entry::is_start).collect()
    }

    /// All events as text, one per line, for messages and for searches.
    pub fn text(&self) -> String {
        self.entries().iter().map(|entry| format!("{} {}: {}\n", entry.level, entry.target, entry.text)).collect()
    }
}

impl<S: Subscriber> Layer<S> for Log {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut event_text = EventText::default();
        event.record(&mut event_text);
        let text = format!("{}{}", event_text.message, event_text.fields);
        let entry = Entry { level: *event.metadata().level(), target: event.metadata().target().to_owned(), text };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
    }
}

#[derive(Default)]
struct EventText {
    message: String,
    fields: String,
}

impl Visit for EventText {
    fn record_str(&mut self, field: &Field, value: &str) {
        let _ = write!(self.fields, " {}={value}", field.name());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}
