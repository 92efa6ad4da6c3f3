//! A thread for jobs that may block: file work, and code of the application.
//!
//! A disk that does not answer, a subscriber that waits for a lock or a closure that never returns holds up its own
//! thread and nothing else. Everything that waits for a job has a deadline.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Instant;

use tokio::sync::oneshot;

use crate::error::{Error, Kind};

type Job = Box<dyn FnOnce() + Send>;

/// Runs jobs one after the other. The thread ends after the handle is dropped and the queue is empty.
#[derive(Debug)]
pub(crate) struct JobThread {
    queue: Arc<Queue>,
    id: ThreadId,
}

struct Queue {
    name: &'static str,
    capacity: usize,
    state: Mutex<State>,
    /// Notified when the queue gets a job or is closed.
    has_job: Condvar,
    /// Notified when no job is left.
    is_idle: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    is_running: bool,
    is_closed: bool,
}

impl JobThread {
    /// Starts a thread with this name. `capacity` is the number of jobs that may wait.
    ///
    /// # Errors
    ///
    /// The system has no thread left.
    pub(crate) fn start(name: &'static str, capacity: usize) -> Result<Self, Error> {
        let queue = Arc::new(Queue {
            name,
            capacity,
            state: Mutex::default(),
            has_job: Condvar::new(),
            is_idle: Condvar::new(),
        });
        let jobs = Arc::clone(&queue);
        let spawned = thread::Builder::new().name(name.to_owned()).spawn(move || jobs.run());
        let handle = spawned.map_err(|error| {
            Error::new(Kind::Delivery, format!("cannot start the thread {name}")).with_source(error)
        })?;
        Ok(Self { queue, id: handle.thread().id() })
    }

    /// Adds a job. Returns `false` and drops the job if the queue is full.
    pub(crate) fn post(&self, job: impl FnOnce() + Send + 'static) -> bool {
        let mut state = self.queue.state();
        if state.jobs.len() >= self.queue.capacity {
            return false;
        }
        state.jobs.push_back(Box::new(job));
        self.queue.has_job.notify_one();
        true
    }

    /// Runs a job and returns its result. The job runs even if the future is dropped.
    ///
    /// # Errors
    ///
    /// The queue is full, or the job panicked.
    pub(crate) async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        let (reply, result) = oneshot::channel();
        let job = move || {
            // The send fails if the caller no longer waits.
            let _ = reply.send(work());
        };
        if !self.post(job) {
            let Queue { name, capacity, .. } = &*self.queue;
            let text = format!("the thread {name} is stuck: {capacity} jobs wait for it");
            return Err(Error::new(Kind::Timeout, text));
        }
        let name = self.queue.name;
        result.await.map_err(|_| Error::new(Kind::Delivery, format!("a job of the thread {name} panicked")))
    }

    /// Waits until no job is left. Returns `false` if the deadline comes first, or on the thread itself.
    pub(crate) fn wait_idle(&self, deadline: Instant) -> bool {
        if self.is_current() {
            return false;
        }
        let mut state = self.queue.state();
        while state.is_running || !state.jobs.is_empty() {
            let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                return false;
            };
            state = self.queue.is_idle.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Whether the caller runs on this thread.
    pub(crate) fn is_current(&self) -> bool {
        thread::current().id() == self.id
    }
}

impl Drop for JobThread {
    fn drop(&mut self) {
        self.queue.state().is_closed = true;
        self.queue.has_job.notify_one();
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        while let Some(job) = self.next() {
            // A panic of the application's code must not end the thread.
            let _ = catch_unwind(AssertUnwindSafe(job));
        }
    }

    /// Waits for the next job. `None` after the handle is dropped and no job is left.
    fn next(&self) -> Option<Job> {
        let mut state = self.state();
        state.is_running = false;
        loop {
            if let Some(job) = state.jobs.pop_front() {
                state.is_running = true;
                return Some(job);
            }
            self.is_idle.notify_all();
            if state.is_closed {
                return None;
            }
            state = self.has_job.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    fn started(capacity: usize) -> JobThread {
        JobThread::start("jobs", capacity).unwrap()
    }

    #[tokio::test]
    async fn jobs_run_in_order_and_survive_a_panic() {
        let jobs = started(4);
        assert_eq!(jobs.run(|| 1).await.unwrap(), 1);
        let error = jobs.run(|| panic!("on purpose")).await.unwrap_err();
        assert_eq!(error.to_string(), "a job of the thread jobs panicked");
        assert_eq!(jobs.run(|| 2).await.unwrap(), 2);
    }

    #[tokio::test]
    async fn queue_and_wait_are_bounded_while_a_job_blocks() {
        let jobs = started(2);
        let ((running, is_running), (release, is_released)) = (channel(), channel::<()>());
        assert!(jobs.post(move || {
            running.send(()).unwrap();
            is_released.recv().unwrap();
        }));
        is_running.recv().unwrap();
        let (sender, done) = channel();
        for job in 0..2 {
            let sender = sender.clone();
            assert!(jobs.post(move || sender.send(job).unwrap()));
        }
        assert!(!jobs.post(|| ()));
        let error = jobs.run(|| ()).await.unwrap_err();
        assert!(error.is_timeout(), "{error}");
        assert_eq!(error.to_string(), "the thread jobs is stuck: 2 jobs wait for it");
        assert!(!jobs.wait_idle(Instant::now() + Duration::from_millis(1)));

        release.send(()).unwrap();
        assert!(jobs.wait_idle(Instant::now() + Duration::from_secs(60)));
        assert_eq!(done.try_iter().collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn drop_runs_the_jobs_that_wait() {
        let jobs = started(8);
        let (sender, done) = channel();
        for job in 0..8 {
            let sender = sender.clone();
            assert!(jobs.post(move || sender.send(job).unwrap()));
        }
        drop((jobs, sender));
        assert_eq!(done.iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn thread_ends_with_its_handle() {
        let jobs = started(1);
        let queue = Arc::downgrade(&jobs.queue);
        drop(jobs);
        let deadline = Instant::now() + Duration::from_secs(60);
        // The thread holds the queue until it ends.
        while queue.strong_count() > 0 {
            assert!(Instant::now() < deadline);
            thread::yield_now();
        }
    }

    #[test]
    fn thread_does_not_wait_for_itself() {
        let jobs = Arc::new(started(1));
        let (sender, answer) = channel();
        let same = Arc::clone(&jobs);
        assert!(jobs.post(move || sender.send(same.wait_idle(Instant::now() + Duration::from_secs(60))).unwrap()));
        assert!(!answer.recv().unwrap());
    }
}
