//! The delivery thread: owns all network work, and a runtime of its own, whatever the application has.

#[cfg(feature = "http")]
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use super::ExpositionSource;
use super::destination::Destination;
use super::replayer::{Replayer, SpoolThread};
use super::request::FlushRequest;
use super::scheduler::Scheduler;
use super::spool::Spool;
use super::textfile::Textfile;
#[cfg(feature = "otlp")]
use crate::delivery::otlp::ExporterConfig;
use crate::delivery::pushgateway::Pushgateway;
#[cfg(feature = "http")]
use crate::delivery::scrape::Listener;
use crate::diagnostics::subscriber;
use crate::diagnostics::subscriber::without_subscriber;
use crate::error::{Error, Kind};

/// What is to be delivered, where, and how often.
pub(crate) struct DeliveryConfig {
    pub(crate) gateway: Option<Pushgateway>,
    pub(crate) textfile: Option<Textfile>,
    /// Labels of every series in the text file: the job and the grouping.
    pub(crate) textfile_labels: Vec<(String, String)>,
    #[cfg(feature = "otlp")]
    pub(crate) exporter: Option<ExporterConfig>,
    /// Of use with a gateway only.
    pub(crate) spool: Option<Spool>,
    pub(crate) push_interval: Duration,
    /// `None`: never.
    pub(crate) sample_interval: Option<Duration>,
    #[cfg(feature = "http")]
    pub(crate) listener: Option<Listener>,
}

/// A handle on the thread. Dropped without a final request, the thread ends without another push.
pub(crate) struct DeliveryThread {
    requests: UnboundedSender<FlushRequest>,
    start: SyncSender<()>,
    id: ThreadId,
    /// Closed when the thread ends.
    end: Mutex<Receiver<()>>,
    /// Where metrics are served.
    #[cfg(feature = "http")]
    pub(crate) listen_addr: Option<SocketAddr>,
}

/// Does not wait for a task that is stuck when it is dropped. Nor may it: `install()` may fail in asynchronous code, where
/// a runtime that is waited for panics.
struct OwnRuntime(Option<Runtime>);

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl DeliveryThread {
    /// Makes the thread. It does nothing before [`start`](Self::start): what may fail comes first.
    pub(crate) fn new(config: DeliveryConfig, source: Arc<dyn ExpositionSource>) -> Result<Self, Error> {
        let failed = |error| Error::new(Kind::Delivery, "cannot start the delivery thread").with_source(error);
        // Without the signal driver, which panics where no file handle is left.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .on_thread_park(subscriber::end)
            .on_thread_unpark(subscriber::begin)
            .build()
            .map_err(failed)?;
        let handle = runtime.handle().clone();
        let runtime = OwnRuntime(Some(runtime));
        let context = handle.enter();
        #[cfg(feature = "http")]
        let listen_addr = config.listener.as_ref().map(Listener::address);
        #[cfg(feature = "http")]
        let server = config.listener.map(|listener| listener.serve(Arc::clone(&source))).transpose()?;
        let mut destinations = Vec::new();
        let mut replayer = None;
        if let Some(gateway) = config.gateway {
            let spool = config.spool.map(SpoolThread::start).transpose()?;
            replayer = spool.clone().map(|spool| Replayer::start(gateway.clone(), spool, Arc::clone(&source)));
            destinations.push(Destination::gateway(gateway, spool, replayer.as_ref()));
        }
        if let Some(textfile) = config.textfile {
            destinations.push(Destination::textfile(textfile, &config.textfile_labels)?);
        }
        #[cfg(feature = "otlp")]
        if let Some(exporter) = config.exporter {
            destinations.push(Destination::collector(without_subscriber(|| exporter.start())?));
        }
        drop(context);
        let (requests, received) = unbounded_channel();
        let (start, is_started) = sync_channel(1);
        let (alive, end) = sync_channel(1);
        let run = move || {
            let _alive: SyncSender<()> = alive;
            without_subscriber(|| {
                if let (Ok(()), Some(runtime)) = (is_started.recv(), &runtime.0) {
                    let (push, sample) = (config.push_interval, config.sample_interval);
                    let scheduler = Scheduler::new(destinations, source, received, push, sample, replayer);
                    let _deadline = runtime.block_on(scheduler.run());
                    #[cfg(feature = "http")]
                    if let (Some(server), Some(deadline)) = (server, _deadline) {
                        runtime.block_on(server.stop(deadline));
                    }
                }
                drop(runtime);
            });
        };
        let thread = thread::Builder::new().name("stage-metrics".to_owned()).spawn(run).map_err(failed)?;
        Ok(Self {
            requests,
            start,
            id: thread.thread().id(),
            end: Mutex::new(end),
            #[cfg(feature = "http")]
            listen_addr,
        })
    }

    /// Begins, with a push at once.
    pub(crate) fn start(&self) {
        // Fails only if the thread is gone, which the first request reports.
        let _ = self.start.try_send(());
    }

    /// Waits until the thread has ended: after the final flush it still delivers what earlier runs left.
    pub(crate) fn wait_end(&self, deadline: std::time::Instant) {
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        // Nothing is ever sent: the wait ends when the thread drops its side, or at the deadline.
        let _ = end.recv_timeout(deadline.saturating_duration_since(std::time::Instant::now()));
    }

    /// Asks for a delivery of the present state. The reply comes by the deadline.
    pub(crate) async fn flush(&self, deadline: std::time::Instant, is_final: bool) -> Result<(), Error> {
        let gone = || Error::new(Kind::Delivery, "the delivery thread is gone");
        let (reply, result) = oneshot::channel();
        let request = FlushRequest { deadline: deadline.into(), is_final, reply };
        self.requests.send(request).map_err(|_| gone())?;
        result.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Whether the caller runs on this thread.
    pub(crate) fn is_current(&self) -> bool {
        thread::current().id() == self.id
    }
}
