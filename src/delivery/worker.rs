//! The delivery thread: owns all network and file work, and a runtime of its own, whatever the application has.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, timeout_at};

use super::push::{Replayed, push_state, replay};
use super::pushgateway::Pushgateway;
use super::quiet;
use super::retry::Budget;
use super::spool::{Entry, Spool};
use super::textfile::Textfile;
use super::{Source, State};
use crate::error::{Error, Kind};

/// What is to be delivered, where, and how often.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) gateway: Option<Pushgateway>,
    pub(crate) textfile: Option<Textfile>,
    /// Of use with a gateway only.
    pub(crate) spool: Option<Arc<Spool>>,
    pub(crate) push_interval: Duration,
    /// `None`: never.
    pub(crate) sample_interval: Option<Duration>,
}

/// Receives the result of a delivery.
pub(crate) type Reply = Box<dyn FnOnce(Result<(), Error>) + Send>;

struct Order {
    deadline: Instant,
    /// The last one: the thread ends with it.
    last: bool,
    reply: Reply,
}

/// A handle on the thread. Dropped without an order to end, the thread ends without another push.
pub(crate) struct Worker {
    orders: UnboundedSender<Order>,
    go: SyncSender<()>,
    /// Closed when the thread ends.
    end: Mutex<Receiver<()>>,
}

impl Worker {
    /// Makes the thread, which does nothing before it is told to [`go`](Self::go): what may fail comes first.
    pub(crate) fn new(plan: Plan, source: Arc<dyn Source>) -> Result<Self, Error> {
        let failed = |error| Error::new(Kind::Delivery, "cannot start the delivery thread").with_source(error);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .on_thread_park(quiet::end)
            .on_thread_unpark(quiet::begin)
            .build()
            .map_err(failed)?;
        let (orders, received) = unbounded_channel();
        let (go, gate) = sync_channel(1);
        let (alive, end) = sync_channel(1);
        let run = move || {
            let _alive: SyncSender<()> = alive;
            if gate.recv().is_ok() {
                Thread::new(plan, source, received).run(&runtime);
            }
            // A name that is still being looked up is not waited for.
            runtime.shutdown_background();
        };
        thread::Builder::new().name("stage-metrics".to_owned()).spawn(run).map_err(failed)?;
        Ok(Self { orders, go, end: Mutex::new(end) })
    }

    /// Begins, with a push at once.
    pub(crate) fn go(&self) {
        // The thread waits for it, or is gone, which the first order finds out.
        let _ = self.go.try_send(());
    }

    /// Waits until the thread has ended: after the last order it still delivers what earlier runs left.
    pub(crate) fn await_end(&self, deadline: std::time::Instant) {
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        // Nothing is ever sent; it ends by the other side being dropped, or by the time.
        let _ = end.recv_timeout(deadline.saturating_duration_since(std::time::Instant::now()));
    }

    /// Asks for a delivery of the present state. The reply comes by the deadline, unless the system stands still.
    pub(crate) fn order(&self, deadline: std::time::Instant, last: bool, reply: Reply) {
        let order = Order { deadline: deadline.into(), last, reply };
        if let Err(lost) = self.orders.send(order) {
            (lost.0.reply)(Err(Error::new(Kind::Delivery, "the delivery thread is gone")));
        }
    }
}

/// A push on its way, and who waits for it.
struct Push {
    result: Pin<Box<dyn Future<Output = Result<(), Error>>>>,
    order: Option<Order>,
    /// What went wrong beside it.
    textfile: Result<(), Error>,
    /// Keeps it from trying again.
    hurry: Arc<Notify>,
    begun: Instant,
}

enum Event {
    Ordered(Order),
    /// Nobody can order any more.
    Abandoned,
    Pushed(Result<(), Error>),
    Replayed(Replayed),
    Due,
}

/// What earlier runs left in the spool.
enum Replay {
    /// Nothing is left, or there is no spool.
    Done,
    /// To be gone on with after the next push of our own that succeeds: not before one did, and not after a replay
    /// failed.
    AfterPush,
    /// To be gone on with as soon as there is nothing of our own to do.
    Ready,
    Running(Pin<Box<dyn Future<Output = Replayed>>>),
}

struct Thread {
    plan: Plan,
    source: Arc<dyn Source>,
    orders: UnboundedReceiver<Order>,
    waiting: VecDeque<Order>,
    push: Option<Push>,
    replay: Replay,
    next_push: Instant,
    next_sample: Option<Instant>,
    lost: bool,
    told_full: bool,
}

impl Thread {
    fn new(plan: Plan, source: Arc<dyn Source>, orders: UnboundedReceiver<Order>) -> Self {
        let now = Instant::now();
        let next_sample = plan.sample_interval.map(|_| now);
        let replay = if plan.spool.is_some() { Replay::AfterPush } else { Replay::Done };
        Self {
            plan,
            source,
            orders,
            waiting: VecDeque::new(),
            push: None,
            replay,
            next_push: now,
            next_sample,
            lost: false,
            told_full: false,
        }
    }

