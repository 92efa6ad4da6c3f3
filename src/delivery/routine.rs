//! What the delivery thread does all day: pushes on the interval, samples, orders, and what earlier runs left.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, timeout_at};

use super::destinations::{Delivered, Destinations, Rendered};
use super::push::{Replayed, replay};
use super::quiet::mute;
use super::retry::Budget;
use super::spool::{Entry, Spool};
use super::worker::Order;
use super::{Source, State};
use crate::error::{Error, Kind};

/// A push on its way, and who waits for it.
struct Push {
    delivered: Pin<Box<dyn Future<Output = Delivered>>>,
    order: Option<Order>,
    /// What went wrong beside it.
    textfile: Result<(), Error>,
    /// Keeps it from trying again.
    hurry: Arc<Notify>,
}

enum Event {
    Ordered(Order),
    /// Nobody can order any more.
    Abandoned,
    Pushed(Delivered),
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

/// Which deliveries do not arrive.
#[derive(Default)]
struct Lost {
    pushes: bool,
    exports: bool,
}

pub(super) struct Routine {
    destinations: Destinations,
    spool: Option<Arc<Spool>>,
    source: Arc<dyn Source>,
    push_interval: Duration,
    sample_interval: Option<Duration>,
    orders: UnboundedReceiver<Order>,
    waiting: VecDeque<Order>,
    push: Option<Push>,
    replay: Replay,
    next_push: Instant,
    next_sample: Option<Instant>,
    lost: Lost,
    told_full: bool,
}

impl Routine {
    pub(super) fn new(
        destinations: Destinations,
        spool: Option<Arc<Spool>>,
        source: Arc<dyn Source>,
        push_interval: Duration,
        sample_interval: Option<Duration>,
        orders: UnboundedReceiver<Order>,
    ) -> Self {
        let now = Instant::now();
        let next_sample = sample_interval.map(|_| now);
        let replay = if spool.is_some() { Replay::AfterPush } else { Replay::Done };
        Self {
            destinations,
            spool,
            source,
            push_interval,
            sample_interval,
            orders,
            waiting: VecDeque::new(),
            push: None,
            replay,
            next_push: now,
            next_sample,
            lost: Lost::default(),
            told_full: false,
        }
    }

