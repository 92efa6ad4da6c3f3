//! What a subscriber is told: every event, in order, for tests of what the crate says and does not say.

use std::fmt::{Debug, Write as _};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// The target of the crate's own events.
pub const OWN_TARGET: &str = "tracing_stage_metrics";

#[derive(Clone, Debug)]
pub struct Entry {
    pub level: Level,
    pub target: String,
    /// The message, then the fields as `name=value`.
    pub text: String,
}

/// A layer that keeps every event. Clones share what they keep.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<Entry>>>);

impl Log {
    pub fn entries(&self) -> Vec<Entry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The texts of the crate's own events.
    pub fn own(&self) -> Vec<String> {
        let own = self.entries().into_iter().filter(|entry| entry.target == OWN_TARGET);
        own.map(|entry| entry.text).collect()
    }

    /// All of it, for messages and for searching what must not be there.
    pub fn text(&self) -> String {
        self.entries().iter().map(|entry| format!("{} {}: {}\n", entry.level, entry.target, entry.text)).collect()
    }
}

impl<S: Subscriber> Layer<S> for Log {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut words = Words::default();
        event.record(&mut words);
        let text = format!("{}{}", words.message, words.fields);
        let entry = Entry { level: *event.metadata().level(), target: event.metadata().target().to_owned(), text };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
    }
}

#[derive(Default)]
struct Words {
    message: String,
    fields: String,
}

impl Visit for Words {
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
