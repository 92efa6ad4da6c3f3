//! The shape of a random program.

use std::sync::Arc;

use proptest::prelude::*;

/// A span and the steps while it is open.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) id: Id,
    /// The span's level is below the filter, if there is one.
    pub(crate) hidden: bool,
    /// A status field at the creation of the span.
    pub(crate) status: Option<StatusField>,
    pub(crate) entered: Entered,
    pub(crate) place: Place,
    /// The span has an explicit parent instead of the current span.
    pub(crate) explicit: bool,
    /// The handle lives until the parent span ends.
    pub(crate) kept: bool,
    /// The span's future is dropped after this many polls. Has no effect in synchronous code.
    pub(crate) polls: Option<u8>,
    /// The parent catches a panic of this span.
    pub(crate) caught: bool,
    pub(crate) steps: Vec<Step>,
}

/// Whether the span is a stage, and when its id is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Id {
    None,
    AtCreation,
    /// Before the first enter.
    BeforeEnter,
    /// Between the last exit and the close.
    AfterLastExit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entered {
    Never,
    /// Once, around synchronous code.
    Once,
    /// At every poll.
    EveryPoll,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Here,
    /// A thread with a runtime of its own, which is joined.
    Thread,
    /// A task that is joined at once.
    Task,
    /// A task that is joined when the parent span ends.
    Concurrent,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Child(Arc<Node>),
    /// Runs when the span ends, by a panic or otherwise. Never panics itself.
    Cleanup(Arc<Node>),
    Event(Target, EventKind),
    /// A status field recorded on the ancestor that is this many steps up.
    SetStatus(usize, StatusField),
    /// Yields to the scheduler once.
    Yield,
    /// Works for longer than the clocks may drift apart.
    Work,
    Panic,
}

/// The parent span of an event.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    Current,
    /// The ancestor this many steps up.
    Ancestor(usize),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum EventKind {
    Error,
    ErrorWithField,
    FieldAlone,
    /// Below the level of the filter.
    FieldAloneHidden,
    FieldBeforeMessage,
    FieldAndMessage,
    Fine,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum StatusField {
    Ok,
    Error,
    Other,
    Description,
}

impl Node {
    /// A stage without any step.
    pub(crate) fn stage() -> Self {
        Self {
            id: Id::AtCreation,
            hidden: false,
            status: None,
            entered: Entered::Once,
            place: Place::Here,
            explicit: false,
            kept: false,
            polls: None,
            caught: false,
            steps: Vec::new(),
        }
    }
}

fn status_field() -> impl Strategy<Value = StatusField> {
    prop::sample::select(&[StatusField::Ok, StatusField::Error, StatusField::Other, StatusField::Description][..])
}

fn event_kind() -> impl Strategy<Value = EventKind> {
    prop_oneof![
        3 => Just(EventKind::Error),
        1 => Just(EventKind::ErrorWithField),
        2 => Just(EventKind::FieldAlone),
        1 => Just(EventKind::FieldAloneHidden),
        1 => Just(EventKind::FieldBeforeMessage),
        1 => Just(EventKind::FieldAndMessage),
        1 => Just(EventKind::Fine),
    ]
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![2 => Just(Target::Current), 1 => (0..3_usize).prop_map(Target::Ancestor)]
}

fn without_children() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (target(), event_kind()).prop_map(|(target, event_kind)| Step::Event(target, event_kind)),
        5 => (0..3_usize, status_field()).prop_map(|(up, status_field)| Step::SetStatus(up, status_field)),
        3 => Just(Step::Yield),
        2 => Just(Step::Work),
        1 => Just(Step::Panic),
    ]
}

fn with(steps: impl Strategy<Value = Vec<Step>>) -> impl Strategy<Value = Node> {
    let id = prop_oneof![1 => Just(Id::None), 4 => Just(Id::AtCreation), 1 => Just(Id::BeforeEnter), 1 => Just(Id::AfterLastExit)];
    let entered = prop_oneof![2 => Just(Entered::Never), 3 => Just(Entered::Once), 4 => Just(Entered::EveryPoll)];
    let place = prop_oneof![5 => Just(Place::Here), 1 => Just(Place::Thread), 2 => Just(Place::Task), 2 => Just(Place::Concurrent)];
    let rarely = || prop::bool::weighted(0.2);
    let flags = (rarely(), rarely(), rarely(), prop::bool::weighted(0.4));
    let status = prop::option::weighted(0.15, status_field());
    let polls = prop::option::weighted(0.15, 0..4_u8);
    (id, entered, place, status, polls, flags, steps).prop_map(|(id, entered, place, status, polls, flags, steps)| {
        let (hidden, explicit, kept, caught) = flags;
        Node { id, hidden, status, entered, place, explicit, kept, polls, caught, steps }
    })
}

pub(crate) fn node() -> impl Strategy<Value = Node> {
    let leaf = with(prop::collection::vec(without_children(), 0..4)).boxed();
    leaf.prop_recursive(5, 32, 4, |inner| {
        let inner = inner.prop_map(Arc::new).boxed();
        let step = prop_oneof![
            6 => inner.clone().prop_map(Step::Child),
            1 => inner.prop_map(Step::Cleanup),
            6 => without_children(),
        ];
        with(prop::collection::vec(step, 0..6)).boxed()
    })
}
