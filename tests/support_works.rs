//! The helpers of the integration tests work against real servers, and each of their checks can fail.

// Clippy's exemption for tests reaches `#[test]` functions only, not the functions they share.
#![allow(clippy::unwrap_used)]

mod support;

#[path = "support_works/child_processes.rs"]
mod child_processes;
#[path = "support_works/exposition_text.rs"]
mod exposition_text;
#[path = "support_works/http_client.rs"]
mod http_client;
#[path = "support_works/mock_gateway.rs"]
mod mock_gateway;
#[cfg(feature = "pushgateway")]
#[path = "support_works/pipeline.rs"]
mod pipeline;
#[path = "support_works/real_servers.rs"]
mod real_servers;
#[path = "support_works/scripts.rs"]
mod scripts;
#[path = "support_works/template_and_log.rs"]
mod template_and_log;

/// Returns the panic message of the closure. Panics if the closure returns.
#[track_caller]
fn panic_of<T>(closure: impl FnOnce() -> T) -> String {
    let Err(payload) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(closure)) else {
        panic!("the closure did not panic");
    };
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}
