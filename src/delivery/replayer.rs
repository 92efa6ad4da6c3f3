//! The threads for the files of the spool, and the replay of payloads in the background.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};

use super::event::DeliveryEvent;
use super::pushgateway::{EncodedState, Pushgateway};
use super::source::ExpositionSource;
use super::spool::{CarriedOver, Entry, Payload, Replayed, Scope, Spool, WriteState, Written, replay};
use super::totals::{SpooledIncrements, Totals};
use crate::error::Error;
use crate::job_thread::JobThread;

/// Limit of the jobs that wait for the disk of the spool.
const MAX_WAITING_JOBS: usize = 16;

/// How often the lock of another process is checked.
const LOCK_POLL: Duration = Duration::from_millis(20);

/// Limit of the jobs that wait to write: the eviction of the oldest payloads, and the final payload.
const MAX_WAITING_WRITES: usize = 2;

/// The part of its time that the final flush waits for the number of payloads in the spool, which matters less than the
/// push.
const COUNT_SHARE: u32 = 10;

/// A spool and the threads for its files. Clones share them.
#[derive(Clone)]
pub(super) struct SpoolThread {
    spool: Arc<Spool>,
    files: Arc<JobThread>,
    /// Makes room for the final payload and writes it. A sync may take long, and the push waits for what `files` reads.
    writes: Arc<JobThread>,
    reported_full: Arc<AtomicBool>,
}

impl SpoolThread {
    pub(super) fn start(spool: Spool) -> Result<Self, Error> {
        let files = Arc::new(JobThread::start("metrics-spool", MAX_WAITING_JOBS)?);
        let writes = Arc::new(JobThread::start("metrics-spool-write", MAX_WAITING_WRITES)?);
        Ok(Self { spool: Arc::new(spool), files, writes, reported_full: Arc::default() })
    }

    /// Drops the oldest payloads beyond the bounds, and reports the number of payloads. A disk that is slow goes on with
    /// this after the return, and before a [`write`](Self::write): the other order would drop one payload more.
    pub(super) async fn evict_oldest(&self, source: &Arc<dyn ExpositionSource>, deadline: Instant) {
        let now = Instant::now();
        let until = now + deadline.saturating_duration_since(now) / COUNT_SHARE;
        let spool = Arc::clone(&self.spool);
        let work = self.writes.run(move || {
            spool.in_turn(|spool| {
                spool.evict_oldest(0);
                (spool.len(), spool.dropped())
            })
        });
        if let Ok(Ok((files, dropped))) = timeout_at(until, work).await {
            self.report(source, files, dropped);
        }
    }

    /// Reports the number of payloads, and the notices of the spool.
    pub(super) async fn report_len(&self, source: &Arc<dyn ExpositionSource>) {
        if let Ok((files, dropped)) = self.on_disk(|spool| (spool.len(), spool.dropped())).await {
            self.report(source, files, dropped);
        }
    }

    fn report(&self, source: &Arc<dyn ExpositionSource>, files: usize, dropped: u64) {
        Arc::clone(source).spooled(files, dropped);
        self.report_notices(source, dropped);
    }

    /// Reports the notices of the spool, and once that it drops payloads.
    fn report_notices(&self, source: &Arc<dyn ExpositionSource>, dropped: u64) {
        if dropped > 0 && !self.reported_full.swap(true, Ordering::Relaxed) {
            source.on_event(DeliveryEvent::SpoolFull);
        }
        self.spool.take_notices().into_iter().for_each(|notice| source.on_event(notice));
    }

    /// Writes the final payload, unless it is delivered before the file is ready.
    pub(super) async fn write(self, payload: Payload, state: Arc<WriteState>) -> Result<Written, Error> {
        let (spool, write_state) = (Arc::clone(&self.spool), Arc::clone(&state));
        let written = self.writes.run(move || spool.write(&payload, &write_state)).await;
        // The push does not wait for the check of a write that failed before it.
        let _ = state.group_in_use.set(false);
        written?
    }

