//! A thread for work on files. A disk that does not answer holds up this thread and nothing else.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use tokio::sync::oneshot;

use crate::error::{Error, Kind};

/// Jobs that wait for a disk that does not answer. Beyond, a job is refused.
const MAX_WAITING: usize = 16;

type Job = Box<dyn FnOnce() + Send>;

/// Runs blocking file work, one job after the other. Dropped, the thread ends with the jobs it has.
#[derive(Debug)]
pub(crate) struct FileThread {
    jobs: SyncSender<Job>,
}

impl FileThread {
    /// `name` is the name of the thread.
    pub(crate) fn start(name: &str) -> Result<Self, Error> {
        let (jobs, received) = sync_channel::<Job>(MAX_WAITING);
        let run = move || received.into_iter().for_each(|job| job());
        let spawned = thread::Builder::new().name(name.to_owned()).spawn(run);
        spawned.map_err(|error| {
            Error::new(Kind::Delivery, format!("cannot start the thread {name:?}")).with_source(error)
        })?;
        Ok(Self { jobs })
    }

    /// Runs a job. It is done even if the future is dropped.
    ///
    /// # Errors
    ///
    /// The job panicked, or so many jobs wait for the disk already that this one was refused.
    pub(crate) async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        let (reply, result) = oneshot::channel();
        let job = move || {
            if let Ok(value) = catch_unwind(AssertUnwindSafe(work)) {
                // The caller may have stopped waiting.
                let _ = reply.send(value);
            }
        };
        if self.jobs.try_send(Box::new(job)).is_err() {
            return Err(Error::new(
                Kind::Timeout,
                format!("the disk does not answer: {MAX_WAITING} writes wait for it"),
            ));
        }
        result.await.map_err(|_| Error::new(Kind::Delivery, "the work on a file panicked"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[tokio::test]
    async fn jobs_run_in_order_and_survive_a_panic() {
        let files = FileThread::start("files").unwrap();
        assert_eq!(files.run(|| 1).await.unwrap(), 1);
        let error = files.run(|| panic!("on purpose")).await.unwrap_err();
        assert_eq!(error.to_string(), "the work on a file panicked");
        assert_eq!(files.run(|| 2).await.unwrap(), 2);
    }

    #[tokio::test]
    async fn a_disk_that_does_not_answer_has_a_bounded_queue() {
        let files = FileThread::start("files").unwrap();
        let ((started, running), (release, held)) = (channel(), channel::<()>());
        let mut stuck = Box::pin(files.run(move || {
            started.send(()).unwrap();
            held.recv().unwrap();
        }));
        assert!(futures_poll(stuck.as_mut()).is_pending());
        running.recv().unwrap();
        for _ in 0..MAX_WAITING {
            assert!(futures_poll(Box::pin(files.run(|| ())).as_mut()).is_pending());
        }
        let error = files.run(|| ()).await.unwrap_err();
        assert!(error.is_timeout() && error.to_string().starts_with("the disk does not answer"), "{error}");
        release.send(()).unwrap();
        stuck.await.unwrap();
    }

    fn futures_poll<F: Future>(future: std::pin::Pin<&mut F>) -> std::task::Poll<F::Output> {
        future.poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
    }
}
