//! SIGTERM and SIGINT: the final flush, then the end of the process by that signal.

use std::fs;
use std::io;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};
use signal_hook::{flag, low_level};

use super::exit_reason::ExitReason;
use super::shutdown::Flusher;
use crate::error::{Error, Kind};

/// A shell reports a process that a signal ended by this number plus that of the signal.
const EXIT_BASE: i32 = 128;

/// Time for a running handler to return: it sets two flags and writes a byte.
const HANDLER_TIME: Duration = Duration::from_millis(50);

/// Installed handlers, and a thread that waits for a flusher.
///
/// A drop before [`start`](Self::start) gives the signals back: they act as if never caught.
pub(crate) struct SignalHandler {
    start: SyncSender<Arc<Flusher>>,
    release: Release,
}

/// Whether a guard of this process owns the signals.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Whether the next signal has its default action: because no guard owns the signals, or because a first signal came and a
/// second one must not wait for the flush. One flag for all guards, since handlers outlive the guard that installed them.
static BY_DEFAULT: AtomicBool = AtomicBool::new(true);

/// The signals whose handlers read [`BY_DEFAULT`].
static HANDLED: Mutex<Vec<i32>> = Mutex::new(Vec::new());

/// The thread of the guard that owned the signals last. It may still handle a signal that came as that guard ended.
static THREAD: Mutex<Option<JoinHandle<()>>> = Mutex::new(None);

/// Gives the signals back.
struct Release {
    handle: Handle,
}

impl Drop for Release {
    fn drop(&mut self) {
        BY_DEFAULT.store(true, Ordering::SeqCst);
        self.handle.close();
        TAKEN.store(false, Ordering::SeqCst);
    }
}

impl SignalHandler {
    /// Catches the signals. A signal that was ignored when the process started (`nohup`) stays ignored.
    pub(crate) fn new() -> Result<Self, Error> {
        if TAKEN.swap(true, Ordering::SeqCst) {
            return Err(Error::config(
                "another guard of this process flushes on signals already: call `with_flush_on_signals()` for one of \
                 them, whose flush ends the process",
            ));
        }
        Self::catch().map_err(|error| {
            TAKEN.store(false, Ordering::SeqCst);
            Error::new(Kind::Delivery, "cannot catch SIGTERM and SIGINT").with_source(error)
        })
    }

    fn catch() -> io::Result<Self> {
        let before = THREAD.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(before) = before {
            // The earlier thread would take these signals for its own. It ends soon.
            let _ = before.join();
        }
        let caught: Vec<_> = [SIGTERM, SIGINT].into_iter().filter(|signal| !is_ignored(*signal)).collect();
        for signal in &caught {
            handle(*signal)?;
        }
        let mut signals = Signals::new(caught)?;
        let release = Release { handle: signals.handle() };
        BY_DEFAULT.store(false, Ordering::SeqCst);
        let (start, flusher) = sync_channel::<Arc<Flusher>>(1);
        let watch = move || {
            let Ok(flusher) = flusher.recv() else { return };
            let signal = signals.forever().next().or_else(|| {
                // Closed: the final flush was made. A handler that began before may not have notified the thread yet.
                thread::sleep(HANDLER_TIME);
                signals.pending().next()
            });
            if let Some(signal) = signal {
                flusher.end_then(ExitReason::Signalled(signal), || reraise(signal));
            }
        };
        let thread = thread::Builder::new().name("stage-metrics-signals".to_owned()).spawn(watch)?;
        *THREAD.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(Self { start, release })
    }

    /// Makes the final flush with `flusher` when a signal comes.
    pub(crate) fn start(self, flusher: &Arc<Flusher>) {
        let Self { start, release } = self;
        // The thread waits for this value.
        let _ = start.send(Arc::clone(flusher));
        let release = Mutex::new(Some(release));
        flusher.then(Box::new(move || drop(release.lock().unwrap_or_else(PoisonError::into_inner).take())));
    }
}

/// Installs handlers that follow [`BY_DEFAULT`] and set it. Handlers cannot be replaced by the former ones, so they are
/// installed once in a process.
fn handle(signal: i32) -> io::Result<()> {
    let mut handled = HANDLED.lock().unwrap_or_else(PoisonError::into_inner);
    if handled.contains(&signal) {
        return Ok(());
    }
    // In this order: the second signal must see the flag that the first one sets.
    if is_init() {
        flag::register_conditional_shutdown(signal, EXIT_BASE + signal, &BY_DEFAULT)?;
    } else {
        flag::register_conditional_default(signal, &BY_DEFAULT)?;
    }
    flag::register(signal, &BY_DEFAULT)?;
    handled.push(signal);
    Ok(())
}

/// Whether this is the first process of a container: the kernel ignores signals that it raises for itself.
fn is_init() -> bool {
    process::id() == 1
}

/// Ends the process by the signal.
fn reraise(signal: i32) {
    if !is_init() {
        // Returns only on failure.
        let _ = low_level::emulate_default_handler(signal);
    }
    process::exit(EXIT_BASE + signal);
}

/// Whether this signal was ignored when the process started (known on Linux only).
fn is_ignored(signal: i32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignored_mask(&status) & (1 << (signal - 1)) != 0
}

fn ignored_mask(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_signals_that_are_ignored() {
        assert_eq!(ignored_mask("Name:\tx\nSigBlk:\t0000000000000001\nSigIgn:\t0000000000001002\n"), 0x1002);
        assert_eq!(ignored_mask("Name:\tx\n"), 0);
    }
}