    /// Creates the payload of the final state.
    pub(super) fn payload(&self, gateway: &Pushgateway, state: EncodedState) -> Payload {
        self.spool.payload(gateway, state)
    }

    /// Delivers the payloads of earlier runs of the own group. Returns whether a request had no response.
    pub(super) async fn replay_own_group(&self, gateway: &Pushgateway, deadline: Instant) -> bool {
        loop {
            match replay(gateway, &self.spool, &self.files, Scope::OwnGroup, deadline).await {
                Replayed::Done | Replayed::Refused => {}
                Replayed::Unanswered => return true,
                Replayed::Nothing | Replayed::Skipped | Replayed::Failed => return false,
            }
        }
    }

    /// Delivers the payloads of the own group, also those that could not be delivered before. Returns whether a request
    /// had no response.
    pub(super) async fn retry_own_group(&self, gateway: &Pushgateway, deadline: Instant) -> bool {
        let own = gateway.clone();
        match timeout_at(deadline, self.on_disk(move |spool| spool.retry_group(&own))).await {
            Ok(Ok(())) => self.replay_own_group(gateway, deadline).await,
            // The disk takes too long.
            Ok(Err(_)) | Err(_) => false,
        }
    }

    /// Returns whether a payload of the own group has increments that the gateway may lack.
    pub(super) async fn has_increments(&self, gateway: &Pushgateway) -> Result<bool, Error> {
        let gateway = gateway.clone();
        self.on_disk(move |spool| spool.has_increments(&gateway)).await
    }

    /// Returns the totals that a replay of the own group wrote last, and the run of its payload.
    pub(super) fn written(&self) -> Option<(Totals, Option<f64>)> {
        self.spool.written()
    }

    /// Records in the file of a payload that no request with these increments has arrived.
    pub(super) async fn mark_not_sent(&self, entry: Entry, increments: Option<SpooledIncrements>) {
        let increments = increments.map(|increments| SpooledIncrements { may_have_arrived: false, ..increments });
        if increments == entry.payload.increments {
            return;
        }
        let spool = Arc::clone(&self.spool);
        let mark = move || {
            let payload = Payload { increments, ..entry.payload.clone() };
            // If this fails, a replay relies on the totals that the gateway shows.
            let _ = spool.in_turn(|spool| spool.rewrite(&entry.name, &payload));
        };
        let _ = self.writes.run(mark).await;
    }

    /// Reads the last successes in payloads of the own group that are not delivered yet.
    pub(super) async fn carry_over(&self, gateway: &Pushgateway) -> Result<CarriedOver, Error> {
        let gateway = gateway.clone();
        self.on_disk(move |spool| spool.carry_over(&gateway)).await
    }

    /// Waits until no other process works on an earlier payload of the group.
    pub(super) async fn wait_group_free(&self, entry: &Arc<Entry>) -> Result<(), Error> {
        loop {
            let entry = Arc::clone(entry);
            if !self.on_disk(move |spool| spool.is_group_in_use(&entry)).await? {
                return Ok(());
            }
            sleep(LOCK_POLL).await;
        }
    }

    /// Removes payloads that the gateway does not need any more: the final payload, and earlier ones whose last
    /// successes it has.
    pub(super) async fn remove(&self, entry: Option<Arc<Entry>>, carried: CarriedOver) -> Result<(), Error> {
        self.on_disk(move |spool| {
            // Where one cannot be removed, a later run finds that the gateway has it.
            if let Some(entry) = entry {
                spool.remove(&entry);
            }
            spool.remove_carried_over(&carried);
        })
        .await
    }

    async fn on_disk<T: Send + 'static>(&self, work: impl FnOnce(&Spool) -> T + Send + 'static) -> Result<T, Error> {
        let spool = Arc::clone(&self.spool);
        self.files.run(move || spool.in_turn(work)).await
    }
}

