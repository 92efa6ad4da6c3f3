//! The delivery thread. It does all network work on a runtime of its own.

#[cfg(feature = "http")]
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use super::destination::Destination;
#[cfg(feature = "otlp")]
use super::otlp::ExporterConfig;
use super::pushgateway::Pushgateway;
use super::replayer::{Replayer, SpoolThread};
use super::request::FlushRequest;
use super::scheduler::Scheduler;
#[cfg(feature = "http")]
use super::scrape::Listener;
use super::source::ExpositionSource;
use super::spool::Spool;
use super::textfile::Textfile;
use super::totals::CumulativeTotals;
use crate::diagnostics::subscriber;
use crate::error::{Error, Kind};

/// The destinations and the intervals of the delivery.
pub(crate) struct DeliveryConfig {
    pub(crate) gateway: Option<Pushgateway>,
    pub(crate) textfile: Option<Textfile>,
    /// Labels of every series in the text file: the job and the grouping.
    pub(crate) textfile_labels: Vec<(String, String)>,
    #[cfg(feature = "otlp")]
    pub(crate) exporter: Option<ExporterConfig>,
    /// The totals of the gateway or, without one, of the text file.
    pub(crate) totals: Option<Arc<CumulativeTotals>>,
    /// Has no effect without a gateway.
    pub(crate) spool: Option<Spool>,
    pub(crate) push_interval: Duration,
    /// `None` samples no resources.
    pub(crate) sample_interval: Option<Duration>,
    #[cfg(feature = "http")]
    pub(crate) listener: Option<Listener>,
}

/// A handle of the delivery thread. If it is dropped without a final request, the thread ends without another push.
pub(crate) struct DeliveryThread {
    requests: UnboundedSender<FlushRequest>,
    start: SyncSender<()>,
    id: ThreadId,
    /// Closed when the thread has nothing left to deliver.
    end: Mutex<Receiver<()>>,
    /// The address at which metrics are served.
    #[cfg(feature = "http")]
    pub(crate) listen_addr: Option<SocketAddr>,
}

/// A runtime whose drop does not wait for blocked tasks. A drop that waits panics in asynchronous code, where
/// `install()` may fail.
struct OwnRuntime(Option<Runtime>);

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl DeliveryThread {
    /// Creates the thread, and does everything that may fail. The thread does nothing before [`start`](Self::start).
    pub(crate) fn new(config: DeliveryConfig, source: Arc<dyn ExpositionSource>) -> Result<Self, Error> {
        let failed = |error| Error::new(Kind::Delivery, "cannot start the delivery thread").with_source(error);
        // Without the signal driver, which panics if no file handle is left.
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
        let server =
            config.listener.map(|listener| listener.serve(Arc::clone(&source), config.totals.clone())).transpose()?;
        let has_gateway = config.gateway.is_some();
        let mut destinations = Vec::new();
        let mut replayer = None;
        if let Some(gateway) = config.gateway {
            let spool = config.spool.map(SpoolThread::start).transpose()?;
            replayer = spool.clone().map(|spool| Replayer::start(gateway.clone(), spool, Arc::clone(&source)));
            destinations.push(Destination::gateway(gateway, spool, replayer.as_ref(), config.totals.clone()));
        }
        if let Some(textfile) = config.textfile {
            destinations.push(Destination::textfile(textfile, &config.textfile_labels, config.totals, !has_gateway)?);
        }
        #[cfg(feature = "otlp")]
        if let Some(exporter) = config.exporter {
            destinations.push(Destination::collector(subscriber::without_subscriber(|| exporter.start())?));
        }
        drop(context);
        let (requests, received) = unbounded_channel();
        let (start, is_started) = sync_channel(1);
        let (alive, end) = sync_channel(1);
        let run = move || {
            // The events of the HTTP client and its connections stay out of the application's log.
            subscriber::begin();
            if let (Ok(()), Some(runtime)) = (is_started.recv(), &runtime.0) {
                let (push, sample) = (config.push_interval, config.sample_interval);
                let scheduler = Scheduler::new(destinations, source, received, push, sample, replayer);
                let _deadline = runtime.block_on(scheduler.run());
                #[cfg(feature = "http")]
                if let (Some(server), Some(deadline)) = (server, _deadline) {
                    runtime.block_on(server.stop(deadline));
                }
            }
            // The end of the process need not wait for the runtime.
            drop::<SyncSender<()>>(alive);
            drop(runtime);
            subscriber::end();
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

    /// Starts the delivery with a first push.
    pub(crate) fn start(&self) {
        // Fails only if the thread has ended, which the first request reports.
        let _ = self.start.try_send(());
    }

    /// Waits until the thread has delivered everything: after the final flush, the payloads of earlier runs.
    pub(crate) fn wait_end(&self, deadline: std::time::Instant) {
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        // The thread sends nothing: the wait ends when the thread drops its side, or at the deadline.
        let _ = end.recv_timeout(deadline.saturating_duration_since(std::time::Instant::now()));
    }

    /// Requests a delivery of the current state, and returns its result by the deadline.
    pub(crate) async fn flush(&self, deadline: std::time::Instant, is_final: bool) -> Result<(), Error> {
        let gone = || Error::new(Kind::Delivery, "the delivery thread is gone");
        let (reply, result) = oneshot::channel();
        let request = FlushRequest { deadline: deadline.into(), is_final, reply };
        self.requests.send(request).map_err(|_| gone())?;
        result.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Returns whether the caller runs on this thread.
    pub(crate) fn is_current(&self) -> bool {
        thread::current().id() == self.id
    }
}
