//! The synchronization primitives of the table of open spans. The test that explores all interleavings puts
//! `loom`'s in its place.

use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) use std::hint::spin_loop;
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, fence};
pub(crate) use std::thread::yield_now;

/// A flag that is raised once. Sequentially consistent: of a thread that writes something and then reads the flag, and one
/// that raises it and then reads what is written, at least one sees the other.
#[derive(Debug, Default)]
pub(crate) struct Flag(AtomicBool);

impl Flag {
    /// Whether this is the first call.
    pub(crate) fn raise(&self) -> bool {
        !self.0.swap(true, Ordering::SeqCst)
    }

    #[inline]
    pub(crate) fn is_raised(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
