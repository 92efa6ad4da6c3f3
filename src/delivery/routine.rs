//! What the delivery thread does all day: pushes on the interval, samples, orders, and what earlier runs left.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, timeout_at};

use super::destinations::{Destinations, Rendered};
use super::file_thread::FileThread;
use super::lane::{Flight, Landed, Lane, Ticket, all, answer};
use super::quiet::mute;
use super::retry::Budget;
use super::spool::{CarriedOver, Entry, Replayed, Scope, Spool, replay};
use super::worker::Order;
use super::{DeliveryEvent, Source};
use crate::error::{Error, Kind};

/// How long what earlier runs of the own group left may hold up the first push.
const OWN_GROUP_TIME: Duration = Duration::from_secs(1);

enum Event {
    Ordered(Order),
    /// Nobody can order any more.
    Abandoned,
    Pushed(Landed),
    Exported(Landed),
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

pub(super) struct Routine {
    destinations: Destinations,
    spool: Option<(Arc<Spool>, Arc<FileThread>)>,
    carried: CarriedOver,
    source: Arc<dyn Source>,
    push_interval: Duration,
    sample_interval: Option<Duration>,
    orders: UnboundedReceiver<Order>,
    pushes: Lane,
    exports: Lane,
    replay: Replay,
    next_push: Instant,
    next_sample: Option<Instant>,
    told_full: bool,
}

impl Routine {
    pub(super) fn new(
        destinations: Destinations,
        spool: Option<(Arc<Spool>, Arc<FileThread>)>,
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
            carried: CarriedOver::default(),
            source,
            push_interval,
            sample_interval,
            orders,
            pushes: Lane::default(),
            exports: Lane::default(),
            replay,
            next_push: now,
            next_sample,
            told_full: false,
        }
    }