    /// Runs until the last order was carried out or nobody can give one.
    fn run(mut self, runtime: &Runtime) {
        self.tell_spool();
        loop {
            self.routine();
            match self.next_event(runtime) {
                Event::Due => {}
                Event::Abandoned => return,
                Event::Ordered(order) if order.last => {
                    return self.finish(runtime, order);
                }
                Event::Ordered(order) => {
                    if let Some(push) = self.push.as_ref().filter(|push| push.order.is_none()) {
                        push.hurry.notify_one();
                    }
                    self.waiting.push_back(order);
                }
                Event::Pushed(result) => self.delivered(result),
                Event::Replayed(replayed) => self.replayed(replayed),
            }
            if self.push.is_some() {
                continue;
            }
            if let Some(order) = self.next_order() {
                self.deliver(order.deadline, Some(order));
            } else if matches!(self.replay, Replay::Ready) {
                self.start_replay();
            }
        }
    }

    /// The next order that is not late. Whoever gave one that is has gone, or is about to.
    fn next_order(&mut self) -> Option<Order> {
        while let Some(order) = self.waiting.pop_front() {
            if order.deadline > Instant::now() {
                return Some(order);
            }
            let late = "the push before it took all the time that this one was allowed";
            (order.reply)(Err(Error::new(Kind::Timeout, late)));
        }
        None
    }

    /// Does what is due: a sample, a push on the interval. One that is late does not pile up.
    fn routine(&mut self) {
        let now = Instant::now();
        if let (Some(due), Some(interval)) = (self.next_sample, self.plan.sample_interval)
            && due <= now
        {
            self.source.sample();
            self.next_sample = Some(now + interval);
        }
        if self.next_push <= now {
            self.next_push = now + self.plan.push_interval;
            if self.push.is_none() {
                self.deliver(self.next_push, None);
            }
        }
    }

    /// Writes the file and sets the push going.
    fn deliver(&mut self, deadline: Instant, order: Option<Order>) {
        if matches!(self.replay, Replay::Running(_)) {
            // What it was at stays in the spool.
            self.replay = Replay::AfterPush;
        }
        let (gateway, source) = (self.plan.gateway.clone(), Arc::clone(&self.source));
        let hurry = Arc::new(Notify::new());
        let budget = Budget { deadline, last: false, hurry: Arc::clone(&hurry) };
        let (exposition, textfile) = self.render();
        let result = Box::pin(async move {
            match gateway {
                Some(gateway) => push_state(&gateway, &*source, exposition?, &budget).await,
                None => exposition.map(drop),
            }
        });
        self.push = Some(Push { result, order, textfile, hurry, begun: Instant::now() });
    }

    fn start_replay(&mut self) {
        let (Some(gateway), Some(spool)) = (self.plan.gateway.clone(), self.plan.spool.clone()) else { return };
        let (source, deadline) = (Arc::clone(&self.source), self.next_push);
        self.replay = Replay::Running(Box::pin(async move { replay(&gateway, &*source, &spool, deadline).await }));
    }

    fn replayed(&mut self, replayed: Replayed) {
        if let Replayed::Refused(error) = &replayed {
            self.source.changed(State::ReplayRefused(error));
        }
        self.replay = match replayed {
            Replayed::Nothing => Replay::Done,
            Replayed::Done | Replayed::Refused(_) => Replay::Ready,
            Replayed::PassedOver | Replayed::Failed => Replay::AfterPush,
        };
        self.tell_spool();
    }

    fn tell_spool(&mut self) {
        if let Some(spool) = &self.plan.spool {
            let dropped = spool.dropped();
            self.source.spooled(spool.len(), dropped);
            if dropped > 0 && !std::mem::replace(&mut self.told_full, true) {
                self.source.changed(State::SpoolFull);
            }
        }
    }

    /// The state of this moment, and how it went to write it to the file. Not rendered where nobody takes it.
    fn render(&self) -> (Result<Bytes, Error>, Result<(), Error>) {
        if self.plan.gateway.is_none() && self.plan.textfile.is_none() {
            return (Ok(Bytes::new()), Ok(()));
        }
        let exposition = self.source.exposition();
        let textfile = match (&self.plan.textfile, &exposition) {
            (Some(textfile), Ok(exposition)) => textfile.write(exposition),
            _ => Ok(()),
        };
        (exposition.map(Bytes::from), textfile)
    }

