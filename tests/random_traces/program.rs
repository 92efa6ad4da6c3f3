//! What a random program is made of.

use std::sync::Arc;

use proptest::prelude::*;

/// A span and what happens while it is open.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) id: Id,
    /// Below the level of the filter, where there is one.
    pub(crate) hidden: bool,
    /// A status given when the span is created.
    pub(crate) status: Option<Word>,
    pub(crate) entered: Entered,
    pub(crate) place: Place,
    /// Its parent is named, not the current span.
    pub(crate) explicit: bool,
    /// Its handle is kept until the span around it ends.
    pub(crate) kept: bool,
    /// It is dropped after so many polls. Not in code that is not asynchronous.
    pub(crate) polls: Option<u8>,
    /// A panic in it ends there.
    pub(crate) caught: bool,
    pub(crate) steps: Vec<Step>,
}

/// Whether it is a stage, and when its id is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Id {
    None,
    AtCreation,
    /// Before it is entered.
    Soon,
    /// Between its last exit and its close.
    Late,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entered {
    Never,
    /// Once, around code that is not asynchronous.
    Once,
    /// At every poll.
    EveryPoll,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Here,
    /// A thread of its own, with a runtime of its own, which is joined.
    Thread,
    /// A task, which is joined at once.
    Task,
    /// A task that is joined when the span around it ends.
    Beside,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Child(Arc<Node>),
    /// Runs when the span ends, by a panic too. Nothing in it panics.
    Cleanup(Arc<Node>),
    Say(Target, Said),
    /// A status recorded on the span that is so many steps up.
    Declare(usize, Word),
    /// Waits for its next turn.
    Yield,
    /// Works, for longer than the clocks may drift apart.
    Work,
    Panic,
}

/// The span an event is told of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    Current,
    /// So many steps up.
    Around(usize),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Said {
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
pub(crate) enum Word {
    Ok,
    Error,
    Other,
    Description,
}

impl Node {
    /// A stage without anything in it.
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

fn word() -> impl Strategy<Value = Word> {
    prop::sample::select(&[Word::Ok, Word::Error, Word::Other, Word::Description][..])
}

fn said() -> impl Strategy<Value = Said> {
    prop_oneof![
        3 => Just(Said::Error),
        1 => Just(Said::ErrorWithField),
        2 => Just(Said::FieldAlone),
        1 => Just(Said::FieldAloneHidden),
        1 => Just(Said::FieldBeforeMessage),
        1 => Just(Said::FieldAndMessage),
        1 => Just(Said::Fine),
    ]
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![2 => Just(Target::Current), 1 => (0..3_usize).prop_map(Target::Around)]
}

fn without_children() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (target(), said()).prop_map(|(target, said)| Step::Say(target, said)),
        5 => (0..3_usize, word()).prop_map(|(up, word)| Step::Declare(up, word)),
        3 => Just(Step::Yield),
        2 => Just(Step::Work),
        1 => Just(Step::Panic),
    ]
}

fn with(steps: impl Strategy<Value = Vec<Step>>) -> impl Strategy<Value = Node> {
    let id = prop_oneof![1 => Just(Id::None), 4 => Just(Id::AtCreation), 1 => Just(Id::Soon), 1 => Just(Id::Late)];
    let entered = prop_oneof![2 => Just(Entered::Never), 3 => Just(Entered::Once), 4 => Just(Entered::EveryPoll)];
    let place =
        prop_oneof![5 => Just(Place::Here), 1 => Just(Place::Thread), 2 => Just(Place::Task), 2 => Just(Place::Beside)];
    let rarely = || prop::bool::weighted(0.2);
    let flags = (rarely(), rarely(), rarely(), prop::bool::weighted(0.4));
    let status = prop::option::weighted(0.15, word());
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