/// Delivers the payloads of earlier runs in the background, after each push of this run that succeeds.
pub(super) struct Replayer {
    task: JoinHandle<()>,
    wake: Arc<Notify>,
    /// Aborts the current pass and begins another.
    restart: Arc<Notify>,
    end: Arc<Notify>,
    /// Counts the starts and the ends of passes: odd during a pass.
    passes: Arc<AtomicU64>,
    spool: SpoolThread,
    source: Arc<dyn ExpositionSource>,
}

impl Replayer {
    pub(super) fn start(gateway: Pushgateway, spool: SpoolThread, source: Arc<dyn ExpositionSource>) -> Self {
        let [wake, restart, end] = [(); 3].map(|()| Arc::new(Notify::new()));
        let [woken, restarted, ended] = [&wake, &restart, &end].map(Arc::clone);
        let passes = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&passes);
        let (own_spool, own_source) = (spool.clone(), Arc::clone(&source));
        let task = tokio::spawn(async move {
            loop {
                tokio::select! {
                    biased;
                    () = woken.notified() => {}
                    () = ended.notified() => return,
                }
                count.fetch_add(1, Ordering::Relaxed);
                // A task of its own, so that a panic does not prevent the next pass.
                let mut pass = tokio::spawn(replay_all(gateway.clone(), spool.clone(), Arc::clone(&source)));
                tokio::select! {
                    () = restarted.notified() => {
                        pass.abort();
                        // This pass is dropped before the next one begins.
                        let _ = pass.await;
                        woken.notify_one();
                    }
                    _ = &mut pass => {}
                }
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { task, wake, restart, end, passes, spool: own_spool, source: own_source }
    }

    /// Returns the handle to notify when a push of this run has succeeded.
    pub(super) fn waker(&self) -> Arc<Notify> {
        Arc::clone(&self.wake)
    }

    /// Returns the number of the current pass; `None` between passes.
    pub(super) fn current_pass(&self) -> Option<u64> {
        Some(self.passes.load(Ordering::Relaxed)).filter(|count| count % 2 == 1)
    }

    /// Delivers the remaining payloads until the deadline, if the final push succeeded. `pass` is the pass that was
    /// current before that push. If it still is, it may be stuck on an old connection, and begins again.
    pub(super) async fn finish(mut self, pass: Option<u64>, deadline: Instant) {
        if pass.is_some() && pass == self.current_pass() {
            self.restart.notify_one();
        }
        self.end.notify_one();
        if timeout_at(deadline, &mut self.task).await.is_err() {
            self.task.abort();
        }
        // The count of an eviction by the write, or by a slow disk, is in no report.
        self.spool.report_notices(&self.source, self.spool.spool.dropped());
    }
}

/// Delivers the payloads, oldest first, until none is left or the gateway accepts none.
async fn replay_all(gateway: Pushgateway, spool: SpoolThread, source: Arc<dyn ExpositionSource>) {
    loop {
        let deadline = Instant::now() + gateway.timeout();
        let replayed = replay(&gateway, &spool.spool, &spool.files, Scope::OtherGroups, deadline).await;
        spool.report_len(&source).await;
        match replayed {
            Replayed::Done | Replayed::Refused | Replayed::Skipped => {}
            Replayed::Nothing | Replayed::Failed | Replayed::Unanswered => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Mutex;
    use std::sync::mpsc::channel;

    use super::*;
    use crate::delivery::pushgateway::{EncodedState, PushFormat};
    use crate::delivery::source::BoxFuture;
    use crate::delivery::spool::MAX_SPOOL_FILES;
    use crate::exposition::Families;

    /// A source that records the reports about the spool.
    #[derive(Default)]
    struct RecordingSource {
        spooled: Mutex<Vec<(usize, u64)>>,
        events: Mutex<Vec<String>>,
    }

    impl ExpositionSource for RecordingSource {
        fn exposition(self: Arc<Self>, _: Instant) -> BoxFuture<'static, Result<Arc<Families>, Error>> {
            Box::pin(std::future::pending())
        }

        #[cfg(feature = "otlp")]
        fn publish(self: Arc<Self>) -> Vec<crate::exposition::SeriesExemplars> {
            Vec::new()
        }

        fn is_own(&self, _: &str) -> bool {
            false
        }

        fn sample(self: Arc<Self>) {}

        fn pushed(self: Arc<Self>, _: bool, _: Duration) {}

        fn spooled(self: Arc<Self>, files: usize, dropped: u64) {
            self.spooled.lock().unwrap().push((files, dropped));
        }

        fn on_event(&self, event: DeliveryEvent) {
            self.events.lock().unwrap().push(format!("{event:?}"));
        }

        fn events_taken(&self) -> BoxFuture<'_, ()> {
            Box::pin(async {})
        }
    }

    /// Starts a spool that is full, and returns it with a source and a payload.
    fn full_spool(directory: &Path) -> (SpoolThread, Arc<RecordingSource>, Payload) {
        for number in 0..MAX_SPOOL_FILES {
            std::fs::write(directory.join(format!("{number:020}-0-1-1.spool")), "").unwrap();
        }
        let spool = SpoolThread::start(Spool::open(directory.to_owned(), "x").unwrap()).unwrap();
        let gateway = Pushgateway::new("http://gw:9091", "j").unwrap();
        let payload = spool.payload(&gateway, EncodedState::of_text("a 1\n", PushFormat::Text));
        (spool, Arc::default(), payload)
    }

    /// One of the threads is busy, so that the count takes longer than the final flush waits for it.
    #[tokio::test]
    async fn late_eviction_drops_no_more_than_the_payload_needs() {
        for is_writing in [false, true] {
            let directory = tempfile::tempdir().unwrap();
            let (spool, recording, payload) = full_spool(directory.path());
            let source: Arc<dyn ExpositionSource> = Arc::clone(&recording) as _;
            let (release, is_released) = channel::<()>();
            let busy = if is_writing { &spool.writes } else { &spool.files };
            assert!(busy.post(move || is_released.recv().unwrap()));
            spool.evict_oldest(&source, Instant::now() + Duration::from_millis(100)).await;
            let mut write = tokio::spawn(spool.clone().write(payload, Arc::default()));
            if is_writing {
                assert!(timeout_at(Instant::now() + Duration::from_millis(10), &mut write).await.is_err());
                release.send(()).unwrap();
                write.await.unwrap().unwrap();
            } else {
                write.await.unwrap().unwrap();
                release.send(()).unwrap();
            }
            for thread in [&spool.files, &spool.writes] {
                assert!(thread.wait_idle(std::time::Instant::now() + Duration::from_secs(60)));
            }
            assert_eq!((spool.spool.len(), spool.spool.dropped()), (MAX_SPOOL_FILES, 1), "{is_writing}");
        }
    }

    #[tokio::test]
    async fn eviction_by_the_write_is_reported() {
        let directory = tempfile::tempdir().unwrap();
        let (spool, recording, payload) = full_spool(directory.path());
        assert!(spool.clone().write(payload, Arc::default()).await.unwrap().entry.is_some());
        let source: Arc<dyn ExpositionSource> = Arc::clone(&recording) as _;
        for _ in 0..2 {
            spool.report_notices(&source, spool.spool.dropped());
            assert_eq!(*recording.events.lock().unwrap(), ["SpoolFull"]);
        }
    }

    #[test]
    fn full_spool_is_reported_once() {
        let directory = tempfile::tempdir().unwrap();
        let spool = SpoolThread::start(Spool::open(directory.path().to_owned(), "x").unwrap()).unwrap();
        let recording = Arc::new(RecordingSource::default());
        let source: Arc<dyn ExpositionSource> = Arc::clone(&recording) as _;
        spool.report(&source, 5, 0);
        assert_eq!(*recording.events.lock().unwrap(), [""; 0]);
        spool.report(&source, 5, 1);
        assert_eq!(*recording.events.lock().unwrap(), ["SpoolFull"]);
        spool.report(&source, 5, 2);
        assert_eq!(*recording.events.lock().unwrap(), ["SpoolFull"]);
        assert_eq!(*recording.spooled.lock().unwrap(), [(5, 0), (5, 1), (5, 2)]);
    }
}
