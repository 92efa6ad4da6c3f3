//! The measured cases: a kind of work, on a stack that records it.

use std::error::Error;
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use tracing::field::Empty;
use tracing::{Subscriber, info, info_span};
use tracing_stage_metrics::{FlushGuard, MetricsLayer, Pushgateway};
use tracing_subscriber::prelude::*;

use super::by_hand::{self, AnHour, Handles, Recorder};
use super::peers::Peer;

pub(crate) const PROFILE: &str = "crypto_production";
pub(crate) const RUN_ID: &str = "20260105-191332";

/// Timed spans between stages that are not timed.
const STAGES_EVERY: u64 = 64;
/// Stages open at once, before anything is timed.
const PEAK: usize = 5_000;

/// The repeated work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// A stage span with `stage_id`, `profile` and `run_id`: created, entered, left, closed.
    Own,
    /// A stage span with `stage_id`, in a root span with `profile` and `run_id`.
    Child,
    /// As `Child`, with a plain span between the two.
    Through,
    /// A span without any of the three fields.
    Untagged,
    /// As `Untagged`, inside an open stage, where stages open and close: three nested stages before every [`STAGES_EVERY`]
    /// spans, not timed.
    UntaggedAmid,
    /// As `Untagged`, after [`PEAK`] stages were open at once and closed.
    UntaggedAfter,
    /// Enter and exit of an open span without any of the three fields, after the same.
    ReenterUntagged,
    /// An event that is no error, inside a stage.
    Event,
    /// Enter and exit of an open stage, as for a future that is polled.
    Reenter,
    /// As `Own`, with a late record of a field that is not a label.
    Record,
    /// As `Own`, cycling through this many label sets.
    Sets(usize),
    /// As `Own`, on this many threads, each with a stage of its own.
    Threads(usize),
}

/// The stack that records the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stack {
    /// A registry with a layer that does nothing.
    Floor,
    /// The layer through the `metrics` facade, with no recorder behind it.
    Silent,
    /// The layer with the recorder that `build()` makes.
    Layer,
    /// As `Layer`, with native histograms.
    Native,
    /// As `Layer`, in a sampled trace of OpenTelemetry.
    #[cfg(feature = "exemplars")]
    Traced,
    /// As `Traced`, with exemplars.
    #[cfg(feature = "exemplars")]
    Exemplars,
    /// Handles kept in a struct: histogram and counter.
    KeptPair,
    /// As `KeptPair`, plus the layer's gauges: active, last duration, last success.
    KeptFull,
    /// `histogram!` and `counter!` with their labels, on every call.
    Macros,
    /// A simple layer.
    AnHour,
    /// A published alternative.
    Peer(Peer),
}

impl Work {
    pub(crate) const ALL: [Self; 14] = [
        Self::Own,
        Self::Child,
        Self::Through,
        Self::Untagged,
        Self::UntaggedAmid,
        Self::UntaggedAfter,
        Self::ReenterUntagged,
        Self::Event,
        Self::Reenter,
        Self::Record,
        Self::Sets(16),
        Self::Sets(4096),
        Self::Threads(1),
        Self::Threads(2),
    ];

    fn stacks(self) -> Vec<Stack> {
        use Stack::{AnHour, Floor, KeptFull, KeptPair, Layer, Macros, Native, Silent};
        let mut stacks = vec![Floor, Silent, Layer];
        if matches!(self, Self::Own | Self::Sets(_) | Self::Threads(_)) {
            stacks.extend([KeptPair, KeptFull]);
        }
        #[cfg(feature = "exemplars")]
        if self == Self::Own {
            stacks.extend([Stack::Traced, Stack::Exemplars]);
        }
        if self == Self::Own {
            stacks.extend([Native, Macros, AnHour]);
            stacks.extend(Peer::ALL.map(Stack::Peer));
        }
        stacks
    }

    /// Whether a stage is timed.
    pub(crate) fn is_stage(self) -> bool {
        !matches!(
            self,
            Self::Untagged
                | Self::UntaggedAmid
                | Self::UntaggedAfter
                | Self::ReenterUntagged
                | Self::Event
                | Self::Reenter
        )
    }

    fn threads(self) -> usize {
        if let Self::Threads(threads) = self { threads } else { 1 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) work: Work,
    pub(crate) stack: Stack,
}

pub(crate) fn all() -> Vec<Case> {
    Work::ALL.into_iter().flat_map(|work| work.stacks().into_iter().map(move |stack| Case { work, stack })).collect()
}

impl Case {
    pub(crate) fn name(self) -> String {
        let work = match self.work {
            Work::Sets(sets) => format!("sets-{sets}"),
            Work::Threads(threads) => format!("threads-{threads}"),
            work => format!("{work:?}").to_lowercase(),
        };
        let stack = match self.stack {
            Stack::Peer(peer) => format!("{peer:?}"),
            stack => format!("{stack:?}"),
        };
        format!("{}/{work}", stack.to_lowercase())
    }