    /// A push ended: tells who waits for it, and the user if that changes anything.
    fn delivered(&mut self, result: Result<(), Error>) {
        let Some(push) = self.push.take() else { return };
        let result = push.textfile.and(result);
        match &result {
            Err(error) if !self.lost => self.source.changed(State::Lost(error)),
            Ok(()) if self.lost => self.source.changed(State::Back),
            _ => {}
        }
        self.lost = result.is_err();
        if result.is_ok() && matches!(self.replay, Replay::AfterPush) {
            self.replay = Replay::Ready;
        }
        if let Some(order) = push.order {
            (order.reply)(result);
        }
    }

    /// The final flush. The state is in the file and in the spool before anything is waited for. A request in flight has
    /// half of the time to end, so that the gateway gets the two in order, and is aborted then.
    fn finish(&mut self, runtime: &Runtime, order: Order) {
        self.replay = Replay::Done;
        if let Some(spool) = &self.plan.spool {
            // Before the state is rendered, which tells of it. Writing looks again, at the size.
            spool.make_room(0);
        }
        self.tell_spool();
        let (exposition, textfile) = self.render();
        let entry = exposition.as_ref().ok().and_then(|exposition| self.spool(exposition));
        self.end_push(runtime, order.deadline);
        let hurry = Arc::new(Notify::new());
        let budget = Budget { deadline: order.deadline, last: true, hurry };
        let result = match (&self.plan.gateway, exposition) {
            (_, Err(error)) => Err(error),
            (None, Ok(_)) => Ok(()),
            (Some(gateway), Ok(exposition)) => {
                mute(|| runtime.block_on(push_state(gateway, &*self.source, exposition, &budget)))
            }
        };
        for waiting in self.waiting.drain(..) {
            (waiting.reply)(Err(Error::new(Kind::Delivery, "the final flush came first")));
        }
        let is_delivered = result.is_ok();
        if let Some(entry) = entry.filter(|_| is_delivered) {
            // Where it cannot be removed, a later run finds that the gateway has it.
            entry.remove();
        }
        (order.reply)(textfile.and(result));
        if is_delivered {
            mute(|| runtime.block_on(self.replay_rest(order.deadline)));
        }
    }

    fn spool(&self, exposition: &Bytes) -> Option<Entry> {
        let (gateway, spool) = (self.plan.gateway.as_ref()?, self.plan.spool.as_ref()?);
        let written = spool.write(gateway.grouping(), exposition.clone());
        written.map_err(|error| self.source.changed(State::NotSpooled(&error))).ok()
    }

    /// Waits for the push in flight, for half of the time.
    fn end_push(&mut self, runtime: &Runtime, deadline: Instant) {
        let Some(mut push) = self.push.take() else { return };
        push.hurry.notify_one();
        let half = Instant::now() + deadline.saturating_duration_since(Instant::now()) / 2;
        let ended = mute(|| runtime.block_on(async { timeout_at(half, push.result.as_mut()).await }));
        let aborted = || Err(Error::new(Kind::Timeout, "the push was aborted by the final flush"));
        if ended.is_err() && self.plan.gateway.is_some() {
            self.source.pushed(&aborted(), push.begun.elapsed());
        }
        if let Some(waiting) = push.order {
            (waiting.reply)(ended.unwrap_or_else(|_| aborted()));
        }
    }

    /// After our own payload, what earlier runs left, as far as the time goes.
    async fn replay_rest(&self, deadline: Instant) {
        let (Some(gateway), Some(spool)) = (&self.plan.gateway, &self.plan.spool) else { return };
        while Instant::now() < deadline {
            match replay(gateway, &*self.source, spool, deadline).await {
                Replayed::Done | Replayed::PassedOver => {}
                Replayed::Refused(error) => self.source.changed(State::ReplayRefused(&error)),
                Replayed::Nothing | Replayed::Failed => break,
            }
        }
    }

    /// Waits for an order, for the push in flight, or until something is due.
    fn next_event(&mut self, runtime: &Runtime) -> Event {
        let due = self.next_sample.map_or(self.next_push, |sample| sample.min(self.next_push));
        let (orders, push, replay) = (&mut self.orders, &mut self.push, &mut self.replay);
        let event = poll_fn(|context| {
            if let Poll::Ready(order) = orders.poll_recv(context) {
                return Poll::Ready(order.map_or(Event::Abandoned, Event::Ordered));
            }
            match (&mut *push, &mut *replay) {
                (Some(push), _) => push.result.as_mut().poll(context).map(Event::Pushed),
                (None, Replay::Running(replay)) => replay.as_mut().poll(context).map(Event::Replayed),
                (None, _) => Poll::Pending,
            }
        });
        mute(|| runtime.block_on(async { timeout_at(due, event).await.unwrap_or(Event::Due) }))
    }
}

/// Keeps the events of the HTTP client, and of what its connections still do afterwards, out of the application's log.
fn mute<T>(work: impl FnOnce() -> T) -> T {
    quiet::begin();
    let result = work();
    quiet::end();
    result
}
