//! Executes a program with real spans, threads, tasks and panics.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio::task::{JoinHandle, JoinSet, yield_now};
use tracing::{Dispatch, Instrument, Span, debug, debug_span, dispatcher, error, info, info_span, warn};

use super::futures::{Boxed, Caught, caught, dropped_after, now};
use super::program::{Entered, EventKind, Id, Node, Place, StatusField, Step, Target};

/// The payload of every panic in a program.
pub(crate) struct IntendedPanic;

/// The stages of a program, known without either layer.
#[derive(Debug, Default)]
pub(crate) struct Executed {
    /// Stages that the layers' filters let through.
    pub(crate) stages: BTreeSet<String>,
    /// Stages that a panic unwound.
    pub(crate) panicked: BTreeSet<String>,
}

struct Runner {
    dispatch: Dispatch,
    filtered: bool,
    next: AtomicUsize,
    executed: Mutex<Executed>,
}

/// Where a part of a program runs.
#[derive(Clone)]
struct Scope {
    runner: Arc<Runner>,
    /// The open spans, innermost last.
    spans: Vec<OpenSpan>,
    /// No future waits here.
    synchronous: bool,
    /// No panic is raised here.
    in_cleanup: bool,
}

#[derive(Clone)]
struct OpenSpan {
    span: Span,
    unentered: Option<Arc<Unentered>>,
}

/// State of a span that is never entered. If such a span gets both status fields and events, or any of these after it
/// has a child, the two layers differ, as `beside_opentelemetry/differences.rs` shows. The programs avoid that.
#[derive(Default)]
struct Unentered {
    has_status: AtomicBool,
    has_event: AtomicBool,
    has_child: AtomicBool,
}

impl OpenSpan {
    fn may_set_status(&self) -> bool {
        self.unentered.as_ref().is_none_or(|state| {
            let may = !state.has_event.load(Ordering::Relaxed) && !state.has_child.load(Ordering::Relaxed);
            state.has_status.fetch_or(may, Ordering::Relaxed);
            may
        })
    }

    fn may_emit(&self) -> bool {
        self.unentered.as_ref().is_none_or(|state| {
            let may = !state.has_status.load(Ordering::Relaxed) && !state.has_child.load(Ordering::Relaxed);
            state.has_event.fetch_or(may, Ordering::Relaxed);
            may
        })
    }

    fn has_child(&self) {
        self.unentered.iter().for_each(|state| state.has_child.store(true, Ordering::Relaxed));
    }
}

/// A runtime whose threads use this subscriber. Drop waits for aborted tasks.
fn runtime(mut builder: Builder, dispatch: &Dispatch) -> Runtime {
    let dispatch = dispatch.clone();
    let attach = move || std::mem::forget(dispatcher::set_default(&dispatch));
    builder.worker_threads(2).on_thread_start(attach).build().unwrap()
}

/// Executes the programs under the current thread's subscriber.
pub(crate) fn run(programs: &[Node], filtered: bool) -> Executed {
    let dispatch = dispatcher::get_default(Clone::clone);
    let runtime = runtime(Builder::new_multi_thread(), &dispatch);
    let runner = Arc::new(Runner { dispatch, filtered, next: AtomicUsize::new(0), executed: Mutex::default() });
    for program in programs {
        let scope = Scope { runner: Arc::clone(&runner), spans: Vec::new(), synchronous: false, in_cleanup: false };
        let executed = runtime.block_on(caught(run_in_place(Arc::new(program.clone()), scope)));
        executed.map_or_else(assert_intended_panic, drop);
    }
    drop(runtime);
    std::mem::take(&mut *runner.executed.lock().unwrap())
}

fn assert_intended_panic(panic: Box<dyn std::any::Any + Send>) {
    assert!(panic.is::<IntendedPanic>(), "unexpected panic");
}

