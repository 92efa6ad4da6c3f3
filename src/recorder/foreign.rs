//! A recorder of the application, and its exposition. It can block or panic, so this crate calls it on a thread of its own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;
use tokio::time::timeout_at;

use super::target::recorder_address;
use crate::error::{Error, Kind};
use crate::exposition::Families;
use crate::job_thread::JobThread;

/// Maximum number of calls that wait for a recorder which does not return.
const MAX_WAITING_CALLS: usize = 64;

pub(crate) struct ForeignRecorder {
    render: Box<dyn Fn() -> String + Send + Sync>,
    thread: JobThread,
    /// The last rendering, used if the recorder panics or does not return.
    last: Mutex<Option<Arc<Families>>>,
    /// Set when the thread asked for the end of the process: it runs no further call.
    is_abandoned: watch::Sender<bool>,
    /// Whether the last rendering is delivered in place of the present one.
    is_failing: AtomicBool,
}

impl ForeignRecorder {
    pub(crate) fn new(render: Box<dyn Fn() -> String + Send + Sync>) -> Result<Self, Error> {
        let thread = JobThread::start("metrics-foreign", MAX_WAITING_CALLS)?;
        let (is_abandoned, is_failing) = (watch::Sender::new(false), AtomicBool::new(false));
        Ok(Self { render, thread, last: Mutex::default(), is_abandoned, is_failing })
    }

    /// Calls the application's function on this thread.
    pub(crate) fn render(&self) -> String {
        (self.render)()
    }

    /// Adds a call of the recorder. The call is dropped if too many calls wait for a recorder that does not return.
    pub(crate) fn post(&self, call: impl FnOnce() + Send + 'static) {
        self.thread.post(call);
    }

    /// Waits until no call is left, or for the deadline.
    pub(crate) fn wait_idle(&self, deadline: Instant) {
        self.thread.wait_idle(deadline);
    }

    /// The result of `read`, which renders on the recorder's thread, or the last one where it panics or does not return by
    /// the deadline. `on_failing` gets the reason, the first time.
    pub(crate) async fn read(
        &self,
        read: impl FnOnce() -> Result<Families, Error> + Send + 'static,
        on_failing: impl FnOnce(Error),
        deadline: tokio::time::Instant,
    ) -> Result<Arc<Families>, Error> {
        let read = self.thread.run(move || catch_unwind(AssertUnwindSafe(read)));
        let mut is_abandoned = self.is_abandoned.subscribe();
        let rendered = tokio::select! {
            biased;
            _ = is_abandoned.wait_for(|is_abandoned| *is_abandoned) => None,
            rendered = timeout_at(deadline, read) => rendered.ok().and_then(Result::ok),
        };
        let error = match rendered {
            Some(Ok(families)) => {
                self.is_failing.store(false, Ordering::Relaxed);
                let families = Arc::new(families?);
                *self.last() = Some(Arc::clone(&families));
                return Ok(families);
            }
            Some(Err(_)) => Error::new(Kind::Delivery, "the function given to `with_exposition` panicked"),
            None => {
                let text = "the function given to `with_exposition` has not returned in the time allowed";
                Error::new(Kind::Timeout, text)
            }
        };
        let Some(last) = self.last().clone() else { return Err(error) };
        if !self.is_failing.swap(true, Ordering::Relaxed) {
            on_failing(error);
        }
        Ok(last)
    }

    /// Whether the caller is the recorder's thread.
    pub(crate) fn is_current_thread(&self) -> bool {
        self.thread.is_current()
    }

    /// Stops all waiting for the recorder's thread if the caller is that thread.
    pub(crate) fn abandon_current_thread(&self) {
        if self.is_current_thread() {
            self.is_abandoned.send_replace(true);
        }
    }

    /// Returns whether the caller's thread has a local recorder (`metrics::with_local_recorder`), which the recorder's thread
    /// does not reach.
    pub(crate) fn is_overridden(&self, deadline: Instant) -> bool {
        let (sender, address) = sync_channel(1);
        self.post(move || {
            // The send fails if the deadline is over.
            let _ = sender.send(metrics::with_recorder(recorder_address));
        });
        let global = address.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        global.is_ok_and(|global| global != metrics::with_recorder(recorder_address))
    }

    fn last(&self) -> MutexGuard<'_, Option<Arc<Families>>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
