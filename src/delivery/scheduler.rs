//! The delivery loop: pushes on the interval, resource samples, flush requests and the final flush.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::destination::{Destination, SharedState};
use super::queue::{DestinationQueue, next_completed};
use super::replayer::Replayer;
use super::request::{FlushRequest, merge_all};
use super::source::ExpositionSource;
use crate::error::{Error, Kind};

/// How long after its deadline a flush may return its result.
const MAX_GRACE: Duration = Duration::from_millis(25);

/// Schedules the deliveries to all destinations.
pub(super) struct Scheduler {
    queues: Vec<DestinationQueue>,
    source: Arc<dyn ExpositionSource>,
    requests: UnboundedReceiver<FlushRequest>,
    push_interval: Duration,
    sample_interval: Option<Duration>,
    replayer: Option<Replayer>,
}

impl Scheduler {
    pub(super) fn new(
        destinations: Vec<Destination>,
        source: Arc<dyn ExpositionSource>,
        requests: UnboundedReceiver<FlushRequest>,
        push_interval: Duration,
        sample_interval: Option<Duration>,
        replayer: Option<Replayer>,
    ) -> Self {
        let queues = destinations.into_iter().map(DestinationQueue::new).collect();
        Self { queues, source, requests, push_interval, sample_interval, replayer }
    }

    /// Runs until the final flush has ended, and returns its deadline. Returns `None` if the handle of the thread is
    /// dropped first.
    pub(super) async fn run(mut self) -> Option<Instant> {
        let mut next_push = Instant::now();
        let mut next_sample = self.sample_interval.map(|_| next_push);
        loop {
            let now = Instant::now();
            if let (Some(due), Some(interval)) = (next_sample, self.sample_interval)
                && due <= now
            {
                Arc::clone(&self.source).sample();
                next_sample = Some(now + interval);
            }
            if next_push <= now {
                // A late push does not cause further late ones.
                next_push = now + self.push_interval;
                self.queues.iter_mut().for_each(DestinationQueue::set_due);
            }
            let state = SharedState::default();
            for queue in &mut self.queues {
                queue.start_next(&self.source, &state, self.push_interval);
            }
            tokio::select! {
                biased;
                request = self.requests.recv() => match request {
                    None => return None,
                    Some(request) if request.is_final => return Some(self.finish(request).await),
                    Some(request) => self.accept(request),
                },
                (index, result) = next_completed(&mut self.queues) => {
                    self.queues[index].complete(&*self.source, result);
                }
                () = sleep_until(next_sample.map_or(next_push, |sample| sample.min(next_push))) => {}
            }
        }
    }

    /// Accepts a flush request: every destination delivers once more.
    fn accept(&mut self, request: FlushRequest) {
        let results: Vec<oneshot::Receiver<Result<(), Error>>> =
            self.queues.iter_mut().map(|queue| queue.wait(request.deadline)).collect();
        let source = Arc::clone(&self.source);
        let left = request.deadline.saturating_duration_since(Instant::now());
        // A delivery that ends at the deadline still reports its error.
        let until = request.deadline + (left / 40).min(MAX_GRACE);
        tokio::spawn(async move {
            let late = |_| Err(Error::new(Kind::Timeout, "the metrics were not delivered in the time allowed"));
            let result = timeout_at(until, merge_all(results)).await.unwrap_or_else(late);
            // A caller that logs the result does so after the events of this crate, unless its log blocks.
            let _ = timeout_at(until.min(Instant::now() + left / 10), source.events_taken()).await;
            // The caller may have stopped waiting.
            let _ = request.reply.send(result);
        });
    }

