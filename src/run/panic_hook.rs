//! The final flush of a program that aborts at a panic.

use std::sync::Arc;
use std::{panic, thread};

use tracing::dispatcher;

use super::exit_reason::ExitReason;
use super::shutdown::Flusher;

/// Adds the final flush to the panic hook. The existing hook prints, which may block, so the flush runs on another thread at
/// the same time.
pub(crate) fn flush_in_panic_hook(flusher: &Arc<Flusher>) {
    let (flusher, before) = (Arc::clone(flusher), panic::take_hook());
    panic::set_hook(Box::new(move |info| {
        if flusher.is_own_thread() {
            // Other threads must not wait for this one any more.
            flusher.end_and_warn(ExitReason::Panicked);
            return before(info);
        }
        let flushing = Arc::clone(&flusher);
        let subscriber = dispatcher::get_default(Clone::clone);
        let end = move || dispatcher::with_default(&subscriber, || flushing.end_and_warn(ExitReason::Panicked));
        let thread = thread::Builder::new().name("metrics-panic".to_owned()).spawn(end);
        before(info);
        match thread {
            // The thread ends within the flush timeout.
            Ok(thread) => drop(thread.join()),
            Err(_) => flusher.end_and_warn(ExitReason::Panicked),
        }
    }));
}
