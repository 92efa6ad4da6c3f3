//! What the table of open spans is synchronised with. The test that tries all interleavings of its operations puts
//! `loom`'s in its place.

pub(crate) use std::hint::spin_loop;
pub(crate) use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, fence};
pub(crate) use std::thread::yield_now;
