//! Runs a program with real spans, threads and panics.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any, resume_unwind};

use tracing::{Dispatch, Span, dispatcher, error, info_span};

use super::Pipeline;
use super::program::{Field, Kind, Node, Step};

/// What the programs panic with.
pub(crate) struct OnPurpose;

/// Where a part of the program runs.
struct Place<'a> {
    dispatch: &'a Dispatch,
    /// What can look at the gauges. Not on other threads.
    looks: Option<&'a dyn Fn()>,
    /// Panics are left out.
    cleaning: bool,
    /// The spans around, the nearest last.
    around: Vec<Span>,
}

/// Returns the active gauges each time the programs looked.
pub(crate) fn run(pipeline: &Pipeline, programs: &[Node]) -> Vec<Vec<String>> {
    let looks = RefCell::new(Vec::new());
    let look = || looks.borrow_mut().push(pipeline.now().active());
    let dispatch = pipeline.dispatch();
    for program in programs {
        let place = Place { dispatch: &dispatch, looks: Some(&look), cleaning: false, around: Vec::new() };
        let ran = catch_unwind(AssertUnwindSafe(|| drop(node(program, &place))));
        ran.unwrap_or_else(|panic| assert!(panic.is::<OnPurpose>(), "a panic that is not the program's"));
    }
    looks.into_inner()
}

fn open(node: &Node, place: &Place<'_>) -> Span {
    let &Node { stage, profile, run_id, .. } = node;
    let around = place.around.last();
    // A span that is not entered is nobody's parent unless it is named.
    let current = Span::current().id();
    if node.explicit || around.and_then(Span::id) != current {
        let parent = around.and_then(Span::id);
        match node.kind {
            Kind::Stage => info_span!(parent: parent, "stage", stage_id = stage, profile, run_id),
            Kind::Context => info_span!(parent: parent, "context", profile, run_id),
            Kind::Plain => info_span!(parent: parent, "plain"),
        }
    } else {
        match node.kind {
            Kind::Stage => info_span!("stage", stage_id = stage, profile, run_id),
            Kind::Context => info_span!("context", profile, run_id),
            Kind::Plain => info_span!("plain"),
        }
    }
}

fn node(node: &Node, place: &Place<'_>) -> Span {
    let span = open(node, place);
    let mut around = place.around.clone();
    around.push(span.clone());
    let inside = Place { around, ..*place };
    if node.entered {
        span.in_scope(|| steps(node, &inside))
    } else {
        steps(node, &inside)
    }
    span
}

fn steps(of: &Node, place: &Place<'_>) {
    let mut kept = Vec::new();
    let mut cleanups = Vec::new();
    for step in &of.steps {
        match step {
            Step::Child(child) => kept.extend(run_child(child, place).filter(|_| child.kept)),
            Step::Cleanup(child) => cleanups.push(Cleanup(child, place)),
            Step::Error => error!(parent: place.around.last().and_then(Span::id), "on purpose"),
            Step::Record(up, field, value) => {
                let field = match field {
                    Field::Stage => "stage_id",
                    Field::Profile => "profile",
                    Field::RunId => "run_id",
                };
                if let Some(span) = place.around.iter().rev().nth(*up) {
                    span.record(field, value);
                }
            }
            Step::Look => place.looks.iter().for_each(|look| look()),
            Step::Panic if !place.cleaning => panic_any(OnPurpose),
            Step::Panic => {}
        }
    }
    drop(cleanups);
}

/// The child's span if it is still open.
fn run_child(child: &Node, place: &Place<'_>) -> Option<Span> {
    if child.thread {
        std::thread::scope(|scope| {
            let (dispatch, cleaning, around) = (place.dispatch, place.cleaning, place.around.clone());
            let run = move || {
                let place = Place { dispatch, looks: None, cleaning, around };
                dispatcher::with_default(dispatch, || drop(node(child, &place)));
            };
            if let Err(panic) = scope.spawn(run).join() {
                assert!(panic.is::<OnPurpose>(), "a panic that is not the program's");
            }
        });
        return None;
    }
    match catch_unwind(AssertUnwindSafe(|| node(child, place))) {
        Ok(span) => Some(span),
        Err(panic) if child.caught => {
            assert!(panic.is::<OnPurpose>(), "a panic that is not the program's");
            None
        }
        Err(panic) => resume_unwind(panic),
    }
}

/// Runs a part of the program when it is dropped, by a panic perhaps.
struct Cleanup<'a>(&'a Node, &'a Place<'a>);

impl Drop for Cleanup<'_> {
    fn drop(&mut self) {
        let Self(child, place) = self;
        let cleaning = Place { cleaning: true, around: place.around.clone(), ..**place };
        drop(node(child, &cleaning));
    }
}
