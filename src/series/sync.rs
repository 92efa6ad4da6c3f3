//! The synchronization primitives of `seqlock`. The test that explores all interleavings puts `loom`'s in their place.

pub(crate) use std::sync::atomic::{AtomicU64, fence};
pub(crate) use std::thread::yield_now;