    /// Runs until the last order was carried out, whose deadline it returns, or nobody can give one.
    pub(super) fn run(&mut self, runtime: &Runtime) -> Option<Instant> {
        self.tell_spool();
        mute(|| runtime.block_on(self.replay_own_group()));
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
                    let (push, export) = Ticket::both(order);
                    self.pushes.wait(push);
                    self.exports.wait(export);
                }
                Event::Pushed(landed) => self.pushed(landed),
                Event::Exported(Landed { result, tickets, .. }) => self.exports.tell(&*self.source, result, tickets),
                Event::Replayed(replayed) => self.replayed(replayed),
            }
            self.begin_what_waits();
        }
    }

    fn begin_what_waits(&mut self) {
        if self.pushes.is_free() {
            let tickets = self.pushes.take_waiting();
            if let Some(deadline) = tickets.iter().map(Ticket::deadline).max() {
                self.push(deadline, tickets);
            } else if matches!(self.replay, Replay::Ready) {
                self.start_replay();
            }
        }
        if self.exports.is_free() {
            let tickets = self.exports.take_waiting();
            if let Some(deadline) = tickets.iter().map(Ticket::deadline).max() {
                self.export(deadline, tickets);
            }
        }
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
            if self.pushes.is_free() {
                self.push(self.next_push, Vec::new());
            }
            if self.exports.is_free() {
                self.export(self.next_push, Vec::new());
            }
        }
    }

    /// Writes the file and sets the push going.
    fn push(&mut self, deadline: Instant, tickets: Vec<Ticket>) {
        if matches!(self.replay, Replay::Running(_)) {
            // What it was at stays in the spool.
            self.replay = Replay::AfterPush;
        }
        let (budget, hurry) = budget(deadline, false);
        let Rendered { exposition, textfile } = self.destinations.render(&*self.source);
        let exposition = exposition.map(|exposition| self.carried.complete(exposition));
        let delivery = Box::pin(self.destinations.push(Arc::clone(&self.source), exposition, budget));
        self.pushes.begin(Flight { delivery, tickets, hurry, beside: textfile });
    }

    fn export(&mut self, deadline: Instant, tickets: Vec<Ticket>) {
        let (budget, hurry) = budget(deadline, false);
        let delivery = Box::pin(self.destinations.export(Arc::clone(&self.source), budget, !tickets.is_empty()));
        self.exports.begin(Flight { delivery, tickets, hurry, beside: Ok(()) });
    }

    fn start_replay(&mut self) {
        let (Some(gateway), Some((spool, files))) = (self.destinations.gateway.clone(), self.spool.clone()) else {
            return;
        };
        let deadline = self.next_push;
        let replay = async move { replay(&gateway, &spool, &files, Scope::OtherGroups, deadline).await };
        self.replay = Replay::Running(Box::pin(replay));
    }

    /// Before the first push: what is newer comes after what earlier runs of the group left.
    async fn replay_own_group(&mut self) {
        let (Some(gateway), Some((spool, files))) = (self.destinations.gateway.clone(), self.spool.clone()) else {
            return;
        };
        let deadline = Instant::now() + OWN_GROUP_TIME;
        while let Replayed::Done | Replayed::Refused = replay(&gateway, &spool, &files, Scope::OwnGroup, deadline).await
        {
        }
        if let Ok(carried) = files.run(move || spool.carry_over(&gateway)).await {
            self.carried = carried;
        }
    }

    fn replayed(&mut self, replayed: Replayed) {
        self.replay = match replayed {
            Replayed::Nothing => Replay::Done,
            Replayed::Done | Replayed::Refused => Replay::Ready,
            Replayed::PassedOver | Replayed::Failed | Replayed::Unanswered => Replay::AfterPush,
        };
        self.tell_spool();
    }

    fn tell_spool(&mut self) {
        if let Some((spool, _)) = &self.spool {
            spool.take_notices().into_iter().for_each(|notice| self.source.on_event(notice));
            let dropped = spool.dropped();
            self.source.spooled(spool.len(), dropped);
            if dropped > 0 && !std::mem::replace(&mut self.told_full, true) {
                self.source.on_event(DeliveryEvent::SpoolFull);
            }
        }
    }

    fn pushed(&mut self, landed: Landed) {
        let Landed { result, tickets, beside } = landed;
        if result.is_ok() && matches!(self.replay, Replay::AfterPush) {
            self.replay = Replay::Ready;
        }
        self.pushes.tell(&*self.source, all(beside, result), tickets);
    }

    /// The final flush. The state is in the file and in the spool before anything is waited for. A request in flight has
    /// half of the time to end, so that the gateway gets the two in order, and is aborted then.
    fn finish(&mut self, runtime: &Runtime, order: Order) {
        self.replay = Replay::Done;
        if let Some((spool, _)) = &self.spool {
            // Before the state is rendered, which tells of it. Writing looks again, at the size.
            spool.make_room(0);
        }
        self.tell_spool();
        let Rendered { exposition, textfile } = self.destinations.render(&*self.source);
        let exposition = exposition.map(|exposition| self.carried.complete(exposition));
        let entry = exposition.as_ref().ok().and_then(|exposition| self.spool(exposition));
        self.end_flights(runtime, order.deadline);
        let (of_push, of_export) = (budget(order.deadline, true).0, budget(order.deadline, true).0);
        let push = self.destinations.push(Arc::clone(&self.source), exposition, of_push);
        let export = self.destinations.export(Arc::clone(&self.source), of_export, true);
        let (pushed, exported) = mute(|| runtime.block_on(both(push, export)));
        self.pushes.turn_away();
        self.exports.turn_away();
        let is_pushed = pushed.is_ok();
        if let Some((spool, _)) = self.spool.as_ref().filter(|_| is_pushed) {
            // Where one cannot be removed, a later run finds that the gateway has it.
            if let Some(entry) = &entry {
                spool.remove(entry);
            }
            spool.remove_carried_over(&self.carried);
        }
        (order.reply)(all(all(textfile, pushed), exported));
        if is_pushed {
            mute(|| runtime.block_on(self.replay_rest(order.deadline)));
        }
        if let Some((spool, _)) = &self.spool {
            spool.take_notices().into_iter().for_each(|notice| self.source.on_event(notice));
        }
    }

    fn spool(&self, exposition: &Bytes) -> Option<Entry> {
        let (gateway, (spool, _)) = (self.destinations.gateway.as_ref()?, self.spool.as_ref()?);
        let written = spool.write(&spool.payload(gateway, exposition.clone()), &AtomicBool::new(false));
        let written = written.map_err(|error| self.source.on_event(DeliveryEvent::NotSpooled(error)));
        written.ok()?.entry
    }

    /// Waits for what is on its way, for half of the time.
    fn end_flights(&mut self, runtime: &Runtime, deadline: Instant) {
        let half = Instant::now() + deadline.saturating_duration_since(Instant::now()) / 2;
        let end = |flight: Option<Flight>| async move {
            let Some(mut flight) = flight else { return };
            flight.hurry.notify_one();
            let ended = timeout_at(half, flight.delivery.as_mut()).await;
            // Dropped before anyone is told.
            drop(flight.delivery);
            let aborted = || Err(Error::new(Kind::Timeout, "the push was aborted by the final flush"));
            answer(ended.unwrap_or_else(|_| aborted()), flight.tickets);
        };
        let (push, export) = (end(self.pushes.take()), end(self.exports.take()));
        mute(|| runtime.block_on(both(push, export)));
    }

    /// After our own payload, what earlier runs left, as far as the time goes.
    async fn replay_rest(&self, deadline: Instant) {
        let (Some(gateway), Some((spool, files))) = (&self.destinations.gateway, &self.spool) else { return };
        while Instant::now() < deadline {
            match replay(gateway, spool, files, Scope::OtherGroups, deadline).await {
                Replayed::Done | Replayed::Refused | Replayed::PassedOver => {}
                Replayed::Nothing | Replayed::Failed | Replayed::Unanswered => break,
            }
        }
    }

    /// Waits for an order, for the push in flight, or until something is due.
    fn next_event(&mut self, runtime: &Runtime) -> Event {
        let due = self.next_sample.map_or(self.next_push, |sample| sample.min(self.next_push));
        let (orders, pushes, exports, replay) =
            (&mut self.orders, &mut self.pushes, &mut self.exports, &mut self.replay);
        let event = poll_fn(|context| {
            if let Poll::Ready(order) = orders.poll_recv(context) {
                return Poll::Ready(order.map_or(Event::Abandoned, Event::Ordered));
            }
            if let Poll::Ready(landed) = pushes.poll(context) {
                return Poll::Ready(Event::Pushed(landed));
            }
            if let Poll::Ready(landed) = exports.poll(context) {
                return Poll::Ready(Event::Exported(landed));
            }
            match &mut *replay {
                Replay::Running(replay) if pushes.is_free() => replay.as_mut().poll(context).map(Event::Replayed),
                _ => Poll::Pending,
            }
        });
        mute(|| runtime.block_on(async { timeout_at(due, event).await.unwrap_or(Event::Due) }))
    }
}

fn budget(deadline: Instant, last: bool) -> (Budget, Arc<Notify>) {
    let hurry = Arc::new(Notify::new());
    (Budget { deadline, last, hurry: Arc::clone(&hurry) }, hurry)
}

/// Both, side by side.
async fn both<A, B>(first: impl Future<Output = A>, second: impl Future<Output = B>) -> (A, B) {
    let (mut first, mut second) = (pin!(first), pin!(second));
    let (mut one, mut other) = (None, None);
    poll_fn(|context| {
        if one.is_none()
            && let Poll::Ready(result) = first.as_mut().poll(context)
        {
            one = Some(result);
        }
        if other.is_none()
            && let Poll::Ready(result) = second.as_mut().poll(context)
        {
            other = Some(result);
        }
        match (one.take(), other.take()) {
            (Some(one), Some(other)) => Poll::Ready((one, other)),
            unfinished => {
                (one, other) = unfinished;
                Poll::Pending
            }
        }
    })
    .await
}
