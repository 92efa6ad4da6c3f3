//! The kind of each callsite, determined once when `tracing` registers it and found by its address later.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::field::FieldSet;
use tracing::{Level, Metadata};

use super::fields::{Inherited, Positions};
use crate::schema::OWN_TARGET;
use crate::schema::{PROFILE, RUN_ID, STAGE_ID};
use crate::series::append_only_map::{AppendOnlyMap, EntryId, fibonacci_hash, splitmix64};

/// A callsite with its kind and fields.
#[derive(Debug)]
pub(crate) struct Callsite {
    pub(crate) meta: &'static Metadata<'static>,
    pub(crate) kind: CallsiteKind,
    pub(crate) positions: Positions,
    /// Whether the warning about its spans was emitted.
    pub(crate) warned: AtomicBool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallsiteKind {
    /// A span that declares `stage_id`.
    Stage,
    /// A span that declares `profile` or `run_id`, which stages below it inherit.
    Context,
    /// An event that marks its span as failed, under the condition of its kind.
    Error(ErrorEvent),
    /// The event of `#[instrument(ret)]`, if it comes from the line of its span.
    Returned,
    /// Anything else.
    Plain,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorEvent {
    /// An event of level ERROR, unconditionally.
    Level,
    /// An event of another level with a field `error` and no message before it, if `error` has a value.
    Field,
}

impl Callsite {
    fn new(meta: &'static Metadata<'static>, context: &Inherited) -> Self {
        Self {
            meta,
            kind: CallsiteKind::of(meta, context),
            positions: Positions::of(meta.fields(), context),
            warned: AtomicBool::new(false),
        }
    }

    /// Returns whether this is the first call.
    pub(crate) fn warn_once(&self) -> bool {
        !self.warned.swap(true, Ordering::Relaxed)
    }
}

impl CallsiteKind {
    fn of(meta: &Metadata<'_>, context: &Inherited) -> Self {
        let fields = meta.fields();
        if meta.target() == OWN_TARGET {
            Self::Plain
        } else if meta.is_span() {
            let has = |name| fields.field(name).is_some();
            if has(STAGE_ID) {
                Self::Stage
            } else if (context.profile && has(PROFILE)) || (context.run_id && has(RUN_ID)) {
                Self::Context
            } else {
                Self::Plain
            }
        } else if *meta.level() == Level::ERROR {
            Self::Error(ErrorEvent::Level)
        } else if is_exactly(fields, "return") {
            Self::Returned
        } else if let Some(error) = fields.field("error")
            && fields.field("message").is_none_or(|message| message.index() > error.index())
        {
            Self::Error(ErrorEvent::Field)
        } else {
            Self::Plain
        }
    }
}

fn is_exactly(fields: &FieldSet, name: &str) -> bool {
    fields.len() == 1 && fields.field(name).is_some()
}

/// The event of `#[instrument]` about the result of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InstrumentEvent {
    /// `err`.
    Error,
    /// `ret`.
    Value,
}

/// Returns whether this event is the `err` or `ret` event of the `#[instrument]` that made this span.
///
/// Such an event has the single field `error` or `return`, and the span's target, file and line, since the attribute expands
/// to both. A bare `error!(error = %e)` in the body has the same field on another line. Functions that one line of a macro
/// makes cannot be distinguished.
pub(crate) fn instrument_event(event: &Metadata<'_>, span: &Metadata<'_>) -> Option<InstrumentEvent> {
    let same_place = event.line().is_some()
        && event.line() == span.line()
        && event.file() == span.file()
        && event.target() == span.target();
    if !same_place {
        None
    } else if is_exactly(event.fields(), "error") {
        Some(InstrumentEvent::Error)
    } else if is_exactly(event.fields(), "return") {
        Some(InstrumentEvent::Value)
    } else {
        None
    }
}

/// All callsites of the process.
pub(crate) struct Callsites {
    callsites: AppendOnlyMap<Callsite>,
    /// Cache of the callsites of spans by a hash of their address: one comparison finds most of them. The first of two
    /// callsites with the same place has it.
    span_cache: Box<[OnceLock<CachedSpan>; SPAN_CACHE]>,
    inherited: Inherited,
    /// Whether an event below ERROR can affect the outcome of a stage. Most programs have no such event; an ordinary event
    /// then costs one load.
    has_outcome_events_below_error: AtomicBool,
}

/// A callsite of a span, with its id if its spans are stages or have labels that stages inherit.
#[derive(Clone, Copy, Debug)]
struct CachedSpan {
    address: u64,
    tracked: Option<EntryId>,
}

const SPAN_CACHE: usize = 256;

impl Callsites {
    pub(crate) fn new(inherited: Inherited) -> Self {
        Self {
            callsites: AppendOnlyMap::new(),
            span_cache: Box::new([const { OnceLock::new() }; SPAN_CACHE]),
            inherited,
            has_outcome_events_below_error: AtomicBool::new(false),
        }
    }

