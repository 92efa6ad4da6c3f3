//! One way out, to the gateway or to the collector: what is on its way there, and who waits for it. Neither waits for
//! the other.

use std::cell::RefCell;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::worker::{Order, Reply};
use super::{DeliveryEvent, Source};
use crate::error::{Error, Kind};

pub(super) type Delivery = Pin<Box<dyn Future<Output = Result<(), Error>>>>;

#[derive(Default)]
pub(super) struct Lane {
    flight: Option<Flight>,
    /// Who waits for the next one.
    waiting: Vec<Ticket>,
    /// What was sent last did not arrive.
    is_lost: bool,
}

/// A delivery on its way.
pub(super) struct Flight {
    pub(super) delivery: Delivery,
    pub(super) tickets: Vec<Ticket>,
    /// Keeps it from trying again.
    pub(super) hurry: Arc<Notify>,
    /// How it went to do what belongs to it and is done: the text file.
    pub(super) beside: Result<(), Error>,
}

/// What became of a delivery, and who is to be told.
pub(super) struct Landed {
    pub(super) result: Result<(), Error>,
    pub(super) tickets: Vec<Ticket>,
    pub(super) beside: Result<(), Error>,
}

impl Lane {
    pub(super) fn is_free(&self) -> bool {
        self.flight.is_none()
    }

    /// Waits for a delivery that begins after this. One on the interval that is on its way tries no more then.
    pub(super) fn wait(&mut self, ticket: Ticket) {
        if let Some(flight) = self.flight.as_ref().filter(|flight| flight.tickets.is_empty()) {
            flight.hurry.notify_one();
        }
        self.waiting.push(ticket);
    }

    /// Those who wait and are not late: one delivery is for all of them. Whoever is late has gone, or is about to.
    pub(super) fn take_waiting(&mut self) -> Vec<Ticket> {
        let now = Instant::now();
        let waiting = mem::take(&mut self.waiting).into_iter();
        let (in_time, late): (Vec<_>, Vec<_>) = waiting.partition(|ticket| ticket.deadline() > now);
        for ticket in late {
            let late = "the push before it took all the time that this one was allowed";
            ticket.done(Err(Error::new(Kind::Timeout, late)));
        }
        in_time
    }

    pub(super) fn begin(&mut self, flight: Flight) {
        self.flight = Some(flight);
    }

    /// What is on its way, to be given up or waited for.
    pub(super) fn take(&mut self) -> Option<Flight> {
        self.flight.take()
    }

    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Landed> {
        let Some(flight) = &mut self.flight else { return Poll::Pending };
        let Poll::Ready(result) = flight.delivery.as_mut().poll(context) else { return Poll::Pending };
        let landed = |Flight { tickets, beside, .. }| Poll::Ready(Landed { result, tickets, beside });
        self.flight.take().map_or(Poll::Pending, landed)
    }

    /// Tells the user if that changes anything, and those who waited.
    pub(super) fn tell(&mut self, source: &dyn Source, result: Result<(), Error>, tickets: Vec<Ticket>) {
        match (&result, mem::replace(&mut self.is_lost, result.is_err())) {
            (Err(error), false) => source.on_event(DeliveryEvent::Failing(error.copy())),
            (Ok(()), true) => source.on_event(DeliveryEvent::Recovered),
            _ => {}
        }
        answer(result, tickets);
    }

    /// The last flush comes first.
    pub(super) fn turn_away(&mut self) {
        for ticket in self.waiting.drain(..) {
            ticket.done(Err(Error::new(Kind::Delivery, "the final flush came first")));
        }
    }
}

/// Tells all of them the same.
pub(super) fn answer(result: Result<(), Error>, tickets: Vec<Ticket>) {
    let mut tickets = tickets.into_iter();
    let first = tickets.next();
    for ticket in tickets {
        ticket.done(match &result {
            Ok(()) => Ok(()),
            Err(error) => Err(error.copy()),
        });
    }
    if let Some(first) = first {
        first.done(result);
    }
}

/// One way's part of an order, which is answered when both ways have done theirs.
pub(super) struct Ticket {
    order: Rc<RefCell<Open>>,
    way: Way,
}

#[derive(Clone, Copy)]
enum Way {
    Push,
    Export,
}

struct Open {
    deadline: Instant,
    reply: Option<Reply>,
    pushed: Option<Result<(), Error>>,
    exported: Option<Result<(), Error>>,
}

impl Ticket {
    /// For the gateway and for the collector.
    pub(super) fn both(order: Order) -> (Self, Self) {
        let open = Open { deadline: order.deadline, reply: Some(order.reply), pushed: None, exported: None };
        let order = Rc::new(RefCell::new(open));
        (Self { order: Rc::clone(&order), way: Way::Push }, Self { order, way: Way::Export })
    }

    pub(super) fn deadline(&self) -> Instant {
        self.order.borrow().deadline
    }

    pub(super) fn done(self, result: Result<(), Error>) {
        let mut open = self.order.borrow_mut();
        match self.way {
            Way::Push => open.pushed = Some(result),
            Way::Export => open.exported = Some(result),
        }
        if open.pushed.is_some() && open.exported.is_some() {
            let all = all(open.pushed.take().unwrap_or(Ok(())), open.exported.take().unwrap_or(Ok(())));
            if let Some(reply) = open.reply.take() {
                reply(all);
            }
        }
    }
}

/// Both have to succeed, and nothing that went wrong is passed over.
pub(super) fn all(one: Result<(), Error>, other: Result<(), Error>) -> Result<(), Error> {
    match (one, other) {
        (Err(one), Err(other)) => Err(one.and(other)),
        (one, other) => one.and(other),
    }
}