    /// Runs until the last order was carried out, whose deadline it returns, or nobody can give one.
    pub(super) fn run(&mut self, runtime: &Runtime) -> Option<Instant> {
        self.tell_spool();
        loop {
            self.routine();
            match self.next_event(runtime) {
                Event::Due => {}
                Event::Abandoned => return None,
                Event::Ordered(order) if order.last => {
                    let deadline = order.deadline;
                    self.finish(runtime, order);
                    return Some(deadline);
                }
                Event::Ordered(order) => {
                    if let Some(push) = self.push.as_ref().filter(|push| push.order.is_none()) {
                        push.hurry.notify_one();
                    }
                    self.waiting.push_back(order);
                }
                Event::Pushed(delivered) => self.delivered(delivered),
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
        if let (Some(due), Some(interval)) = (self.next_sample, self.sample_interval)
            && due <= now
        {
            self.source.sample();
            self.next_sample = Some(now + interval);
        }
        if self.next_push <= now {
            self.next_push = now + self.push_interval;
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
        let hurry = Arc::new(Notify::new());
        let budget = Budget { deadline, last: false, hurry: Arc::clone(&hurry) };
        let Rendered { exposition, textfile } = self.destinations.render(&*self.source);
        let sent = self.destinations.send(Arc::clone(&self.source), exposition, budget, order.is_some());
        self.push = Some(Push { delivered: Box::pin(sent), order, textfile, hurry });
    }

    fn start_replay(&mut self) {
        let (Some(gateway), Some(spool)) = (self.destinations.gateway.clone(), self.spool.clone()) else { return };
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
        if let Some(spool) = &self.spool {
            let dropped = spool.dropped();
            self.source.spooled(spool.len(), dropped);
            if dropped > 0 && !std::mem::replace(&mut self.told_full, true) {
                self.source.changed(State::SpoolFull);
            }
        }
    }

    /// A push ended: tells who waits for it, and the user if that changes anything.
    fn delivered(&mut self, delivered: Delivered) {
        let Some(push) = self.push.take() else { return };
        let Delivered { pushed, exported } = delivered.and_file(push.textfile);
        for (result, lost) in [(&pushed, &mut self.lost.pushes), (&exported, &mut self.lost.exports)] {
            match (result, mem::replace(lost, result.is_err())) {
                (Err(error), false) => self.source.changed(State::Lost(error)),
                (Ok(()), true) => self.source.changed(State::Back),
                _ => {}
            }
        }
        if pushed.is_ok() && matches!(self.replay, Replay::AfterPush) {
            self.replay = Replay::Ready;
        }
        if let Some(order) = push.order {
            (order.reply)(Delivered { pushed, exported }.whole());
        }
    }

    /// The final flush. The state is in the file and in the spool before anything is waited for. A request in flight has
    /// half of the time to end, so that the gateway gets the two in order, and is aborted then.
    fn finish(&mut self, runtime: &Runtime, order: Order) {
        self.replay = Replay::Done;
        if let Some(spool) = &self.spool {
            // Before the state is rendered, which tells of it. Writing looks again, at the size.
            spool.make_room(0);
        }
        self.tell_spool();
        let Rendered { exposition, textfile } = self.destinations.render(&*self.source);
        let entry = exposition.as_ref().ok().and_then(|exposition| self.spool(exposition));
        self.end_push(runtime, order.deadline);
        let budget = Budget { deadline: order.deadline, last: true, hurry: Arc::new(Notify::new()) };
        let sent = self.destinations.send(Arc::clone(&self.source), exposition, budget, true);
        let delivered = mute(|| runtime.block_on(sent));
        for waiting in self.waiting.drain(..) {
            (waiting.reply)(Err(Error::new(Kind::Delivery, "the final flush came first")));
        }
        let is_pushed = delivered.pushed.is_ok();
        if let Some(entry) = entry.filter(|_| is_pushed) {
            // Where it cannot be removed, a later run finds that the gateway has it.
            entry.remove();
        }
        (order.reply)(delivered.and_file(textfile).whole());
        if is_pushed {
            mute(|| runtime.block_on(self.replay_rest(order.deadline)));
        }
    }

    fn spool(&self, exposition: &Bytes) -> Option<Entry> {
        let (gateway, spool) = (self.destinations.gateway.as_ref()?, self.spool.as_ref()?);
        let written = spool.write(gateway.grouping(), exposition.clone());
        written.map_err(|error| self.source.changed(State::NotSpooled(&error))).ok()
    }

    /// Waits for the push in flight, for half of the time.
    fn end_push(&mut self, runtime: &Runtime, deadline: Instant) {
        let Some(mut push) = self.push.take() else { return };
        push.hurry.notify_one();
        let half = Instant::now() + deadline.saturating_duration_since(Instant::now()) / 2;
        let ended = mute(|| runtime.block_on(async { timeout_at(half, push.delivered.as_mut()).await }));
        if let Some(waiting) = push.order {
            let aborted = || Error::new(Kind::Timeout, "the push was aborted by the final flush");
            (waiting.reply)(ended.map_err(|_| aborted()).and_then(Delivered::whole));
        }
    }

    /// After our own payload, what earlier runs left, as far as the time goes.
    async fn replay_rest(&self, deadline: Instant) {
        let (Some(gateway), Some(spool)) = (&self.destinations.gateway, &self.spool) else { return };
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
                (Some(push), _) => push.delivered.as_mut().poll(context).map(Event::Pushed),
                (None, Replay::Running(replay)) => replay.as_mut().poll(context).map(Event::Replayed),
                (None, _) => Poll::Pending,
            }
        });
        mute(|| runtime.block_on(async { timeout_at(due, event).await.unwrap_or(Event::Due) }))
    }
}