    pub(crate) fn named(name: &str) -> Result<Self, String> {
        let names = || all().into_iter().map(Self::name).collect::<Vec<_>>().join(", ");
        all()
            .into_iter()
            .find(|case| case.name() == name)
            .ok_or_else(|| format!("no case {name:?}; there are {}", names()))
    }

    /// Number of stages recorded by this many iterations.
    pub(crate) fn stages_in(self, times: u64) -> u64 {
        match (self.stack, self.work) {
            (Stack::Floor, _) | (_, Work::Untagged | Work::Event | Work::Reenter) => 0,
            (_, Work::UntaggedAmid) => 3 * times.div_ceil(STAGES_EVERY),
            (_, Work::UntaggedAfter | Work::ReenterUntagged) => PEAK as u64,
            (_, work) => times * work.threads() as u64,
        }
    }

    /// Installs the stack in this process, for good.
    pub(crate) fn prepare(self) -> Prepared {
        let recorded = Recorded::install(self.stack);
        let run = match self.stack {
            Stack::KeptPair => self.by_hand(|set| {
                let handles = Handles::new(&set);
                move || handles.pair()
            }),
            Stack::KeptFull => self.by_hand(|set| {
                let handles = Handles::new(&set);
                move || handles.full()
            }),
            Stack::Macros => self.by_hand(|set| move || by_hand::macros(&set)),
            Stack::Peer(peer) => self.by_hand(move |set| {
                let once = peer.once();
                move || once(&set)
            }),
            Stack::Floor | Stack::Silent | Stack::Layer | Stack::Native | Stack::AnHour => self.spans(),
            #[cfg(feature = "exemplars")]
            Stack::Traced | Stack::Exemplars => self.spans(),
        };
        Prepared { run, recorded, rested: Instant::now() }
    }

    /// Runs the case in this process, for a profiler.
    pub(crate) fn alone(self, times: u64) {
        let mut prepared = self.prepare();
        prepared.warm_up();
        prepared.run(times);
    }

    fn by_hand<F: FnMut() + 'static>(self, make: impl Fn(LabelSet) -> F + Sync + 'static) -> Run {
        match self.work {
            Work::Sets(sets) => {
                let mut all: Vec<_> = LabelSet::all(sets).into_iter().map(make).collect();
                let mut order = Order::new(sets);
                timed(move || all[order.next()]())
            }
            Work::Threads(threads) => on_threads(threads, move |thread| make(LabelSet::of_thread(thread))),
            _ => timed(make(LabelSet::one())),
        }
    }

    fn spans(self) -> Run {
        match self.work {
            Work::Own => {
                let set = LabelSet::one();
                timed(move || stage(&set))
            }
            Work::Child => {
                let root = info_span!("pipeline", profile = PROFILE, run_id = RUN_ID);
                within(root, child)
            }
            Work::Through => {
                let root = info_span!("pipeline", profile = PROFILE, run_id = RUN_ID);
                let plain = root.in_scope(|| info_span!("step", number = 1));
                within(plain, child)
            }
            Work::Untagged => timed(untagged),
            Work::UntaggedAmid => amid_stages(untagged),
            Work::UntaggedAfter => {
                many_stages_at_once();
                timed(untagged)
            }
            Work::ReenterUntagged => {
                many_stages_at_once();
                let span = info_span!("step", number = 1);
                timed(move || drop(black_box(&span).enter()))
            }
            Work::Event => {
                let span = info_span!("stage", stage_id = "foundation.ingest", profile = PROFILE, run_id = RUN_ID);
                within(span, || info!(rows = 17, "read"))
            }
            Work::Reenter => {
                let span = info_span!("stage", stage_id = "foundation.ingest", profile = PROFILE, run_id = RUN_ID);
                timed(move || drop(black_box(&span).enter()))
            }
            Work::Record => {
                let set = LabelSet::one();
                timed(move || {
                    let LabelSet { stage, profile, run_id } = black_box(&set);
                    let span = info_span!("stage", stage_id = stage, profile, run_id = %run_id, rows = Empty).entered();
                    span.record("rows", black_box(17));
                })
            }
            Work::Sets(sets) => {
                let all = LabelSet::all(sets);
                let mut order = Order::new(sets);
                timed(move || stage(&all[order.next()]))
            }
            Work::Threads(threads) => on_threads(threads, |thread| {
                let set = LabelSet::of_thread(thread);
                move || stage(&set)
            }),
        }
    }
}

