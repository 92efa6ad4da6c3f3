//! Executes a program with real spans, threads and panics.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any, resume_unwind};

use tracing::{Dispatch, Span, dispatcher, error, info_span};

use super::Pipeline;
use super::program::{Field, Kind, Node, Step};

/// The payload of every panic in a program.
pub(crate) struct IntendedPanic;

/// Where a part of the program runs.
struct Place<'a> {
    dispatch: &'a Dispatch,
    /// Reads the gauges; `None` on other threads.
    read_active: Option<&'a dyn Fn()>,
    /// No panic is raised here.
    in_cleanup: bool,
    /// The open spans, innermost last.
    ancestors: Vec<Span>,
}

/// Returns the active gauges at each `ReadActive` step.
pub(crate) fn run(pipeline: &Pipeline, programs: &[Node]) -> Vec<Vec<String>> {
    let read_active = RefCell::new(Vec::new());
    let look = || read_active.borrow_mut().push(pipeline.now().active());
    let dispatch = pipeline.dispatch();
    for program in programs {
        let place = Place { dispatch: &dispatch, read_active: Some(&look), in_cleanup: false, ancestors: Vec::new() };
        let ran = catch_unwind(AssertUnwindSafe(|| drop(node(program, &place))));
        ran.unwrap_or_else(|panic| assert!(panic.is::<IntendedPanic>(), "unexpected panic"));
    }
    read_active.into_inner()
}

fn open(node: &Node, place: &Place<'_>) -> Span {
    let &Node { stage, profile, run_id, .. } = node;
    let ancestors = place.ancestors.last();
    // A span that was not entered is a parent only if it is named explicitly.
    let current = Span::current().id();
    if node.explicit || ancestors.and_then(Span::id) != current {
        let parent = ancestors.and_then(Span::id);
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
    let mut ancestors = place.ancestors.clone();
    ancestors.push(span.clone());
    let inside = Place { ancestors, ..*place };
    if node.entered {
        span.in_scope(|| steps(node, &inside))
    } else {
        steps(node, &inside)
    }
    span
}

fn steps(node: &Node, place: &Place<'_>) {
    let mut kept = Vec::new();
    let mut cleanups = Vec::new();
    for step in &node.steps {
        match step {
            Step::Child(child) => kept.extend(run_child(child, place).filter(|_| child.kept)),
            Step::Cleanup(child) => cleanups.push(Cleanup(child, place)),
            Step::Error => error!(parent: place.ancestors.last().and_then(Span::id), "on purpose"),
            Step::Record(up, field, value) => {
                let field = match field {
                    Field::Stage => "stage_id",
                    Field::Profile => "profile",
                    Field::RunId => "run_id",
                };
                if let Some(span) = place.ancestors.iter().rev().nth(*up) {
                    span.record(field, value);
                }
            }
            Step::ReadActive => place.read_active.iter().for_each(|look| look()),
            Step::Panic if !place.in_cleanup => panic_any(IntendedPanic),
            Step::Panic => {}
        }
    }
    drop(cleanups);
}

/// Returns the child's span if it is still open.
fn run_child(child: &Node, place: &Place<'_>) -> Option<Span> {
    if child.thread {
        std::thread::scope(|scope| {
            let (dispatch, in_cleanup, ancestors) = (place.dispatch, place.in_cleanup, place.ancestors.clone());
            let run = move || {
                let place = Place { dispatch, read_active: None, in_cleanup, ancestors };
                dispatcher::with_default(dispatch, || drop(node(child, &place)));
            };
            if let Err(panic) = scope.spawn(run).join() {
                assert!(panic.is::<IntendedPanic>(), "unexpected panic");
            }
        });
        return None;
    }
    match catch_unwind(AssertUnwindSafe(|| node(child, place))) {
        Ok(span) => Some(span),
        Err(panic) if child.caught => {
            assert!(panic.is::<IntendedPanic>(), "unexpected panic");
            None
        }
        Err(panic) => resume_unwind(panic),
    }
}

/// Executes a part of the program on drop, by a panic or otherwise.
struct Cleanup<'a>(&'a Node, &'a Place<'a>);

impl Drop for Cleanup<'_> {
    fn drop(&mut self) {
        let Self(child, place) = self;
        let in_cleanup = Place { in_cleanup: true, ancestors: place.ancestors.clone(), ..**place };
        drop(node(child, &in_cleanup));
    }
}
