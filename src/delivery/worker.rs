//! The delivery thread: owns all network and file work, and a runtime of its own, whatever the application has.

#[cfg(feature = "http")]
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use super::Source;
use super::destinations::Destinations;
use super::file_thread::FileThread;
#[cfg(feature = "http")]
use super::http::Listener;
use super::pushgateway::Pushgateway;
use super::quiet::{self, mute};
use super::routine::Routine;
use super::spool::Spool;
use super::textfile::Textfile;
use crate::error::{Error, Kind};
#[cfg(feature = "otlp")]
use crate::otlp::Collecting;

/// What is to be delivered, where, and how often.
pub(crate) struct Plan {
    pub(crate) gateway: Option<Pushgateway>,
    pub(crate) textfile: Option<Textfile>,
    #[cfg(feature = "otlp")]
    pub(crate) collecting: Option<Collecting>,
    /// Of use with a gateway only.
    pub(crate) spool: Option<Arc<Spool>>,
    pub(crate) push_interval: Duration,
    /// `None`: never.
    pub(crate) sample_interval: Option<Duration>,
    #[cfg(feature = "http")]
    pub(crate) listener: Option<Listener>,
}

/// Receives the result of a delivery.
pub(crate) type Reply = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// Somebody asks for a delivery of the present state.
pub(super) struct Order {
    pub(super) deadline: Instant,
    /// The last one: the thread ends with it.
    pub(super) last: bool,
    pub(super) reply: Reply,
}

/// A handle on the thread. Dropped without an order to end, the thread ends without another push.
pub(crate) struct Worker {
    orders: UnboundedSender<Order>,
    go: SyncSender<()>,
    /// Closed when the thread ends.
    end: Mutex<Receiver<()>>,
    /// Where metrics are served.
    #[cfg(feature = "http")]
    pub(crate) listen_addr: Option<SocketAddr>,
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
        let within = runtime.enter();
        #[cfg(feature = "http")]
        let listen_addr = plan.listener.as_ref().map(Listener::address);
        #[cfg(feature = "http")]
        let server = plan.listener.map(|listener| listener.serve(Arc::clone(&source))).transpose()?;
        let destinations = Destinations {
            gateway: plan.gateway,
            textfile: plan.textfile,
            #[cfg(feature = "otlp")]
            collector: mute(|| plan.collecting.map(Collecting::start).transpose())?
                .map(|collector| Arc::new(tokio::sync::Mutex::new(collector))),
        };
        drop(within);
        let start_files = |spool| FileThread::start("stage-metrics-files").map(|files| (spool, Arc::new(files)));
        let spool = plan.spool.map(start_files).transpose()?;
        let (orders, received) = unbounded_channel();
        let (go, gate) = sync_channel(1);
        let (alive, end) = sync_channel(1);
        let run = move || {
            let _alive: SyncSender<()> = alive;
            if gate.recv().is_ok() {
                let mut routine =
                    Routine::new(destinations, spool, source, plan.push_interval, plan.sample_interval, received);
                let _deadline = routine.run(&runtime);
                mute(|| {
                    #[cfg(feature = "http")]
                    if let (Some(server), Some(deadline)) = (server, _deadline) {
                        runtime.block_on(server.stop(deadline));
                    }
                    drop(routine);
                });
            }
            // A name that is still being looked up is not waited for. What connections have to say of their end is not for
            // the application.
            mute(|| runtime.shutdown_background());
        };
        thread::Builder::new().name("stage-metrics".to_owned()).spawn(run).map_err(failed)?;
        Ok(Self {
            orders,
            go,
            end: Mutex::new(end),
            #[cfg(feature = "http")]
            listen_addr,
        })
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
