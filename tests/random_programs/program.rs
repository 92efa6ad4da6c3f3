//! The shape of a random program.

use proptest::prelude::*;

/// A span and the steps while it is open.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    /// Values at the creation of the span.
    pub(crate) stage: Option<&'static str>,
    pub(crate) profile: Option<&'static str>,
    pub(crate) run_id: Option<&'static str>,
    pub(crate) entered: bool,
    /// The span has an explicit parent instead of the current span.
    pub(crate) explicit: bool,
    /// The handle lives until the parent span ends.
    pub(crate) kept: bool,
    /// The span runs on a thread of its own, which is joined.
    pub(crate) thread: bool,
    /// The parent catches a panic of this span.
    pub(crate) caught: bool,
    pub(crate) steps: Vec<Step>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Declares `stage_id`, `profile` and `run_id`.
    Stage,
    /// Declares `profile` and `run_id`.
    Context,
    Plain,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    Stage,
    Profile,
    RunId,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Child(Node),
    /// Runs when the span ends, by a panic or otherwise. Never panics itself.
    Cleanup(Node),
    Error,
    /// A late record on the ancestor that is this many steps up.
    Record(usize, Field, &'static str),
    /// Reads the active gauges. Skipped on other threads.
    ReadActive,
    Panic,
}

impl Node {
    /// A stage span without values.
    pub(crate) fn stage() -> Self {
        Self {
            kind: Kind::Stage,
            stage: None,
            profile: None,
            run_id: None,
            entered: true,
            explicit: false,
            kept: false,
            thread: false,
            caught: false,
            steps: Vec::new(),
        }
    }
}

fn value(values: &'static [&'static str]) -> impl Strategy<Value = &'static str> {
    prop::sample::select(values)
}

/// Few values, so that they often agree. `stage` is also the name of the spans. Some label sets are equal when
/// concatenated and differ only in where each value begins.
const STAGES: &[&str] = &["a", "b", "ap", "stage"];
const VALUES: &[&str] = &["p", "q", "pq", ""];

fn record() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0..3_usize, value(STAGES)).prop_map(|(up, value)| Step::Record(up, Field::Stage, value)),
        1 => (0..4_usize, value(VALUES)).prop_map(|(up, value)| Step::Record(up, Field::Profile, value)),
        1 => (0..4_usize, value(VALUES)).prop_map(|(up, value)| Step::Record(up, Field::RunId, value)),
    ]
}

fn without_children() -> impl Strategy<Value = Step> {
    prop_oneof![2 => Just(Step::Error), 4 => record(), 1 => Just(Step::ReadActive), 1 => Just(Step::Panic)]
}

fn with(steps: impl Strategy<Value = Vec<Step>>) -> impl Strategy<Value = Node> {
    let kind = prop_oneof![3 => Just(Kind::Stage), 1 => Just(Kind::Context), 1 => Just(Kind::Plain)];
    let rarely = || prop::bool::weighted(0.2);
    let optional_value = |values| prop::option::weighted(0.4, value(values));
    let values = (prop::option::weighted(0.7, value(STAGES)), optional_value(VALUES), optional_value(VALUES));
    let flags = (prop::bool::weighted(0.8), rarely(), rarely(), rarely(), prop::bool::weighted(0.4));
    (kind, values, flags, steps).prop_map(|(kind, values, flags, steps)| {
        let (stage, profile, run_id) = values;
        let (entered, explicit, kept, thread, caught) = flags;
        Node { kind, stage, profile, run_id, entered, explicit, kept, thread, caught, steps }
    })
}

pub(crate) fn node() -> impl Strategy<Value = Node> {
    let leaf = with(prop::collection::vec(without_children(), 0..3)).boxed();
    leaf.prop_recursive(5, 40, 4, |inner| {
        let step = prop_oneof![
            5 => inner.clone().prop_map(Step::Child),
            1 => inner.prop_map(Step::Cleanup),
            4 => without_children(),
        ];
        with(prop::collection::vec(step, 0..5)).boxed()
    })
}