/// Executes the node on its thread or task. Returns its span if that is still open.
fn run_in_place(node: Arc<Node>, scope: Scope) -> Boxed<Option<Span>> {
    Box::pin(async move {
        match node.place {
            Place::Thread => {
                run_on_thread(node, scope);
                None
            }
            Place::Task | Place::Concurrent if !scope.synchronous => {
                let mut tasks = JoinSet::new();
                tasks.spawn(run_here(node, scope));
                joined(tasks.join_next().await.unwrap())
            }
            _ => Some(run_here(node, scope).await),
        }
    })
}

fn run_on_thread(node: Arc<Node>, scope: Scope) {
    let dispatch = scope.runner.dispatch.clone();
    let scope = Scope { synchronous: false, ..scope };
    let run = move || {
        dispatcher::with_default(&dispatch, || {
            let runtime = runtime(Builder::new_current_thread(), &dispatch);
            drop(runtime.block_on(run_here(node, scope)));
        });
    };
    std::thread::spawn(run).join().unwrap_or_else(assert_intended_panic);
}

/// A panic ends with its task.
fn joined(result: Result<Span, tokio::task::JoinError>) -> Option<Span> {
    result.map_err(|failed| assert_intended_panic(failed.into_panic())).ok()
}

/// Records a late stage id on drop, however the future ends.
struct RecordOnDrop(Span, Option<String>);

impl Drop for RecordOnDrop {
    fn drop(&mut self) {
        if let Some(id) = &self.1 {
            self.0.record("stage_id", id.as_str());
        }
    }
}

fn run_here(node: Arc<Node>, scope: Scope) -> Boxed<Span> {
    Box::pin(async move {
        let (span, id) = open(&node, &scope);
        let late = id.clone().filter(|_| node.id == Id::AfterLastExit);
        let _record = RecordOnDrop(span.clone(), late);
        let never = node.entered == Entered::Never;
        let unentered = never.then(|| {
            let has_status = AtomicBool::new(node.status.is_some());
            Arc::new(Unentered { has_status, ..Unentered::default() })
        });
        let mut inside = scope.clone();
        inside.spans.push(OpenSpan { span: span.clone(), unentered });
        inside.synchronous |= node.entered == Entered::Once;
        let polls = node.polls.filter(|_| !inside.synchronous);
        let work: Boxed<()> = Box::pin(steps(Arc::clone(&node), inside));
        let ended: Caught<()> = match node.entered {
            Entered::Once => catch_unwind(AssertUnwindSafe(|| span.in_scope(|| now(work)))),
            Entered::EveryPoll => cancelled(polls, Box::pin(work.instrument(span.clone()))).await,
            Entered::Never => cancelled(polls, work).await,
        };
        if let Err(panic) = ended {
            if let Some(id) = id.filter(|_| !never) {
                scope.runner.executed.lock().unwrap().panicked.insert(id);
            }
            if !node.caught {
                resume_unwind(panic);
            }
            assert_intended_panic(panic);
        }
        span
    })
}

async fn cancelled(polls: Option<u8>, work: Boxed<()>) -> Caught<()> {
    dropped_after(polls, Box::pin(caught(work))).await.unwrap_or(Ok(()))
}

/// Opens the span. Returns its stage id too if it is a stage that the filters let through.
fn open(node: &Node, scope: &Scope) -> (Span, Option<String>) {
    let runner = &scope.runner;
    let is_visible = !(node.hidden && runner.filtered);
    let id = (node.id != Id::None).then(|| format!("s{}", runner.next.fetch_add(1, Ordering::Relaxed)));
    let id_at_creation = id.as_deref().filter(|_| node.id == Id::AtCreation);
    let code = node.status.and_then(code);
    let description = node.status.filter(|field| matches!(field, StatusField::Description)).map(|_| "on purpose");
    let nearest = scope.spans.last();
    let parent = nearest.and_then(|ancestor| ancestor.span.id());
    // A span that was not entered is a parent only if it is named explicitly.
    let named = node.explicit || parent != Span::current().id();
    macro_rules! span {
        ($span:ident, $($parent:tt)*) => {
            match &id {
                Some(_) => $span!(
                    $($parent)* "stage", stage_id = id_at_creation, otel.status_code = code,
                    otel.status_description = description
                ),
                None => $span!($($parent)* "plain"),
            }
        };
    }
    let span = match (named, node.hidden) {
        (true, true) => span!(debug_span, parent: parent,),
        (true, false) => span!(info_span, parent: parent,),
        (false, true) => span!(debug_span,),
        (false, false) => span!(info_span,),
    };
    nearest.iter().for_each(|ancestor| ancestor.has_child());
    if node.id == Id::BeforeEnter {
        span.record("stage_id", id.as_deref().unwrap_or_default());
    }
    let id = id.filter(|_| is_visible);
    runner.executed.lock().unwrap().stages.extend(id.clone());
    (span, id)
}

