//! The helpers of the integration tests do what they say against real servers, and every check can fail.

// Clippy's exemption for tests reaches `#[test]` functions only, not the functions they share.
#![allow(clippy::unwrap_used)]

mod support;

#[path = "support_works/child_processes.rs"]
mod child_processes;
#[path = "support_works/exposition_text.rs"]
mod exposition_text;
#[path = "support_works/http_client.rs"]
mod http_client;
#[cfg(feature = "pushgateway")]
#[path = "support_works/measured.rs"]
mod measured;
#[path = "support_works/mock.rs"]
mod mock;
#[path = "support_works/real_servers.rs"]
mod real_servers;
#[path = "support_works/scripts.rs"]
mod scripts;
#[path = "support_works/texts.rs"]
mod texts;

/// The message of the panic that the closure must end in.
#[track_caller]
fn panic_of<T>(closure: impl FnOnce() -> T) -> String {
    let Err(payload) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(closure)) else {
        panic!("it did not panic");
    };
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}