    /// Returns the callsite of a span if its spans are tracked.
    #[inline]
    pub(crate) fn of_span(&self, meta: &'static Metadata<'static>) -> Option<EntryId> {
        let address = address(meta);
        let at = fibonacci_hash(address, SPAN_CACHE);
        match self.span_cache[at].get() {
            Some(span_cache) if span_cache.address == address => span_cache.tracked,
            _ => self.of_span_slow(meta, at),
        }
    }

    #[cold]
    fn of_span_slow(&self, meta: &'static Metadata<'static>, at: usize) -> Option<EntryId> {
        let (id, callsite) = self.find(meta);
        let tracked = matches!(callsite.kind, CallsiteKind::Stage | CallsiteKind::Context).then_some(id);
        let _ = self.span_cache[at].set(CachedSpan { address: address(meta), tracked });
        tracked
    }

    /// Determines the kind of a callsite, when `tracing` registers it.
    pub(crate) fn register(&self, meta: &'static Metadata<'static>) -> (EntryId, &Callsite) {
        let address = address(meta);
        let callsite = self.callsites.find_or_insert(
            splitmix64(address),
            |callsite| self::address(callsite.meta) == address,
            || Callsite::new(meta, &self.inherited),
        );
        if matches!(callsite.1.kind, CallsiteKind::Returned | CallsiteKind::Error(ErrorEvent::Field)) {
            self.has_outcome_events_below_error.store(true, Ordering::Relaxed);
        }
        callsite
    }

    #[cfg(all(test, feature = "pushgateway"))]
    pub(crate) fn lock(&self) -> impl Sized {
        self.callsites.lock()
    }

    /// Returns whether the callsite is registered.
    pub(crate) fn has(&self, meta: &'static Metadata<'static>) -> bool {
        let address = address(meta);
        self.callsites.find(splitmix64(address), |callsite| self::address(callsite.meta) == address).is_some()
    }

    /// Finds a callsite, and registers it if that did not happen.
    #[inline]
    pub(crate) fn find(&self, meta: &'static Metadata<'static>) -> (EntryId, &Callsite) {
        let address = address(meta);
        match self.callsites.find(splitmix64(address), |callsite| self::address(callsite.meta) == address) {
            Some(callsite) => callsite,
            None => self.register(meta),
        }
    }

    pub(crate) fn get(&self, id: EntryId) -> Option<&Callsite> {
        self.callsites.get(id)
    }

    /// Returns whether an event may affect the outcome of a stage, at the cost of a comparison and a load.
    #[inline]
    pub(crate) fn may_affect_outcome(&self, event: &Metadata<'_>) -> bool {
        *event.level() == Level::ERROR || self.has_outcome_events_below_error.load(Ordering::Relaxed)
    }
}

#[inline]
fn address(meta: &Metadata<'_>) -> u64 {
    std::ptr::from_ref(meta).addr() as u64
}

#[cfg(test)]
mod tests {
    use tracing::info_span;
    use tracing::subscriber::with_default;
    use tracing_subscriber::Registry;

    use super::*;

    fn callsites() -> Callsites {
        Callsites::new(Inherited { profile: true, run_id: true })
    }

    #[test]
    fn callsite_keeps_its_id_when_registered_again() {
        let meta = with_default(Registry::default(), || info_span!("x", stage_id = 1).metadata()).unwrap();
        let callsites = callsites();
        assert!(!callsites.has(meta));
        let (number, _) = callsites.register(meta);
        assert_eq!(callsites.register(meta).0, number);
        assert_eq!(callsites.of_span(meta), Some(number));
        assert!(callsites.has(meta));
    }

    /// Enough callsites that some share a place.
    #[test]
    fn callsites_with_one_cache_place_are_distinguished() {
        macro_rules! twice {
            ($($body:tt)*) => { $($body)* $($body)* };
        }
        let mut all = Vec::new();
        with_default(Registry::default(), || {
            twice! { twice! { twice! { twice! { twice! { twice! { twice! {
                all.push((info_span!("stage", stage_id = 1).metadata().unwrap(), true));
                all.push((info_span!("plain", rows = 1).metadata().unwrap(), false));
            }}}}}}}
        });
        let callsites = callsites();
        for _ in 0..2 {
            for (meta, is_stage) in &all {
                assert_eq!(callsites.of_span(meta).is_some(), *is_stage);
            }
        }
        assert_eq!(callsites.callsites.len(), all.len());
    }
}
