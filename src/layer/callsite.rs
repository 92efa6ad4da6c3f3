//! What a callsite is to the layer: decided once, when `tracing` registers it, and looked up by its address after.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::field::FieldSet;
use tracing::{Level, Metadata};

use super::fields::Positions;
use crate::schema::OWN_TARGET;
use crate::schema::{PROFILE, RUN_ID, STAGE_ID};
use crate::series::append_only_map::{AppendOnlyMap, EntryId, fibonacci_hash, splitmix64};

/// A callsite and what was decided about it.
#[derive(Debug)]
pub(crate) struct Callsite {
    pub(crate) meta: &'static Metadata<'static>,
    pub(crate) kind: CallsiteKind,
    pub(crate) positions: Positions,
    /// Whether the one warning about its spans was given.
    pub(crate) warned: AtomicBool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallsiteKind {
    /// A span that declares `stage_id`.
    Stage,
    /// A span that declares `profile` or `run_id`: what stages below inherit from.
    Context,
    /// An event that marks its span as failed, if its fields are set as the name says.
    Error(ErrorEvent),
    /// The event of `#[instrument(ret)]`, if it comes from the line of its span.
    Returned,
    /// Anything else.
    Plain,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorEvent {
    /// Level ERROR: always.
    Level,
    /// Another level, and a field `error` without a message before it: if `error` has a value.
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

    /// Whether this is the first call.
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

/// What `#[instrument]` says a function returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InstrumentEvent {
    /// `err`.
    Error,
    /// `ret`.
    Value,
}

/// Whether this event is the `err` or `ret` event that `#[instrument]` put into the function of this span: its only field
/// is `error` or `return`, and it has the span's target, file and line, since the attribute expands to both. A bare
/// `error!(error = %e)` in the body has the same field and another line. Several functions made by one line of a macro
/// cannot be told apart.
pub(crate) fn returned(event: &Metadata<'_>, span: &Metadata<'_>) -> Option<InstrumentEvent> {
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

/// Which labels come from spans. One that does not is fixed for the process or left out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inherited {
    pub(crate) profile: bool,
    pub(crate) run_id: bool,
}

/// The callsites seen so far.
pub(crate) struct Callsites {
    known: AppendOnlyMap<Callsite>,
    /// Those of spans once more, a place each by a hash of the address: most spans are told by one comparison. Of two
    /// with the same place the first has it.
    nearby: Box<[OnceLock<Nearby>; NEARBY]>,
    inherited: Inherited,
    /// Whether there is an event below ERROR that can decide a stage's outcome. Most programs have none, and then an
    /// ordinary event costs one load.
    has_outcome_events_below_error: AtomicBool,
}

/// A callsite of a span, and its number if its spans are stages or bring something that stages inherit.
#[derive(Clone, Copy, Debug)]
struct Nearby {
    address: u64,
    tracked: Option<EntryId>,
}

const NEARBY: usize = 256;

impl Callsites {
    pub(crate) fn new(inherited: Inherited) -> Self {
        Self {
            known: AppendOnlyMap::new(),
            nearby: Box::new([const { OnceLock::new() }; NEARBY]),
            inherited,
            has_outcome_events_below_error: AtomicBool::new(false),
        }
    }

    /// The callsite of a span, if its spans matter.
    #[inline]
    pub(crate) fn of_span(&self, meta: &'static Metadata<'static>) -> Option<EntryId> {
        let address = address(meta);
        let at = fibonacci_hash(address, NEARBY);
        match self.nearby[at].get() {
            Some(nearby) if nearby.address == address => nearby.tracked,
            _ => self.of_span_further(meta, at),
        }
    }

    #[cold]
    fn of_span_further(&self, meta: &'static Metadata<'static>, at: usize) -> Option<EntryId> {
        let (number, callsite) = self.find(meta);
        let tracked = matches!(callsite.kind, CallsiteKind::Stage | CallsiteKind::Context).then_some(number);
        let _ = self.nearby[at].set(Nearby { address: address(meta), tracked });
        tracked
    }

    /// Decides about a callsite. Called for each when `tracing` registers it.
    pub(crate) fn register(&self, meta: &'static Metadata<'static>) -> (EntryId, &Callsite) {
        let address = address(meta);
        let span = self.known.find_or_insert(
            splitmix64(address),
            |callsite| self::address(callsite.meta) == address,
            || Callsite::new(meta, &self.inherited),
        );
        if matches!(span.1.kind, CallsiteKind::Returned | CallsiteKind::Error(ErrorEvent::Field)) {
            self.has_outcome_events_below_error.store(true, Ordering::Relaxed);
        }
        span
    }

    #[cfg(all(test, feature = "pushgateway"))]
    pub(crate) fn lock(&self) -> impl Sized {
        self.known.lock()
    }

    /// Whether something was decided about it.
    pub(crate) fn has(&self, meta: &'static Metadata<'static>) -> bool {
        let address = address(meta);
        self.known.find(splitmix64(address), |callsite| self::address(callsite.meta) == address).is_some()
    }

    /// What was decided about it; decides now where nobody registered it.
    #[inline]
    pub(crate) fn find(&self, meta: &'static Metadata<'static>) -> (EntryId, &Callsite) {
        let address = address(meta);
        match self.known.find(splitmix64(address), |callsite| self::address(callsite.meta) == address) {
            Some(span) => span,
            None => self.register(meta),
        }
    }

    pub(crate) fn get(&self, number: EntryId) -> Option<&Callsite> {
        self.known.get(number)
    }

    /// Whether an event can decide a stage's outcome. False for nearly all, at the cost of a comparison and a load.
    #[inline]
    pub(crate) fn may_affect_outcome(&self, event: &Metadata<'_>) -> bool {
        *event.level() == Level::ERROR || self.has_outcome_events_below_error.load(Ordering::Relaxed)
    }
}

#[inline]
fn address(meta: &Metadata<'_>) -> u64 {
    std::ptr::from_ref(meta).addr() as u64
}
