//! Runs a program with real spans, threads, tasks and panics.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio::task::{JoinHandle, JoinSet, yield_now};
use tracing::{Dispatch, Instrument, Span, debug, debug_span, dispatcher, error, info, info_span, warn};

use super::futures::{Boxed, Caught, caught, dropped_after, now};
use super::program::{Entered, Id, Node, Place, Said, Step, Target, Word};

/// What the programs panic with.
pub(crate) struct OnPurpose;

/// What is known of the stages without looking at either layer.
#[derive(Debug, Default)]
pub(crate) struct Ran {
    /// Those that the layers are shown.
    pub(crate) stages: BTreeSet<String>,
    /// Those through which a panic unwound.
    pub(crate) panicked: BTreeSet<String>,
}

struct World {
    dispatch: Dispatch,
    filtered: bool,
    next: AtomicUsize,
    ran: Mutex<Ran>,
}

/// Where a part of a program runs.
#[derive(Clone)]
struct Around {
    world: Arc<World>,
    /// The spans around, the nearest last.
    spans: Vec<Known>,
    /// Nothing in it waits.
    synchronous: bool,
    /// Panics are left out.
    cleaning: bool,
}

#[derive(Clone)]
struct Known {
    span: Span,
    unentered: Option<Arc<Unentered>>,
}

/// What was told of a span that is never entered. Where that is of several kinds, or goes on once it has a child, the
/// two layers differ: `beside_opentelemetry/differences.rs` says how. The programs leave that out.
#[derive(Default)]
struct Unentered {
    declared: AtomicBool,
    said: AtomicBool,
    has_child: AtomicBool,
}

impl Known {
    fn may_declare(&self) -> bool {
        self.unentered.as_ref().is_none_or(|told| {
            let may = !told.said.load(Ordering::Relaxed) && !told.has_child.load(Ordering::Relaxed);
            told.declared.fetch_or(may, Ordering::Relaxed);
            may
        })
    }

    fn may_say(&self) -> bool {
        self.unentered.as_ref().is_none_or(|told| {
            let may = !told.declared.load(Ordering::Relaxed) && !told.has_child.load(Ordering::Relaxed);
            told.said.fetch_or(may, Ordering::Relaxed);
            may
        })
    }

    fn has_child(&self) {
        self.unentered.iter().for_each(|told| told.has_child.store(true, Ordering::Relaxed));
    }
}

/// A runtime whose threads have this subscriber. Dropping it waits for what was aborted.
fn runtime(mut builder: Builder, dispatch: &Dispatch) -> Runtime {
    let dispatch = dispatch.clone();
    let attach = move || std::mem::forget(dispatcher::set_default(&dispatch));
    builder.worker_threads(2).on_thread_start(attach).build().unwrap()
}

/// Runs the programs under the subscriber of this thread.
pub(crate) fn run(programs: &[Node], filtered: bool) -> Ran {
    let dispatch = dispatcher::get_default(Clone::clone);
    let runtime = runtime(Builder::new_multi_thread(), &dispatch);
    let world = Arc::new(World { dispatch, filtered, next: AtomicUsize::new(0), ran: Mutex::default() });
    for program in programs {
        let around = Around { world: Arc::clone(&world), spans: Vec::new(), synchronous: false, cleaning: false };
        let ran = runtime.block_on(caught(placed(Arc::new(program.clone()), around)));
        ran.map_or_else(on_purpose, drop);
    }
    drop(runtime);
    std::mem::take(&mut *world.ran.lock().unwrap())
}

fn on_purpose(panic: Box<dyn std::any::Any + Send>) {
    assert!(panic.is::<OnPurpose>(), "a panic that is not the program's");
}

/// Runs it where it belongs; returns its span if that is still open.
fn placed(node: Arc<Node>, around: Around) -> Boxed<Option<Span>> {
    Box::pin(async move {
        match node.place {
            Place::Thread => {
                on_a_thread(node, around);
                None
            }
            Place::Task | Place::Beside if !around.synchronous => {
                let mut tasks = JoinSet::new();
                tasks.spawn(here(node, around));
                joined(tasks.join_next().await.unwrap())
            }
            _ => Some(here(node, around).await),
        }
    })
}

fn on_a_thread(node: Arc<Node>, around: Around) {
    let dispatch = around.world.dispatch.clone();
    let around = Around { synchronous: false, ..around };
    let run = move || {
        dispatcher::with_default(&dispatch, || {
            let runtime = runtime(Builder::new_current_thread(), &dispatch);
            drop(runtime.block_on(here(node, around)));
        });
    };
    std::thread::spawn(run).join().unwrap_or_else(on_purpose);
}

/// A panic in a task ends there.
fn joined(result: Result<Span, tokio::task::JoinError>) -> Option<Span> {
    result.map_err(|failed| on_purpose(failed.into_panic())).ok()
}

/// Records a late stage id however the future ends: by being dropped, too.
struct Naming(Span, Option<String>);

impl Drop for Naming {
    fn drop(&mut self) {
        if let Some(id) = &self.1 {
            self.0.record("stage_id", id.as_str());
        }
    }
}