    /// Makes the final flush: delivers the current state to all destinations concurrently, then the payloads of earlier
    /// runs.
    async fn finish(self, request: FlushRequest) -> Instant {
        let FlushRequest { deadline, reply, .. } = request;
        let pass = self.replayer.as_ref().and_then(Replayer::current_pass);
        let state = SharedState::default();
        let mut deliveries = JoinSet::new();
        let mut results = Vec::new();
        for queue in self.queues {
            let (sender, result) = oneshot::channel();
            results.push(result);
            let delivery = queue.finish(Arc::clone(&self.source), state.clone(), deadline);
            deliveries.spawn(async move { sender.send(delivery.await) });
        }
        let _ = reply.send(merge_all(results).await);
        if let Some(replayer) = self.replayer {
            replayer.finish(pass, deadline).await;
        }
        deadline
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use tempfile::TempDir;
    use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

    use super::*;
    use crate::Pushgateway;
    use crate::delivery::event::DeliveryEvent;
    use crate::delivery::source::BoxFuture;
    use crate::delivery::textfile::Textfile;
    use crate::exposition::{Families, Problems, parse};

    const LONG: Duration = Duration::from_secs(60);

    /// A source whose exposition is one gauge, and panics on demand.
    #[derive(Default)]
    struct PanickingSource {
        /// Whether the next exposition panics.
        panics: AtomicBool,
        value: Mutex<u32>,
        samples: AtomicUsize,
        pushes: AtomicUsize,
        events: Mutex<Vec<String>>,
        /// How long the subscriber takes to receive the events.
        events_delay: Mutex<Duration>,
    }

    impl ExpositionSource for PanickingSource {
        fn exposition(self: Arc<Self>, _: Instant) -> BoxFuture<'static, Result<Arc<Families>, Error>> {
            Box::pin(async move {
                assert!(!self.panics.swap(false, Ordering::SeqCst), "on purpose");
                let text = format!("# TYPE rows gauge\nrows {}\n", self.value.lock().unwrap());
                Ok(Arc::new(parse(&text, |_| None, &mut Problems::default()).unwrap()))
            })
        }

        #[cfg(feature = "otlp")]
        fn publish(self: Arc<Self>) -> Vec<crate::exposition::SeriesExemplars> {
            Vec::new()
        }

        fn is_own(&self, _: &str) -> bool {
            false
        }

        fn sample(self: Arc<Self>) {
            self.samples.fetch_add(1, Ordering::SeqCst);
        }

        fn pushed(self: Arc<Self>, is_success: bool, _: Duration) {
            assert!(is_success);
            self.pushes.fetch_add(1, Ordering::SeqCst);
        }

        fn spooled(self: Arc<Self>, _: usize, _: u64) {}

        fn on_event(&self, event: DeliveryEvent) {
            let text = match event {
                DeliveryEvent::Failing { destination, error } => format!("{}: {error}", destination.unwrap()),
                DeliveryEvent::Recovered { destination } => format!("{}: again", destination.unwrap()),
                other => format!("{other:?}"),
            };
            self.events.lock().unwrap().push(text);
        }

        fn events_taken(&self) -> BoxFuture<'_, ()> {
            Box::pin(tokio::time::sleep(*self.events_delay.lock().unwrap()))
        }
    }

    /// Starts a scheduler that delivers to the text files `a` and `b` on request, and waits for its first delivery.
    async fn started(directory: &TempDir) -> (Arc<PanickingSource>, UnboundedSender<FlushRequest>) {
        let source = Arc::new(PanickingSource::default());
        let textfile = |name: &str| Textfile::open(&directory.path().join(name)).unwrap();
        let destinations =
            ["a", "b"].map(|name| Destination::textfile(textfile(name), &[], None, false).unwrap()).into();
        let (requests, received) = unbounded_channel();
        let scheduler = Scheduler::new(destinations, Arc::clone(&source) as _, received, LONG, None, None);
        tokio::spawn(scheduler.run());
        flush(&requests, false).await.unwrap();
        (source, requests)
    }

    /// Returns a gateway that answers every request with 200 and closes the connection.
    async fn accepting_gateway() -> Pushgateway {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gateway = Pushgateway::new(listener.local_addr().unwrap().to_string(), "j").unwrap();
        tokio::spawn(async move {
            loop {
                let (mut connection, _) = listener.accept().await.unwrap();
                assert_ne!(connection.read(&mut [0; 4096]).await.unwrap(), 0);
                connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            }
        });
        gateway
    }

    /// Returns a scheduler that pushes to such a gateway.
    async fn pushing() -> (Arc<PanickingSource>, UnboundedSender<FlushRequest>, Scheduler) {
        let source = Arc::new(PanickingSource::default());
        let destinations = vec![Destination::gateway(accepting_gateway().await, None, None, None)];
        let (requests, received) = unbounded_channel();
        let scheduler = Scheduler::new(destinations, Arc::clone(&source) as _, received, LONG, None, None);
        (source, requests, scheduler)
    }

    /// Sends a request to flush and returns the receiver of its result.
    fn request(
        time: Duration,
        requests: &UnboundedSender<FlushRequest>,
        is_final: bool,
    ) -> oneshot::Receiver<Result<(), Error>> {
        let (reply, result) = oneshot::channel();
        assert!(requests.send(FlushRequest { deadline: Instant::now() + time, is_final, reply }).is_ok());
        result
    }

    #[tokio::test]
    async fn final_flush_replaces_a_push_on_the_interval_that_is_not_sent() {
        let (source, requests, scheduler) = pushing().await;
        // There before the first push begins.
        let last = request(LONG, &requests, true);
        assert!(scheduler.run().await.is_some());
        last.await.unwrap().unwrap();
        assert_eq!(source.pushes.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn final_flush_follows_a_push_that_a_request_waits_for() {
        let (source, requests, scheduler) = pushing().await;
        tokio::spawn(scheduler.run());
        flush(&requests, false).await.unwrap();
        let earlier = source.pushes.load(Ordering::SeqCst);
        let (requested, last) = (request(LONG, &requests, false), request(LONG, &requests, true));
        requested.await.unwrap().unwrap();
        last.await.unwrap().unwrap();
        assert_eq!(source.pushes.load(Ordering::SeqCst), earlier + 2);
    }

    /// The push interval is long, and the sample interval is short.
    #[tokio::test]
    async fn resources_are_sampled_on_their_own_interval() {
        const INTERVAL: Duration = Duration::from_millis(10);
        let source = Arc::new(PanickingSource::default());
        let (_requests, received) = unbounded_channel();
        let scheduler = Scheduler::new(Vec::new(), Arc::clone(&source) as _, received, LONG, Some(INTERVAL), None);
        let start = Instant::now();
        tokio::spawn(scheduler.run());
        let samples = || source.samples.load(Ordering::SeqCst);
        while samples() < 4 {
            assert!(start.elapsed() < LONG, "{} samples", samples());
            tokio::time::sleep(INTERVAL).await;
        }
        assert!(start.elapsed() >= 3 * INTERVAL, "{:?}", start.elapsed());
    }

    async fn flush(requests: &UnboundedSender<FlushRequest>, is_final: bool) -> Result<(), Error> {
        flush_within(LONG, requests, is_final).await
    }

    async fn flush_within(
        time: Duration,
        requests: &UnboundedSender<FlushRequest>,
        is_final: bool,
    ) -> Result<(), Error> {
        request(time, requests, is_final).await.unwrap()
    }

    /// A subscriber that blocks delays the result by a tenth of the time.
    #[tokio::test]
    async fn result_waits_for_the_events_of_its_delivery_up_to_a_limit() {
        let directory = tempfile::tempdir().unwrap();
        let (source, requests) = started(&directory).await;
        for (delay, time, least, most) in [(50, 60_000, 50, 5_000), (60_000, 3_000, 300, 2_000)] {
            let [delay, time, least, most] = [delay, time, least, most].map(Duration::from_millis);
            *source.events_delay.lock().unwrap() = delay;
            let start = Instant::now();
            flush_within(time, &requests, false).await.unwrap();
            let elapsed = start.elapsed();
            assert!((least..most).contains(&elapsed), "{elapsed:?} of {time:?}");
        }
    }

    fn values(directory: &Path) -> [String; 2] {
        ["a", "b"].map(|name| {
            let text = std::fs::read_to_string(directory.join(name)).unwrap();
            text.lines().find_map(|line| line.strip_prefix("rows ")).unwrap().to_owned()
        })
    }

    /// Returns the index of the destination whose delivery panicked, and the text of its error.
    #[track_caller]
    fn panicked(directory: &Path, result: Result<(), Error>) -> (usize, String) {
        let error = result.unwrap_err();
        let text = |name| format!("the delivery to the text file {} panicked", directory.join(name).display());
        let index = ["a", "b"].iter().position(|name| error.to_string() == text(name));
        (index.unwrap_or_else(|| panic!("{error:?}")), error.to_string())
    }

    #[tokio::test]
    async fn panic_of_one_delivery_fails_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let (source, requests) = started(&directory).await;
        *source.value.lock().unwrap() = 1;
        source.panics.store(true, Ordering::SeqCst);
        let (index, text) = panicked(directory.path(), flush(&requests, false).await);
        let mut expected = ["1", "1"];
        expected[index] = "0";
        assert_eq!(values(directory.path()), expected);

        *source.value.lock().unwrap() = 2;
        flush(&requests, false).await.unwrap();
        assert_eq!(values(directory.path()), ["2", "2"]);
        let destination = text["the delivery to ".len()..].strip_suffix(" panicked").unwrap();
        let events = source.events.lock().unwrap().clone();
        assert_eq!(events, [format!("{destination}: {text}"), format!("{destination}: again")]);
    }

    #[tokio::test]
    async fn panic_of_one_final_delivery_fails_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let (source, requests) = started(&directory).await;
        *source.value.lock().unwrap() = 1;
        source.panics.store(true, Ordering::SeqCst);
        let (index, _) = panicked(directory.path(), flush(&requests, true).await);
        let mut expected = ["1", "1"];
        expected[index] = "0";
        assert_eq!(values(directory.path()), expected);
    }
}