#[inline]
pub(crate) fn stage(set: &LabelSet) {
    let LabelSet { stage, profile, run_id } = black_box(set);
    drop(info_span!("stage", stage_id = stage, profile, run_id = %run_id).entered());
}

#[inline]
fn untagged() {
    drop(info_span!("step", path = black_box("prices.csv"), number = 1, quick = true).entered());
}

/// Opens [`PEAK`] stages, then closes them.
fn many_stages_at_once() {
    let stages: Vec<_> = (0..PEAK).map(|_| info_span!("stage", stage_id = "foundation.ingest")).collect();
    drop(stages);
}

#[inline]
fn child() {
    drop(info_span!("stage", stage_id = black_box("foundation.ingest")).entered());
}

/// Values of the three labels.
pub(crate) struct LabelSet {
    pub(crate) stage: String,
    pub(crate) profile: String,
    pub(crate) run_id: String,
}

impl LabelSet {
    fn new(stage: impl Into<String>, run_id: impl Into<String>) -> Self {
        Self { stage: stage.into(), profile: PROFILE.to_owned(), run_id: run_id.into() }
    }

    fn one() -> Self {
        Self::new("foundation.ingest", RUN_ID)
    }

    fn of_thread(thread: usize) -> Self {
        Self::new(format!("foundation.ingest_{thread}"), RUN_ID)
    }

    /// As many stages as runs.
    fn all(sets: usize) -> Vec<Self> {
        let side = sets.isqrt();
        let run = |n| format!("20260105-{n:06}");
        (0..sets).map(|n| Self::new(format!("foundation.ingest_{}", n % side), run(n / side))).collect()
    }
}

/// Cycles through the numbers below a power of two, back and forth.
struct Order {
    last: usize,
    mask: usize,
}

impl Order {
    fn new(below: usize) -> Self {
        Self { last: 0, mask: below - 1 }
    }

    fn next(&mut self) -> usize {
        self.last = (self.last * 1_229 + 7) & self.mask;
        self.last
    }
}

/// Runs a case this many times; returns the duration.
type Run = Box<dyn FnMut(u64) -> Duration>;

fn timed(mut once: impl FnMut() + 'static) -> Run {
    Box::new(move |times| {
        let start = Instant::now();
        for _ in 0..times {
            once();
        }
        start.elapsed()
    })
}

/// Runs three stages before every [`STAGES_EVERY`] runs of `once`, and times these alone.
fn amid_stages(once: impl Fn() + 'static) -> Run {
    let around = info_span!("stage", stage_id = "foundation", profile = PROFILE, run_id = RUN_ID);
    let mut until_stages = 0;
    Box::new(move |mut times| {
        let _around = around.enter();
        let mut elapsed = Duration::ZERO;
        while times > 0 {
            if until_stages == 0 {
                let _ingest = info_span!("stage", stage_id = "foundation.ingest").entered();
                let _parse = info_span!("stage", stage_id = "foundation.parse").entered();
                drop(info_span!("stage", stage_id = "foundation.read").entered());
                until_stages = STAGES_EVERY;
            }
            let runs = times.min(until_stages);
            let start = Instant::now();
            for _ in 0..runs {
                once();
            }
            elapsed += start.elapsed();
            times -= runs;
            until_stages -= runs;
        }
        elapsed
    })
}

fn within(span: tracing::Span, mut once: impl FnMut() + 'static) -> Run {
    Box::new(move |times| {
        let _entered = span.enter();
        let start = Instant::now();
        for _ in 0..times {
            once();
        }
        start.elapsed()
    })
}

/// Every thread runs the case this many times; the slowest thread counts.
fn on_threads<F: FnMut()>(threads: usize, make: impl Fn(usize) -> F + Sync + 'static) -> Run {
    Box::new(move |times| {
        let ready = Barrier::new(threads);
        let run = |thread| {
            let mut once = make(thread);
            ready.wait();
            let start = Instant::now();
            for _ in 0..times {
                once();
            }
            start.elapsed()
        };
        thread::scope(|scope| {
            let running: Vec<_> = (0..threads).map(|thread| scope.spawn(move || run(thread))).collect();
            running.into_iter().filter_map(|thread| thread.join().ok()).max().unwrap_or_default()
        })
    })
}

/// A prepared case.
pub(crate) struct Prepared {
    run: Run,
    recorded: Recorded,
    rested: Instant,
}

