//! What the integration tests share: real servers, a gateway that misbehaves on demand, a strict reader of the
//! exposition text, child processes. `mod support;` in a test file brings it in; packages below this one name its path.
//!
//! Every helper that checks something has a test in `support_works.rs` that it can fail.

// Each test binary compiles all of this and uses a part of it; none of it is public to anyone.
#![allow(dead_code, unreachable_pub, unused_imports)]
// These modules are test code: clippy's exemptions for tests reach `#[test]` functions only, not what they call.
#![allow(clippy::expect_used, clippy::unwrap_used)]

pub mod child;
#[cfg(all(feature = "http", feature = "otlp"))]
pub mod collector;
pub mod example;
pub mod exposition;
pub mod http;
pub mod log;
#[cfg(feature = "pushgateway")]
pub mod measured;
pub mod mock_gateway;
#[cfg(feature = "pushgateway")]
pub mod pipeline;
pub mod process;
pub mod random;
pub mod servers;
#[cfg(target_os = "linux")]
pub mod sockets;
pub mod template;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

pub use mock_gateway::{MockGateway, Reply};
#[cfg(feature = "pushgateway")]
pub use pipeline::Pipeline;
pub use servers::{NodeExporter, Prometheus, Pushgateway};

/// How long a test waits for something that is bound to happen. Only a failing test waits this long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The directory of the workspace, which has the lock file: the test may be one of another package in it.
pub fn workspace() -> &'static Path {
    let mut directories = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    directories.find(|directory| directory.join("Cargo.lock").exists()).expect("a workspace")
}

/// A Pushgateway of this test's own; `None`, said out loud, where it is not installed.
#[track_caller]
pub fn pushgateway() -> Option<Pushgateway> {
    servers::installed(servers::PUSHGATEWAY).then(Pushgateway::start)
}

/// A Prometheus that scrapes the given `(job, address, honor_labels)`; `None`, said out loud, where it is not
/// installed.
#[track_caller]
pub fn prometheus(scrape: &[(&str, SocketAddr, bool)]) -> Option<Prometheus> {
    servers::installed(servers::PROMETHEUS).then(|| Prometheus::start(scrape))
}

/// A node_exporter that reads the text files of one directory; `None`, said out loud, where it is not installed.
#[track_caller]
pub fn node_exporter(textfile_dir: &Path) -> Option<NodeExporter> {
    servers::installed(servers::NODE_EXPORTER).then(|| NodeExporter::start(textfile_dir))
}

/// Waits for what happens on another thread or in another process.
#[track_caller]
pub fn await_true(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A loopback address on which nobody listens at the moment.
pub fn free_addr() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its number")
}
