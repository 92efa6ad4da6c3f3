//! Work on the spool: file work on a thread of its own, and the replay of payloads in the background.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::grouping::Grouping;
use super::pushgateway::Pushgateway;
use super::spool::{Entry, Replayed, Spool, replay};
use super::{DeliveryEvent, Source};
use crate::error::Error;
use crate::job_thread::JobThread;

/// Jobs that may wait for the disk of the spool.
const MAX_WAITING_JOBS: usize = 16;

/// How long the final flush waits for a look at the spool. What it shows is of less worth than the push.
const LOOK_TIME: Duration = Duration::from_millis(100);

/// A spool, and the thread on which it works. Clones share both.
#[derive(Clone)]
pub(super) struct SpoolThread {
    spool: Arc<Spool>,
    files: Arc<JobThread>,
    told_full: Arc<AtomicBool>,
}

impl SpoolThread {
    pub(super) fn start(spool: Spool) -> Result<Self, Error> {
        let files = Arc::new(JobThread::start("stage-metrics-spool", MAX_WAITING_JOBS)?);
        Ok(Self { spool: Arc::new(spool), files, told_full: Arc::default() })
    }

    /// Drops the oldest payloads that are beyond the bounds, and reports what is there.
    pub(super) async fn make_room(&self, source: &Arc<dyn Source>, deadline: Instant) {
        let spool = Arc::clone(&self.spool);
        let work = self.files.run(move || {
            spool.make_room(0);
            (spool.len(), spool.dropped())
        });
        if let Ok(Ok((files, dropped))) = timeout_at(deadline.min(Instant::now() + LOOK_TIME), work).await {
            self.report(source, files, dropped);
        }
    }

    async fn look(&self, source: &Arc<dyn Source>) {
        let spool = Arc::clone(&self.spool);
        if let Ok((files, dropped)) = self.files.run(move || (spool.len(), spool.dropped())).await {
            self.report(source, files, dropped);
        }
    }

    fn report(&self, source: &Arc<dyn Source>, files: usize, dropped: u64) {
        Arc::clone(source).spooled(files, dropped);
        if dropped > 0 && !self.told_full.swap(true, Ordering::Relaxed) {
            source.on_event(DeliveryEvent::SpoolFull);
        }
    }
}

impl SpoolThread {
    /// Writes a payload. `Ok(None)`: it was delivered meanwhile.
    pub(super) async fn write(
        self,
        group: Grouping,
        exposition: Bytes,
        is_delivered: Arc<AtomicBool>,
    ) -> Result<Option<Entry>, Error> {
        let spool = Arc::clone(&self.spool);
        let written = self.files.run(move || spool.write(&group, exposition)).await??;
        if is_delivered.load(Ordering::Acquire) {
            return Ok(Some(written));
        }
        Ok(Some(written))
    }

    pub(super) async fn remove(&self, entry: Entry, deadline: Instant) {
        let _ = timeout_at(deadline, self.files.run(move || entry.remove())).await;
    }
}

/// Delivers what earlier runs left, beside the pushes of this run, whenever one of them has succeeded.
pub(super) struct Replayer {
    task: JoinHandle<()>,
    wake: Arc<Notify>,
    end: Arc<Notify>,
}

impl Replayer {
    pub(super) fn start(gateway: Pushgateway, spool: SpoolThread, source: Arc<dyn Source>) -> Self {
        let (wake, end) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (woken, ended) = (Arc::clone(&wake), Arc::clone(&end));
        let task = tokio::spawn(async move {
            spool.look(&source).await;
            loop {
                tokio::select! {
                    biased;
                    () = woken.notified() => replay_all(&gateway, &spool, &source).await,
                    () = ended.notified() => return,
                }
            }
        });
        Self { task, wake, end }
    }

    /// Notified when a push of this run has succeeded.
    pub(super) fn waker(&self) -> Arc<Notify> {
        Arc::clone(&self.wake)
    }

    /// Delivers what is left, if the final push succeeded, until the deadline.
    pub(super) async fn finish(mut self, deadline: Instant) {
        self.end.notify_one();
        if timeout_at(deadline, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

/// Delivers the payloads, oldest first, until none is left or the gateway takes none.
async fn replay_all(gateway: &Pushgateway, spool: &SpoolThread, source: &Arc<dyn Source>) {
    loop {
        let deadline = Instant::now() + gateway.timeout();
        let replayed = replay(gateway, &**source, &spool.spool, deadline).await;
        spool.look(source).await;
        match replayed {
            Replayed::Done | Replayed::PassedOver => {}
            Replayed::Refused(error) => source.on_event(DeliveryEvent::ReplayRefused(error)),
            Replayed::Nothing | Replayed::Failed => return,
        }
    }
}