fn code(field: StatusField) -> Option<&'static str> {
    match field {
        StatusField::Ok => Some("ok"),
        StatusField::Error => Some("ERROR"),
        StatusField::Other => Some("other"),
        StatusField::Description => None,
    }
}

async fn steps(node: Arc<Node>, scope: Scope) {
    let mut kept = Vec::new();
    let mut concurrent = Tasks::default();
    let mut cleanups = Vec::new();
    for step in &node.steps {
        match step {
            Step::Child(child) if child.place == Place::Concurrent && !scope.synchronous => {
                concurrent.0.push(tokio::spawn(run_here(Arc::clone(child), scope.clone())));
            }
            Step::Child(child) => {
                kept.extend(run_in_place(Arc::clone(child), scope.clone()).await.filter(|_| child.kept));
            }
            Step::Cleanup(child) => cleanups.push(Cleanup(Arc::clone(child), scope.clone())),
            Step::Event(target, kind) => emit(*target, *kind, &scope),
            Step::SetStatus(up, field) => {
                if let Some(ancestor) = scope.spans.iter().rev().nth(*up).filter(|ancestor| ancestor.may_set_status()) {
                    set_status(&ancestor.span, *field);
                }
            }
            Step::Yield if scope.synchronous => {}
            Step::Yield => yield_now().await,
            Step::Work => work(),
            Step::Panic if scope.in_cleanup => {}
            Step::Panic => panic_any(IntendedPanic),
        }
    }
    while let Some(task) = concurrent.0.pop() {
        joined(task.await);
    }
}

/// Tasks that are aborted on drop.
#[derive(Default)]
struct Tasks(Vec<JoinHandle<Span>>);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

fn set_status(span: &Span, field: StatusField) {
    match code(field) {
        Some(code) => span.record("otel.status_code", code),
        None => span.record("otel.status_description", "on purpose"),
    };
}

fn work() {
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(1) {
        std::hint::spin_loop();
    }
}

fn emit(target: Target, kind: EventKind, scope: &Scope) {
    macro_rules! event {
        ($($parent:tt)*) => {
            match kind {
                EventKind::Error => error!($($parent)* "on purpose"),
                EventKind::ErrorWithField => error!($($parent)* error = "on purpose"),
                EventKind::FieldAlone => info!($($parent)* error = %"on purpose", rows = 3),
                EventKind::FieldAloneHidden => debug!($($parent)* error = ?"on purpose"),
                EventKind::FieldBeforeMessage => warn!($($parent)* error = "on purpose", message = "on purpose"),
                EventKind::FieldAndMessage => warn!($($parent)* error = "on purpose", "survived"),
                EventKind::Fine => info!($($parent)* "fine"),
            }
        };
    }
    match target {
        Target::Current => event!(),
        Target::Ancestor(up) => {
            if let Some(ancestor) = scope.spans.iter().rev().nth(up).filter(|ancestor| ancestor.may_emit()) {
                event!(parent: &ancestor.span,);
            }
        }
    }
}

/// Executes a part of the program on drop, by a panic or otherwise.
struct Cleanup(Arc<Node>, Scope);

impl Drop for Cleanup {
    fn drop(&mut self) {
        let scope = Scope { synchronous: true, in_cleanup: true, ..self.1.clone() };
        drop(now(run_in_place(Arc::clone(&self.0), scope)));
    }
}
