//! The delivery loop: pushes on the interval, samples, requests to flush, and the final flush.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::Source;
use super::destination::{Destination, Moment};
use super::queue::{DestinationQueue, next_completed};
use super::replayer::Replayer;
use super::request::{FlushRequest, merge_all};
use crate::error::{Error, Kind};

/// How long after the deadline of a flush its result may come, at most.
const MAX_GRACE: Duration = Duration::from_millis(25);

pub(super) struct Scheduler {
    queues: Vec<DestinationQueue>,
    source: Arc<dyn Source>,
    requests: UnboundedReceiver<FlushRequest>,
    push_interval: Duration,
    sample_interval: Option<Duration>,
    replayer: Option<Replayer>,
}

impl Scheduler {
    pub(super) fn new(
        destinations: Vec<Destination>,
        source: Arc<dyn Source>,
        requests: UnboundedReceiver<FlushRequest>,
        push_interval: Duration,
        sample_interval: Option<Duration>,
        replayer: Option<Replayer>,
    ) -> Self {
        let queues = destinations.into_iter().map(DestinationQueue::new).collect();
        Self { queues, source, requests, push_interval, sample_interval, replayer }
    }

    /// Runs until the final flush was made, whose deadline it returns, or until nobody can ask for it any more.
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
                // A late push does not pile up.
                next_push = now + self.push_interval;
                self.queues.iter_mut().for_each(DestinationQueue::set_due);
            }
            let moment = Moment::default();
            for queue in &mut self.queues {
                queue.start_next(&self.source, &moment, self.push_interval);
            }
            tokio::select! {
                biased;
                request = self.requests.recv() => match request {
                    None => return None,
                    Some(request) if request.is_final => return Some(self.finish(request).await),
                    Some(request) => self.accept(request),
                },
                (place, result) = next_completed(&mut self.queues) => {
                    self.queues[place].complete(&*self.source, result);
                }
                () = sleep_until(next_sample.map_or(next_push, |sample| sample.min(next_push))) => {}
            }
        }
    }

    fn accept(&mut self, request: FlushRequest) {
        let results: Vec<oneshot::Receiver<Result<(), Error>>> =
            self.queues.iter_mut().map(|queue| queue.wait(request.deadline)).collect();
        let source = Arc::clone(&self.source);
        let left = request.deadline.saturating_duration_since(Instant::now());
        // A delivery that ends at the deadline says why it failed.
        let until = request.deadline + (left / 40).min(MAX_GRACE);
        tokio::spawn(async move {
            let late = |_| Err(Error::new(Kind::Timeout, "the metrics were not delivered in the time allowed"));
            let result = timeout_at(until, merge_all(results)).await.unwrap_or_else(late);
            // A caller that logs the result finds the events of this crate before it, unless its log blocks.
            let _ = timeout_at(until.min(Instant::now() + left / 10), source.events_taken()).await;
            // The caller may have stopped waiting.
            let _ = request.reply.send(result);
        });
    }

    /// Delivers the state of this moment to all destinations side by side, then what earlier runs left.
    async fn finish(self, request: FlushRequest) -> Instant {
        let FlushRequest { deadline, reply, .. } = request;
        let before = self.replayer.as_ref().and_then(Replayer::current_pass);
        let moment = Moment::default();
        let mut deliveries = JoinSet::new();
        let mut results = Vec::new();
        for queue in self.queues {
            let (sender, result) = oneshot::channel();
            results.push(result);
            let delivery = queue.finish(Arc::clone(&self.source), moment.clone(), deadline);
            deliveries.spawn(async move { sender.send(delivery.await) });
        }
        let _ = reply.send(merge_all(results).await);
        if let Some(replayer) = self.replayer {
            replayer.finish(before, deadline).await;
        }
        deadline
    }
}
