//! Which spans were entered while this thread was already unwinding, in a `Drop`: leaving them is no panic of theirs.
//!
//! Unless a second panic begins in such a span and is caught outside it, still within the `Drop`. That cannot be told: the
//! standard library says whether a thread panics, not how often, and a panic hook, which is the whole process's, sees a
//! panic begin but not where it is caught.

use std::cell::RefCell;

use super::state::SlotRef;

thread_local! {
    static ENTERED: RefCell<Vec<SlotRef>> = const { RefCell::new(Vec::new()) };
}

/// Entries kept. A guard made while unwinding and never dropped leaves one behind.
const MAX: usize = 1_024;

/// To call when a span is entered. Costs a load while nothing panics.
#[inline]
pub(crate) fn entered(span: impl FnOnce() -> SlotRef) {
    if std::thread::panicking() {
        let _ = ENTERED.try_with(|entered| {
            if let Ok(mut entered) = entered.try_borrow_mut()
                && entered.len() < MAX
            {
                entered.push(span());
            }
        });
    }
}

/// To call when a span is left: whether a panic unwinds through it.
#[inline]
pub(crate) fn exited(span: impl FnOnce() -> SlotRef) -> bool {
    std::thread::panicking() && !was_entered_unwinding(span())
}

#[cold]
fn was_entered_unwinding(span: SlotRef) -> bool {
    let span = ENTERED.try_with(|entered| {
        let mut entered = entered.try_borrow_mut().ok()?;
        let at = entered.iter().rposition(|known| *known == span)?;
        entered.remove(at);
        Some(())
    });
    matches!(span, Ok(Some(())))
}