impl Prepared {
    /// Afterwards all one-time work is done: callsites and series exist, and the delivery thread sleeps. While it
    /// works it has a default subscriber of its own, which makes every other thread look one up.
    pub(crate) fn warm_up(&mut self) {
        (self.run)(64);
        thread::sleep(Duration::from_millis(300));
    }

    // The instruction profiler counts inside this function only: see `benches/instructions`.
    #[inline(never)]
    pub(crate) fn run(&mut self, times: u64) -> Duration {
        (self.run)(times)
    }

    /// Work outside the measured time, as often as the layer's own thread does it.
    pub(crate) fn rest(&mut self) {
        if let Recorded::ByHand(recorder) = &self.recorded
            && self.rested.elapsed() >= Duration::from_secs(1)
        {
            recorder.upkeep();
            self.rested = Instant::now();
        }
    }

    /// Stages recorded so far.
    pub(crate) fn recorded(&self) -> u64 {
        match &self.recorded {
            Recorded::Nothing => 0,
            Recorded::ByLayer(guard) => guard.report().stages().map(|stage| stage.runs()).sum(),
            Recorded::ByHand(recorder) => recorder.stages(),
            Recorded::Counted(count) => count(),
        }
    }
}

/// Location of a case's records.
pub(crate) enum Recorded {
    Nothing,
    ByLayer(FlushGuard),
    ByHand(Recorder),
    Counted(Box<dyn Fn() -> u64>),
}

impl Recorded {
    #[expect(clippy::expect_used, reason = "a benchmark that cannot be set up has nothing to go on with")]
    fn install(stack: Stack) -> Self {
        // Above the number of label sets of every case.
        let builder = || MetricsLayer::builder().with_max_series(10_000);
        match stack {
            Stack::Floor => {
                tracing_subscriber::registry().with(Nothing).init();
                Self::Nothing
            }
            Stack::Silent => {
                let (layer, guard) = builder().with_exposition(String::new).build().expect("no recorder");
                tracing_subscriber::registry().with(layer).init();
                Self::ByLayer(guard)
            }
            Stack::Layer => {
                let (layer, guard) = builder().build().expect("the Prometheus recorder");
                tracing_subscriber::registry().with(layer).init();
                Self::ByLayer(guard)
            }
            Stack::Native => {
                let gateway = accepting_gateway().expect("a port on the loopback address");
                let builder = builder().with_push_interval(Duration::from_secs(3_600)).with_pushgateway(gateway);
                let (layer, guard) = builder.with_native_histograms().build().expect("the Prometheus recorder");
                tracing_subscriber::registry().with(layer).init();
                Self::ByLayer(guard)
            }
            #[cfg(feature = "exemplars")]
            Stack::Traced | Stack::Exemplars => {
                enter_sampled_trace();
                let builder = if stack == Stack::Exemplars { builder().with_exemplars() } else { builder() };
                let (layer, guard) = builder.build().expect("the Prometheus recorder");
                tracing_subscriber::registry().with(layer).init();
                Self::ByLayer(guard)
            }
            Stack::AnHour => {
                tracing_subscriber::registry().with(AnHour).init();
                Self::of_exporter()
            }
            Stack::KeptPair | Stack::KeptFull | Stack::Macros => Self::of_exporter(),
            Stack::Peer(peer) => peer.install(),
        }
    }

    #[expect(clippy::expect_used, reason = "as above")]
    fn of_exporter() -> Self {
        let (recorder, handle) = by_hand::exporter().expect("the Prometheus recorder");
        metrics::set_global_recorder(recorder).expect("no other recorder");
        Self::ByHand(Recorder::new(handle, by_hand::TOTAL))
    }
}

/// A gateway that accepts every push, since native histograms have no effect without one.
fn accepting_gateway() -> Result<Pushgateway, Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let gateway = Pushgateway::new(format!("http://{}", listener.local_addr()?), "bench")?;
    thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            // Ends when the client has sent everything and waits.
            let _ = connection.set_read_timeout(Some(Duration::from_millis(50)));
            while connection.read(&mut [0; 4_096]).is_ok_and(|read| read > 0) {}
            let _ = connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        }
    });
    Ok(gateway)
}

/// Makes a sampled trace the current one of this thread, for good.
#[cfg(feature = "exemplars")]
fn enter_sampled_trace() {
    use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId};

    let span = SpanContext::new(TraceId::from(1), SpanId::from(1), TraceFlags::SAMPLED, true, Default::default());
    std::mem::forget(opentelemetry::Context::new().with_remote_span_context(span).attach());
}

/// The floor. A registry without any layer never frees its spans, and is slower.
struct Nothing;

impl<S: Subscriber> tracing_subscriber::Layer<S> for Nothing {}