fn here(node: Arc<Node>, around: Around) -> Boxed<Span> {
    Box::pin(async move {
        let (span, id) = open(&node, &around);
        let late = id.clone().filter(|_| node.id == Id::Late);
        let _naming = Naming(span.clone(), late);
        let never = node.entered == Entered::Never;
        let unentered = never.then(|| {
            let declared = AtomicBool::new(node.status.is_some());
            Arc::new(Unentered { declared, ..Unentered::default() })
        });
        let mut inside = around.clone();
        inside.spans.push(Known { span: span.clone(), unentered });
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
                around.world.ran.lock().unwrap().panicked.insert(id);
            }
            if !node.caught {
                resume_unwind(panic);
            }
            on_purpose(panic);
        }
        span
    })
}

async fn cancelled(polls: Option<u8>, work: Boxed<()>) -> Caught<()> {
    dropped_after(polls, Box::pin(caught(work))).await.unwrap_or(Ok(()))
}

/// The span, and its stage id if it is a stage that the layers are shown.
fn open(node: &Node, around: &Around) -> (Span, Option<String>) {
    let world = &around.world;
    let shown = !(node.hidden && world.filtered);
    let id = (node.id != Id::None).then(|| format!("s{}", world.next.fetch_add(1, Ordering::Relaxed)));
    let given = id.as_deref().filter(|_| node.id == Id::AtCreation);
    let code = node.status.and_then(code);
    let description = node.status.filter(|word| matches!(word, Word::Description)).map(|_| "on purpose");
    let nearest = around.spans.last();
    let parent = nearest.and_then(|known| known.span.id());
    // A span that is not entered is nobody's parent unless it is named.
    let named = node.explicit || parent != Span::current().id();
    macro_rules! span {
        ($span:ident, $($parent:tt)*) => {
            match &id {
                Some(_) => $span!(
                    $($parent)* "stage", stage_id = given, otel.status_code = code,
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
    nearest.iter().for_each(|known| known.has_child());
    if node.id == Id::Soon {
        span.record("stage_id", id.as_deref().unwrap_or_default());
    }
    let id = id.filter(|_| shown);
    world.ran.lock().unwrap().stages.extend(id.clone());
    (span, id)
}

fn code(word: Word) -> Option<&'static str> {
    match word {
        Word::Ok => Some("ok"),
        Word::Error => Some("ERROR"),
        Word::Other => Some("other"),
        Word::Description => None,
    }
}

async fn steps(of: Arc<Node>, around: Around) {
    let mut kept = Vec::new();
    let mut beside = Tasks::default();
    let mut cleanups = Vec::new();
    for step in &of.steps {
        match step {
            Step::Child(child) if child.place == Place::Beside && !around.synchronous => {
                beside.0.push(tokio::spawn(here(Arc::clone(child), around.clone())));
            }
            Step::Child(child) => {
                kept.extend(placed(Arc::clone(child), around.clone()).await.filter(|_| child.kept));
            }
            Step::Cleanup(child) => cleanups.push(Cleanup(Arc::clone(child), around.clone())),
            Step::Say(target, said) => say(*target, *said, &around),
            Step::Declare(up, word) => {
                if let Some(known) = around.spans.iter().rev().nth(*up).filter(|known| known.may_declare()) {
                    declare(&known.span, *word);
                }
            }
            Step::Yield if around.synchronous => {}
            Step::Yield => yield_now().await,
            Step::Work => work(),
            Step::Panic if around.cleaning => {}
            Step::Panic => panic_any(OnPurpose),
        }
    }
    while let Some(task) = beside.0.pop() {
        joined(task.await);
    }
}

/// Tasks that are aborted where nobody waits for them any more.
#[derive(Default)]
struct Tasks(Vec<JoinHandle<Span>>);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

fn declare(span: &Span, word: Word) {
    match code(word) {
        Some(code) => span.record("otel.status_code", code),
        None => span.record("otel.status_description", "on purpose"),
    };
}

fn work() {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1) {
        std::hint::spin_loop();
    }
}

fn say(target: Target, said: Said, around: &Around) {
    macro_rules! event {
        ($($parent:tt)*) => {
            match said {
                Said::Error => error!($($parent)* "on purpose"),
                Said::ErrorWithField => error!($($parent)* error = "on purpose"),
                Said::FieldAlone => info!($($parent)* error = %"on purpose", rows = 3),
                Said::FieldAloneHidden => debug!($($parent)* error = ?"on purpose"),
                Said::FieldBeforeMessage => warn!($($parent)* error = "on purpose", message = "on purpose"),
                Said::FieldAndMessage => warn!($($parent)* error = "on purpose", "survived"),
                Said::Fine => info!($($parent)* "fine"),
            }
        };
    }
    match target {
        Target::Current => event!(),
        Target::Around(up) => {
            if let Some(known) = around.spans.iter().rev().nth(up).filter(|known| known.may_say()) {
                event!(parent: &known.span,);
            }
        }
    }
}

/// Runs a part of the program when it is dropped, by a panic perhaps.
struct Cleanup(Arc<Node>, Around);

impl Drop for Cleanup {
    fn drop(&mut self) {
        let around = Around { synchronous: true, cleaning: true, ..self.1.clone() };
        drop(now(placed(Arc::clone(&self.0), around)));
    }
}
